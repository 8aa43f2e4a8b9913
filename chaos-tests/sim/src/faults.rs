//! Faults as a simulation carries them out.

use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chaos_tests::history::{NEMESIS, Recorder};
use chaos_tests::nemesis::Fault;
use chaos_tests::nemesis::schedule::{Entry, Of};
use rand::Rng as _;
use rand::rngs::StdRng;
use serde_json::json;
use turmoil::Sim;

use crate::members::{Seat, name};

/// The clients' host.
pub(crate) const CLIENTS: &str = "clients";
/// Messages take at most so long where nothing delays them.
pub(crate) const LATENCY_MAX: Duration = Duration::from_millis(3);
/// A member whose disk loses power in the middle of a write dies so many steps later.
const STEPS_TO_DEATH: u64 = 4;
/// Steps between two deaths of a member that is killed while it starts.
const STEPS_BETWEEN_DEATHS: u64 = 40;

struct Active {
    number: usize,
    entry: Entry,
    targets: Vec<usize>,
}

/// Carries faults out.
pub(crate) struct Nemesis {
    seats: Vec<Rc<Seat>>,
    random: StdRng,
    active: Vec<Active>,
    /// Members that run.
    running: Vec<bool>,
    /// Deaths that were begun: at which step, whose.
    deaths: Vec<(u64, usize)>,
    /// Starts that were begun.
    starts: Vec<(u64, usize)>,
    recorder: Recorder,
}

impl Nemesis {
    pub(crate) fn new(seats: Vec<Rc<Seat>>, random: StdRng, recorder: Recorder) -> Self {
        let running = vec![true; seats.len()];
        Self { seats, random, active: Vec::new(), running, deaths: Vec::new(), starts: Vec::new(), recorder }
    }

    /// What was begun and is due at that step.
    pub(crate) fn step(&mut self, sim: &mut Sim<'_>, step: u64) {
        for (_, member) in take_due(&mut self.deaths, step) {
            self.kill(sim, member, true);
        }
        for (_, member) in take_due(&mut self.starts, step) {
            self.start(sim, member);
        }
    }

    pub(crate) fn begin(&mut self, sim: &mut Sim<'_>, step: u64, number: usize, entry: &Entry) {
        let targets = self.targets(entry);
        match entry.fault {
            Fault::Kill | Fault::KillAll => targets.iter().for_each(|target| self.kill(sim, *target, false)),
            Fault::LoseUnsynced | Fault::PowerCut => {
                targets.iter().for_each(|target| self.kill(sim, *target, true));
            }
            Fault::KillWhileBooting => {
                for target in &targets {
                    self.kill(sim, *target, false);
                    self.starts.push((step + 1, *target));
                    self.deaths.push((step + STEPS_BETWEEN_DEATHS, *target));
                }
            }
            Fault::TornWrite => {
                for target in &targets {
                    let operations = self.random.random_range(0..6);
                    self.seats[*target].doomed.set(true);
                    self.seats[*target].disk.borrow().lose_power_after(Some(operations));
                    self.deaths.push((step + STEPS_TO_DEATH, *target));
                }
            }
            Fault::DiskSlow => {
                let milliseconds = entry.delay.as_millis() as u64;
                targets.iter().for_each(|target| {
                    self.seats[*target].slowness.store(milliseconds, Ordering::Relaxed);
                });
            }
            _ => {}
        }
        let names: Vec<String> = targets.iter().map(|target| name(*target)).collect();
        self.note(entry.fault, json!({"phase": "begin", "targets": names, "number": number}));
        self.active.push(Active { number, entry: entry.clone(), targets });
        self.lay_links(sim);
    }

    pub(crate) fn end(&mut self, sim: &mut Sim<'_>, step: u64, number: usize) {
        let Some(at) = self.active.iter().position(|active| active.number == number) else { return };
        let active = self.active.remove(at);
        let over = json!({"phase": "end", "number": number});
        self.recorder.ok(NEMESIS, active.entry.fault.name(), over);
        for target in active.targets {
            self.seats[target].slowness.store(0, Ordering::Relaxed);
            self.starts.push((step, target));
        }
        self.lay_links(sim);
    }

    /// Makes everything whole.
    pub(crate) fn heal(&mut self, sim: &mut Sim<'_>, step: u64) {
        for (_, member) in std::mem::take(&mut self.deaths) {
            self.kill(sim, member, true);
        }
        while let Some(active) = self.active.first() {
            let number = active.number;
            self.end(sim, step, number);
        }
        for member in 0..self.seats.len() {
            self.start(sim, member);
        }
        self.starts.clear();
    }

    fn note(&self, fault: Fault, value: serde_json::Value) {
        self.recorder.info(NEMESIS, fault.name(), value, None);
    }

    fn targets(&mut self, entry: &Entry) -> Vec<usize> {
        let size = self.seats.len();
        let leader = self.seats.iter().position(|seat| seat.leads.get());
        let any = self.random.random_range(0..size);
        match (&entry.of, leader) {
            (Of::All, _) => (0..size).collect(),
            (Of::Leader, Some(leader)) => vec![leader],
            (Of::Follower, Some(leader)) if any == leader => vec![(any + 1) % size],
            _ => vec![any],
        }
    }

    fn kill(&mut self, sim: &mut Sim<'_>, member: usize, loses_power: bool) {
        if std::mem::take(&mut self.running[member]) {
            sim.crash(name(member));
        }
        self.seats[member].leads.set(false);
        if loses_power {
            let disk = self.seats[member].disk.borrow().after_power_cut(&mut self.random);
            *self.seats[member].disk.borrow_mut() = disk;
        }
    }

    fn start(&mut self, sim: &mut Sim<'_>, member: usize) {
        let held = |active: &Active| {
            let fault = active.entry.fault;
            let kills = matches!(
                fault,
                Fault::Kill | Fault::KillAll | Fault::LoseUnsynced | Fault::PowerCut | Fault::TornWrite
            );
            kills && active.targets.contains(&member)
        };
        if !self.running[member] && !self.active.iter().any(held) {
            self.running[member] = true;
            sim.bounce(name(member));
        }
    }

    /// Cuts and delays what active faults cut and delay, and nothing else.
    fn lay_links(&self, sim: &mut Sim<'_>) {
        let size = self.seats.len();
        for a in 0..size {
            sim.repair(name(a), CLIENTS);
            for b in (0..size).filter(|b| *b != a) {
                sim.repair_oneway(name(a), name(b));
                sim.set_link_max_message_latency(name(a), name(b), LATENCY_MAX);
            }
        }
        for active in &self.active {
            for a in 0..size {
                for b in (0..size).filter(|b| *b != a) {
                    if cuts(active, size, a, b) {
                        sim.partition_oneway(name(a), name(b));
                    }
                    if active.entry.fault == Fault::Delay {
                        sim.set_link_max_message_latency(
                            name(a),
                            name(b),
                            active.entry.delay + active.entry.jitter,
                        );
                    }
                }
            }
            if active.entry.fault == Fault::CutClients {
                active.targets.iter().for_each(|target| sim.partition(name(*target), CLIENTS));
            }
        }
    }
}

/// Whether a fault keeps what goes from `a` to `b`.
fn cuts(active: &Active, size: usize, a: usize, b: usize) -> bool {
    let Some(&target) = active.targets.first() else { return false };
    match active.entry.fault {
        Fault::Isolate => a == target || b == target,
        Fault::IsolateInbound => b == target,
        Fault::IsolateOutbound => a == target,
        Fault::Halves => {
            // The target and its neighbours are the smaller half.
            let is_small = |member: usize| (member + size - target) % size < (size - 1) / 2;
            is_small(a) != is_small(b)
        }
        Fault::Bridge => {
            let side = |member: usize| (member + size - target) % size <= size / 2;
            a != target && b != target && side(a) != side(b)
        }
        _ => false,
    }
}

fn take_due(events: &mut Vec<(u64, usize)>, step: u64) -> Vec<(u64, usize)> {
    let due = events.iter().copied().filter(|(at, _)| *at <= step).collect();
    events.retain(|(at, _)| *at > step);
    due
}
