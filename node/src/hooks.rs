//! Lifecycle hooks that run: at most one per container. A task only reports how its hook ended; what follows
//! is the worker's to do (`pods::hooks`), and how long a hook may take is, too.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::LifecycleHandler;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::handlers::{self, HookFailure, Target};
use crate::pods::containers::ContainerRuntime;
use crate::pods::record::PodRecord;
use crate::pods::worker::Notice;

/// How long a failed program's container is given to turn out to have ended.
const SETTLE: Duration = Duration::from_millis(200);

/// How long after a container's start its postStart request may be refused before that is a failure. The hook is fired at
/// once, which here is sooner than any program can listen.
const LISTEN_TIME_MAX: Duration = Duration::from_secs(1);
/// The pause before a refused request is sent again.
const REFUSED_PAUSE: Duration = Duration::from_millis(20);

/// Which hook of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HookKind {
    PostStart,
    PreStop,
}

impl HookKind {
    /// What the container asks for, if it does.
    pub(crate) fn handler(self, record: &PodRecord, name: &str) -> Option<LifecycleHandler> {
        let lifecycle = record.container_spec(name)?.lifecycle.as_ref()?;
        match self {
            Self::PostStart => lifecycle.post_start.clone(),
            Self::PreStop => lifecycle.pre_stop.clone(),
        }
    }
}

/// A hook has ended by itself.
#[derive(Debug)]
pub(crate) struct HookEnd {
    pub(crate) container: String,
    /// The instance that it belongs to.
    pub(crate) id: String,
    pub(crate) kind: HookKind,
    pub(crate) failure: Option<HookFailure>,
}

/// The hook tasks of one pod.
pub(crate) struct Hooks {
    runtime: Arc<dyn ContainerRuntime>,
    sender: mpsc::Sender<Notice>,
    /// By container name.
    tasks: HashMap<String, Running>,
}

#[derive(Debug)]
struct Running {
    id: String,
    kind: HookKind,
    task: AbortHandle,
}

impl Hooks {
    pub(crate) fn new(runtime: Arc<dyn ContainerRuntime>, sender: mpsc::Sender<Notice>) -> Self {
        Self { runtime, sender, tasks: HashMap::new() }
    }

    /// Runs a hook of the container's current instance, in place of any other; nothing if it runs already.
    pub(crate) fn start(&mut self, record: &PodRecord, name: &str, kind: HookKind) {
        let Some(handler) = kind.handler(record, name) else { return };
        let Some(id) = record.container(name).and_then(|c| c.current.as_ref()).map(|i| i.id.clone()) else {
            return;
        };
        if self.tasks.get(name).is_some_and(|running| running.id == id && running.kind == kind) {
            return;
        }
        self.stop(name);
        let target = Target::of(&self.runtime, record, name);
        let (sender, container, instance) = (self.sender.clone(), name.to_owned(), id.clone());
        let task = tokio::spawn(async move {
            let failure = match target {
                Some(target) => run(&handler, &target, kind).await.err(),
                None => Some(HookFailure { error: "the pod has no address".into(), output: String::new() }),
            };
            if failure.is_some() && handler.exec.is_some() {
                // A hook that dies with its container has not failed: the container's end, once it is seen,
                // stops this task.
                tokio::time::sleep(SETTLE).await;
            }
            let end = HookEnd { container, id: instance, kind, failure };
            drop(sender.send(Notice::Hook(end)).await);
        });
        self.tasks.insert(name.to_owned(), Running { id, kind, task: task.abort_handle() });
    }

    /// Ends a container's hook, whatever it has reached.
    pub(crate) fn stop(&mut self, name: &str) {
        if let Some(running) = self.tasks.remove(name) {
            running.task.abort();
        }
    }
}

/// Runs a hook once; a postStart request that is refused, until the program had the time to listen.
async fn run(handler: &LifecycleHandler, target: &Target, kind: HookKind) -> Result<(), HookFailure> {
    let until = Instant::now() + LISTEN_TIME_MAX;
    let patient = kind == HookKind::PostStart && handler.http_get.is_some();
    loop {
        match handlers::hook(handler, target).await {
            Err(failure) if patient && failure.refused() && Instant::now() < until => {
                tokio::time::sleep(REFUSED_PAUSE).await;
            }
            outcome => return outcome,
        }
    }
}

impl Drop for Hooks {
    fn drop(&mut self) {
        self.tasks.values().for_each(|running| running.task.abort());
    }
}
