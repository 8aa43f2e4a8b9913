//! The container runtime with its operations counted and timed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use exposition::{Exposition, Histogram};
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use runtime::{AttachSpec, Attachment, ContainerSpec, ExecSpec, ExecStreams, SandboxSpec};

use crate::exec::Limits;
use crate::pods::admission::HostPort;
use crate::pods::containers::{
    Beside, ContainerError, ContainerRuntime, ExecSyncFuture, ExitFuture, MadeSandbox, Process,
    RuntimeImages, Seen, SeenContainer, SeenSandbox,
};
use crate::resource_usage::Counted as Used;

/// Upper bounds of the histogram, in seconds.
static BUCKETS_S: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 10.0];

#[derive(Debug, Clone)]
struct Numbers {
    errors: u64,
    times: Histogram,
}

/// How often each operation was asked for, how often it failed and how long it took.
#[derive(Debug, Default)]
pub(crate) struct Operations(Mutex<BTreeMap<&'static str, Numbers>>);

impl Operations {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Numbers>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn done(&self, operation: &'static str, time: Duration, failed: bool) {
        let mut all = self.lock();
        let numbers =
            all.entry(operation).or_insert_with(|| Numbers { errors: 0, times: Histogram::new(&BUCKETS_S) });
        numbers.times.observe(time);
        numbers.errors += u64::from(failed);
    }

    /// Adds the numbers to the text, under the kubelet's names.
    pub(super) fn expose(&self, out: &mut Exposition) {
        let all = self.lock().clone();
        let label = |operation: &str| format!("operation_type=\"{operation}\"");
        let name = "kubelet_runtime_operations_total";
        out.head(name, "Operations asked of the container runtime.", "counter");
        for (operation, numbers) in &all {
            out.sample(name, &label(operation), numbers.times.count());
        }
        let name = "kubelet_runtime_operations_errors_total";
        out.head(name, "Those that failed.", "counter");
        for (operation, numbers) in &all {
            out.sample(name, &label(operation), numbers.errors);
        }
        let name = "kubelet_runtime_operations_duration_seconds";
        out.head(name, "How long they took.", "histogram");
        for (operation, numbers) in &all {
            out.histogram(name, &label(operation), &numbers.times);
        }
    }
}

/// A runtime whose operations are counted.
pub(crate) struct CountedRuntime {
    inner: Box<dyn ContainerRuntime>,
    operations: Arc<Operations>,
}

impl CountedRuntime {
    /// Counts what `inner` does.
    pub(crate) fn new(inner: Box<dyn ContainerRuntime>, operations: Arc<Operations>) -> Self {
        Self { inner, operations }
    }

    fn count<T>(
        &self,
        operation: &'static str,
        perform: impl FnOnce() -> Result<T, ContainerError>,
    ) -> Result<T, ContainerError> {
        let began = Instant::now();
        let outcome = perform();
        self.operations.done(operation, began.elapsed(), outcome.is_err());
        outcome
    }
}

impl ContainerRuntime for CountedRuntime {
    fn create_sandbox(&self, spec: &SandboxSpec, ports: &[HostPort]) -> Result<MadeSandbox, ContainerError> {
        self.count("run_podsandbox", || self.inner.create_sandbox(spec, ports))
    }

    fn delete_sandbox(&self, id: &str) -> Result<(), ContainerError> {
        self.count("remove_podsandbox", || self.inner.delete_sandbox(id))
    }

    fn start_container(&self, spec: &ContainerSpec, beside: &Beside) -> Result<Timestamp, ContainerError> {
        self.count("start_container", || self.inner.start_container(spec, beside))
    }

    fn observe(&self, id: &str) -> Result<Option<Seen>, ContainerError> {
        self.count("container_status", || self.inner.observe(id))
    }

    fn signal(&self, id: &str, signal: i32) -> Result<(), ContainerError> {
        self.count("stop_container", || self.inner.signal(id, signal))
    }

    fn exit_watch(&self, id: &str) -> Result<ExitFuture, ContainerError> {
        self.inner.exit_watch(id)
    }

    fn exec(&self, id: &str, spec: &ExecSpec) -> Result<(Box<dyn Process>, ExecStreams), ContainerError> {
        self.count("exec", || self.inner.exec(id, spec))
    }

    fn exec_sync(&self, id: &str, args: &[String], limits: Limits) -> Option<ExecSyncFuture> {
        self.inner.exec_sync(id, args, limits)
    }

    fn connect(
        &self,
        pod_uid: &str,
        port: u16,
    ) -> Option<BoxFuture<'static, Result<streams::NodeStream, String>>> {
        self.inner.connect(pod_uid, port)
    }

    fn attach(&self, id: &str, spec: AttachSpec) -> Result<Attachment, ContainerError> {
        self.count("attach", || self.inner.attach(id, spec))
    }

    fn delete_container(&self, id: &str) -> Result<(), ContainerError> {
        self.count("remove_container", || self.inner.delete_container(id))
    }

    fn list(&self) -> Result<(Vec<SeenSandbox>, Vec<SeenContainer>), ContainerError> {
        self.count("list_containers", || self.inner.list())
    }

    fn counted(&self, id: &str) -> Option<Used> {
        self.inner.counted(id)
    }

    fn makes_network(&self) -> bool {
        self.inner.makes_network()
    }

    fn set_pod_range(&self, pod_cidr: &str) -> Result<(), ContainerError> {
        self.inner.set_pod_range(pod_cidr)
    }

    fn own_images(&self) -> Option<Arc<dyn RuntimeImages>> {
        self.inner.own_images()
    }

    fn version(&self) -> Option<String> {
        self.inner.version()
    }
}
