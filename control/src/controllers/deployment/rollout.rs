//! How a rollout moves pods from old ReplicaSets to the new one: numbers in, numbers out. Pure.
//!
//! The promises are those of the Kubernetes documentation of Deployments: never fewer than
//! `replicas - maxUnavailable` pods available, never more than `replicas + maxSurge` in all; a number that is
//! scaled in the middle of a rollout is shared in proportion. The second counts pods that are there, not numbers that were
//! asked for: new pods come only when every ReplicaSet's controller has said how many it has by now.

use k8s_openapi::api::apps::v1::DeploymentSpec;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// A ReplicaSet as a rollout sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) name: String,
    pub(super) created: String,
    /// How many pods it is to have.
    pub(super) replicas: i64,
    /// How many it has at most, by the word of its controller; `None`: that has not acted on its number yet.
    pub(super) present: Option<i64>,
    /// How many of them have been ready long enough.
    pub(super) available: i64,
    /// For how many of the Deployment's it was last scaled, and how many were allowed in all.
    pub(super) scaled_for: Option<(i64, i64)>,
}

/// What the Deployment asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) replicas: i64,
    /// Whether old pods go before new ones come.
    pub(super) is_recreate: bool,
    /// How many more there may be.
    pub(super) surge: i64,
    /// How many may be missing.
    pub(super) unavailable: i64,
}

/// A ReplicaSet's new number.
pub(super) type Scaling = (String, i64);

impl Wanted {
    pub(super) fn of(spec: &DeploymentSpec) -> Self {
        let replicas = i64::from(spec.replicas.unwrap_or(1));
        let strategy = spec.strategy.as_ref();
        if strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate") {
            return Self { replicas, is_recreate: true, surge: 0, unavailable: 0 };
        }
        let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
        let part = |amount: Option<&IntOrString>, round_up: bool| match amount {
            Some(IntOrString::Int(number)) => i64::from(*number),
            Some(IntOrString::String(text)) => {
                let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
                (replicas * percent + if round_up { 99 } else { 0 }) / 100
            }
            None => 0,
        };
        let surge = part(rolling.and_then(|rolling| rolling.max_surge.as_ref()), true);
        let unavailable = part(rolling.and_then(|rolling| rolling.max_unavailable.as_ref()), false);
        // Both may round to nothing; something has to move.
        let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
        Self { replicas, is_recreate: false, surge, unavailable: unavailable.min(replicas) }
    }

    /// Pods allowed in all.
    pub(super) fn most(&self) -> i64 {
        self.replicas + self.surge
    }

    /// Pods that must be available.
    fn least_available(&self) -> i64 {
        self.replicas - self.unavailable
    }

    /// How many pods the new set may have now, given those that all sets together have; `None`: nobody knows that yet.
    pub(super) fn new_replicas(&self, new: i64, present: Option<i64>) -> i64 {
        if self.is_recreate {
            return self.replicas;
        }
        let room = present.map_or(0, |present| (self.most() - present).max(0));
        new + room.min((self.replicas - new).max(0))
    }
}

fn total(sets: &[Set]) -> i64 {
    sets.iter().map(|set| set.replicas).sum()
}

/// The pods that the sets have, or will have without being told anything else.
pub(super) fn present<'a>(sets: impl IntoIterator<Item = &'a Set>) -> Option<i64> {
    sets.into_iter().map(|set| set.present.map(|present| present.max(set.replicas))).sum()
}

/// The next steps of a rolling update; none: it is through, or has to wait.
pub(super) fn roll(wanted: Wanted, new: &Set, old: &[Set]) -> Vec<Scaling> {
    let all = new.replicas + total(old);
    if new.replicas != wanted.replicas {
        let next = match new.replicas > wanted.replicas {
            true => wanted.replicas,
            false => wanted.new_replicas(new.replicas, present(old.iter().chain([new]))),
        };
        if next != new.replicas {
            return vec![(new.name.clone(), next)];
        }
    }
    shrink_old(wanted, new, old, all)
}

fn shrink_old(wanted: Wanted, new: &Set, old: &[Set], all: i64) -> Vec<Scaling> {
    let mut old: Vec<Set> = old.iter().filter(|set| set.replicas > 0).cloned().collect();
    let before = old.clone();
    old.sort_by(|a, b| a.created.cmp(&b.created));
    let new_unavailable = new.replicas - new.available;
    let mut removable = all - wanted.least_available() - new_unavailable;
    if removable <= 0 {
        return Vec::new();
    }
    // Pods that are of no use go first: nothing becomes worse by that.
    for set in &mut old {
        let useless = (set.replicas - set.available).clamp(0, removable);
        set.replicas -= useless;
        removable -= useless;
    }
    let available = new.available + old.iter().map(|set| set.available.min(set.replicas)).sum::<i64>();
    let mut spare = (available - wanted.least_available()).max(0);
    for set in &mut old {
        let go = set.replicas.min(spare);
        set.replicas -= go;
        spare -= go;
    }
    let changed = old.into_iter().filter(|set| !before.contains(set));
    changed.map(|set| (set.name, set.replicas)).collect()
}

/// What follows when the number itself changed, or while the rollout rests.
pub(super) fn scale(wanted: Wanted, new: Option<&Set>, old: &[Set]) -> Vec<Scaling> {
    let active: Vec<&Set> = old.iter().chain(new).filter(|set| set.replicas > 0).collect();
    let only = match active.as_slice() {
        [] => new.or_else(|| old.iter().max_by(|a, b| a.created.cmp(&b.created))),
        [only] => Some(*only),
        _ => None,
    };
    if let Some(only) = only {
        let differs = only.replicas != wanted.replicas;
        return differs.then(|| (only.name.clone(), wanted.replicas)).into_iter().collect();
    }
    if active.is_empty() {
        return Vec::new();
    }
    let is_through =
        new.is_some_and(|new| new.replicas == wanted.replicas && new.available == wanted.replicas);
    if is_through {
        let left = old.iter().filter(|set| set.replicas > 0);
        return left.map(|set| (set.name.clone(), 0)).collect();
    }
    if wanted.is_recreate {
        return Vec::new();
    }
    in_proportion(wanted, active)
}

fn in_proportion(wanted: Wanted, mut active: Vec<&Set>) -> Vec<Scaling> {
    let allowed = if wanted.replicas > 0 { wanted.most() } else { 0 };
    let all: i64 = active.iter().map(|set| set.replicas).sum();
    let mut left = allowed - all;
    // The largest first; of equals the newest when there is something to give, the oldest to take from.
    active.sort_by(|a, b| {
        let by_age = if left > 0 { b.created.cmp(&a.created) } else { a.created.cmp(&b.created) };
        b.replicas.cmp(&a.replicas).then(by_age)
    });
    let mut scaled: Vec<Scaling> = Vec::new();
    for set in &active {
        let (_, most_then) = set.scaled_for.unwrap_or((all, all));
        let fair = div_round(set.replicas * wanted.most(), most_then.max(1)) - set.replicas;
        let change = if left > 0 { fair.clamp(0, left) } else { fair.clamp(left, 0) };
        left -= change;
        scaled.push((set.name.clone(), set.replicas + change));
    }
    if let Some((_, replicas)) = scaled.first_mut() {
        *replicas = (*replicas + left).max(0);
    }
    let of = |name: &str| active.iter().find(|set| set.name == name).map(|set| set.replicas);
    scaled.retain(|(name, replicas)| of(name) != Some(*replicas));
    scaled
}

fn div_round(number: i64, by: i64) -> i64 {
    (number * 2 + by) / (by * 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str, replicas: i64, available: i64) -> Set {
        let (name, present) = (name.to_owned(), Some(replicas));
        Set { created: name.clone(), name, replicas, present, available, scaled_for: None }
    }

    fn rolling(replicas: i64, surge: i64, unavailable: i64) -> Wanted {
        Wanted { replicas, is_recreate: false, surge, unavailable }
    }

    #[test]
    fn percentages_round_so_that_something_can_move() {
        let spec = |surge: &str, unavailable: &str, replicas: i32| -> DeploymentSpec {
            serde_json::from_value(serde_json::json!({"replicas": replicas, "selector": {}, "template": {},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}))
            .expect("a spec")
        };
        assert_eq!(Wanted::of(&spec("25%", "25%", 3)), rolling(3, 1, 0));
        assert_eq!(Wanted::of(&spec("25%", "25%", 10)), rolling(10, 3, 2));
        assert_eq!(Wanted::of(&spec("0%", "25%", 3)), rolling(3, 0, 1));
        assert_eq!(Wanted::of(&spec("0%", "100%", 0)), rolling(0, 0, 0));
    }

    /// Plays a rollout to its end, pods becoming ready one by one, each set's controller acting only when nothing else is
    /// to be done, the last one first; checks both bounds at each step.
    fn play(wanted: Wanted, mut sets: Vec<Set>) -> usize {
        let mut pods: Vec<i64> = sets.iter().map(|set| set.replicas).collect();
        for step in 0..1000 {
            let (new, old) = sets.split_last().expect("a new set");
            let scalings = roll(wanted, new, old);
            if scalings.is_empty()
                && let Some(late) = sets.iter().rposition(|set| set.present.is_none())
            {
                pods[late] = sets[late].replicas;
                sets[late].present = Some(pods[late]);
                assert!(pods.iter().sum::<i64>() <= wanted.most(), "{pods:?} {sets:?}");
                continue;
            }
            if scalings.is_empty() {
                let Some(waiting) = sets.iter_mut().find(|set| set.available < set.replicas) else {
                    let (new, old) = sets.split_last().expect("a new set");
                    assert_eq!((new.replicas, total(old)), (wanted.replicas, 0));
                    return step;
                };
                waiting.available += 1;
                continue;
            }
            for (name, replicas) in scalings {
                let set = sets.iter_mut().find(|set| set.name == name).expect("known");
                set.replicas = replicas;
                set.present = None;
                set.available = set.available.min(replicas);
            }
            assert!(total(&sets) <= wanted.most(), "{sets:?}");
            let available: i64 = sets.iter().map(|set| set.available).sum();
            assert!(available >= wanted.replicas - wanted.unavailable, "{sets:?}");
        }
        panic!("never through: {sets:?}");
    }

    #[test]
    fn a_rollout_ends_within_its_bounds() {
        for replicas in 0..12 {
            for surge in 0..4 {
                for unavailable in 0..=3.min(replicas) {
                    if surge == 0 && unavailable == 0 && replicas > 0 {
                        continue;
                    }
                    let sets = vec![set("a", replicas, replicas), set("b", 0, 0)];
                    play(rolling(replicas, surge, unavailable), sets);
                }
            }
        }
        play(rolling(10, 3, 2), vec![set("a", 4, 4), set("b", 4, 4), set("c", 2, 0)]);
    }

    #[test]
    fn broken_old_pods_go_first() {
        // Three of the old ones never became ready, the new ones cannot be: still the broken ones may go.
        let scalings = roll(rolling(10, 3, 2), &set("new", 3, 0), &[set("old", 10, 8)]);
        assert_eq!(scalings, [("old".to_owned(), 8)]);
        // Which makes room for new ones, and then everything waits.
        assert_eq!(roll(rolling(10, 3, 2), &set("new", 3, 0), &[set("old", 8, 8)]), [("new".to_owned(), 5)]);
        assert!(roll(rolling(10, 3, 2), &set("new", 5, 0), &[set("old", 8, 8)]).is_empty());
    }

    #[test]
    fn a_new_number_in_the_middle_is_shared_in_proportion() {
        let scaled =
            |name: &str, replicas| Set { scaled_for: Some((10, 13)), ..set(name, replicas, replicas) };
        let scalings = scale(rolling(20, 5, 5), Some(&scaled("new", 5)), &[scaled("old", 8)]);
        let all: i64 = scalings.iter().map(|(_, replicas)| replicas).sum();
        assert_eq!(all, 25, "{scalings:?}");
        assert!(scalings.contains(&("old".to_owned(), 15)), "{scalings:?}");
        let down = scale(rolling(0, 0, 0), Some(&scaled("new", 5)), &[scaled("old", 8)]);
        assert_eq!(down.iter().map(|(_, replicas)| replicas).sum::<i64>(), 0, "{down:?}");
        assert_eq!(
            scale(rolling(3, 1, 0), Some(&set("new", 1, 1)), &[set("old", 0, 0)]),
            [("new".to_owned(), 3)]
        );
        assert_eq!(
            scale(rolling(3, 1, 0), Some(&set("new", 3, 3)), &[set("old", 2, 2)]),
            [("old".to_owned(), 0)]
        );
    }
}
