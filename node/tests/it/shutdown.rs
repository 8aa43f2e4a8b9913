//! The host goes down: pods end in order, and the node says so.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};

use crate::Test;
use crate::control::{Authority, Control};
use crate::host::{Host, eventually, pod, run};

pub(crate) const TESTS: &[Test] = &[
    ("shutdown::pods_end_before_the_host_does", || run(pods_end_before_the_host_does())),
    ("shutdown::without_grace_pods_are_left_alone", || run(without_grace_pods_are_left_alone())),
];

fn with_priority(name: &str, work: &str, priority: i32) -> Pod {
    let mut pod = pod(name, &[work], |_| ());
    pod.spec.as_mut().unwrap().priority = Some(priority);
    pod
}

fn has_failed(status: &PodStatus) -> bool {
    status.phase.as_deref() == Some("Failed")
}

async fn pods_end_before_the_host_does() {
    let authority = Authority::new();
    let control = Control::start(&authority).await;
    let mut host = Host::new(&authority, &[&control]);
    host.config.shutdown_grace_period = Duration::from_secs(6);
    host.config.shutdown_grace_period_critical_pods = Duration::from_secs(3);
    control.lead(1, &host.pod_cidr);
    host.start();
    let pods = [("obeys", "serve", 0), ("refuses", "stubborn", 0), ("needed", "serve", 2_000_000_000)];
    for (name, work, priority) in pods {
        let mut pod = with_priority(name, work, priority);
        pod.spec.as_mut().unwrap().termination_grace_period_seconds = Some(2);
        control.put(&pod);
    }
    for (name, ..) in pods {
        control.running(&format!("{name}-uid")).await;
    }
    host.power.cancel();
    let unready = |h: &crate::control::Heard| {
        let conditions = h.node_status.as_ref()?.conditions.clone()?;
        conditions.into_iter().find(|c| c.type_ == "Ready" && c.status == "False")
    };
    let ready = control.until("the node is not ready", unready).await;
    assert_eq!(ready.reason.as_deref(), Some("KubeletNotReady"));
    assert_eq!(ready.message.as_deref(), Some("node is shutting down"));
    control.put(&with_priority("late", "serve", 2_000_000_000));
    let (_, late) = control.status("late-uid", "it is refused", has_failed).await;
    assert_eq!(late.reason.as_deref(), Some("NodeShutdown"));
    let message = "Pod was rejected: Pod was rejected as the node is shutting down.";
    assert_eq!(late.message.as_deref(), Some(message));
    let mut ended = Vec::new();
    for (name, ..) in pods {
        let (at, status) = control.status(&format!("{name}-uid"), &format!("{name} ended"), has_failed).await;
        assert_eq!(status.reason.as_deref(), Some("Terminated"), "{name}");
        let message = "Pod was terminated in response to imminent node shutdown.";
        assert_eq!(status.message.as_deref(), Some(message), "{name}");
        let disrupted = status.conditions.iter().flatten().find(|c| c.type_ == "DisruptionTarget");
        assert_eq!(disrupted.and_then(|c| c.reason.as_deref()), Some("TerminationByKubelet"), "{name}");
        ended.push(at);
    }
    assert!(ended[0] < ended[1], "who obeys need not wait");
    assert!(ended[1].duration_since(ended[0]) > Duration::from_secs(1), "who does not has its time");
    assert!(ended[1] < ended[2], "critical pods end last");
    eventually("the agent ends by itself", || host.has_ended());
    assert_eq!(host.containers(), 0);
    let node = host.config.node_name.clone();
    let said = control.heard().said_of(&node);
    let told = format!("Normal NodeNotReady: Node {node} status is now: NodeNotReady");
    assert!(said.contains(&told), "{said:?}");
    assert!(said.iter().any(|told| told.starts_with("Normal NodeShutdown: ")), "{said:?}");
    // The host is up again: what ended stays ended, and new pods are welcome.
    host.stop().await;
    host.start();
    control.put(&with_priority("next", "serve", 0));
    control.running("next-uid").await;
    assert_eq!(host.containers(), 1);
    for name in ["obeys", "refuses", "needed", "late", "next"] {
        control.delete(&format!("{name}-uid"), 0);
        control.gone(&format!("{name}-uid")).await;
    }
    host.finish().await;
}

async fn without_grace_pods_are_left_alone() {
    let (host, control) = crate::lifecycle::led_host().await;
    control.put(&with_priority("stays", "serve", 0));
    control.running("stays-uid").await;
    host.power.cancel();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!host.has_ended());
    assert_eq!(host.containers(), 1);
    assert!(control.heard().statuses["stays-uid"].iter().all(|(_, s)| !has_failed(s)));
    control.delete("stays-uid", 0);
    control.gone("stays-uid").await;
    host.finish().await;
}
