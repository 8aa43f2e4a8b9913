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
use tokio::sync::mpsc::UnboundedSender;
use turmoil::Sim;

use crate::machine::{self, Machine};
use crate::members::{Seat, name};
use crate::steward::Order;

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
///
/// It knows hosts by number: first the members, then the nodes.
pub(crate) struct Nemesis {
    seats: Vec<Rc<Seat>>,
    machines: Vec<Rc<Machine>>,
    random: StdRng,
    active: Vec<Active>,
    /// Hosts that run.
    running: Vec<bool>,
    /// Deaths that were begun: at which step, whose.
    deaths: Vec<(u64, usize)>,
    /// Starts that were begun.
    starts: Vec<(u64, usize)>,
    /// Members that are being replaced.
    replaced: Vec<usize>,
    recorder: Recorder,
    orders: UnboundedSender<Order>,
}

impl Nemesis {
    pub(crate) fn new(
        seats: Vec<Rc<Seat>>,
        machines: Vec<Rc<Machine>>,
        random: StdRng,
        recorder: Recorder,
        orders: UnboundedSender<Order>,
    ) -> Self {
        let running = vec![true; seats.len() + machines.len()];
        let (active, deaths, starts, replaced) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { seats, machines, random, active, running, deaths, starts, replaced, recorder, orders }
    }

    /// What was begun and is due at that step.
    pub(crate) fn step(&mut self, sim: &mut Sim<'_>, step: u64) {
        for (_, member) in take_due(&mut self.deaths, step) {
            self.kill(sim, member, true);
        }
        let seats = &self.seats;
        let admitted = self.replaced.extract_if(.., |member| !seats[*member].vacant.get());
        self.starts.extend(admitted.map(|member| (step, member)));
        for (_, member) in take_due(&mut self.starts, step) {
            self.start(sim, member);
        }
    }

    pub(crate) fn begin(&mut self, sim: &mut Sim<'_>, step: u64, number: usize, entry: &Entry) {
        let targets = self.targets(entry);
        match entry.fault {
            Fault::Kill | Fault::KillAll => targets.iter().for_each(|target| self.kill(sim, *target, false)),
            Fault::LoseUnsynced | Fault::PowerCut | Fault::PowerOff => {
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
            Fault::Compact | Fault::Defragment | Fault::MoveLeader | Fault::ReplaceMember => {
                for &target in &targets {
                    if entry.fault == Fault::ReplaceMember {
                        self.kill(sim, target, false);
                        self.seats[target].vacate();
                        self.replaced.push(target);
                    }
                    // Nobody hears it when the clients have ended, and then nothing is asked for any more.
                    let _ = self.orders.send(Order { fault: entry.fault, target });
                }
            }
            _ => {}
        }
        let names: Vec<String> = targets.iter().map(|target| self.name(*target)).collect();
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
            if let Some(seat) = self.seats.get(target) {
                seat.slowness.store(0, Ordering::Relaxed);
            }
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
        for host in 0..self.running.len() {
            self.start(sim, host);
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
            (Of::Node, _) => vec![size + self.random.random_range(0..self.machines.len())],
            (Of::Leader, Some(leader)) => vec![leader],
            (Of::Follower, Some(leader)) if any == leader => vec![(any + 1) % size],
            _ => vec![any],
        }
    }

    fn name(&self, host: usize) -> String {
        match host.checked_sub(self.seats.len()) {
            None => name(host),
            Some(node) => machine::name(node),
        }
    }

    fn kill(&mut self, sim: &mut Sim<'_>, member: usize, loses_power: bool) {
        if std::mem::take(&mut self.running[member]) {
            sim.crash(self.name(member));
        }
        if let Some(node) = member.checked_sub(self.seats.len()) {
            if loses_power {
                self.machines[node].lose_power();
            }
            return;
        }
        self.seats[member].leads.set(false);
        if loses_power {
            let disk = self.seats[member].disk.borrow().after_power_cut(&mut self.random);
            *self.seats[member].disk.borrow_mut() = disk;
        }
    }

    fn start(&mut self, sim: &mut Sim<'_>, host: usize) {
        let held = |active: &Active| {
            let fault = active.entry.fault;
            let kills = matches!(
                fault,
                Fault::Kill
                    | Fault::KillAll
                    | Fault::LoseUnsynced
                    | Fault::PowerCut
                    | Fault::TornWrite
                    | Fault::PowerOff
            );
            kills && active.targets.contains(&host)
        };
        let is_vacant = self.seats.get(host).is_some_and(|seat| seat.vacant.get());
        if !self.running[host] && !is_vacant && !self.active.iter().any(held) {
            self.running[host] = true;
            sim.bounce(self.name(host));
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
            self.machines.iter().for_each(|machine| sim.repair(name(a), machine.name.as_str()));
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
            if active.entry.fault == Fault::Isolate {
                for (a, machine) in
                    (0..size).flat_map(|a| self.machines.iter().map(move |machine| (a, machine)))
                {
                    let is_cut = |host: usize| active.targets.contains(&host);
                    if is_cut(a) || is_cut(size + machine.number) {
                        sim.partition(name(a), machine.name.as_str());
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
