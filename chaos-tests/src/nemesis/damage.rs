//! Damage to what lies on a member's disk: what a bad disk does, or a careless hand.
//!
//! The member is killed, a file of its is damaged, and it is started again once the others have a leader. Then it may refuse to go on,
//! or go on with what is right; it must never serve what is wrong. At the end of the fault it is replaced by an empty
//! one, as an operator replaces a disk that lied. A disk that is put back to what it was when the fault began is damaged in the
//! same way, at the fault's end.
//!
//! Why the others have to have a leader first: a member that has forgotten what it acknowledged, and cannot know it (a record at the
//! end of a log that is damaged looks like one that a crash tore), may help to elect one who never had it. No
//! consensus with a simple majority survives that, and none is asked to here.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rand::Rng as _;
use rand::rngs::StdRng;
use tokio::time::Instant;

use super::Fault;
use crate::cluster::group::Group;

/// Bits that are flipped, all in one file.
const FLIPS: usize = 16;
/// Longest wait until the others have a leader.
const LEADER_PATIENCE: Duration = Duration::from_secs(10);
/// How long a member may go on with its old disk, if it does not end by itself.
const LOOK_TIME: Duration = Duration::from_secs(2);
/// Between two looks.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

pub(super) async fn inflict(
    group: &mut Group,
    fault: Fault,
    targets: &[usize],
    random: &mut StdRng,
) -> anyhow::Result<()> {
    let target = *targets.first().context("no member to do it to")?;
    ensure!(!group.misses_somebody(), "another member is lost already");
    if fault == Fault::RestoreOld {
        group.kill(target);
        copy(group.data_dir(target), &old(group, target))?;
        return group.launch(target);
    }
    group.doom(target).await?;
    let files = files(group.data_dir(target))?;
    let lengths: Vec<u64> = files.iter().map(|(_, length)| *length).collect();
    let (path, length) = &files[weighted(&lengths, random).context("the member has no files")?];
    match fault {
        Fault::FlipBits => {
            let file = File::options().read(true).write(true).open(path)?;
            for _ in 0..FLIPS {
                let (at, mut byte) = (random.random_range(0..*length), [0]);
                file.read_exact_at(&mut byte, at)?;
                byte[0] ^= 1 << random.random_range(0..8_u32);
                file.write_all_at(&byte, at)?;
            }
        }
        Fault::Truncate => {
            File::options().write(true).open(path)?.set_len(random.random_range(0..*length))?;
        }
        _ => fs::remove_file(path)?,
    }
    await_leader(group).await?;
    group.launch(target)
}

pub(super) async fn undo(group: &mut Group, fault: Fault, targets: &[usize]) -> anyhow::Result<()> {
    let target = *targets.first().context("no member to do it to")?;
    if fault != Fault::RestoreOld {
        group.lose_doomed(target);
        return group.take_in().await;
    }
    group.doom(target).await?;
    let (old, own) = (old(group, target), group.data_dir(target).to_owned());
    fs::remove_dir_all(&own).with_context(|| format!("cannot remove {}", own.display()))?;
    fs::rename(&old, &own).with_context(|| format!("cannot put {} back", old.display()))?;
    await_leader(group).await?;
    group.launch(target)?;
    let until = Instant::now() + LOOK_TIME;
    while Instant::now() < until && !group.has_ended(target) {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    group.lose_doomed(target);
    group.take_in().await
}

fn old(group: &Group, target: usize) -> PathBuf {
    group.data_dir(target).with_extension("old")
}

async fn await_leader(group: &Group) -> anyhow::Result<()> {
    let deadline = Instant::now() + LEADER_PATIENCE;
    while group.leader().await.is_none() {
        ensure!(Instant::now() < deadline, "the others have no leader");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

/// Files that hold something, and how much; always in the same order.
fn files(directory: &Path) -> anyhow::Result<Vec<(PathBuf, u64)>> {
    let mut found = Vec::new();
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.is_dir() {
            found.extend(files(&entry.path())?);
        } else if metadata.is_file() && metadata.len() > 0 {
            found.push((entry.path(), metadata.len()));
        }
    }
    found.sort();
    Ok(found)
}

/// The larger the likelier, as it is with bad spots of a disk.
fn weighted(weights: &[u64], random: &mut StdRng) -> Option<usize> {
    let sum: u64 = weights.iter().sum();
    let mut drawn = (sum > 0).then(|| random.random_range(0..sum))?;
    weights.iter().position(|weight| {
        let is_here = drawn < *weight;
        drawn = drawn.saturating_sub(*weight);
        is_here
    })
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir(to).with_context(|| format!("cannot create {}", to.display()))?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
