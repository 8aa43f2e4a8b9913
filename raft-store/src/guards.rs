//! What a member watches in itself and in the others while all seems well.
//!
//! - The leader compares the members' states once a minute: each hashes its keys at one revision. Who differs
//!   from the majority gets the alarm CORRUPT; then nobody serves reads or takes writes until an operator has
//!   replaced it and cleared the alarm, as in etcd.
//! - A leader whose own disk has become slow or full hands its leadership over: it acknowledges as fast as any majority
//!   anyhow, but its own flush delays every election and every snapshot behind it.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use proto::raft as wire;
use state_machine::{Alarm, AlarmAction, AlarmKind, Command};
use tokio::time::Instant;

use crate::raft::MemberId;
use crate::store::Store;

/// How long a member may take to come to the revision and hash it.
const HASH_TIMEOUT: Duration = Duration::from_secs(5);
const HASH_POLL: Duration = Duration::from_millis(10);
/// Between two looks at the disk.
const LOOK_PAUSE: Duration = Duration::from_millis(500);
/// Half of a disk's flushes take longer than this: it is slow…
const SLOW_SYNC: Duration = Duration::from_millis(200);
/// …and it has been for so long.
const SLOW_FOR: Duration = Duration::from_secs(4);
/// A leadership that came back although the disk is slow stays for so long.
const HANDOVER_PAUSE: Duration = Duration::from_secs(60);

/// A member's keys at one revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Hash {
    compact_revision: u64,
    hash: u64,
}

impl Store {
    /// Hashes this member's keys at a revision, once it has come there.
    pub(crate) async fn hash_at(&self, revision: u64) -> Result<wire::StateHashResponse, String> {
        let deadline = Instant::now() + HASH_TIMEOUT;
        while self.revision() < revision {
            if Instant::now() >= deadline {
                return Err(format!("revision {revision} did not come"));
            }
            tokio::time::sleep(HASH_POLL).await;
        }
        let found = self.hash_kv(revision).map_err(|error| error.to_string())?;
        let (hash, compact_revision) = (found.hash, found.compact_revision);
        Ok(wire::StateHashResponse { revision: found.revision, compact_revision, hash })
    }

    async fn compare_hashes(&self) {
        let revision = self.revision();
        let members: Vec<(MemberId, String)> =
            self.members().into_iter().map(|status| (status.id, status.member.address)).collect();
        let asked = members.iter().map(|(id, address)| self.ask_hash(*id, address, revision));
        let answers = join_all(asked).await;
        let mut hashes = BTreeMap::new();
        for ((id, _), answer) in members.iter().zip(answers) {
            match answer {
                Ok(answer) => {
                    let (compact_revision, hash) = (answer.compact_revision, answer.hash);
                    hashes.insert(*id, Hash { compact_revision, hash });
                }
                Err(reason) => tracing::debug!(member_id = %format!("{id:x}"), reason, "no hash to compare"),
            }
        }
        for member_id in minority(&hashes) {
            tracing::error!(
                member_id = %format!("{member_id:x}"), revision, ?hashes,
                "this member's state differs from the others': its disk or memory is damaged. Replace it: remove \
                 it, add a new one with an empty directory, then clear the alarm CORRUPT"
            );
            let alarm = Alarm { kind: AlarmKind::Corrupt, member_id };
            let command = Command::Alarm { action: AlarmAction::Activate, alarm };
            if let Err(error) = self.propose(&command).await {
                tracing::error!(%error, "the alarm CORRUPT could not be raised; the next comparison tries again");
            }
        }
    }

    async fn ask_hash(
        &self,
        id: MemberId,
        address: &str,
        revision: u64,
    ) -> Result<wire::StateHashResponse, String> {
        if id == self.member_id() {
            return self.hash_at(revision).await;
        }
        let mut client = self.connector().client(id, address).map_err(|error| error.to_string())?;
        let answer =
            tokio::time::timeout(2 * HASH_TIMEOUT, client.state_hash(wire::StateHashRequest { revision }))
                .await;
        match answer {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(status.message().to_owned()),
            Err(_) => Err("no answer".into()),
        }
    }
}

/// Who differs from the most members of the same compact revision. When no value has more than another, nobody
/// can say who is right: then all of them.
fn minority(hashes: &BTreeMap<MemberId, Hash>) -> Vec<MemberId> {
    let mut differing = Vec::new();
    let mut by_compaction: BTreeMap<u64, BTreeMap<u64, Vec<MemberId>>> = BTreeMap::new();
    for (id, Hash { compact_revision, hash }) in hashes {
        by_compaction.entry(*compact_revision).or_default().entry(*hash).or_default().push(*id);
    }
    for groups in by_compaction.values().filter(|groups| groups.len() > 1) {
        let most = groups.values().map(Vec::len).max().unwrap_or(0);
        let undecided = groups.values().filter(|ids| ids.len() == most).count() > 1;
        let wrong = groups.values().filter(|ids| undecided || ids.len() < most);
        differing.extend(wrong.flatten());
    }
    differing
}

/// At the leader: compares the members' states from time to time.
pub(crate) async fn compare(store: Store) {
    let period = store.config().hash_check_period;
    if period.is_zero() {
        return;
    }
    loop {
        tokio::select! {
            () = store.stopping() => return,
            () = tokio::time::sleep(period) => {}
        }
        if store.leadership().is_self {
            store.compare_hashes().await;
        }
    }
}

/// Whether the disk has been slow for long.
#[derive(Debug, Default)]
struct SlowDisk {
    since: Option<Instant>,
}

impl SlowDisk {
    /// Takes in what happened since the last look: the median flush, if there was one, and whether something
    /// waits to be flushed.
    fn observe(&mut self, now: Instant, median: Option<Duration>, waiting: bool) -> bool {
        let slow = match median {
            Some(median) => median > SLOW_SYNC,
            // A flush that has not come back for a whole look is a slow one.
            None => waiting,
        };
        if !slow {
            self.since = None;
            return false;
        }
        let since = *self.since.get_or_insert(now);
        now.duration_since(since) >= SLOW_FOR
    }
}

/// At the leader: hands over when its disk has become slow or full.
pub(crate) async fn watch_disk(store: Store) {
    let mut disk = SlowDisk::default();
    let mut before = store.wal_stats();
    let mut quiet_until = Instant::now();
    loop {
        tokio::select! {
            () = store.stopping() => return,
            () = tokio::time::sleep(LOOK_PAUSE) => {}
        }
        let stats = store.wal_stats();
        let flushes = stats.sync.since(&before.sync);
        let median = (flushes.count() > 0).then(|| flushes.quantile(0.5));
        let slow = disk.observe(Instant::now(), median, stats.queued_bytes > 0 && before.queued_bytes > 0);
        let full = stats.no_space;
        before = stats;
        if (slow || full) && store.leadership().is_self && Instant::now() >= quiet_until {
            let what = if full { "full" } else { "slow" };
            tracing::warn!(?median, "this leader's disk has become {what}; handing the leadership over");
            store.hand_over().await;
            quiet_until = Instant::now() + HANDOVER_PAUSE;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(values: &[(MemberId, u64, u64)]) -> BTreeMap<MemberId, Hash> {
        values
            .iter()
            .map(|(id, compact_revision, hash)| {
                (*id, Hash { compact_revision: *compact_revision, hash: *hash })
            })
            .collect()
    }

    #[test]
    fn the_minority_is_wrong_and_of_two_nobody_knows() {
        assert!(minority(&hashes(&[(1, 5, 7), (2, 5, 7), (3, 5, 7)])).is_empty());
        assert_eq!(minority(&hashes(&[(1, 5, 7), (2, 5, 8), (3, 5, 7)])), [2]);
        assert_eq!(minority(&hashes(&[(1, 5, 7), (2, 5, 8)])), [1, 2]);
        // One that is behind with compaction cannot be compared.
        assert!(minority(&hashes(&[(1, 5, 7), (2, 4, 8), (3, 5, 7)])).is_empty());
    }

    #[test]
    fn only_a_disk_that_stays_slow_counts() {
        let mut disk = SlowDisk::default();
        let start = Instant::now();
        let slow = Some(SLOW_SYNC * 2);
        assert!(!disk.observe(start, slow, false));
        assert!(!disk.observe(start + SLOW_FOR / 2, slow, false));
        assert!(!disk.observe(start + SLOW_FOR / 2, Some(SLOW_SYNC / 2), true), "a good moment");
        assert!(!disk.observe(start + SLOW_FOR, None, true), "a flush does not come back");
        assert!(disk.observe(start + SLOW_FOR * 2, None, true));
        assert!(!disk.observe(start + SLOW_FOR * 3, None, false), "idle is not slow");
    }
}
