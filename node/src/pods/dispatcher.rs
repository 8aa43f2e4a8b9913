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
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::admission::SOURCE_ANNOTATION;
use super::context::Context;
use super::events::{Told, tell};
use super::mirrors::Mirrors;
use super::record::{End, Failure, PodRecord};
use super::roster::Roster;
use super::worker::{Desired, Ending, Notice, Worker};
use super::{admission, checkpoint, steps};
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
    /// Every static pod of the node; others of them end.
    Static(Vec<Pod>),
    /// The node ends a pod.
    End { uid: String, end: Box<End> },
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
    /// Static pods that should run, by uid.
    statics: BTreeMap<String, Pod>,
    /// Static pods that have a worker, those that end included.
    shown: BTreeMap<String, Arc<Pod>>,
    mirrors: Mirrors,
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
            statics: BTreeMap::new(),
            shown: BTreeMap::new(),
            mirrors: Mirrors::default(),
            leftovers_unknown: true,
            strays,
        };
        dispatcher.publish_ports(&records);
        let connected =
            records.iter().filter_map(|record| Some((&*record.pod, record.sandbox.as_ref()?.ip?)));
        dispatcher.context.policies.adopt(connected);
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
            Command::Static(pods) => self.set_statics(pods).await,
            Command::End { uid, end } => {
                if let Some(worker) = self.workers.get(&uid) {
                    // A worker that is so far behind is asked again by whoever wants the end.
                    drop(worker.notices.try_send(Notice::End(end)));
                }
            }
            Command::Over { uid, ending } => {
                if ending == Ending::Finished {
                    self.workers.remove(&uid);
                    self.shown.remove(&uid);
                    self.roster().remove(&uid);
                    // A pod of the same name may have waited for it.
                    self.start_statics().await;
                }
            }
        }
        self.show_statics();
    }

    async fn all(&mut self, pods: Vec<Pod>) {
        let (mirrors, pods): (Vec<Pod>, Vec<Pod>) = pods.into_iter().partition(admission::is_mirror);
        self.mirrors.all(mirrors.iter());
        let wanted: BTreeSet<String> = pods.iter().filter_map(|p| p.metadata.uid.clone()).collect();
        let is_gone = |uid: &&String| !wanted.contains(*uid) && !self.shown.contains_key(*uid);
        let gone: Vec<String> = self.workers.keys().filter(is_gone).cloned().collect();
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

    async fn changed(&mut self, mut pod: Pod) {
        if admission::is_mirror(&pod) {
            return self.mirrors.changed(&pod);
        }
        if admission::is_static(&pod) {
            // Only this node's files make static pods: an object that calls itself one is run as any other.
            let annotations = pod.metadata.annotations.get_or_insert_default();
            annotations.insert(SOURCE_ANNOTATION.to_owned(), "api".to_owned());
        }
        if self.statics.contains_key(pod.metadata.uid.as_deref().unwrap_or_default()) {
            tracing::warn!(pod = ?pod.metadata.name, "a pod with the uid of a static pod was sent; ignored");
            return;
        }
        self.take(pod).await;
    }

    async fn take(&mut self, pod: Pod) {
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
        if self.context.outbox.is_ended(&uid) {
            // The leader has not heard yet.
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
        let mut record = PodRecord::new(pod, Timestamp::now());
        if !record.ended_before && !record.terminating() {
            self.admit(&mut record);
        }
        self.spawn(record, desired);
    }

    /// Asks whether the node takes a new pod on; one that it does not is over before it begins.
    fn admit(&self, record: &mut PodRecord) {
        let all = self.roster().all();
        // To the API a pod whose object is gone stands in nobody's way.
        let is_removed = |uid: &str| self.workers.get(uid).is_some_and(|w| w.desired.borrow().removed);
        let active = all.into_iter().filter(|looked| !looked.over && !is_removed(&looked.uid));
        let pods: Vec<Arc<Pod>> = active.map(|looked| looked.pod).collect();
        let (pressure, shutting_down) =
            (self.context.state.pressure(), self.context.state.is_shutting_down());
        let node = admission::Node { pressure, shutting_down, pods: &pods };
        let Err(refusal) = admission::admit(&record.pod, &node) else { return };
        tracing::warn!(pod = %record.full_name(), reason = refusal.reason, message = %refusal.message, "pod refused");
        tell(&self.context, record, None, Told::warning(refusal.reason, refusal.message.clone()));
        record.failure = Some(Failure {
            reason: refusal.reason.to_owned(),
            message: format!("Pod was rejected: {}", refusal.message),
            at: Timestamp::now(),
            refused: true,
            ..Failure::default()
        });
    }

    /// These are the static pods now: others end with the grace that they ask for.
    async fn set_statics(&mut self, pods: Vec<Pod>) {
        self.statics = pods.into_iter().filter_map(|pod| Some((pod.metadata.uid.clone()?, pod))).collect();
        for (uid, pod) in &mut self.shown {
            let ends = pod.metadata.deletion_timestamp.is_some();
            let Some(worker) = self.workers.get(uid).filter(|_| !ends && !self.statics.contains_key(uid))
            else {
                continue;
            };
            *pod = Arc::new(deleted((**pod).clone(), Timestamp::now()));
            self.context.roster.set_pod(uid, Arc::clone(pod));
            worker.desired.send_modify(|desired| desired.pod = Arc::clone(pod));
        }
        self.start_statics().await;
    }

    /// Begins those that do not run yet. One whose name another still has waits for its end.
    async fn start_statics(&mut self) {
        let waiting = self.statics.iter().filter(|(uid, _)| !self.workers.contains_key(*uid));
        let waiting: Vec<Pod> = waiting.map(|(_, pod)| pod.clone()).collect();
        for pod in waiting {
            let same = |other: &Pod| {
                let (a, b) = (&other.metadata, &pod.metadata);
                a.name == b.name && a.namespace == b.namespace
            };
            if !self.roster().all().iter().any(|looked| same(&looked.pod)) {
                self.take(pod).await;
            }
        }
    }

    /// Sees to it that the API shows the static pods that run.
    fn show_statics(&mut self) {
        let shown = || self.shown.values().map(|pod| &**pod);
        for uid in self.context.roster.set_aliases(self.mirrors.aliases(shown())) {
            self.context.outbox.retell(&uid);
        }
        for wish in self.mirrors.wishes(shown()) {
            self.context.outbox.mirror(wish);
        }
    }

    /// Says again which ports of the host lead where: what an agent that died had said may be old.
    fn publish_ports(&self, records: &[PodRecord]) {
        let connected = records.iter().filter_map(|record| {
            let sandbox = record.sandbox.as_ref().filter(|sandbox| sandbox.ready)?;
            Some((record.uid().to_owned(), sandbox.ip?, admission::host_ports(record.spec())))
        });
        let pods: Vec<_> = connected.collect();
        if let Err(error) = self.context.network.publish_all(&pods) {
            tracing::error!(%error, "ports of the host do not lead to the pods of an earlier agent");
        }
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
        if self.mirrors.removed(uid) {
            return;
        }
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
        if admission::is_static(&desired.pod) {
            self.shown.insert(uid.clone(), Arc::clone(&desired.pod));
        }
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
        self.mirrors.ask_again();
        self.show_statics();
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

/// A pod that somebody has just deleted.
fn deleted(mut pod: Pod, now: Timestamp) -> Pod {
    let grace = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
    pod.metadata.deletion_timestamp = Some(Time(now));
    pod.metadata.deletion_grace_period_seconds = grace;
    pod
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
