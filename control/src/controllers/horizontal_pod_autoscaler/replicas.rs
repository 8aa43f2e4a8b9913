//! How many replicas a metric asks for.
//!
//! Pure: pods, what they use and the time come in; a number or a reason why there is none goes out. The
//! algorithm, its treatment of pods that are not ready or not measured, and the words are those of the Kubernetes
//! documentation ("Horizontal Pod Autoscaling", section "Algorithm details").

use std::collections::BTreeMap;
use std::time::Duration;

use api::Quantity;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::usage::PodUsage;

/// A ratio this near to 1 changes nothing.
const TOLERANCE: f64 = 0.1;
/// How long after its start a pod's CPU use counts only while it is ready.
const CPU_INITIALIZATION: Duration = Duration::from_secs(300);
/// How long a pod may take until it is ready for the first time.
const INITIAL_READINESS: Duration = Duration::from_secs(30);

/// A pod and what it uses, if that is known.
#[derive(Debug, Clone)]
pub(super) struct Measured {
    pub(super) pod: Pod,
    pub(super) usage: Option<PodUsage>,
}

/// What a metric is held against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// Percent of what containers request.
    Utilization(i32),
    /// Thousandths of the resource's unit for each pod.
    Average(i64),
}

/// Which resource of which containers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Of<'a> {
    pub(super) resource: &'a str,
    /// One container, or all of them.
    pub(super) container: Option<&'a str>,
}

/// What a metric says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reading {
    /// How many replicas it asks for.
    pub(super) replicas: i32,
    /// Percent of what is requested, if the goal is a percentage.
    pub(super) utilization: Option<i32>,
    /// Thousandths of the unit that a pod uses on average.
    pub(super) average: i64,
}

/// The pods by what is known of them.
#[derive(Debug, Default)]
struct Groups<'a> {
    ready: BTreeMap<&'a str, i64>,
    unready: Vec<&'a str>,
    missing: Vec<&'a str>,
}

/// What a resource metric asks for when there are `current` replicas.
pub(super) fn of_resource(
    of: Of<'_>,
    goal: Goal,
    current: i32,
    pods: &[Measured],
    now: Timestamp,
) -> Result<Reading, String> {
    if !pods.iter().any(|pod| used(of, pod).is_some()) {
        let Of { resource, .. } = of;
        return Err(format!(
            "unable to get metrics for resource {resource}: no metrics returned from resource metrics API"
        ));
    }
    let groups = group(of, pods, now);
    if groups.ready.is_empty() {
        return Err("did not receive metrics for targeted pods (pods might be unready)".to_owned());
    }
    let requests = match goal {
        Goal::Utilization(_) => requests(of, pods)?,
        Goal::Average(_) => BTreeMap::new(),
    };
    let first = ratio(&groups.ready, &requests, goal)?;
    let reading = |replicas| Reading { replicas, utilization: first.utilization, average: first.average };
    let reckons_unready = !groups.unready.is_empty() && first.ratio > 1.0;
    if !reckons_unready && groups.missing.is_empty() {
        let replicas = match is_tolerable(first.ratio) {
            true => current,
            false => ceil(first.ratio * groups.ready.len() as f64),
        };
        return Ok(reading(replicas));
    }
    let mut uses = groups.ready.clone();
    for pod in &groups.missing {
        // Whoever is not measured is taken to be against the change.
        let assumed = match goal {
            _ if first.ratio > 1.0 => Some(0),
            Goal::Utilization(percent) => {
                requests.get(pod).map(|request| request * i64::from(percent.max(100)) / 100)
            }
            Goal::Average(average) => Some(average),
        };
        if first.ratio != 1.0
            && let Some(assumed) = assumed
        {
            uses.insert(pod, assumed);
        }
    }
    if reckons_unready {
        uses.extend(groups.unready.iter().map(|pod| (*pod, 0)));
    }
    let second = ratio(&uses, &requests, goal)?.ratio;
    let turned = (first.ratio < 1.0 && second > 1.0) || (first.ratio > 1.0 && second < 1.0);
    let replicas = ceil(second * uses.len() as f64);
    let against = (second < 1.0 && replicas > current) || (second > 1.0 && replicas < current);
    Ok(reading(if is_tolerable(second) || turned || against { current } else { replicas }))
}

fn is_tolerable(ratio: f64) -> bool {
    (ratio - 1.0).abs() <= TOLERANCE
}

fn ceil(number: f64) -> i32 {
    // What is meant as a whole number may have become a little more on its way.
    (number - 1e-9).ceil() as i32
}

struct Ratio {
    ratio: f64,
    utilization: Option<i32>,
    average: i64,
}

fn ratio(uses: &BTreeMap<&str, i64>, requests: &BTreeMap<&str, i64>, goal: Goal) -> Result<Ratio, String> {
    let total: i64 = uses.values().sum();
    let average = total / i64::try_from(uses.len().max(1)).unwrap_or(i64::MAX);
    match goal {
        Goal::Average(wanted) => {
            Ok(Ratio { ratio: average as f64 / wanted.max(1) as f64, utilization: None, average })
        }
        Goal::Utilization(wanted) => {
            let requested: i64 = uses.keys().filter_map(|pod| requests.get(pod)).sum();
            if requested == 0 {
                return Err("no metrics returned matched known pods".to_owned());
            }
            let percent = i32::try_from(i128::from(total) * 100 / i128::from(requested)).unwrap_or(i32::MAX);
            let ratio = f64::from(percent) / f64::from(wanted.max(1));
            Ok(Ratio { ratio, utilization: Some(percent), average })
        }
    }
}

fn group<'a>(of: Of<'_>, pods: &'a [Measured], now: Timestamp) -> Groups<'a> {
    let mut groups = Groups::default();
    for measured in pods {
        let pod = &measured.pod;
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
        if pod.metadata.deletion_timestamp.is_some() || phase == "Failed" {
            continue;
        }
        match used(of, measured) {
            _ if phase == "Pending" => groups.unready.push(name),
            None => groups.missing.push(name),
            Some(_) if of.resource == "cpu" && !counts(measured, now) => groups.unready.push(name),
            Some(used) => {
                groups.ready.insert(name, used);
            }
        }
    }
    groups
}

/// Whether the CPU that a pod uses says something about its load: while it starts, it does not.
fn counts(measured: &Measured, now: Timestamp) -> bool {
    let Some(status) = &measured.pod.status else { return false };
    let condition = status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready");
    let (Some(condition), Some(started)) = (condition, status.start_time.as_ref()) else { return false };
    let is_ready = condition.status == "True";
    let Some(turned) = condition.last_transition_time.as_ref() else { return is_ready };
    let after = |at: Timestamp, wait: Duration| at.checked_add(wait).unwrap_or(Timestamp::MAX);
    if after(started.0, CPU_INITIALIZATION) > now {
        let usage = measured.usage.as_ref();
        return is_ready && usage.is_some_and(|usage| usage.at >= after(turned.0, usage.window));
    }
    is_ready || after(started.0, INITIAL_READINESS) <= turned.0
}

/// What a pod uses, in thousandths of the resource's unit.
fn used(of: Of<'_>, measured: &Measured) -> Option<i64> {
    let usage = measured.usage.as_ref()?;
    let own = usage.containers.iter().filter(|(name, _)| of.container.is_none_or(|wanted| wanted == *name));
    own.map(|(_, amounts)| match of.resource {
        "cpu" => Some(amounts.cpu_milli()),
        "memory" => Some(i64::try_from(amounts.memory_bytes).unwrap_or(i64::MAX / 1000).saturating_mul(1000)),
        _ => None,
    })
    .try_fold(None, |sum: Option<i64>, amount| Some(Some(sum.unwrap_or(0).saturating_add(amount?))))?
}

/// What the pods request, in thousandths of the unit. A pod that requests nothing has no percentage.
fn requests<'a>(of: Of<'_>, pods: &'a [Measured]) -> Result<BTreeMap<&'a str, i64>, String> {
    let mut all = BTreeMap::new();
    for Measured { pod, .. } in pods {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let Some(spec) = &pod.spec else { continue };
        let sidecars = spec.init_containers.iter().flatten();
        let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
        let mut sum = 0_i64;
        for container in spec.containers.iter().chain(sidecars) {
            if of.container.is_some_and(|wanted| wanted != container.name) {
                continue;
            }
            let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
            let request = requests.and_then(|requests| requests.get(of.resource));
            let request = request.and_then(|request| Quantity::parse(&request.0).ok());
            let Some(request) = request else {
                let Of { resource, .. } = of;
                return Err(format!(
                    "missing request for {resource} in container {} of Pod {name}",
                    container.name
                ));
            };
            sum = sum.saturating_add(request.milli_value());
        }
        all.insert(name, sum);
    }
    Ok(all)
}
