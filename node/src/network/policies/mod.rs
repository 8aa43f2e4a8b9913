//! Keeps policies in force on this node: what is allowed to whom ([`compile`]) becomes a table of the packet filter.
//!
//! ```text
//! cluster's copy ─┐
//! pods of the node ┴─► compile ─► PolicyTable       a pod that begins: the same at once, before it has a link
//! ```
//! Owns the table, by the name of the node's bridge, and a file that says which pods are held to anything. Promises that a
//! pod's rules are in force before its first packet: it gets no link, and no container, before they are. Writes nothing before a
//! leader has told everything once, so what an earlier agent left goes on until then; a pod that begins in the meantime and
//! was held to anything may do nothing. Without any policy there is no table. What fails, and what somebody else did to
//! the table, is put right within [`CHECK_INTERVAL`].

mod compile;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use std::{fs, io};

use k8s_openapi::api::core::v1::Pod;
use runtime::net::{PolicyRules, PolicyTable, sysctl};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use self::compile::{Locals, compile};
use super::NetworkError;
use super::cluster::{ClusterNetwork, PeerPod, Policing};

/// How often the table is looked at though nothing seems to have changed.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How long a pod waits for what a leader has named and not yet told.
const COMPLETE_TIMEOUT: Duration = Duration::from_secs(2);
/// Whether what bridges pass on meets the packet filter: pods of one node talk over its bridge.
const BRIDGE_FILTER: &str = "net.bridge.bridge-nf-call-iptables";

/// In which directions a pod is held to anything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Held {
    ingress: bool,
    egress: bool,
}

/// See the module. Calls block.
#[derive(Debug)]
pub(crate) struct Policies {
    cluster: Arc<ClusterNetwork>,
    file: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    table: PolicyTable,
    /// Whether the table was written, or found to be needless, by this agent.
    is_settled: bool,
    locals: Locals,
    /// What the rules in force were made of.
    source: Option<(Arc<Policing>, Locals)>,
    rules: PolicyRules,
    /// By pod uid, as the file has it.
    held: BTreeMap<String, Held>,
    /// The last complaint, which is not repeated.
    told: String,
}

impl Policies {
    /// Opens the state below `dir`; changes nothing.
    pub(crate) fn open(dir: &Path, bridge: &str, cluster: Arc<ClusterNetwork>) -> Self {
        let file = dir.join("policed-pods.json");
        let held =
            fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let state = State {
            table: PolicyTable::new(&format!("barque-policies-{bridge}")),
            is_settled: false,
            locals: Locals::new(),
            source: None,
            rules: PolicyRules::default(),
            held,
            told: String::new(),
        };
        Self { cluster, file, state: Mutex::new(state) }
    }

    /// These pods have run since before the agent began.
    pub(crate) fn adopt<'a>(&self, pods: impl Iterator<Item = (&'a Pod, IpAddr)>) {
        let mut state = self.lock();
        for (pod, address) in pods {
            let pod = PeerPod::at(pod, address);
            state.locals.insert(pod.uid.clone(), Arc::new(pod));
        }
    }

    /// A pod is about to get a link, or containers: returns when its rules are in force.
    pub(crate) fn admit(&self, pod: &Pod, address: IpAddr) -> Result<(), NetworkError> {
        let pod = Arc::new(PeerPod::at(pod, address));
        // Only pods that run without masters, or ran before any answered, come before a leader's word.
        let has_heard = self.cluster.has_heard();
        let is_complete = has_heard && self.cluster.wait_complete(COMPLETE_TIMEOUT);
        if has_heard && !is_complete {
            return Err(NetworkError::PoliciesUnknown);
        }
        let mut state = self.lock();
        state.locals.insert(pod.uid.clone(), Arc::clone(&pod));
        if is_complete {
            return match state.turn(&self.cluster, &self.file) {
                Err(error) if state.holds(&pod) => Err(error),
                // The same is tried again, and told, by whoever looks at all of them.
                _ => Ok(()),
            };
        }
        let held = state.held.get(&pod.uid).copied().unwrap_or_default();
        for address in pod.addresses.iter().filter(|_| held.ingress || held.egress) {
            state.table.forbid(*address, held.ingress, held.egress)?;
        }
        Ok(())
    }

    /// The pod's link is gone, or is about to go for good.
    pub(crate) fn forget(&self, uid: &str) {
        self.lock().locals.remove(uid);
    }

    /// Keeps policies in force until cancelled. They stay in force afterwards, as containers do.
    pub(crate) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut changes = self.cluster.subscribe();
        loop {
            changes.mark_unchanged();
            let policies = Arc::clone(&self);
            let turn = tokio::task::spawn_blocking(move || policies.look());
            turn.await.expect("a turn over the policies does not panic");
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = changes.changed() => {}
                () = tokio::time::sleep(CHECK_INTERVAL) => {}
            }
        }
    }

    fn look(&self) {
        if !self.cluster.is_complete() {
            return;
        }
        let mut state = self.lock();
        let begun = Instant::now();
        match state.turn(&self.cluster, &self.file) {
            Ok(Turn::Nothing) => state.told.clear(),
            Ok(Turn::Changed) => {
                tracing::debug!(pods = state.rules.pods.len(), took = ?begun.elapsed(), "policies are in force");
                state.told.clear();
            }
            Ok(Turn::Repaired) => {
                tracing::warn!(
                    "the packet filter's table of policies was not as this node wants it; it is written anew"
                );
                state.told.clear();
            }
            Err(error) => {
                let words = error.to_string();
                if state.told != words {
                    tracing::error!(
                        error = words,
                        "policies are not in force as the cluster wants them; trying on"
                    );
                    state.told = words;
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the policies panics")
    }
}

/// What a turn did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Nothing,
    Changed,
    Repaired,
}

impl State {
    /// Makes the table be what the cluster's copy and the pods of this node ask for.
    fn turn(&mut self, cluster: &ClusterNetwork, file: &Path) -> Result<Turn, NetworkError> {
        let policing = cluster.policing();
        let is_old = self
            .source
            .as_ref()
            .is_some_and(|(known, locals)| Arc::ptr_eq(known, &policing) && *locals == self.locals);
        if !is_old {
            let rules = compile(&policing, &self.locals);
            self.note_held(&rules, file)?;
            let is_same = self.is_settled && rules == self.rules;
            self.rules = rules;
            if !is_same {
                self.is_settled = false;
            }
            self.source = Some((policing, self.locals.clone()));
        }
        let is_empty = self.rules.pods.is_empty();
        if !self.is_settled {
            match is_empty {
                true => self.table.remove()?,
                false => {
                    self.table.set(self.rules.clone())?;
                    // Pods of one node would otherwise talk past the packet filter.
                    sysctl::set(BRIDGE_FILTER, "1").map_err(NetworkError::BridgeNotFiltered)?;
                }
            }
            self.is_settled = true;
            return Ok(Turn::Changed);
        }
        if is_empty {
            return Ok(Turn::Nothing);
        }
        if sysctl::get(BRIDGE_FILTER).is_ok_and(|value| value != "1") {
            sysctl::set(BRIDGE_FILTER, "1").map_err(NetworkError::BridgeNotFiltered)?;
        }
        Ok(if self.table.check()? { Turn::Repaired } else { Turn::Nothing })
    }

    /// Whether a pod is held to anything, as far as is known.
    fn holds(&self, pod: &PeerPod) -> bool {
        pod.addresses.iter().any(|address| self.rules.pods.contains_key(address))
    }

    /// Writes down which pods are held to anything, before they are.
    fn note_held(&mut self, rules: &PolicyRules, file: &Path) -> Result<(), NetworkError> {
        let held = |pod: &PeerPod| {
            let of_pod = pod.addresses.iter().find_map(|address| rules.pods.get(address))?;
            Some(Held { ingress: of_pod.ingress.is_some(), egress: of_pod.egress.is_some() })
        };
        let held: BTreeMap<String, Held> =
            self.locals.iter().filter_map(|(uid, pod)| Some((uid.clone(), held(pod)?))).collect();
        if held == self.held {
            return Ok(());
        }
        write(file, &held).map_err(|source| NetworkError::File { path: file.to_owned(), source })?;
        self.held = held;
        Ok(())
    }
}

fn write(file: &Path, held: &BTreeMap<String, Held>) -> io::Result<()> {
    let bytes = serde_json::to_vec(held).expect("names are strings");
    let temporary = file.with_extension("tmp");
    fs::write(&temporary, bytes)?;
    fs::rename(&temporary, file)
}
