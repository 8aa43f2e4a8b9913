//! What a StatefulSet does next. Pure.
//!
//! The order is that of Kubernetes' documentation ("Deployment and Scaling Guarantees", "Rolling Updates"): pods
//! are made from the first to the last and taken away from the last to the first, one at a time and only while
//! all before them are ready, unless the policy is `Parallel`. Pods of an old revision are replaced from the last
//! to the partition.

use serde_json::Value;

/// What a turn does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing, until something changes.
    Wait,
    /// Make these pods, each of a revision.
    Make(Vec<(i64, String)>),
    /// Delete the pods with these ordinals.
    Remove(Vec<i64>),
}

/// A pod that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) ordinal: i64,
    /// The name of the revision that it was made of.
    pub(super) revision: String,
    pub(super) is_ready: bool,
    pub(super) is_available: bool,
    pub(super) has_ended: bool,
    pub(super) is_terminating: bool,
}

/// What is there, and what is asked for.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) members: Vec<Member>,
    pub(super) start: i64,
    pub(super) replicas: i64,
    pub(super) is_parallel: bool,
    pub(super) partition: i64,
    /// How many pods may be missing during an update.
    pub(super) unavailable_max: i64,
    pub(super) is_on_delete: bool,
    pub(super) current: String,
    pub(super) update: String,
}

impl Facts {
    /// Whether a pod of that ordinal should be there.
    pub(super) fn is_wanted(&self, ordinal: i64) -> bool {
        (self.start..self.start.saturating_add(self.replicas)).contains(&ordinal)
    }

    fn member(&self, ordinal: i64) -> Option<&Member> {
        self.members.iter().find(|member| member.ordinal == ordinal)
    }

    /// Of which revision a pod made now is. Below the partition it stays what it was.
    fn revision_for(&self, ordinal: i64) -> &str {
        let keeps = !self.is_on_delete && ordinal - self.start < self.partition;
        if keeps { &self.current } else { &self.update }
    }
}

impl Member {
    fn is_healthy(&self) -> bool {
        self.is_available && !self.is_terminating && !self.has_ended
    }
}

/// A number or a percentage (rounded up) of the replicas, at least one.
pub(super) fn at_most(value: &Value, replicas: i64) -> i64 {
    let number = match value {
        Value::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            percent.saturating_mul(replicas).saturating_add(99) / 100
        }
        other => other.as_i64().unwrap_or(1),
    };
    number.max(1)
}

/// Whether every pod that is wanted is there, ready, and of the newest revision.
pub(super) fn is_rolled_out(facts: &Facts) -> bool {
    if facts.is_on_delete || facts.partition > 0 {
        return facts.current == facts.update;
    }
    let wanted = facts.start..facts.start.saturating_add(facts.replicas);
    wanted.into_iter().all(|ordinal| {
        facts.member(ordinal).is_some_and(|member| member.is_healthy() && member.revision == facts.update)
    }) && facts.members.iter().all(|member| facts.is_wanted(member.ordinal))
}

/// The next thing to do.
pub(super) fn next(facts: &Facts) -> Step {
    let wanted: Vec<i64> = (facts.start..facts.start.saturating_add(facts.replicas)).collect();
    // Whoever has ended makes room for its successor.
    let ended: Vec<i64> = wanted
        .iter()
        .copied()
        .filter(|ordinal| facts.member(*ordinal).is_some_and(|m| m.has_ended && !m.is_terminating))
        .collect();
    if let Some(first) = ended.first() {
        return Step::Remove(if facts.is_parallel { ended } else { vec![*first] });
    }
    if facts.is_parallel {
        let make: Vec<(i64, String)> = wanted
            .iter()
            .filter(|ordinal| facts.member(**ordinal).is_none())
            .map(|ordinal| (*ordinal, facts.revision_for(*ordinal).to_owned()))
            .collect();
        if !make.is_empty() {
            return Step::Make(make);
        }
    } else {
        for ordinal in &wanted {
            match facts.member(*ordinal) {
                None => return Step::Make(vec![(*ordinal, facts.revision_for(*ordinal).to_owned())]),
                Some(member) if member.is_terminating => return Step::Wait,
                // A pod that never got ready may be of a broken revision: it is replaced below.
                Some(member) if !member.is_healthy() => return replace(facts, Some(*ordinal)),
                Some(_) => {}
            }
        }
    }
    let mut surplus: Vec<&Member> =
        facts.members.iter().filter(|member| !facts.is_wanted(member.ordinal)).collect();
    surplus.sort_by_key(|member| -member.ordinal);
    if facts.is_parallel {
        let go: Vec<i64> = surplus.iter().filter(|m| !m.is_terminating).map(|m| m.ordinal).collect();
        if !go.is_empty() {
            return Step::Remove(go);
        }
    } else if let Some(last) = surplus.first() {
        return if last.is_terminating { Step::Wait } else { Step::Remove(vec![last.ordinal]) };
    }
    replace(facts, None)
}

/// Replaces pods of an old revision, the last first. While one is not healthy, only that one may go.
fn replace(facts: &Facts, unhealthy: Option<i64>) -> Step {
    if facts.is_on_delete {
        return Step::Wait;
    }
    let mut missing = 0;
    let mut go = Vec::new();
    let lowest = facts.start + facts.partition.max(0);
    for ordinal in (lowest..facts.start.saturating_add(facts.replicas)).rev() {
        let Some(member) = facts.member(ordinal) else {
            missing += 1;
            continue;
        };
        if member.revision != facts.update && !member.is_terminating {
            let is_allowed = unhealthy.is_none_or(|only| only == ordinal);
            if missing < facts.unavailable_max && is_allowed {
                missing += 1;
                go.push(ordinal);
                continue;
            }
        }
        if !member.is_healthy() {
            missing += 1;
        }
        if missing >= facts.unavailable_max {
            break;
        }
    }
    if go.is_empty() { Step::Wait } else { Step::Remove(go) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(replicas: i64, members: Vec<Member>) -> Facts {
        Facts {
            members,
            start: 0,
            replicas,
            is_parallel: false,
            partition: 0,
            unavailable_max: 1,
            is_on_delete: false,
            current: "r1".into(),
            update: "r1".into(),
        }
    }

    fn ready(ordinal: i64, revision: &str) -> Member {
        Member {
            ordinal,
            revision: revision.into(),
            is_ready: true,
            is_available: true,
            has_ended: false,
            is_terminating: false,
        }
    }

    fn waiting(ordinal: i64, revision: &str) -> Member {
        Member { is_ready: false, is_available: false, ..ready(ordinal, revision) }
    }

    #[test]
    fn pods_come_one_by_one_and_go_from_the_last() {
        assert_eq!(next(&facts(3, vec![])), Step::Make(vec![(0, "r1".into())]));
        assert_eq!(next(&facts(3, vec![waiting(0, "r1")])), Step::Wait);
        assert_eq!(next(&facts(3, vec![ready(0, "r1")])), Step::Make(vec![(1, "r1".into())]));
        let all = vec![ready(0, "r1"), ready(1, "r1"), ready(2, "r1")];
        assert_eq!(next(&facts(3, all.clone())), Step::Wait);
        assert_eq!(next(&facts(1, all.clone())), Step::Remove(vec![2]));
        let mut ending = all.clone();
        ending[2].is_terminating = true;
        assert_eq!(next(&facts(1, ending)), Step::Wait);
        let parallel = Facts { is_parallel: true, ..facts(1, all) };
        assert_eq!(next(&parallel), Step::Remove(vec![2, 1]));
    }

    #[test]
    fn a_pod_that_ended_is_made_anew() {
        let mut members = vec![ready(0, "r1"), ready(1, "r1")];
        members[0].has_ended = true;
        assert_eq!(next(&facts(2, members)), Step::Remove(vec![0]));
    }

    #[test]
    fn an_update_goes_from_the_last_to_the_partition() {
        let old = vec![ready(0, "r1"), ready(1, "r1"), ready(2, "r1")];
        let update = |members| Facts { update: "r2".into(), ..facts(3, members) };
        assert_eq!(next(&update(old.clone())), Step::Remove(vec![2]));
        let mut one = old.clone();
        one[2] = waiting(2, "r2");
        assert_eq!(next(&update(one)), Step::Wait);
        let mut one = old.clone();
        one[2] = ready(2, "r2");
        assert_eq!(next(&update(one.clone())), Step::Remove(vec![1]));
        assert_eq!(next(&Facts { partition: 2, ..update(one.clone()) }), Step::Wait);
        assert_eq!(next(&Facts { is_on_delete: true, ..update(one) }), Step::Wait);
        assert_eq!(next(&Facts { unavailable_max: 2, ..update(old) }), Step::Remove(vec![2, 1]));
    }

    #[test]
    fn a_pod_of_a_broken_revision_does_not_block_the_next() {
        let broken = vec![ready(0, "r1"), waiting(1, "r1")];
        let mended = Facts { update: "r2".into(), ..facts(2, broken) };
        assert_eq!(next(&mended), Step::Remove(vec![1]));
    }

    #[test]
    fn whatever_the_start_it_converges() {
        for replicas in 0..4 {
            for is_parallel in [false, true] {
                for seed in 0..256_u32 {
                    let members = (0..4).filter(|n| seed >> (2 * n) & 1 == 1).map(|n| {
                        let revision = if seed >> (2 * n + 1) & 1 == 1 { "r2" } else { "r1" };
                        ready(i64::from(n), revision)
                    });
                    let mut now =
                        Facts { update: "r2".into(), is_parallel, ..facts(replicas, members.collect()) };
                    let mut steps = 0;
                    loop {
                        match next(&now) {
                            Step::Wait => break,
                            Step::Make(made) => {
                                now.members.extend(made.into_iter().map(|(n, revision)| ready(n, &revision)));
                            }
                            Step::Remove(go) => now.members.retain(|member| !go.contains(&member.ordinal)),
                        }
                        steps += 1;
                        assert!(steps < 32, "{now:?}");
                    }
                    assert!(is_rolled_out(&now), "{now:?}");
                    assert_eq!(now.members.len() as i64, replicas);
                }
            }
        }
    }
}
