//! Thresholds: what the configuration says about when the node is short of something.
//!
//! Pure. Keys and forms are the kubelet's: signals, quantities or percentages, `evictionHard` at once,
//! `evictionSoft` after its grace period.

use std::collections::BTreeMap;
use std::time::Duration;

use api::quantity::{Format, Quantity};

use crate::Config;
use crate::config::duration_text;
use crate::node_state::Pressure;

/// Something that the node may run out of. Ordered as shortages are seen to: memory first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Signal {
    MemoryAvailable,
    /// The same for what all pods may use together; it has the thresholds of `memory.available`.
    AllocatableMemoryAvailable,
    NodeFsAvailable,
    NodeFsInodesFree,
    ImageFsAvailable,
    ImageFsInodesFree,
    PidAvailable,
}

impl Signal {
    const NAMED: [(&'static str, Self); 6] = [
        ("memory.available", Self::MemoryAvailable),
        ("nodefs.available", Self::NodeFsAvailable),
        ("nodefs.inodesFree", Self::NodeFsInodesFree),
        ("imagefs.available", Self::ImageFsAvailable),
        ("imagefs.inodesFree", Self::ImageFsInodesFree),
        ("pid.available", Self::PidAvailable),
    ];

    fn parse(name: &str) -> Option<Self> {
        Self::NAMED.into_iter().find(|(known, _)| *known == name).map(|(_, signal)| signal)
    }

    /// The condition that a shortage is.
    pub(crate) fn pressure(self) -> Pressure {
        match self {
            Self::MemoryAvailable | Self::AllocatableMemoryAvailable => Pressure::Memory,
            Self::PidAvailable => Pressure::Pid,
            _ => Pressure::Disk,
        }
    }

    /// What is short, in the words of messages.
    pub(crate) fn resource(self) -> Resource {
        match self {
            Self::MemoryAvailable | Self::AllocatableMemoryAvailable => Resource::Memory,
            Self::NodeFsAvailable | Self::ImageFsAvailable => Resource::EphemeralStorage,
            Self::NodeFsInodesFree | Self::ImageFsInodesFree => Resource::Inodes,
            Self::PidAvailable => Resource::Pids,
        }
    }
}

/// What pods use of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resource {
    Memory,
    EphemeralStorage,
    Inodes,
    Pids,
}

impl Resource {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::EphemeralStorage => "ephemeral-storage",
            Self::Inodes => "inodes",
            Self::Pids => "pids",
        }
    }

    /// An amount of it as messages write it.
    pub(crate) fn quantity(self, amount: u64) -> Quantity {
        let format = match self {
            Self::Memory | Self::EphemeralStorage => Format::BinarySi,
            Self::Inodes | Self::Pids => Format::DecimalSi,
        };
        Quantity::from_units(i64::try_from(amount).unwrap_or(i64::MAX), format)
    }
}

/// So much, or so much of the whole.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Amount {
    Of(u64),
    Percent(f64),
}

impl Amount {
    fn parse(text: &str) -> Option<Self> {
        if let Some(number) = text.strip_suffix('%') {
            let percent: f64 = number.parse().ok()?;
            return (0.0..=100.0).contains(&percent).then_some(Self::Percent(percent));
        }
        u64::try_from(Quantity::parse(text).ok()?.value()).ok().map(Self::Of)
    }

    /// The amount where there are `capacity`.
    pub(crate) fn of(self, capacity: u64) -> u64 {
        match self {
            Self::Of(amount) => amount,
            Self::Percent(percent) => (capacity as f64 * percent / 100.0) as u64,
        }
    }
}

/// When the node is short of something.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Threshold {
    pub(crate) signal: Signal,
    /// Less than this is too little.
    pub(crate) value: Amount,
    /// How long it must have been too little before pods end; `None`: no time, and pods get none either.
    pub(crate) soft_grace: Option<Duration>,
    /// How much more than `value` there must be before it is enough again.
    pub(crate) minimum_reclaim: Option<Amount>,
}

/// What a signal says now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Observation {
    pub(crate) available: u64,
    pub(crate) capacity: u64,
}

/// Which key of the configuration is wrong, and how.
type Problem = (&'static str, String);

/// The thresholds of a configuration.
pub(crate) fn thresholds(config: &Config) -> Result<Vec<Threshold>, Problem> {
    let reclaim = amounts("evictionMinimumReclaim", &config.eviction_minimum_reclaim)?;
    let hard = amounts("evictionHard", &config.eviction_hard)?;
    let soft = amounts("evictionSoft", &config.eviction_soft)?;
    let mut grace = BTreeMap::new();
    for (name, text) in &config.eviction_soft_grace_period {
        let refused = |problem: String| ("evictionSoftGracePeriod", problem);
        let signal = Signal::parse(name).ok_or_else(|| refused(unknown(name)))?;
        let period = duration_text::parse(text).ok_or_else(|| {
            refused(format!("{name}: {text:?} is not a duration: write 30s or 1m30s as 90s"))
        })?;
        grace.insert(signal, period);
    }
    let mut thresholds = Vec::new();
    for (signal, value) in &hard {
        let minimum_reclaim = reclaim.get(signal).copied();
        thresholds.push(Threshold { signal: *signal, value: *value, soft_grace: None, minimum_reclaim });
    }
    for (signal, value) in &soft {
        let (minimum_reclaim, soft_grace) = (reclaim.get(signal).copied(), grace.get(signal).copied());
        if soft_grace.is_none() {
            let problem = "every signal of evictionSoft needs its evictionSoftGracePeriod".to_owned();
            return Err(("evictionSoftGracePeriod", problem));
        }
        thresholds.push(Threshold { signal: *signal, value: *value, soft_grace, minimum_reclaim });
    }
    let of_memory = |t: &&Threshold| t.signal == Signal::MemoryAvailable && t.soft_grace.is_none();
    if let Some(memory) = thresholds.iter().find(of_memory).cloned() {
        thresholds.push(Threshold { signal: Signal::AllocatableMemoryAvailable, ..memory });
    }
    thresholds.retain(|threshold| !matches!(threshold.value, Amount::Of(0) | Amount::Percent(0.0)));
    Ok(thresholds)
}

/// How much of a capacity pods do not get, because they would be evicted before they had it.
pub(crate) fn kept_back(config: &Config, signal: Signal, capacity: u64) -> u64 {
    let hard = amounts("evictionHard", &config.eviction_hard).unwrap_or_default();
    hard.get(&signal).map_or(0, |amount| amount.of(capacity))
}

fn amounts(key: &'static str, texts: &BTreeMap<String, String>) -> Result<BTreeMap<Signal, Amount>, Problem> {
    let mut amounts = BTreeMap::new();
    for (name, text) in texts {
        let signal = Signal::parse(name).ok_or_else(|| (key, unknown(name)))?;
        let amount = Amount::parse(text).ok_or_else(|| {
            (key, format!("{name}: {text:?} is neither a quantity nor a percentage: write 100Mi or 10%"))
        })?;
        amounts.insert(signal, amount);
    }
    Ok(amounts)
}

fn unknown(name: &str) -> String {
    let known: Vec<&str> = Signal::NAMED.iter().map(|(name, _)| *name).collect();
    format!("{name:?} is not a signal: use one of {}", known.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(extra: &str) -> Config {
        let minimal = "nodeName: n\ncontrolAddresses: [10.0.0.1:6443]\ninternalIp: 10.0.0.4\njoinToken: t\n";
        serde_saphyr::from_str(&format!("{minimal}{extra}")).unwrap()
    }

    #[test]
    fn the_defaults_are_the_kubelets() {
        let found = thresholds(&config("")).unwrap();
        let found: Vec<(Signal, Amount)> = found.into_iter().map(|t| (t.signal, t.value)).collect();
        assert_eq!(
            found,
            [
                (Signal::MemoryAvailable, Amount::Of(100 << 20)),
                (Signal::NodeFsAvailable, Amount::Percent(10.0)),
                (Signal::NodeFsInodesFree, Amount::Percent(5.0)),
                (Signal::ImageFsAvailable, Amount::Percent(15.0)),
                (Signal::ImageFsInodesFree, Amount::Percent(5.0)),
                (Signal::AllocatableMemoryAvailable, Amount::Of(100 << 20)),
            ]
        );
        assert_eq!(kept_back(&config(""), Signal::NodeFsAvailable, 1000), 100);
    }

    #[test]
    fn what_is_said_replaces_all_defaults_and_zero_is_never() {
        let found = thresholds(&config(
            "evictionHard: {pid.available: 1k, nodefs.available: 0%}\n\
             evictionSoft: {memory.available: 1.5Gi}\nevictionSoftGracePeriod: {memory.available: 90s}\n\
             evictionMinimumReclaim: {memory.available: 10%}\n",
        ))
        .unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].signal, found[0].value), (Signal::PidAvailable, Amount::Of(1000)));
        assert_eq!(
            found[1],
            Threshold {
                signal: Signal::MemoryAvailable,
                value: Amount::Of(3 << 29),
                soft_grace: Some(Duration::from_secs(90)),
                minimum_reclaim: Some(Amount::Percent(10.0)),
            }
        );
    }

    #[test]
    fn mistakes_name_their_key() {
        for (text, key) in [
            ("evictionHard: {memory.free: 1Gi}\n", "evictionHard"),
            ("evictionHard: {memory.available: 101%}\n", "evictionHard"),
            ("evictionSoft: {memory.available: 1Gi}\n", "evictionSoftGracePeriod"),
            ("evictionSoftGracePeriod: {memory.available: 1}\n", "evictionSoftGracePeriod"),
            ("evictionMinimumReclaim: {memory.available: -1}\n", "evictionMinimumReclaim"),
        ] {
            assert_eq!(thresholds(&config(text)).unwrap_err().0, key, "{text}");
        }
    }
}
