//! What happens in a run: members, load and faults, all drawn from its seed.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::Settings;
use crate::members::SEATS_MAX;
use chaos_tests::nemesis::Fault;
use chaos_tests::nemesis::schedule::{Entry, Of, Random, draw};
use chaos_tests::workload::{self, Kind};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// How long clients ask while faults come and go.
const LOAD: Duration = Duration::from_secs(8);
/// How long a cluster has before that, until its nodes are ready.
const WARM_UP: Duration = Duration::from_secs(2);
/// How long they go on at least after everything was healed.
const RECOVERY: Duration = Duration::from_secs(4);
/// From one fault to the next, on average.
const EVERY: Duration = Duration::from_millis(900);
/// How long one lasts at most.
const LASTING: Duration = Duration::from_millis(2_500);

/// By then members have formed their group.
const FORMED: Duration = Duration::from_millis(1_500);

/// The faults that there are here.
pub const FAULTS: &[Fault] = &[
    Fault::Kill,
    Fault::KillAll,
    Fault::KillWhileBooting,
    Fault::Isolate,
    Fault::IsolateInbound,
    Fault::IsolateOutbound,
    Fault::Halves,
    Fault::Bridge,
    Fault::Delay,
    Fault::CutClients,
    Fault::DiskSlow,
    Fault::LoseUnsynced,
    Fault::PowerCut,
    Fault::TornWrite,
    Fault::Compact,
    Fault::Defragment,
    Fault::MoveLeader,
    Fault::ReplaceMember,
];

/// Those that there are where there are nodes.
const CLUSTER_FAULTS: &[Fault] = &[
    Fault::Kill,
    Fault::Kill,
    Fault::KillAll,
    Fault::KillWhileBooting,
    Fault::Isolate,
    Fault::Isolate,
    Fault::IsolateInbound,
    Fault::IsolateOutbound,
    Fault::Halves,
    Fault::Delay,
    Fault::CutClients,
    Fault::DiskSlow,
    Fault::LoseUnsynced,
    Fault::PowerCut,
    Fault::TornWrite,
    Fault::MoveLeader,
    Fault::PowerOff,
];

/// Clocks that run alike.
const IN_STEP: [u32; SEATS_MAX] = [100; SEATS_MAX];
/// How fast clocks run that do not, in per cent: none runs twice as fast as another, which is what leases of reads assume.
const CLOCKS: RangeInclusive<u32> = 72..=140;

/// Every so many seeds there are nodes.
const CLUSTER_EVERY: u64 = 10;

/// See the module.
#[derive(Debug, Clone)]
pub struct Plan {
    /// From which everything follows.
    pub seed: u64,
    /// How many members.
    pub members: usize,
    /// How many nodes; without, members have their stores only.
    pub nodes: usize,
    /// How members are set up.
    pub settings: Settings,
    /// What clients do.
    pub workloads: Vec<workload::Plan>,
    /// Faults, in the order of their beginnings.
    pub faults: Vec<Entry>,
}

impl Plan {
    /// The plan of a seed.
    pub fn of(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        if seed.is_multiple_of(CLUSTER_EVERY) {
            return Self::of_cluster(seed, random);
        }
        let members = if random.random_bool(0.7) { 3 } else { 5 };
        let mut settings = Settings {
            checkpoint_entries: random.random_range(20..300),
            log_entries_kept: random.random_range(0..100),
            lease_reads: random.random_bool(0.3),
            clocks: IN_STEP,
        };
        let mut kinds = workload::KINDS.to_vec();
        let workloads = (0..2)
            .map(|_| {
                let kind = kinds.swap_remove(random.random_range(0..kinds.len()));
                // These two write the same keys, and each judges what it wrote itself.
                if matches!(kind, Kind::Watch | Kind::PutGet) {
                    kinds.retain(|other| !matches!(other, Kind::Watch | Kind::PutGet));
                }
                workload::Plan {
                    kind,
                    clients: random.random_range(2..=4),
                    rate: random.random_range(10.0..40.0),
                }
            })
            .collect();
        let faults = Random { faults: FAULTS.to_vec(), every: EVERY, lasting: LASTING, of: Vec::new() };
        let mut faults = draw(&faults, random.random(), LOAD);
        // The group must be there, and have at most one member less than it should at a time.
        let mut may_replace = true;
        for entry in faults.iter_mut().filter(|entry| entry.fault == Fault::ReplaceMember) {
            if entry.at < FORMED || !std::mem::take(&mut may_replace) {
                entry.fault = Fault::Kill;
            }
        }
        if random.random_bool(0.5) {
            settings.clocks = std::array::from_fn(|_| random.random_range(CLOCKS));
        }
        Self { seed, members, nodes: 0, settings, workloads, faults }
    }

    /// Three masters and some nodes, with workloads of pods.
    fn of_cluster(seed: u64, mut random: StdRng) -> Self {
        let settings = Settings {
            checkpoint_entries: random.random_range(50..600),
            log_entries_kept: random.random_range(0..200),
            lease_reads: random.random_bool(0.3),
            clocks: IN_STEP,
        };
        let mut kinds = workload::CLUSTER_KINDS.to_vec();
        let workloads = (0..2)
            .map(|_| workload::Plan {
                kind: kinds.swap_remove(random.random_range(0..kinds.len())),
                clients: random.random_range(1..=2),
                rate: random.random_range(1.0..6.0),
            })
            .collect();
        let faults =
            Random { faults: CLUSTER_FAULTS.to_vec(), every: EVERY, lasting: LASTING, of: Vec::new() };
        let mut faults = draw(&faults, random.random(), LOAD);
        for entry in &mut faults {
            entry.at += WARM_UP;
            let may_befall_nodes = matches!(entry.fault, Fault::Kill | Fault::Isolate);
            if entry.fault == Fault::PowerOff || (may_befall_nodes && random.random_bool(0.5)) {
                entry.of = Of::Node;
            }
        }
        Self { seed, members: 3, nodes: random.random_range(2..=4), settings, workloads, faults }
    }

    /// How long clients ask while faults come and go.
    pub fn load(&self) -> Duration {
        if self.nodes == 0 { LOAD } else { WARM_UP + LOAD }
    }

    /// How long clients go on after everything was healed.
    pub fn recovery(&self) -> Duration {
        RECOVERY + self.workloads.iter().map(|workload| workload.kind.held_up()).max().unwrap_or_default()
    }

    /// The same without some of its faults.
    #[must_use]
    pub fn keeping(&self, faults: &[usize]) -> Self {
        let kept = self.faults.iter().enumerate().filter(|(number, _)| faults.contains(number));
        Self { faults: kept.map(|(_, entry)| entry.clone()).collect(), ..self.clone() }
    }

    /// One line for people.
    pub fn describe(&self) -> String {
        let workloads: Vec<&str> = self.workloads.iter().map(|plan| plan.kind.name()).collect();
        let faults: Vec<String> = self
            .faults
            .iter()
            .map(|entry| format!("{} at {:.1} s", entry.fault.name(), entry.at.as_secs_f64()))
            .collect();
        let Settings { checkpoint_entries, log_entries_kept, lease_reads, clocks } = self.settings;
        let clocks = match clocks {
            IN_STEP => String::new(),
            apart => format!(", clocks at {:?} %", &apart[..self.members]),
        };
        format!(
            "{} members, {} nodes, checkpoints after {checkpoint_entries} entries, {log_entries_kept} kept{}{clocks}; {}; {}",
            self.members,
            self.nodes,
            if lease_reads { ", lease reads" } else { "" },
            workloads.join(" and "),
            faults.join(", ")
        )
    }
}
