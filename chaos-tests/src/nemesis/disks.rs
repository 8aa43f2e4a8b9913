//! Faults of disks.

use anyhow::{Context as _, ensure};

use super::Fault;
use super::schedule::Entry;
use crate::cluster::faulty_disk::DiskState;
use crate::cluster::group::Group;

pub(super) fn inflict(group: &mut Group, entry: &Entry, targets: &[usize]) -> anyhow::Result<()> {
    ensure!(
        group.disk(0).is_some(),
        "the members' directories lie on the machine's own disk; write `disks: faulty`"
    );
    match entry.fault {
        Fault::LoseUnsynced | Fault::PowerCut | Fault::TornWrite => {
            let targets = if entry.fault == Fault::PowerCut { group.running() } else { targets.to_vec() };
            // First the power of all, then the processes: what they still write meanwhile reaches no disk.
            for target in &targets {
                group.disk(*target).context("no disk")?.cut_power();
            }
            for target in &targets {
                group.kill(*target);
            }
            for target in &targets {
                group.disk(*target).context("no disk")?.power_on(entry.fault == Fault::TornWrite);
            }
        }
        fault => {
            for target in targets {
                group.disk(*target).context("no disk")?.change(|state: &mut DiskState| match fault {
                    Fault::DiskErrorOnce => state.errors = Some(1),
                    Fault::DiskError => state.errors = Some(u64::MAX),
                    Fault::DiskFull => state.full = true,
                    Fault::DiskSlow => state.sync_delay = entry.delay,
                    _ => state.hang = true,
                });
            }
        }
    }
    Ok(())
}

/// Makes the disks whole.
pub(super) fn undo(group: &Group, targets: &[usize]) {
    for target in targets {
        if let Some(disk) = group.disk(*target) {
            disk.change(|state| *state = DiskState::default());
        }
    }
}
