//! What the agent tells of itself and of what runs here, in a kubelet's formats: `/metrics` and
//! `/metrics/resource` (Prometheus' text), `/stats/summary` (JSON).
//!
//! Counted when somebody asks; nothing is kept but what [`Operations`] counts. Nodes have no port of their own:
//! a replica asks over the node's session, for those who may read `nodes/proxy`.

mod operations;
mod summary;

use std::sync::Arc;

use exposition::Exposition;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use proto::node::measurements_request::Form;
use tokio::sync::watch;

pub(crate) use self::operations::{CountedRuntime, Operations};
use crate::pods::containers::ContainerRuntime;
use crate::pods::roster::Roster;
use crate::resource_usage::{Counted, Newest, machine_counted};

/// Where the numbers come from.
#[derive(Clone)]
pub(crate) struct Measurements {
    pub(crate) node_name: String,
    pub(crate) roster: Arc<Roster>,
    pub(crate) runtime: Arc<dyn ContainerRuntime>,
    pub(crate) operations: Arc<Operations>,
    /// Averages over the last interval.
    pub(crate) usage: watch::Receiver<Newest>,
}

/// A pod of which something runs, with what its containers have used.
struct Running {
    uid: String,
    pod: Arc<Pod>,
    started_at: Option<Timestamp>,
    containers: Vec<Container>,
}

struct Container {
    name: String,
    started_at: Option<Timestamp>,
    counted: Counted,
}

impl Running {
    fn name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or_default()
    }

    fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// What its containers have used together.
    fn total(&self) -> Counted {
        let zero = Counted { cpu_ns: 0, memory_bytes: 0 };
        self.containers.iter().fold(zero, |sum, container| Counted {
            cpu_ns: sum.cpu_ns.saturating_add(container.counted.cpu_ns),
            memory_bytes: sum.memory_bytes.saturating_add(container.counted.memory_bytes),
        })
    }
}

impl Measurements {
    /// The numbers in one form. Reads files, or asks another runtime.
    pub(crate) fn tell(&self, form: Form) -> String {
        match form {
            Form::Metrics => self.metrics(),
            Form::Resources => self.resources(),
            Form::Summary => self.summary(),
        }
    }

    /// The pods that have containers which run.
    fn running(&self) -> Vec<Running> {
        let looked = self.roster.all().into_iter().map(|looked| {
            let status = self.roster.status(&looked.uid);
            let status = status.as_deref();
            let started_of = |name: &str| {
                let of_init = status.and_then(|status| status.init_container_statuses.as_ref());
                let of_main = status.and_then(|status| status.container_statuses.as_ref());
                let mut all = of_init.into_iter().chain(of_main).flatten();
                let state = all.find(|container| container.name == name)?.state.as_ref()?;
                Some(state.running.as_ref()?.started_at.as_ref()?.0)
            };
            let containers = looked.containers.iter().filter_map(|(name, id)| {
                let counted = self.runtime.counted(id)?;
                Some(Container { started_at: started_of(name), name: name.clone(), counted })
            });
            Running {
                containers: containers.collect(),
                started_at: status.and_then(|status| Some(status.start_time.as_ref()?.0)),
                uid: looked.uid,
                pod: looked.pod,
            }
        });
        looked.filter(|running| !running.containers.is_empty()).collect()
    }

    fn metrics(&self) -> String {
        let pods = self.roster.all();
        let containers: usize = pods.iter().map(|pod| pod.containers.len()).sum();
        let running = pods.iter().filter(|pod| !pod.containers.is_empty()).count();
        let mut out = Exposition::default();
        out.head("kubelet_node_name", "The node's name. The count is always 1.", "gauge");
        out.sample("kubelet_node_name", &format!("node=\"{}\"", self.node_name), 1);
        out.gauge("kubelet_desired_pods", "Pods that the node was given, or has manifests of.", pods.len());
        out.gauge("kubelet_running_pods", "Pods of which a container runs.", running);
        out.head("kubelet_running_containers", "Containers that run.", "gauge");
        out.sample("kubelet_running_containers", "container_state=\"running\"", containers);
        self.operations.expose(&mut out);
        out.process();
        out.finish()
    }

    fn resources(&self) -> String {
        let (pods, machine) = (self.running(), machine_counted());
        let at = Timestamp::now().as_millisecond();
        let cpu = |counted: Counted| format!("{} {at}", counted.cpu_ns as f64 / 1e9);
        let memory = |counted: Counted| format!("{} {at}", counted.memory_bytes);
        let mut out = Exposition::default();
        let of_pod = |pod: &Running| format!("namespace=\"{}\",pod=\"{}\"", pod.namespace(), pod.name());
        let of_container = |pod: &Running, container: &Container| {
            format!("container=\"{}\",{}", container.name, of_pod(pod))
        };
        let containers = || pods.iter().flat_map(|pod| pod.containers.iter().map(move |own| (pod, own)));

        let (name, help) = ("container_cpu_usage_seconds_total", "Processor time that a container has used.");
        out.head(name, help, "counter");
        for (pod, container) in containers() {
            out.sample(name, &of_container(pod, container), cpu(container.counted));
        }
        let (name, help) = ("container_memory_working_set_bytes", "Memory of a container.");
        out.head(name, help, "gauge");
        for (pod, container) in containers() {
            out.sample(name, &of_container(pod, container), memory(container.counted));
        }
        let (name, help) = ("container_start_time_seconds", "When a container was started.");
        out.head(name, help, "gauge");
        for (pod, container) in containers() {
            if let Some(started) = container.started_at {
                let seconds = started.as_millisecond() as f64 / 1e3;
                out.sample(name, &of_container(pod, container), format!("{seconds} {at}"));
            }
        }
        if let Some(counted) = machine {
            let help = "Processor time that the node has used.";
            out.counter("node_cpu_usage_seconds_total", help, cpu(counted));
            out.gauge("node_memory_working_set_bytes", "Memory of the node.", memory(counted));
        }
        let (name, help) = ("pod_cpu_usage_seconds_total", "Processor time that a pod has used.");
        out.head(name, help, "counter");
        for pod in &pods {
            out.sample(name, &of_pod(pod), cpu(pod.total()));
        }
        let (name, help) = ("pod_memory_working_set_bytes", "Memory of a pod.");
        out.head(name, help, "gauge");
        for pod in &pods {
            out.sample(name, &of_pod(pod), memory(pod.total()));
        }
        let is_failed = u8::from(machine.is_none());
        out.gauge("resource_scrape_error", "1 if something could not be measured.", is_failed);
        out.finish()
    }
}
