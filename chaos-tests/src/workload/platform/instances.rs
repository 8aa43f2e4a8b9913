//! Asks the kernel which pods really run: looks at every process of this machine that was told to be one of this cluster's.
//!
//! What the API says of pods plays no part. A set of instances is recorded when it differs from the last one. A process
//! that is seen was alive when its environment was read; instances of one identity are recorded as alive together only if
//! each was seen again after all of them had been seen.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use serde_json::{Value, json};

use super::{CLUSTER, IDENTITY, NODE, Target, UID, observer};
use crate::history::Recorder;

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(25);

/// One process of a container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instance {
    /// The pod's name.
    pub identity: String,
    /// The pod's uid.
    pub uid: String,
    /// Where it runs.
    pub node: String,
    /// The process.
    pub pid: i32,
}

/// Records what runs, whenever that changes.
pub struct Instances {
    recorder: Recorder,
    process: i64,
    last: Option<BTreeSet<Instance>>,
}

impl Instances {
    /// For the history of the plan of that number.
    pub fn new(recorder: Recorder, plan: usize) -> Self {
        Self { recorder, process: observer(plan, 2), last: None }
    }

    /// This is what runs; nobody looks after the last time.
    pub fn note(&mut self, seen: BTreeSet<Instance>, is_last: bool) {
        if is_last || self.last.as_ref() != Some(&seen) {
            self.recorder.invoke(self.process, "instances", Value::Null);
            self.recorder.ok(self.process, "instances", told(&seen, is_last));
            self.last = Some(seen);
        }
    }
}

pub(super) async fn work(target: Target, plan: usize) {
    let mut instances = Instances::new(target.recorder.clone(), plan);
    loop {
        let is_last = tokio::select! {
            () = target.look_no_more.cancelled() => true,
            () = tokio::time::sleep(INTERVAL) => false,
        };
        instances.note(look(&target.cluster), is_last);
        if is_last {
            return;
        }
    }
}

fn told(seen: &BTreeSet<Instance>, is_last: bool) -> Value {
    let alive: Vec<Value> = seen
        .iter()
        .map(|one| json!({"identity": one.identity, "uid": one.uid, "node": one.node, "pid": one.pid}))
        .collect();
    json!({"alive": alive, "last": is_last})
}

fn look(cluster: &str) -> BTreeSet<Instance> {
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let seen: BTreeSet<Instance> = pids.filter_map(|pid| read(pid, cluster)).collect();
    let is_alone = |one: &Instance| {
        seen.iter().filter(|other| other.identity == one.identity).all(|other| other.uid == one.uid)
    };
    // Where there seem to be two, who was seen first may have ended before the other began.
    seen.iter()
        .filter(|one| is_alone(one) || read(one.pid, cluster).as_ref() == Some(*one))
        .cloned()
        .collect()
}

/// A process of the cluster. One that has ended, or is about to become another program, has no environment.
fn read(pid: i32, cluster: &str) -> Option<Instance> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let value = |name: &str| {
        let mut variables = environment.split(|byte| *byte == 0);
        let found = variables.find_map(|line| line.strip_prefix(name.as_bytes())?.strip_prefix(b"="));
        found.map(|value| String::from_utf8_lossy(value).into_owned())
    };
    (value(CLUSTER)? == cluster).then_some(())?;
    Some(Instance { identity: value(IDENTITY)?, uid: value(UID)?, node: value(NODE)?, pid })
}
