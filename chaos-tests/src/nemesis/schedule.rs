//! When which fault begins and ends: written out, or drawn from a seed. The same seed gives the same plan.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde::{Deserialize, Deserializer};

use super::{Fault, LASTING};

/// Whom a fault befalls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Of {
    /// Whoever leads when it begins.
    Leader,
    /// One who does not.
    Follower,
    /// Any one.
    One,
    /// As many as can be missed.
    Minority,
    /// As many as cannot.
    Majority,
    /// Everybody.
    All,
    /// Any node of a cluster.
    Node,
    /// All nodes of a cluster.
    Nodes,
    /// The one of that name, as in `m2`, or in a cluster `master-2` or `node-2`.
    Member(String),
}

impl<'de> Deserialize<'de> for Of {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(match text.as_str() {
            "leader" => Self::Leader,
            "follower" => Self::Follower,
            "one" => Self::One,
            "minority" => Self::Minority,
            "majority" => Self::Majority,
            "all" => Self::All,
            "node" => Self::Node,
            "nodes" => Self::Nodes,
            name if ["m", "master-", "node-"]
                .iter()
                .any(|word| name.strip_prefix(word).is_some_and(|number| number.parse::<u8>().is_ok())) =>
            {
                Self::Member(text)
            }
            other => {
                let reason = format!(
                    "{other:?} is nobody: write leader, follower, one, minority, majority, all, node, nodes, or a name as \
                     m2, master-2, node-2"
                );
                return Err(serde::de::Error::custom(reason));
            }
        })
    }
}

/// One fault of a plan.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// When it begins, after the load did.
    #[serde(deserialize_with = "duration")]
    pub at: Duration,
    /// What.
    pub fault: Fault,
    /// To whom.
    #[serde(default = "default_of")]
    pub of: Of,
    /// How long.
    #[serde(rename = "for", default = "default_lasting", deserialize_with = "duration")]
    pub lasting: Duration,
    /// For delay and disk-slow.
    #[serde(default = "default_delay", deserialize_with = "duration")]
    pub delay: Duration,
    /// For delay.
    #[serde(default = "default_delay", deserialize_with = "duration")]
    pub jitter: Duration,
    /// For loss.
    #[serde(default = "default_probability")]
    pub probability: f64,
    /// For bandwidth.
    #[serde(default = "default_bandwidth")]
    pub bytes_per_second: u64,
}

impl Entry {
    /// A fault with everything else as it is by default.
    pub fn new(at: Duration, fault: Fault, of: Of, lasting: Duration) -> Self {
        Self {
            at,
            fault,
            of,
            lasting,
            delay: default_delay(),
            jitter: default_delay(),
            probability: default_probability(),
            bytes_per_second: default_bandwidth(),
        }
    }
}

fn default_of() -> Of {
    Of::One
}

fn default_lasting() -> Duration {
    LASTING
}

fn default_delay() -> Duration {
    Duration::from_millis(50)
}

fn default_probability() -> f64 {
    0.3
}

fn default_bandwidth() -> u64 {
    50_000
}

/// Faults drawn at random.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Random {
    /// Which.
    pub faults: Vec<Fault>,
    /// From one beginning to the next, on average.
    #[serde(default = "default_every", deserialize_with = "duration")]
    pub every: Duration,
    /// How long each lasts at most.
    #[serde(default = "default_lasting", deserialize_with = "duration")]
    pub lasting: Duration,
    /// Whom, drawn as well; without it the leader, a follower or anybody.
    #[serde(default)]
    pub of: Vec<Of>,
}

fn default_every() -> Duration {
    Duration::from_secs(2)
}

/// How many of a random plan's first faults are drawn without repetition: each kind comes once before any comes twice.
fn shuffled(faults: &[Fault], random: &mut StdRng) -> Vec<Fault> {
    let mut rest = faults.to_vec();
    let mut order = Vec::new();
    while !rest.is_empty() {
        order.push(rest.swap_remove(random.random_range(0..rest.len())));
    }
    order
}

/// Draws a plan for a run of that length.
pub fn draw(random: &Random, seed: u64, duration: Duration) -> Vec<Entry> {
    let mut numbers = StdRng::seed_from_u64(seed);
    let (mut plan, mut at, mut next) = (Vec::new(), Duration::ZERO, Vec::new());
    loop {
        at += random.every.mul_f64(numbers.random_range(0.5..1.5));
        if random.faults.is_empty() || at >= duration {
            return plan;
        }
        if next.is_empty() {
            next = shuffled(&random.faults, &mut numbers);
        }
        let Some(fault) = next.pop() else { return plan };
        let of = match numbers.random_range(0..10) {
            number if !random.of.is_empty() => random.of[number % random.of.len()].clone(),
            0..4 => Of::Leader,
            4..6 => Of::Follower,
            _ => Of::One,
        };
        let of = if matches!(fault, Fault::KillAll | Fault::PowerCut | Fault::RollingRestart) {
            Of::All
        } else {
            of
        };
        let lasting = random.lasting.mul_f64(numbers.random_range(0.1..1.0));
        plan.push(Entry::new(at, fault, of, lasting.min(duration.saturating_sub(at))));
    }
}

/// Begins and ends of a plan in their order: when, which entry, whether it begins.
pub fn moments(plan: &[Entry]) -> Vec<(Duration, usize, bool)> {
    let mut moments: Vec<_> = plan
        .iter()
        .enumerate()
        .flat_map(|(number, entry)| [(entry.at, number, true), (entry.at + entry.lasting, number, false)])
        .collect();
    // Of what happens at one moment, ends come first.
    moments.sort_by_key(|(at, number, begins)| (*at, *begins, *number));
    moments
}

/// Reads `150ms`, `2s`, `1.5s`, `3m`.
pub(crate) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_duration(&text).ok_or_else(|| {
        serde::de::Error::custom(format!("{text:?} is no time: write a number and ms, s or m, as in 150ms"))
    })
}

/// The same for flags.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: f64 = digits.parse().ok().filter(|number: &f64| (0.0..1e9).contains(number))?;
    let seconds = match &text[digits.len()..] {
        "ms" => number / 1e3,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => return None,
    };
    Some(Duration::from_secs_f64(seconds))
}
