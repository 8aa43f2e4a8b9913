//! Experiments: a file that says what to make, what to load it with, what to break, and what must hold.
//!
//! Owns the file's form ([`Experiment`]) and the run of one ([`run`]). Unknown keys are refused.
//!
//! ```yaml
//! name: kill-the-leader
//! about: The leader dies under load, again and again.
//! cluster: {members: 3}
//! workloads:
//!   - {kind: register, clients: 4, rate: 50}
//! faults:
//!   - {at: 2s, fault: kill, of: leader, for: 1s}
//! duration: 10s
//! recover_within: 5s
//! ```
//!
//! With `nodes` under `cluster` the members are the masters of a whole cluster with so many nodes, which runs pods; it needs root.

mod run;

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use crate::nemesis::schedule::{Entry, Of, Random, draw, duration};
use crate::workload::Plan;

pub use run::{Options, Progress, Run, WorkloadRun, run};

/// Members that a group may have.
const MEMBERS_MAX: usize = 9;
/// Nodes that a cluster may have.
const NODES_MAX: usize = 20;
/// The longest run.
const DURATION_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// Why a file is no experiment.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not in the form it should have.
    #[error("{path}: {reason}")]
    Form {
        /// Which file.
        path: String,
        /// What is wrong.
        reason: String,
    },
}

/// The members.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterShape {
    /// How many.
    #[serde(default = "default_members")]
    pub members: usize,
    /// Nodes of a whole cluster, of which the members are the masters; none: members of a store alone.
    #[serde(default)]
    pub nodes: usize,
    /// What their directories lie on.
    #[serde(default)]
    pub disks: Disks,
    /// More flags for each, as `--snapshot-count=100`.
    #[serde(default)]
    pub flags: Vec<String>,
}

impl Default for ClusterShape {
    fn default() -> Self {
        Self { members: default_members(), nodes: 0, disks: Disks::default(), flags: Vec::new() }
    }
}

fn default_members() -> usize {
    3
}

/// What members' directories lie on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Disks {
    /// The machine's own disk.
    #[default]
    Machine,
    /// Disks in memory that can fail; needs root and FUSE.
    Faulty,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    /// Names the report.
    pub name: String,
    /// One line for people.
    #[serde(default)]
    pub about: String,
    /// What to make.
    #[serde(default)]
    pub cluster: ClusterShape,
    /// What to load it with.
    pub workloads: Vec<Plan>,
    /// What to break, and when.
    #[serde(default)]
    pub faults: Vec<Entry>,
    /// What to break at random.
    #[serde(default)]
    pub random: Option<Random>,
    /// What is drawn at random is drawn from this.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// How long faults go on.
    #[serde(deserialize_with = "duration")]
    pub duration: Duration,
    /// How long a client waits for an answer.
    #[serde(default = "default_timeout", deserialize_with = "duration")]
    pub timeout: Duration,
    /// Before any fault, something must be acknowledged within this.
    #[serde(default = "default_steady", deserialize_with = "duration")]
    pub steady_within: Duration,
    /// After healing, something must be acknowledged within this.
    #[serde(default = "default_recover", deserialize_with = "duration")]
    pub recover_within: Duration,
    /// At the end, all pods that were asked for must be ready within this, and gone within as much again.
    #[serde(default = "default_converge", deserialize_with = "duration")]
    pub converge_within: Duration,
    /// Without any acknowledgement for so long, the run is broken off and everything healed.
    #[serde(default = "default_abort", deserialize_with = "duration")]
    pub abort_after_silence: Duration,
}

fn default_seed() -> u64 {
    1
}

fn default_timeout() -> Duration {
    Duration::from_secs(1)
}

fn default_steady() -> Duration {
    Duration::from_secs(10)
}

fn default_recover() -> Duration {
    Duration::from_secs(5)
}

fn default_converge() -> Duration {
    Duration::from_secs(30)
}

fn default_abort() -> Duration {
    Duration::from_secs(60)
}

impl Experiment {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, or says something that makes no sense.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let shown = path.display().to_string();
        let text =
            std::fs::read_to_string(path).map_err(|source| Error::Read { path: shown.clone(), source })?;
        Self::parse(&text).map_err(|reason| Error::Form { path: shown, reason })
    }

    /// Reads a text.
    ///
    /// # Errors
    /// With what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let experiment: Self = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        experiment.check()?;
        Ok(experiment)
    }

    fn check(&self) -> Result<(), String> {
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if self.name.is_empty() || !self.name.bytes().all(word) {
            return Err(format!("name: {:?} names files: letters, digits and - only", self.name));
        }
        if !(1..=MEMBERS_MAX).contains(&self.cluster.members) {
            return Err(format!("cluster.members: 1 to {MEMBERS_MAX}, not {}", self.cluster.members));
        }
        if self.workloads.is_empty() {
            return Err("workloads: nothing to do, so nothing would be shown".to_owned());
        }
        if self.duration > DURATION_MAX {
            return Err("duration: at most a week".to_owned());
        }
        self.check_shape()?;
        for entry in self.plan(self.seed) {
            if entry.at > self.duration {
                return Err(format!("faults: {} would begin after the end", entry.fault.name()));
            }
            if entry.fault.needs_disks() && self.cluster.disks == Disks::Machine {
                let fault = entry.fault.name();
                return Err(format!(
                    "faults: {fault} needs disks that can fail: write `disks: faulty` under cluster"
                ));
            }
        }
        Ok(())
    }

    /// What is done, what is broken, and what there is to do it with, belong together.
    fn check_shape(&self) -> Result<(), String> {
        let ClusterShape { members, nodes, disks, .. } = &self.cluster;
        let is_cluster = *nodes > 0;
        if *nodes > NODES_MAX {
            return Err(format!("cluster.nodes: at most {NODES_MAX}, not {nodes}"));
        }
        if is_cluster && members.is_multiple_of(2) {
            return Err(format!(
                "cluster.members: {members} masters survive no more than {} do",
                members - 1
            ));
        }
        if is_cluster && *disks == Disks::Faulty {
            return Err("cluster: disks that fail are those of a store alone, without nodes".to_owned());
        }
        if let Some(plan) = self.workloads.iter().find(|plan| plan.kind.needs_nodes() != is_cluster) {
            let kind = plan.kind.name();
            return Err(match is_cluster {
                true => format!("workloads: {kind} asks a store alone: leave `nodes` out under cluster"),
                false => format!("workloads: {kind} needs nodes: write `nodes: 3` under cluster"),
            });
        }
        let unsuited = |entry: &Entry| match is_cluster {
            true => !entry.fault.suits_clusters(),
            false => entry.fault.needs_machines() || matches!(entry.of, Of::Node | Of::Nodes),
        };
        if let Some(entry) = self.plan(self.seed).iter().find(|entry| unsuited(entry)) {
            let fault = entry.fault.name();
            return Err(match is_cluster {
                true => format!("faults: {fault} befalls members of a store alone, without nodes"),
                false => {
                    format!("faults: {fault} of {:?} needs nodes: write `nodes: 3` under cluster", entry.of)
                }
            });
        }
        Ok(())
    }

    /// The faults of a run: those written out and those drawn, in their order.
    pub fn plan(&self, seed: u64) -> Vec<Entry> {
        let drawn = self.random.iter().flat_map(|random| draw(random, seed, self.duration));
        let mut plan: Vec<Entry> = self.faults.iter().cloned().chain(drawn).collect();
        plan.sort_by_key(|entry| entry.at);
        plan
    }
}
