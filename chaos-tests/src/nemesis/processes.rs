//! Faults of processes, and what an operator does to them.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use proto::etcd::etcdserverpb as pb;
use proto::etcd::etcdserverpb::kv_client::KvClient;
use proto::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use rand::Rng as _;
use rand::rngs::StdRng;
use tokio::time::Instant;

use super::Fault;
use super::schedule::Entry;
use crate::cluster::group::Group;
use crate::cluster::site::Site;

/// Deaths of a member while it starts.
const BOOTS: usize = 4;
/// The longest that it lives each time.
const BOOT_MS_MAX: u64 = 120;
/// Longest wait for an answer to an operator.
const MAINTENANCE_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two attempts.
const MAINTENANCE_PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn inflict(
    site: &mut Site,
    entry: &Entry,
    targets: &[usize],
    random: &mut StdRng,
) -> anyhow::Result<()> {
    match entry.fault {
        Fault::KillAll => {
            let all: Vec<usize> = site.running().into_iter().filter(|n| *n < site.members()).collect();
            ensure!(all.into_iter().filter(|number| site.kill(*number)).count() > 0, "no member ran");
        }
        Fault::Pause => {
            for target in targets {
                site.signal(*target, Signal::SIGSTOP)?;
            }
        }
        Fault::Terminate => {
            for target in targets {
                site.terminate(*target).await?;
            }
        }
        Fault::RollingRestart => {
            let members = site.running().into_iter().filter(|n| *n < site.members()).collect::<Vec<_>>();
            for number in members {
                site.terminate(number).await?;
                site.launch(number)?;
                site.wait_healthy().await?;
            }
        }
        Fault::KillWhileBooting => {
            for target in targets {
                site.kill(*target);
                for _ in 0..BOOTS {
                    site.launch(*target)?;
                    tokio::time::sleep(Duration::from_millis(random.random_range(1..BOOT_MS_MAX))).await;
                    site.kill(*target);
                }
            }
        }
        _ => {
            for target in targets {
                ensure!(site.kill(*target), "{} did not run", site.name(*target));
            }
        }
    }
    Ok(())
}

/// Starts those that do not run. All do after a fault of everybody.
pub(super) fn start_again(site: &mut Site, targets: &[usize]) -> anyhow::Result<()> {
    for target in targets {
        if !site.running().contains(target) {
            site.launch(*target)?;
        }
    }
    Ok(())
}

pub(super) fn resume(site: &Site, targets: &[usize]) -> anyhow::Result<()> {
    for target in targets {
        site.signal(*target, Signal::SIGCONT)?;
    }
    Ok(())
}

pub(super) async fn maintain(group: &Group, fault: Fault, targets: &[usize]) -> anyhow::Result<()> {
    let target = *targets.first().context("no member to ask")?;
    let deadline = Instant::now() + MAINTENANCE_TIMEOUT;
    // An operator tries again when a member is busy, or nobody leads for a moment.
    loop {
        let work = async {
            match fault {
                Fault::Compact => compact(group, target).await,
                Fault::Defragment => {
                    let mut member = MaintenanceClient::new(group.direct(target));
                    Ok(member.defragment(pb::DefragmentRequest {}).await.map(drop)?)
                }
                _ => move_leader(group).await,
            }
        };
        let done = tokio::time::timeout_at(deadline, work).await.context("no answer in time")?;
        if done.is_ok() || Instant::now() + MAINTENANCE_PAUSE >= deadline {
            return done;
        }
        tokio::time::sleep(MAINTENANCE_PAUSE).await;
    }
}

/// Loses a member with its data and has an empty one take its place. If the others cannot do that now, they do at the fault's
/// end.
pub(super) async fn replace(group: &mut Group, targets: &[usize]) -> anyhow::Result<()> {
    group.lose(*targets.first().context("no member to lose")?).await?;
    // The end of the fault says why not, if it fails then, too.
    let _ = group.take_in().await;
    Ok(())
}

async fn compact(group: &Group, target: usize) -> anyhow::Result<()> {
    let mut kv = KvClient::new(group.direct(target));
    let request = pb::RangeRequest { key: b"compact".as_slice().into(), ..Default::default() };
    let revision = kv.range(request).await?.into_inner().header.unwrap_or_default().revision;
    kv.compact(pb::CompactionRequest { revision, physical: false }).await?;
    Ok(())
}

async fn move_leader(group: &Group) -> anyhow::Result<()> {
    let leader = group.leader().await.context("nobody leads")?;
    let others: Vec<usize> = group.running().into_iter().filter(|other| *other != leader).collect();
    let other = *others.first().context("there is nobody else")?;
    let status = group.status(other).await.context("the other does not answer")?;
    let target_id = status.header.unwrap_or_default().member_id;
    let mut member = MaintenanceClient::new(group.direct(leader));
    Ok(member.move_leader(pb::MoveLeaderRequest { target_id }).await.map(drop)?)
}
