//! What happens in a run: members, load and faults, all drawn from its seed.

use std::time::Duration;

use chaos_tests::nemesis::Fault;
use chaos_tests::nemesis::schedule::{Entry, Random, draw};
use chaos_tests::workload::{self, Kind};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// How long clients ask while faults come and go.
pub const LOAD: Duration = Duration::from_secs(8);
/// How long they go on at least after everything was healed.
const RECOVERY: Duration = Duration::from_secs(4);
/// From one fault to the next, on average.
const EVERY: Duration = Duration::from_millis(900);
/// How long one lasts at most.
const LASTING: Duration = Duration::from_millis(2_500);

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
];

/// See the module.
#[derive(Debug, Clone)]
pub struct Plan {
    /// From which everything follows.
    pub seed: u64,
    /// How many members.
    pub members: usize,
    /// What clients do.
    pub workloads: Vec<workload::Plan>,
    /// Faults, in the order of their beginnings.
    pub faults: Vec<Entry>,
}

impl Plan {
    /// The plan of a seed.
    pub fn of(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let members = if random.random_bool(0.7) { 3 } else { 5 };
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
        Self { seed, members, workloads, faults: draw(&faults, random.random(), LOAD) }
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
        format!("{} members; {}; {}", self.members, workloads.join(" and "), faults.join(", "))
    }
}
