//! What all metrics of an autoscaler together ask for: the largest number of any.

use api::Quantity;
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{MetricSpec, MetricTarget};
use serde_json::{Value, json};

use super::replicas::{Goal, Measured, Of, Reading, of_resource};

/// A metric that says nothing, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) reason: &'static str,
    pub(super) why: String,
}

/// What was found out.
#[derive(Debug)]
pub(super) struct Asked {
    /// The largest number that any metric asks for, and the metric's name. `None`: too little is known.
    pub(super) proposal: Option<(i32, String)>,
    pub(super) failures: Vec<Failure>,
    /// How many metrics there are.
    pub(super) count: usize,
    /// `status.currentMetrics`.
    pub(super) statuses: Vec<Value>,
}

/// Looks at every metric.
pub(super) fn asked(metrics: &[MetricSpec], current: i32, pods: &[Measured], now: Timestamp) -> Asked {
    let mut asked =
        Asked { proposal: None, failures: Vec::new(), count: metrics.len(), statuses: Vec::new() };
    for metric in metrics {
        match one(metric, current, pods, now) {
            Ok(found) => {
                asked.statuses.push(found.status);
                if asked.proposal.as_ref().is_none_or(|(most, _)| found.replicas > *most) {
                    asked.proposal = Some((found.replicas, found.name));
                }
            }
            Err(failure) => asked.failures.push(failure),
        }
    }
    // What cannot be read might ask for more: then nothing is taken away.
    let is_down = asked.proposal.as_ref().is_some_and(|(replicas, _)| *replicas < current);
    if !asked.failures.is_empty() && is_down {
        asked.proposal = None;
    }
    asked
}

struct Found {
    replicas: i32,
    name: String,
    status: Value,
}

fn one(metric: &MetricSpec, current: i32, pods: &[Measured], now: Timestamp) -> Result<Found, Failure> {
    let failed =
        |reason, noun: &str, why: String| Failure { reason, why: format!("failed to get {noun}: {why}") };
    let (of, target, reason, words) = match (&metric.resource, &metric.container_resource) {
        (Some(source), _) => {
            let of = Of { resource: &source.name, container: None };
            (of, &source.target, "FailedGetResourceMetric", "resource")
        }
        (None, Some(source)) => {
            let of = Of { resource: &source.name, container: Some(&source.container) };
            (of, &source.target, "FailedGetContainerResourceMetric", "container resource")
        }
        (None, None) => return Err(elsewhere(metric)),
    };
    let noun = format!("{} {words}", of.resource);
    let goal = goal(target).ok_or_else(|| {
        failed(reason, &noun, "neither a utilization target nor an average value target was set".to_owned())
    })?;
    let (name, what) = match goal {
        Goal::Utilization(_) => (
            format!("{noun} utilization (percentage of request)"),
            format!("{} {}utilization", of.resource, if of.container.is_some() { "container " } else { "" }),
        ),
        Goal::Average(_) => (noun.clone(), format!("{noun} metric value")),
    };
    let reading = of_resource(of, goal, current, pods, now).map_err(|why| failed(reason, &what, why))?;
    Ok(Found { replicas: reading.replicas, name, status: status(of, &reading) })
}

fn goal(target: &MetricTarget) -> Option<Goal> {
    if let Some(average) = &target.average_value {
        return Quantity::parse(&average.0).ok().map(|quantity| Goal::Average(quantity.milli_value()));
    }
    target.average_utilization.map(Goal::Utilization)
}

fn status(of: Of<'_>, reading: &Reading) -> Value {
    let mut current = json!({"averageValue": Quantity::from_millis(reading.average).to_string()});
    if let Some(percent) = reading.utilization {
        current["averageUtilization"] = json!(percent);
    }
    match of.container {
        None => json!({"type": "Resource", "resource": {"name": of.resource, "current": current}}),
        Some(container) => json!({"type": "ContainerResource",
            "containerResource": {"name": of.resource, "container": container, "current": current}}),
    }
}

/// Metrics that other programs would have to serve.
fn elsewhere(metric: &MetricSpec) -> Failure {
    let of = |reason, group: &str, name: &str| Failure {
        reason,
        why: format!("unable to get metric {name}: nobody serves {group} in this cluster"),
    };
    match (&metric.pods, &metric.object, &metric.external) {
        (Some(source), _, _) => of("FailedGetPodsMetric", "custom.metrics.k8s.io", &source.metric.name),
        (_, Some(source), _) => of("FailedGetObjectMetric", "custom.metrics.k8s.io", &source.metric.name),
        (_, _, Some(source)) => of("FailedGetExternalMetric", "external.metrics.k8s.io", &source.metric.name),
        _ => Failure {
            reason: "InvalidMetricSourceType",
            why: format!("unknown metric source type {:?}", metric.type_),
        },
    }
}
