//! Hands desired pods to their workers: one worker per uid, made when a uid is first seen, forgotten when it
//! has finished. Owns the set of workers; keeps no opinion of its own about any pod.
//!
//! Commands come through one bounded queue from the leader's session and from inside the agent. The first
//! whole set of pods after a start also says what is left over from another life: it is removed then.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::context::Context;
use super::record::PodRecord;
use super::roster::Roster;
use super::worker::{Desired, Ending, Notice, Worker};
use super::{checkpoint, steps};
use crate::Error;

/// Commands that may wait for the dispatcher; senders wait when it is full.
const COMMANDS_MAX: usize = 256;
/// How often what exists is compared with what workers believe.
const RELIST_INTERVAL: Duration = Duration::from_secs(10);

/// What the dispatcher is told.
#[derive(Debug)]
pub(crate) enum Command {
    /// All pods of the node; what is not in it ends.
    All(Vec<Pod>),
    /// One pod is new or changed.
    Changed(Box<Pod>),
    /// One pod's object is gone.
    Removed { uid: String },
    /// A worker's task is over.
    Over { uid: String, ending: Ending },
}

struct Handle {
    desired: watch::Sender<Desired>,
    notices: mpsc::Sender<Notice>,
}

/// The dispatcher; see the module.
pub(crate) struct Dispatcher {
    context: Arc<Context>,
    workers: BTreeMap<String, Handle>,
    sender: mpsc::Sender<Command>,
    commands: mpsc::Receiver<Command>,
    tracker: TaskTracker,
    shutdown: CancellationToken,
    /// Cleared once what no pod owns was removed.
    leftovers_unknown: bool,
    /// Pods of which something runs and no record is left.
    strays: BTreeSet<String>,
}

impl Dispatcher {
    /// A dispatcher with the workers of every checkpoint on disk.
    pub(crate) fn open(context: Arc<Context>, shutdown: CancellationToken) -> Result<Self, Error> {
        let pods_dir = context.pods_dir();
        std::fs::create_dir_all(&pods_dir).map_err(Error::io("create", &pods_dir))?;
        let (records, _) = checkpoint::load_all(&pods_dir).map_err(Error::io("read", &pods_dir))?;
        let strays = match context.runtime.list() {
            Ok((sandboxes, containers)) => {
                let uids =
                    sandboxes.into_iter().map(|s| s.pod_uid).chain(containers.into_iter().map(|c| c.pod_uid));
                uids.filter(|uid| !records.iter().any(|r| r.uid() == uid)).collect()
            }
            Err(error) => {
                tracing::warn!(%error, "cannot list what runs");
                BTreeSet::new()
            }
        };
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        let mut dispatcher = Self {
            context,
            workers: BTreeMap::new(),
            sender,
            commands,
            tracker: TaskTracker::new(),
            shutdown,
            leftovers_unknown: true,
            strays,
        };
        for record in records {
            let desired = Desired { pod: Arc::clone(&record.pod), removed: record.removed };
            dispatcher.spawn(record, desired);
        }
        Ok(dispatcher)
    }

    /// Where commands go.
    pub(crate) fn sender(&self) -> mpsc::Sender<Command> {
        self.sender.clone()
    }

    /// Runs until the agent stops; returns when every worker has put its pen down.
    pub(crate) async fn run(mut self) {
        let mut relist = tokio::time::interval(RELIST_INTERVAL);
        relist.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        relist.tick().await;
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => break,
                Some(command) = self.commands.recv() => self.handle(command).await,
                _ = relist.tick() => self.relist().await,
            }
        }
        self.tracker.close();
        // Workers that end now still report; nobody has to listen.
        self.commands.close();
        self.tracker.wait().await;
    }

    async fn handle(&mut self, command: Command) {
        match command {
            Command::All(pods) => self.all(pods).await,
            Command::Changed(pod) => self.changed(*pod).await,
            Command::Removed { uid } => self.removed(&uid),
            Command::Over { uid, ending } => {
                if ending == Ending::Finished {
                    self.workers.remove(&uid);
                    self.roster().remove(&uid);
                }
            }
        }
    }

    async fn all(&mut self, pods: Vec<Pod>) {
        let wanted: BTreeSet<String> = pods.iter().filter_map(|p| p.metadata.uid.clone()).collect();
        let gone: Vec<String> = self.workers.keys().filter(|uid| !wanted.contains(*uid)).cloned().collect();
        for uid in gone {
            self.removed(&uid);
        }
        for pod in pods {
            self.changed(pod).await;
        }
        if std::mem::take(&mut self.leftovers_unknown) {
            self.remove_leftovers().await;
        }
    }

    async fn changed(&mut self, pod: Pod) {
        let Some(uid) = pod.metadata.uid.clone() else {
            tracing::warn!(pod = ?pod.metadata.name, "a pod without uid was sent; ignored");
            return;
        };
        if pod.spec.is_none() {
            tracing::warn!(pod = ?pod.metadata.name, "a pod without spec was sent; ignored");
            return;
        }
        let pod = Arc::new(pod);
        if let Some(worker) = self.workers.get(&uid) {
            self.roster().set_pod(&uid, Arc::clone(&pod));
            worker.desired.send_if_modified(|desired| {
                let changed = *desired.pod != *pod;
                desired.pod = pod;
                changed
            });
            return;
        }
        if self.strays.contains(&uid) && !self.remove_stray(&uid).await {
            return;
        }
        if let Err(error) = std::fs::create_dir_all(self.context.pod_dir(&uid)) {
            // The leader sends the pod again with its next whole set; until then its status says nothing new.
            tracing::error!(pod_uid = %uid, %error, "cannot make the pod's directory; the pod waits");
            return;
        }
        let desired = Desired { pod: Arc::clone(&pod), removed: false };
        self.spawn(PodRecord::new(pod, Timestamp::now()), desired);
    }

    /// Ends what runs of a pod whose record was lost, so that the pod can begin anew.
    async fn remove_stray(&mut self, uid: &str) -> bool {
        let (context, owned) = (Arc::clone(&self.context), uid.to_owned());
        let removed = tokio::task::spawn_blocking(move || remove_unowned(&context, |u| u == owned)).await;
        match removed.expect("removing leftovers does not panic") {
            Ok(()) => self.strays.remove(uid),
            Err(error) => {
                tracing::warn!(pod_uid = uid, %error, "cannot remove what is left of a pod; it waits for the next set");
                false
            }
        }
    }

    fn removed(&mut self, uid: &str) {
        match self.workers.get(uid) {
            Some(worker) => worker.desired.send_modify(|desired| desired.removed = true),
            None => self.context.outbox.forget_pod(uid),
        }
    }

    fn roster(&self) -> &Roster {
        &self.context.roster
    }

    fn spawn(&mut self, record: PodRecord, desired: Desired) {
        let uid = record.uid().to_owned();
        self.roster().set_pod(&uid, Arc::clone(&desired.pod));
        let (desired, receiver) = watch::channel(desired);
        let (worker, notices) = Worker::new(Arc::clone(&self.context), record, receiver);
        let (sender, shutdown) = (self.sender.clone(), self.shutdown.clone());
        self.workers.insert(uid.clone(), Handle { desired, notices });
        self.tracker.spawn(async move {
            let ending = worker.run(shutdown).await;
            drop(sender.send(Command::Over { uid, ending }).await);
        });
    }

    /// Wakes workers whose pods may have changed without their notice.
    async fn relist(&mut self) {
        let context = Arc::clone(&self.context);
        let listed = tokio::task::spawn_blocking(move || context.runtime.list()).await;
        let (sandboxes, _) = match listed.expect("listing does not panic") {
            Ok(listed) => listed,
            Err(error) => {
                tracing::warn!(%error, "cannot list what runs");
                return;
            }
        };
        for (uid, worker) in &self.workers {
            if sandboxes.iter().any(|s| s.pod_uid == *uid && !s.alive) {
                // Full mailboxes have something to do anyway.
                drop(worker.notices.try_send(Notice::Recheck));
            }
        }
    }

    /// Removes sandboxes, containers, addresses and directories that belong to no pod of this node: what an
    /// agent left that died, or what a pod left whose checkpoint was lost. Done once, after a leader has told
    /// what belongs here.
    async fn remove_leftovers(&mut self) {
        let known: BTreeSet<String> = self.workers.keys().cloned().collect();
        let context = Arc::clone(&self.context);
        let removed = tokio::task::spawn_blocking(move || remove_leftovers(&context, &known)).await;
        if let Err(error) = removed.expect("removing leftovers does not panic") {
            tracing::warn!(%error, "not everything left over could be removed; it is tried again with the next set");
            self.leftovers_unknown = true;
        }
    }
}

/// Ends sandboxes and containers, and frees addresses, of the pods that `unowned` names.
fn remove_unowned(context: &Context, unowned: impl Fn(&str) -> bool) -> Result<(), steps::StepError> {
    let (sandboxes, containers) = context.runtime.list()?;
    for container in containers.iter().filter(|c| unowned(&c.pod_uid)) {
        tracing::info!(container = %container.id, pod_uid = %container.pod_uid, "removing a container of no pod");
        context.runtime.delete_container(&container.id)?;
    }
    for sandbox in sandboxes.iter().filter(|s| unowned(&s.pod_uid)) {
        tracing::info!(sandbox = %sandbox.id, pod_uid = %sandbox.pod_uid, "removing a sandbox of no pod");
        context.runtime.delete_sandbox(&sandbox.id)?;
    }
    for uid in context.network.owners()?.iter().filter(|uid| unowned(uid)) {
        context.network.release(uid)?;
    }
    for uid in context.user_ids.owners()?.iter().filter(|uid| unowned(uid)) {
        context.user_ids.release(uid)?;
    }
    Ok(())
}

fn remove_leftovers(context: &Context, known: &BTreeSet<String>) -> Result<(), steps::StepError> {
    remove_unowned(context, |uid| !known.contains(uid))?;
    for entry in std::fs::read_dir(context.pods_dir())? {
        let entry = entry?;
        let uid = entry.file_name().to_string_lossy().into_owned();
        if !known.contains(&uid) {
            super::volumes::release(&entry.path().join("volumes"))?;
            steps::remove_dir(&entry.path())?;
        }
    }
    let logs = context.config.log_dir().join("pods");
    for entry in std::fs::read_dir(logs).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let uid = name.rsplit('_').next().unwrap_or_default();
        if !known.contains(uid) {
            steps::remove_dir(&entry.path())?;
        }
    }
    Ok(())
}
