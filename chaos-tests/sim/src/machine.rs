//! A node's machine: its disk, and the processes that run on it. Both outlive the agent; the disk outlives the power.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use chaos_tests::workload::platform::Instance;
use proto::node as wire;
use serde_json::Value;

use crate::chance;

/// The host's name of a node.
pub(crate) fn name(number: usize) -> String {
    format!("node-{}", number + 1)
}

/// What an agent writes down.
#[derive(Default)]
pub(crate) struct Disk {
    /// Pods that are to run here, as the leader told of them last, by uid.
    pub(crate) pods: BTreeMap<String, Value>,
    /// Pods that were begun.
    pub(crate) begun: BTreeMap<String, ()>,
    /// How programs ended that ended by themselves.
    pub(crate) exits: BTreeMap<String, i32>,
    /// Pods of which nothing is left, and whose end nobody has acknowledged.
    pub(crate) ends: BTreeMap<String, wire::PodTerminated>,
}

/// A running program of a pod.
pub(crate) struct Process {
    identity: String,
    pid: i32,
    /// When it is through, if it ever is.
    ends_at: Option<Duration>,
}

/// See the module.
pub(crate) struct Machine {
    pub(crate) number: usize,
    pub(crate) name: String,
    pub(crate) disk: RefCell<Disk>,
    processes: RefCell<BTreeMap<String, Process>>,
    pids: Cell<i32>,
}

impl Machine {
    pub(crate) fn new(number: usize) -> Rc<Self> {
        Rc::new(Self {
            number,
            name: name(number),
            disk: RefCell::default(),
            processes: RefCell::default(),
            pids: Cell::new(0),
        })
    }

    /// Ends programs that are through by now.
    pub(crate) fn step(&self) {
        let now = chance::now();
        let mut disk = self.disk.borrow_mut();
        self.processes.borrow_mut().retain(|uid, process| {
            let goes_on = process.ends_at.is_none_or(|at| at > now);
            if !goes_on {
                disk.exits.insert(uid.clone(), 0);
            }
            goes_on
        });
    }

    /// Begins a pod's program.
    pub(crate) fn begin(&self, uid: &str, identity: &str, ends_at: Option<Duration>) {
        self.pids.set(self.pids.get() + 1);
        let process = Process { identity: identity.to_owned(), pid: self.pids.get(), ends_at };
        self.processes.borrow_mut().insert(uid.to_owned(), process);
        self.disk.borrow_mut().begun.insert(uid.to_owned(), ());
    }

    pub(crate) fn runs(&self, uid: &str) -> bool {
        self.processes.borrow().contains_key(uid)
    }

    /// Ends a pod's program at once.
    pub(crate) fn kill(&self, uid: &str) {
        self.processes.borrow_mut().remove(uid);
    }

    /// Everything that ran is gone.
    pub(crate) fn lose_power(&self) {
        self.processes.borrow_mut().clear();
    }

    /// What runs.
    pub(crate) fn instances(&self) -> Vec<Instance> {
        let processes = self.processes.borrow();
        let instance = |(uid, process): (&String, &Process)| Instance {
            identity: process.identity.clone(),
            uid: uid.clone(),
            node: self.name.clone(),
            pid: process.pid,
        };
        processes.iter().map(instance).collect()
    }
}
