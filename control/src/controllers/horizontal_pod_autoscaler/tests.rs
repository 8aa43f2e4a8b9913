//! What metrics ask for, how fast it is followed, and an autoscaler at work on a Deployment.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscalerBehavior;
use proto::node as wire;
use serde_json::{Value, json};

use super::behavior::{Bounds, History};
use super::replicas::{Goal, Measured, Of, of_resource};
use crate::controllers::Timings;
use crate::registry::WriteOptions;
use crate::test_cluster::{TestCluster, condition, running};
use crate::usage::{Amounts, PodUsage};

const CPU: Of<'_> = Of { resource: "cpu", container: None };

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(100_000 + second).unwrap()
}

/// A pod that requests `request` and uses `milli` thousandths of a core; `ready` since the beginning of time.
fn pod(name: &str, ready: bool, request: &str, milli: Option<u64>) -> Measured {
    let status = if ready { "True" } else { "False" };
    let pod = json!({"metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": request, "memory": "100Mi"}}}]},
        "status": {"phase": "Running", "startTime": at(0).to_string(),
            "conditions": [{"type": "Ready", "status": status, "lastTransitionTime": at(0).to_string()}]}});
    let usage = milli.map(|milli| PodUsage {
        at: at(3600),
        window: Duration::from_secs(15),
        containers: vec![("c".to_owned(), Amounts { cpu_nano: milli * 1_000_000, memory_bytes: 50 << 20 })],
    });
    Measured { pod: serde_json::from_value(pod).unwrap(), usage }
}

fn wanted(goal: Goal, current: i32, pods: &[Measured]) -> Result<i32, String> {
    of_resource(CPU, goal, current, pods, at(3600)).map(|reading| reading.replicas)
}

#[test]
fn a_metric_asks_for_its_share_of_pods() {
    let all = |milli: [u64; 3]| milli.map(|milli| pod(&format!("p{milli}"), true, "1", Some(milli)));
    let half = Goal::Utilization(50);
    for (milli, replicas) in [
        ([900, 950, 1000], 6),
        // Within a tenth of the goal nothing changes.
        ([520, 530, 540], 3),
        ([100, 110, 120], 1),
        ([0, 1, 2], 0),
    ] {
        assert_eq!(wanted(half, 3, &all(milli)), Ok(replicas), "{milli:?}");
    }
    assert_eq!(wanted(Goal::Average(100), 3, &all([300, 301, 302])), Ok(10));
    let reading = of_resource(CPU, half, 3, &all([100, 200, 300]), at(3600)).unwrap();
    assert_eq!((reading.utilization, reading.average), (Some(20), 200));
    let memory = Of { resource: "memory", container: Some("c") };
    let reading = of_resource(memory, half, 3, &all([1, 2, 3]), at(3600)).unwrap();
    assert_eq!((reading.replicas, reading.utilization), (3, Some(50)));
}

#[test]
fn pods_without_figures_never_hasten_a_change() {
    let half = Goal::Utilization(50);
    let one = |name: &str, milli| pod(name, true, "1", milli);
    // Up: whoever is not measured counts as idle. Alone the two would ask for four.
    assert_eq!(wanted(half, 3, &[one("a", Some(1000)), one("b", Some(1000)), one("c", None)]), Ok(4));
    // Down: as fully used.
    assert_eq!(wanted(half, 3, &[one("a", Some(100)), one("b", Some(100)), one("c", None)]), Ok(3));
    // Not ready, on the way up: as idle; on the way down they do not count.
    let starting = pod("c", false, "1", Some(1000));
    assert_eq!(wanted(half, 3, &[one("a", Some(1000)), one("b", Some(1000)), starting.clone()]), Ok(4));
    assert_eq!(wanted(half, 3, &[one("a", Some(100)), one("b", Some(100)), starting.clone()]), Ok(1));
    let error = wanted(half, 3, &[starting]).unwrap_err();
    assert!(error.contains("pods might be unready"), "{error}");
    let error = wanted(half, 1, &[one("a", None)]).unwrap_err();
    assert_eq!(
        error,
        "unable to get metrics for resource cpu: no metrics returned from resource metrics API"
    );
    let mut idle = one("a", Some(5));
    idle.pod.spec.as_mut().unwrap().containers[0].resources = None;
    let error = wanted(half, 1, &[idle]).unwrap_err();
    assert_eq!(error, "missing request for cpu in container c of Pod a");
}

fn behavior(value: Value) -> HorizontalPodAutoscalerBehavior {
    serde_json::from_value(value).unwrap()
}

fn bounds(current: i32) -> Bounds {
    Bounds { current, min: 1, max: 100 }
}

#[test]
fn growth_has_a_speed_and_shrinking_waits() {
    let mut history = History::default();
    history.begin(at(0), 5);
    // Twice as many, or four more, in fifteen seconds: whichever is more.
    let settled = history.settle(None, bounds(5), 60, at(0));
    assert_eq!((settled.replicas, settled.limited.0, settled.limited.1.0), (10, true, "ScaleUpLimit"));
    history.scaled(at(0), 5, 10);
    let settled = history.settle(None, bounds(10), 60, at(5));
    assert_eq!(settled.replicas, 10, "the same fifteen seconds");
    let settled = history.settle(None, bounds(10), 200, at(15));
    assert_eq!(settled.replicas, 20);
    history.scaled(at(15), 10, 20);
    // For five minutes the highest proposal counts.
    let settled = history.settle(None, bounds(20), 2, at(20));
    assert_eq!((settled.replicas, settled.able.0), (20, "ScaleDownStabilized"));
    let settled = history.settle(None, bounds(20), 2, at(316));
    assert_eq!((settled.replicas, settled.able.0, settled.limited.0), (2, "ReadyForNewScale", false));
    // The edges.
    let at_most = Bounds { max: 6, ..bounds(5) };
    let settled = History::default().settle(None, at_most, 60, at(0));
    assert_eq!((settled.replicas, settled.limited.1.0), (6, "TooManyReplicas"));
    let at_least = Bounds { min: 3, ..bounds(5) };
    let settled = History::default().settle(None, at_least, 0, at(0));
    assert_eq!((settled.replicas, settled.limited.1.0), (3, "TooFewReplicas"));
}

#[test]
fn a_behavior_says_otherwise() {
    let slow = behavior(json!({
        "scaleUp": {"stabilizationWindowSeconds": 60, "selectPolicy": "Min", "policies": [
            {"type": "Pods", "value": 2, "periodSeconds": 60}, {"type": "Percent", "value": 50, "periodSeconds": 60}]},
        "scaleDown": {"stabilizationWindowSeconds": 0, "policies": [
            {"type": "Pods", "value": 1, "periodSeconds": 30}]},
    }));
    let mut history = History::default();
    history.begin(at(0), 10);
    let settled = history.settle(Some(&slow), bounds(10), 50, at(0));
    assert_eq!((settled.replicas, settled.able.0), (10, "ScaleUpStabilized"));
    let settled = history.settle(Some(&slow), bounds(10), 50, at(61));
    assert_eq!((settled.replicas, settled.limited.1.0), (12, "ScaleUpLimit"));
    let settled = history.settle(Some(&slow), bounds(10), 1, at(62));
    assert_eq!((settled.replicas, settled.limited.1.0), (9, "ScaleDownLimit"));
    history.scaled(at(62), 10, 9);
    assert_eq!(history.settle(Some(&slow), bounds(9), 1, at(63)).replicas, 9);
    let never = behavior(json!({"scaleDown": {"selectPolicy": "Disabled", "stabilizationWindowSeconds": 0}}));
    assert_eq!(History::default().settle(Some(&never), bounds(5), 1, at(0)).replicas, 5);
}

/// Says that every pod uses so much, on the node that all of them are on.
async fn load(cluster: &TestCluster, cpu_nano: u64) {
    let pods = cluster.all("", "Pod").await.into_iter().map(|pod| wire::PodUsage {
        uid: pod["metadata"]["uid"].as_str().unwrap().to_owned(),
        window_ms: 1000,
        containers: vec![wire::ContainerUsage { name: "c".to_owned(), cpu_nano, memory_bytes: 1 << 20 }],
    });
    let at_ms = Timestamp::now().as_millisecond();
    let report = wire::Usage { at_ms, window_ms: 1000, cpu_nano, memory_bytes: 1, pods: pods.collect() };
    cluster.work.usage.heard("n1", report, Instant::now());
}

#[tokio::test]
async fn a_deployment_follows_its_load() {
    let timings = Timings { autoscaler_sync: Duration::from_millis(50), ..Timings::default() };
    let cluster = TestCluster::start(timings).await;
    let started = || {
        let mut status = running();
        status["startTime"] = json!("2024-01-01T00:00:00Z");
        status["conditions"][0]["lastTransitionTime"] = json!("2024-01-01T00:00:01Z");
        status
    };
    let _agent = cluster.play(move |pod| (pod["status"]["phase"] == "Pending").then(started));
    let deployment = json!({"metadata": {"name": "web"}, "spec": {"replicas": 2,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"nodeName": "n1", "containers": [
            {"name": "c", "image": "i:1", "resources": {"requests": {"cpu": "100m"}}}]}}}});
    cluster.make("apps", "Deployment", deployment).await;
    let autoscaler = json!({"metadata": {"name": "web"}, "spec": {"minReplicas": 2, "maxReplicas": 5,
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
        "metrics": [{"type": "Resource", "resource": {"name": "cpu",
            "target": {"type": "Utilization", "averageUtilization": 50}}}]}});
    cluster.make("autoscaling", "HorizontalPodAutoscaler", autoscaler).await;
    let said = |all: &[Value], name: &str, reason: &str| condition(&all[0], name)["reason"] == reason;
    cluster
        .until_all("autoscaling", "HorizontalPodAutoscaler", |all| {
            said(all, "ScalingActive", "FailedGetResourceMetric")
        })
        .await;
    cluster
        .until_all("", "Pod", |all| all.iter().filter(|p| p["status"]["phase"] == "Running").count() == 2)
        .await;
    load(&cluster, 100_000_000).await;
    let all = cluster
        .until_all("autoscaling", "HorizontalPodAutoscaler", |all| all[0]["status"]["desiredReplicas"] == 4)
        .await;
    assert_eq!(all[0]["status"]["currentMetrics"][0]["resource"]["current"]["averageUtilization"], 100);
    assert!(said(&all, "ScalingActive", "ValidMetricFound"), "{}", all[0]["status"]);
    cluster
        .until_all("", "Pod", |all| all.iter().filter(|p| p["status"]["phase"] == "Running").count() == 4)
        .await;
    load(&cluster, 1_000_000).await;
    cluster.until_all("apps", "Deployment", |all| all[0]["spec"]["replicas"] == 2).await;
    let all = cluster
        .until_all("autoscaling", "HorizontalPodAutoscaler", |all| {
            said(all, "ScalingLimited", "TooFewReplicas")
        })
        .await;
    assert_eq!(all[0]["status"]["currentReplicas"], 2);
    assert!(all[0]["status"]["lastScaleTime"].is_string());
    let events = cluster.all("", "Event").await;
    let message = "New size: 4; reason: cpu resource utilization (percentage of request) above target";
    assert!(events.iter().any(|event| event["reason"] == "SuccessfulRescale" && event["message"] == message));
}

#[tokio::test]
async fn what_cannot_be_scaled_is_told() {
    let timings = Timings { autoscaler_sync: Duration::from_millis(50), ..Timings::default() };
    let cluster = TestCluster::start(timings).await;
    let autoscaler = json!({"metadata": {"name": "web"}, "spec": {"maxReplicas": 5,
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}}});
    cluster.make("autoscaling", "HorizontalPodAutoscaler", autoscaler).await;
    let all = cluster
        .until_all("autoscaling", "HorizontalPodAutoscaler", |all| !all[0]["status"]["conditions"].is_null())
        .await;
    let able = condition(&all[0], "AbleToScale");
    assert_eq!((&able["status"], &able["reason"]), (&json!("False"), &json!("FailedGetScale")));
    assert!(able["message"].as_str().unwrap().ends_with("deployments.apps \"web\" not found"), "{able}");
    // Above its maximum it is brought down whatever the load; at zero it is left alone.
    let deployment = |replicas: i32| {
        json!({"metadata": {"name": "web"}, "spec": {"replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "i:1"}]}}}})
    };
    cluster.make("apps", "Deployment", deployment(7)).await;
    cluster.until_all("apps", "Deployment", |all| all[0]["spec"]["replicas"] == 5).await;
    let scale = cluster.registry.scale("apps", "Deployment", "default", "web").await.unwrap();
    assert_eq!(scale.selector, "app=web");
    cluster.registry.rescale(&scale, 0, &WriteOptions::default()).await.unwrap();
    let again = cluster.registry.rescale(&scale, 3, &WriteOptions::default()).await.unwrap_err();
    assert_eq!(again.reason(), "Conflict", "somebody else was there meanwhile");
    cluster
        .until_all("autoscaling", "HorizontalPodAutoscaler", |all| {
            condition(&all[0], "ScalingActive")["reason"] == "ScalingDisabled"
        })
        .await;
}
