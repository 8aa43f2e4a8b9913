//! How fast a number of replicas may follow what its metrics ask for.
//!
//! Owns the history of one autoscaler: what was proposed lately, and what was done. Pure: the caller says what
//! time it is. Rules, defaults, reasons and messages are those of the Kubernetes documentation ("Horizontal Pod
//! Autoscaling", section "Configurable scaling behavior").

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscalerBehavior};

/// How long a lower proposal has to be the highest before it counts, unless the autoscaler says otherwise.
const DOWN_WINDOW: Duration = Duration::from_secs(300);
/// The longest window and period that validation lets through; nothing older is remembered.
const MEMORY: Duration = Duration::from_secs(3600);

/// What one autoscaler remembers. It is lost with the leader; the next one begins with what is.
#[derive(Debug, Default, Clone)]
pub(super) struct History {
    proposals: Vec<(Timestamp, i32)>,
    added: Vec<(Timestamp, i32)>,
    removed: Vec<(Timestamp, i32)>,
}

/// A reason and a message, as a condition carries them.
pub(super) type Word = (&'static str, &'static str);

/// What became of a proposal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settled {
    /// How many replicas there should be now.
    pub(super) replicas: i32,
    /// For the condition `AbleToScale`.
    pub(super) able: Word,
    /// For the condition `ScalingLimited`, and whether it is.
    pub(super) limited: (bool, Word),
}

/// Between what numbers replicas may be, and how many there are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) current: i32,
    pub(super) min: i32,
    pub(super) max: i32,
}

struct Rules {
    window: Duration,
    /// `Min`, `Max` or `Disabled`.
    select: String,
    policies: Vec<HPAScalingPolicy>,
}

impl History {
    /// Notes how many replicas there are when the autoscaler is seen first.
    pub(super) fn begin(&mut self, now: Timestamp, current: i32) {
        if self.proposals.is_empty() {
            self.proposals.push((now, current));
        }
    }

    /// Notes a change that was made.
    pub(super) fn scaled(&mut self, now: Timestamp, from: i32, to: i32) {
        match to > from {
            true => self.added.push((now, to - from)),
            false => self.removed.push((now, from - to)),
        }
    }

    /// What becomes of a proposal now.
    pub(super) fn settle(
        &mut self,
        behavior: Option<&HorizontalPodAutoscalerBehavior>,
        bounds: Bounds,
        proposed: i32,
        now: Timestamp,
    ) -> Settled {
        self.forget(now);
        let up = up_rules(behavior.and_then(|behavior| behavior.scale_up.as_ref()));
        let down = down_rules(behavior.and_then(|behavior| behavior.scale_down.as_ref()));
        let stable = self.stabilize(bounds.current, proposed, (up.window, down.window), now);
        self.proposals.push((now, proposed));
        let able = match stable.cmp(&proposed) {
            std::cmp::Ordering::Equal => ("ReadyForNewScale", "recommended size matches current size"),
            std::cmp::Ordering::Greater => (
                "ScaleDownStabilized",
                "recent recommendations were higher than current one, applying the highest recent recommendation",
            ),
            std::cmp::Ordering::Less => (
                "ScaleUpStabilized",
                "recent recommendations were lower than current one, applying the lowest recent recommendation",
            ),
        };
        let (replicas, limited) = self.bound(&up, &down, bounds, stable, now);
        Settled { replicas, able, limited }
    }

    fn forget(&mut self, now: Timestamp) {
        for list in [&mut self.proposals, &mut self.added, &mut self.removed] {
            list.retain(|(at, _)| is_within(*at, now, MEMORY));
        }
    }

    fn stabilize(
        &self,
        current: i32,
        proposed: i32,
        (up, down): (Duration, Duration),
        now: Timestamp,
    ) -> i32 {
        let lately = |window: Duration| {
            self.proposals
                .iter()
                .filter(move |(at, _)| is_within(*at, now, window))
                .map(|(_, number)| *number)
        };
        let lowest = lately(up).fold(proposed, i32::min);
        let highest = lately(down).fold(proposed, i32::max);
        current.max(lowest).min(highest)
    }

    /// Holds a number between the bounds and to the speed that is allowed.
    fn bound(
        &self,
        up: &Rules,
        down: &Rules,
        bounds: Bounds,
        wanted: i32,
        now: Timestamp,
    ) -> (i32, (bool, Word)) {
        let Bounds { current, min, max } = bounds;
        if wanted > current {
            let fastest = self.limit(up, current, now, true).max(current);
            if wanted > fastest.min(max) {
                let word = match max > fastest {
                    true => (
                        "ScaleUpLimit",
                        "the desired replica count is increasing faster than the maximum scale rate",
                    ),
                    false => (
                        "TooManyReplicas",
                        "the desired replica count is more than the maximum replica count",
                    ),
                };
                return (fastest.min(max), (true, word));
            }
        } else if wanted < current {
            let slowest = self.limit(down, current, now, false).min(current);
            if wanted < slowest.max(min) {
                let word = match min < slowest {
                    true => (
                        "ScaleDownLimit",
                        "the desired replica count is decreasing faster than the maximum scale rate",
                    ),
                    false => {
                        ("TooFewReplicas", "the desired replica count is less than the minimum replica count")
                    }
                };
                return (slowest.max(min), (true, word));
            }
        }
        (wanted, (false, ("DesiredWithinRange", "the desired count is within the acceptable range")))
    }

    /// The number that the policies of one direction allow at most (up) or at least (down).
    fn limit(&self, rules: &Rules, current: i32, now: Timestamp, is_up: bool) -> i32 {
        if rules.select == "Disabled" {
            return current;
        }
        let sum = |list: &[(Timestamp, i32)], period: Duration| -> i32 {
            list.iter().filter(|(at, _)| is_within(*at, now, period)).map(|(_, change)| *change).sum()
        };
        let limits = rules.policies.iter().map(|policy| {
            let period = Duration::from_secs(u64::try_from(policy.period_seconds).unwrap_or(0));
            let began = current - sum(&self.added, period) + sum(&self.removed, period);
            let share = f64::from(began) * f64::from(policy.value) / 100.0;
            match (policy.type_.as_str(), is_up) {
                ("Pods", true) => began.saturating_add(policy.value),
                ("Pods", false) => began.saturating_sub(policy.value),
                (_, true) => whole((f64::from(began) + share).ceil()),
                (_, false) => whole((f64::from(began) - share).trunc()),
            }
        });
        // "Max" is the policy that allows the larger change.
        let limit = match (rules.select == "Min") != is_up {
            true => limits.max(),
            false => limits.min(),
        };
        limit.unwrap_or(current)
    }
}

fn whole(number: f64) -> i32 {
    // Saturates: a conversion between floats and integers never wraps.
    number as i32
}

fn is_within(at: Timestamp, now: Timestamp, window: Duration) -> bool {
    let age = now.duration_since(at);
    age.is_negative() || Duration::try_from(age).is_ok_and(|age| age < window)
}

fn policy(type_: &str, value: i32) -> HPAScalingPolicy {
    HPAScalingPolicy { type_: type_.to_owned(), value, period_seconds: 15 }
}

fn up_rules(rules: Option<&HPAScalingRules>) -> Rules {
    of(rules, Duration::ZERO, vec![policy("Pods", 4), policy("Percent", 100)])
}

fn down_rules(rules: Option<&HPAScalingRules>) -> Rules {
    of(rules, DOWN_WINDOW, vec![policy("Percent", 100)])
}

fn of(rules: Option<&HPAScalingRules>, window: Duration, policies: Vec<HPAScalingPolicy>) -> Rules {
    let own = rules.and_then(|rules| rules.policies.clone()).filter(|policies| !policies.is_empty());
    let seconds = rules.and_then(|rules| rules.stabilization_window_seconds);
    Rules {
        window: seconds.map_or(window, |seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0))),
        select: rules.and_then(|rules| rules.select_policy.clone()).unwrap_or_else(|| "Max".to_owned()),
        policies: own.unwrap_or(policies),
    }
}
