//! Amounts of resources: what a pod requests and what a node has.
//!
//! CPU counts in thousandths, everything else in whole units (bytes, pieces), both rounded up as
//! Kubernetes rounds them. The three resources that every pod may name are plain fields, because every
//! cycle compares them on every node; extended resources and huge pages sit in a short sorted list.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::quantity::Quantity as ApiQuantity;
use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// What a container that requests no CPU counts as when nodes are scored (not when they are filtered), so
/// that pods without requests spread as well.
const SCORED_CPU_DEFAULT_MILLI: i64 = 100;
/// The same for memory.
const SCORED_MEMORY_DEFAULT_BYTES: i64 = 200 * 1024 * 1024;

/// A quantity that is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("resource {resource}: {text:?} is not a quantity")]
pub struct InvalidQuantity {
    /// The resource's name.
    pub resource: String,
    /// What stands there.
    pub text: String,
}

/// Amounts by resource.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Resources {
    /// Thousandths of a CPU.
    pub milli_cpu: i64,
    /// Bytes of memory.
    pub memory: i64,
    /// Bytes of ephemeral storage.
    pub ephemeral_storage: i64,
    /// How many pods (only of a node).
    pub pods: i64,
    /// Everything else, sorted by name.
    others: Vec<(Arc<str>, i64)>,
}

impl Resources {
    /// Reads a resource list.
    pub fn from_quantities(list: &BTreeMap<String, Quantity>) -> Result<Self, InvalidQuantity> {
        let mut resources = Self::default();
        for (name, quantity) in list {
            let parsed = ApiQuantity::parse(&quantity.0)
                .map_err(|_| InvalidQuantity { resource: name.clone(), text: quantity.0.clone() })?;
            let amount = if name == "cpu" { parsed.milli_value() } else { parsed.value() };
            *resources.amount_mut(name) = amount;
        }
        Ok(resources)
    }

    /// The resources that are not plain fields, sorted by name.
    pub fn others(&self) -> &[(Arc<str>, i64)] {
        &self.others
    }

    /// How much there is of one of the [`Self::others`].
    pub fn other(&self, name: &str) -> i64 {
        self.others.binary_search_by(|(known, _)| known.as_ref().cmp(name)).map_or(0, |at| self.others[at].1)
    }

    /// How much there is of a resource, by its name in the API.
    pub fn amount(&self, name: &str) -> i64 {
        match name {
            "cpu" => self.milli_cpu,
            "memory" => self.memory,
            "ephemeral-storage" => self.ephemeral_storage,
            "pods" => self.pods,
            other => self.other(other),
        }
    }

    /// Adds every amount of `more`.
    pub fn add(&mut self, more: &Self) {
        self.combine(more, i64::saturating_add);
    }

    /// Takes every amount of `less` away.
    pub fn subtract(&mut self, less: &Self) {
        self.combine(less, i64::saturating_sub);
    }

    /// Raises every amount to at least that of `floor`.
    pub fn raise_to(&mut self, floor: &Self) {
        self.combine(floor, i64::max);
    }

    fn combine(&mut self, with: &Self, operation: fn(i64, i64) -> i64) {
        self.milli_cpu = operation(self.milli_cpu, with.milli_cpu);
        self.memory = operation(self.memory, with.memory);
        self.ephemeral_storage = operation(self.ephemeral_storage, with.ephemeral_storage);
        self.pods = operation(self.pods, with.pods);
        for (name, amount) in &with.others {
            let mine = self.amount_mut(name);
            *mine = operation(*mine, *amount);
        }
    }

    fn amount_mut(&mut self, name: &str) -> &mut i64 {
        match name {
            "cpu" => &mut self.milli_cpu,
            "memory" => &mut self.memory,
            "ephemeral-storage" => &mut self.ephemeral_storage,
            "pods" => &mut self.pods,
            _ => {
                let at = match self.others.binary_search_by(|(known, _)| known.as_ref().cmp(name)) {
                    Ok(at) => at,
                    Err(at) => {
                        self.others.insert(at, (Arc::from(name), 0));
                        at
                    }
                };
                &mut self.others[at].1
            }
        }
    }
}

/// CPU and memory as scored: containers without a request count with a default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct ScoredRequest {
    pub(crate) milli_cpu: i64,
    pub(crate) memory: i64,
}

impl ScoredRequest {
    pub(crate) fn add(&mut self, more: Self) {
        self.milli_cpu = self.milli_cpu.saturating_add(more.milli_cpu);
        self.memory = self.memory.saturating_add(more.memory);
    }

    pub(crate) fn subtract(&mut self, less: Self) {
        self.milli_cpu = self.milli_cpu.saturating_sub(less.milli_cpu);
        self.memory = self.memory.saturating_sub(less.memory);
    }
}

/// What a pod takes on its node: the larger of what its containers need together and what each init
/// container needs while it runs, plus overhead. Restartable init containers (sidecars) keep running, so
/// they count beside everything that starts after them.
pub(crate) fn pod_requests(spec: &PodSpec) -> Result<(Resources, ScoredRequest), InvalidQuantity> {
    let exact = total(spec, &|container| container_requests(container))?;
    let scored = total(spec, &|container| {
        let mut requests = container_requests(container)?;
        let named = |name: &str| {
            container
                .resources
                .as_ref()
                .and_then(|resources| resources.requests.as_ref())
                .is_some_and(|requests| requests.contains_key(name))
        };
        if !named("cpu") {
            requests.milli_cpu = SCORED_CPU_DEFAULT_MILLI;
        }
        if !named("memory") {
            requests.memory = SCORED_MEMORY_DEFAULT_BYTES;
        }
        Ok(requests)
    })?;
    Ok((exact, ScoredRequest { milli_cpu: scored.milli_cpu, memory: scored.memory }))
}

fn total(
    spec: &PodSpec,
    of: &dyn Fn(&Container) -> Result<Resources, InvalidQuantity>,
) -> Result<Resources, InvalidQuantity> {
    let mut running = Resources::default();
    for container in &spec.containers {
        running.add(&of(container)?);
    }
    let mut sidecars = Resources::default();
    let mut starting = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let requests = of(container)?;
        let mut at_this_moment = sidecars.clone();
        at_this_moment.add(&requests);
        starting.raise_to(&at_this_moment);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&requests);
        }
    }
    running.add(&sidecars);
    running.raise_to(&starting);
    override_by_pod_level(spec, &mut running)?;
    if let Some(overhead) = &spec.overhead {
        running.add(&Resources::from_quantities(overhead)?);
    }
    Ok(running)
}

/// What `spec.resources` of the pod itself requests stands for all its containers together.
fn override_by_pod_level(spec: &PodSpec, running: &mut Resources) -> Result<(), InvalidQuantity> {
    let Some(requests) = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()) else {
        return Ok(());
    };
    let whole = Resources::from_quantities(requests)?;
    for name in requests.keys() {
        *running.amount_mut(name) = whole.amount(name);
    }
    Ok(())
}

fn container_requests(container: &Container) -> Result<Resources, InvalidQuantity> {
    match container.resources.as_ref().and_then(|resources| resources.requests.as_ref()) {
        Some(requests) => Resources::from_quantities(requests),
        None => Ok(Resources::default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(cpu: &str, memory: Option<&str>, always: bool) -> Container {
        let mut requests = BTreeMap::from([("cpu".to_owned(), Quantity(cpu.to_owned()))]);
        if let Some(memory) = memory {
            requests.insert("memory".to_owned(), Quantity(memory.to_owned()));
        }
        Container {
            restart_policy: always.then(|| "Always".to_owned()),
            resources: Some(k8s_openapi::api::core::v1::ResourceRequirements {
                requests: Some(requests),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn init_containers_count_by_the_largest_and_sidecars_beside_the_rest() {
        let spec = PodSpec {
            containers: vec![container("200m", Some("64Mi"), false), container("300m", None, false)],
            init_containers: Some(vec![
                container("100m", None, true),
                container("1", None, false),
                container("50m", None, false),
            ]),
            ..Default::default()
        };
        let (requests, scored) = pod_requests(&spec).expect("valid quantities");
        // The second init container runs beside the sidecar: 1000 + 100 is more than 200 + 300 + 100.
        assert_eq!(requests.milli_cpu, 1100);
        assert_eq!(requests.memory, 64 << 20);
        assert_eq!(scored.milli_cpu, 1100);
        assert_eq!(scored.memory, (64 << 20) + 2 * SCORED_MEMORY_DEFAULT_BYTES);
    }

    #[test]
    fn what_the_pod_itself_requests_stands_for_its_containers() {
        let whole = container("2", None, false).resources;
        let spec = PodSpec {
            containers: vec![container("200m", Some("64Mi"), false)],
            resources: whole,
            overhead: Some(BTreeMap::from([("cpu".to_owned(), Quantity("100m".to_owned()))])),
            ..Default::default()
        };
        let (requests, _) = pod_requests(&spec).expect("valid quantities");
        assert_eq!((requests.milli_cpu, requests.memory), (2100, 64 << 20));
    }

    #[test]
    fn others_are_kept_sorted_and_missing_ones_are_zero() {
        let list = [("nvidia.com/gpu", "2"), ("example.com/foo", "7"), ("cpu", "1500m")]
            .map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned())));
        let mut resources = Resources::from_quantities(&BTreeMap::from(list)).expect("valid");
        resources.add(&resources.clone());
        assert_eq!(resources.milli_cpu, 3000);
        assert_eq!(resources.other("nvidia.com/gpu"), 4);
        assert_eq!(resources.other("example.com/bar"), 0);
        assert_eq!(resources.others()[0].0.as_ref(), "example.com/foo");
    }

    #[test]
    fn a_bad_quantity_is_named() {
        let list = BTreeMap::from([("memory".to_owned(), Quantity("lots".to_owned()))]);
        let error = Resources::from_quantities(&list).expect_err("not a quantity");
        assert_eq!(error.to_string(), "resource memory: \"lots\" is not a quantity");
    }
}
