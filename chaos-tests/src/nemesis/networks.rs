//! Faults of links.

use std::time::Duration;

use anyhow::ensure;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Fault;
use super::schedule::Entry;
use crate::cluster::group::Group;
use crate::cluster::links::CLIENTS;

/// Between two resets of a connection that is opened again each time.
const RESET_INTERVAL: Duration = Duration::from_millis(30);

pub(super) fn inflict(
    group: &mut Group,
    entry: &Entry,
    targets: &[usize],
) -> anyhow::Result<Option<DropGuard>> {
    let size = group.size();
    let cut = |from: usize, to: usize| group.links.change(from, to, |state| state.cut = true);
    match entry.fault {
        Fault::Isolate => each(size, targets, |target, other| {
            cut(target, other);
            cut(other, target);
        }),
        Fault::IsolateInbound => each(size, targets, |target, other| cut(other, target)),
        Fault::IsolateOutbound => each(size, targets, &cut),
        Fault::Halves => {
            // The target and its neighbours are the smaller half.
            let small: Vec<usize> = (0..(size - 1) / 2).map(|step| (targets[0] + step) % size).collect();
            pairs(size, |a, b| {
                if small.contains(&a) != small.contains(&b) {
                    cut(a, b);
                }
            });
        }
        Fault::Bridge => {
            let (bridge, half) = (targets[0], size / 2);
            let side = |n: usize| (n + size - bridge) % size <= half;
            pairs(size, |a, b| {
                if a != bridge && b != bridge && side(a) != side(b) {
                    cut(a, b);
                }
            });
        }
        Fault::Ring => {
            ensure!(size > 3, "a ring of {size} members cuts nothing; it takes five");
            pairs(size, |a, b| {
                if (a + 1) % size != b && (b + 1) % size != a {
                    cut(a, b);
                }
            });
        }
        Fault::Delay => pairs(size, |a, b| {
            group.links.change(a, b, |state| (state.delay, state.jitter) = (entry.delay, entry.jitter));
        }),
        Fault::Loss => pairs(size, |a, b| {
            group.links.change(a, b, |state| state.stall_probability = entry.probability);
        }),
        Fault::Bandwidth => pairs(size, |a, b| {
            group.links.change(a, b, |state| state.bytes_per_second = Some(entry.bytes_per_second));
        }),
        Fault::CutClients => {
            for target in targets {
                cut(CLIENTS, *target);
                cut(*target, CLIENTS);
            }
        }
        Fault::HalfOpen => {
            pairs(size, |a, b| group.links.change(a, b, |state| state.half_open = true));
            for target in targets {
                ensure!(group.kill(*target), "{} did not run", group.name(*target));
            }
        }
        _ => return Ok(Some(reset_on(group, targets))),
    }
    Ok(None)
}

/// Makes every link whole.
pub(super) fn undo(group: &Group) {
    group.links.heal();
}

/// Resets a member's connections again and again.
fn reset_on(group: &Group, targets: &[usize]) -> DropGuard {
    let stop = CancellationToken::new();
    let (links, size, targets) = (group.links.clone(), group.size(), targets.to_vec());
    let stopped = stop.clone();
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(RESET_INTERVAL);
        loop {
            tokio::select! {
                () = stopped.cancelled() => return,
                _ = ticks.tick() => each(size, &targets, |target, other| {
                    links.reset(target, other);
                    links.reset(other, target);
                }),
            }
        }
    });
    stop.drop_guard()
}

fn each(size: usize, targets: &[usize], mut act: impl FnMut(usize, usize)) {
    for target in targets {
        for other in (0..size).filter(|other| other != target) {
            act(*target, other);
        }
    }
}

fn pairs(size: usize, mut act: impl FnMut(usize, usize)) {
    for a in 0..size {
        for b in (0..size).filter(|b| *b != a) {
            act(a, b);
        }
    }
}
