//! The table of pods.
//!
//! Owns the `STATUS` text, which tells more than the phase: what a container waits for or died of, how far
//! the init containers are, that the pod is being deleted.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{AGE, Column, NAME, Row, age, list_at, name, or, text, text_at, wide};
use crate::duration;
use crate::object::{self, parse_timestamp};

pub(super) const COLUMNS: &[Column] = &[
    NAME,
    text("Ready", "How many of the pod's containers accept traffic."),
    text("Status", "The aggregate state of the containers in this pod."),
    text(
        "Restarts",
        "The number of times the containers in this pod have been restarted and when the last container in this pod has restarted.",
    ),
    AGE,
    wide(text("IP", "First address of the pod, once it has one.")),
    wide(text("Node", "The node that the pod is bound to.")),
    wide(text("Nominated Node", "The node that is being cleared for this pod.")),
    wide(text("Readiness Gates", "How many of the pod's readiness gates are true.")),
];

pub(super) fn row(pod: &Value, now: Timestamp) -> Row {
    let summary = Summary::of(pod);
    let restarts = match summary.last_restart {
        Some(at) if summary.restarts != 0 => {
            format!("{} ({} ago)", summary.restarts, duration::since(at, now))
        }
        _ => summary.restarts.to_string(),
    };
    let conditions = match text_at(pod, "/status/phase") {
        "Succeeded" => Some(json!([{"type": "Completed", "status": "True", "reason": "Succeeded",
            "message": "The pod has completed successfully."}])),
        "Failed" => Some(json!([{"type": "Completed", "status": "True", "reason": "Failed",
            "message": "The pod failed."}])),
        _ => None,
    };
    let cells = vec![
        name(pod),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.status.into(),
        restarts.into(),
        age(pod, now),
        or(text_at(pod, "/status/podIPs/0/ip"), "<none>"),
        or(text_at(pod, "/spec/nodeName"), "<none>"),
        or(text_at(pod, "/status/nominatedNodeName"), "<none>"),
        readiness_gates(pod).into(),
    ];
    Row { cells, conditions }
}

/// What the containers add up to.
struct Summary {
    status: String,
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

impl Summary {
    fn of(pod: &Value) -> Self {
        let sidecars: Vec<&str> = list_at(pod, "/spec/initContainers")
            .iter()
            .filter(|c| text_at(c, "/restartPolicy") == "Always")
            .map(|c| text_at(c, "/name"))
            .collect();
        let mut summary = Self {
            status: initial_status(pod),
            ready: 0,
            total: list_at(pod, "/spec/containers").len() + sidecars.len(),
            restarts: 0,
            last_restart: None,
        };
        let initializing = summary.add_init_containers(pod, &sidecars);
        if !initializing || has_condition(pod, "Initialized") {
            summary.add_containers(pod, &sidecars);
        }
        if object::deletion_timestamp(pod).is_some() {
            if text_at(pod, "/status/reason") == "NodeLost" {
                summary.status = "Unknown".to_owned();
            } else if !matches!(text_at(pod, "/status/phase"), "Succeeded" | "Failed") {
                summary.status = "Terminating".to_owned();
            }
        }
        summary
    }

    fn count(&mut self, container: &Value) {
        self.restarts += restart_count(container);
        self.last_restart = self.last_restart.max(last_finish(container));
    }

    /// Adds init containers up to the first that is not done; whether there is one.
    fn add_init_containers(&mut self, pod: &Value, sidecars: &[&str]) -> bool {
        let total = list_at(pod, "/spec/initContainers").len();
        for (index, container) in list_at(pod, "/status/initContainerStatuses").iter().enumerate() {
            self.count(container);
            let sidecar = sidecars.contains(&text_at(container, "/name"));
            let terminated = container.pointer("/state/terminated").filter(|t| t.is_object());
            if terminated.is_some_and(|t| integer_at(t, "exitCode") == 0) {
                continue;
            }
            if sidecar && flag(container, "started") {
                self.ready += usize::from(flag(container, "ready"));
                continue;
            }
            let waiting = text_at(container, "/state/waiting/reason");
            self.status = match terminated {
                Some(terminated) => format!("Init:{}", death(terminated)),
                None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
                None => format!("Init:{index}/{total}"),
            };
            return true;
        }
        false
    }

    /// Adds the regular containers. Restarts of finished init containers no longer count.
    fn add_containers(&mut self, pod: &Value, sidecars: &[&str]) {
        (self.restarts, self.last_restart) = (0, None);
        for container in list_at(pod, "/status/initContainerStatuses") {
            if sidecars.contains(&text_at(container, "/name")) {
                self.count(container);
            }
        }
        let mut running = false;
        for container in list_at(pod, "/status/containerStatuses").iter().rev() {
            self.count(container);
            let waiting = text_at(container, "/state/waiting/reason");
            if !waiting.is_empty() {
                self.status = waiting.to_owned();
            } else if let Some(terminated) = container.pointer("/state/terminated").filter(|t| t.is_object())
            {
                self.status = death(terminated);
            } else if flag(container, "ready")
                && container.pointer("/state/running").is_some_and(Value::is_object)
            {
                running = true;
                self.ready += 1;
            }
        }
        if self.status == "Completed" && running {
            self.status = if has_condition(pod, "Ready") { "Running" } else { "NotReady" }.to_owned();
        }
    }
}

fn initial_status(pod: &Value) -> String {
    let gated = list_at(pod, "/status/conditions")
        .iter()
        .any(|c| text_at(c, "/type") == "PodScheduled" && text_at(c, "/reason") == "SchedulingGated");
    match (gated, text_at(pod, "/status/reason")) {
        (true, _) => "SchedulingGated",
        (false, "") => text_at(pod, "/status/phase"),
        (false, reason) => reason,
    }
    .to_owned()
}

/// What a terminated container died of.
fn death(terminated: &Value) -> String {
    match (text_at(terminated, "/reason"), integer_at(terminated, "signal")) {
        ("", 0) => format!("ExitCode:{}", integer_at(terminated, "exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn restart_count(container: &Value) -> i64 {
    integer_at(container, "restartCount")
}

fn last_finish(container: &Value) -> Option<Timestamp> {
    parse_timestamp(text_at(container, "/lastState/terminated/finishedAt"))
}

fn integer_at(value: &Value, key: &str) -> i64 {
    value.get(key).and_then(Value::as_i64).unwrap_or(0)
}

fn flag(value: &Value, key: &str) -> bool {
    value.get(key).and_then(Value::as_bool).unwrap_or(false)
}

fn has_condition(pod: &Value, ty: &str) -> bool {
    list_at(pod, "/status/conditions")
        .iter()
        .find(|c| text_at(c, "/type") == ty)
        .is_some_and(|c| text_at(c, "/status") == "True")
}

fn readiness_gates(pod: &Value) -> String {
    let gates = list_at(pod, "/spec/readinessGates");
    if gates.is_empty() {
        return "<none>".to_owned();
    }
    let met = gates.iter().filter(|g| has_condition(pod, text_at(g, "/conditionType"))).count();
    format!("{met}/{}", gates.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2024-01-01T01:00:00Z";

    /// READY, STATUS and RESTARTS of a pod.
    fn cells(pod: &Value) -> [String; 3] {
        let row = row(pod, NOW.parse().unwrap());
        [1, 2, 3].map(|i| row.cells[i].as_str().unwrap().to_owned())
    }

    fn running(restarts: i64) -> Value {
        json!({"name": "c", "ready": true, "restartCount": restarts, "state": {"running": {}}})
    }

    fn exited(code: i64, reason: &str) -> Value {
        json!({"name": "d", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": code, "reason": reason}}})
    }

    fn pod(containers: usize, statuses: Value) -> Value {
        json!({"metadata": {"name": "p"},
            "spec": {"containers": vec![json!({}); containers]},
            "status": {"phase": "Running", "containerStatuses": statuses}})
    }

    #[test]
    fn a_running_pod() {
        assert_eq!(cells(&pod(1, json!([running(0)]))), ["1/1", "Running", "0"]);
        let mut restarted = pod(1, json!([running(3)]));
        restarted["status"]["containerStatuses"][0]["lastState"] =
            json!({"terminated": {"finishedAt": "2024-01-01T00:55:00Z"}});
        assert_eq!(cells(&restarted), ["1/1", "Running", "3 (5m ago)"]);
    }

    #[test]
    fn containers_that_wait_or_died() {
        let waiting =
            |reason: &str| json!({"name": "c", "restartCount": 2, "state": {"waiting": {"reason": reason}}});
        assert_eq!(cells(&pod(1, json!([waiting("CrashLoopBackOff")]))), ["0/1", "CrashLoopBackOff", "2"]);
        assert_eq!(
            cells(&pod(2, json!([running(0), waiting("ImagePullBackOff")]))),
            ["1/2", "ImagePullBackOff", "2"]
        );
        assert_eq!(cells(&pod(1, json!([exited(3, "")]))), ["0/1", "ExitCode:3", "0"]);
        assert_eq!(cells(&pod(1, json!([exited(1, "Error")]))), ["0/1", "Error", "0"]);
        let mut signalled = pod(1, json!([exited(137, "")]));
        signalled["status"]["containerStatuses"][0]["state"]["terminated"]["signal"] = 9.into();
        assert_eq!(cells(&signalled)[1], "Signal:9");
    }

    #[test]
    fn one_of_two_containers_has_completed() {
        let mut half = pod(2, json!([running(0), exited(0, "Completed")]));
        assert_eq!(cells(&half), ["1/2", "NotReady", "0"]);
        half["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
        assert_eq!(cells(&half)[1], "Running");
    }

    #[test]
    fn init_containers_show_their_progress() {
        let pod = |statuses: Value| {
            json!({"metadata": {"name": "p"},
                "spec": {"containers": [{}, {}], "initContainers": [{"name": "a"}, {"name": "b"}]},
                "status": {"phase": "Pending", "initContainerStatuses": statuses,
                    "containerStatuses": [{"state": {"waiting": {"reason": "PodInitializing"}}}]}})
        };
        let done = json!({"name": "a", "restartCount": 1, "state": {"terminated": {"exitCode": 0}}});
        let going = json!({"name": "b", "restartCount": 0, "state": {"running": {}}});
        let pending =
            json!({"name": "a", "restartCount": 0, "state": {"waiting": {"reason": "PodInitializing"}}});
        assert_eq!(cells(&pod(json!([pending.clone(), pending]))), ["0/2", "Init:0/2", "0"]);
        assert_eq!(cells(&pod(json!([done.clone(), going]))), ["0/2", "Init:1/2", "1"]);
        assert_eq!(cells(&pod(json!([exited(1, "Error")])))[1], "Init:Error");
        assert_eq!(cells(&pod(json!([exited(2, "")])))[1], "Init:ExitCode:2");
        let backoff =
            json!({"name": "a", "restartCount": 4, "state": {"waiting": {"reason": "CrashLoopBackOff"}}});
        assert_eq!(cells(&pod(json!([backoff])))[1..], ["Init:CrashLoopBackOff", "4"]);
        assert_eq!(cells(&pod(json!([done.clone(), done]))), ["0/2", "PodInitializing", "0"]);
    }

    #[test]
    fn sidecars_count_as_containers() {
        let pod = json!({"metadata": {"name": "p"},
            "spec": {"containers": [{}], "initContainers": [{"name": "side", "restartPolicy": "Always"}]},
            "status": {"phase": "Running", "containerStatuses": [running(0)], "initContainerStatuses": [
                {"name": "side", "ready": true, "started": true, "restartCount": 2, "state": {"running": {}}}]}});
        assert_eq!(cells(&pod), ["2/2", "Running", "2"]);
    }

    #[test]
    fn deletion_loss_reasons_and_gates() {
        let mut going = pod(1, json!([running(0)]));
        going["metadata"]["deletionTimestamp"] = NOW.into();
        assert_eq!(cells(&going), ["1/1", "Terminating", "0"]);
        going["status"]["reason"] = "NodeLost".into();
        assert_eq!(cells(&going)[1], "Unknown");
        let mut done = pod(1, json!([exited(0, "Completed")]));
        done["status"]["phase"] = "Succeeded".into();
        done["metadata"]["deletionTimestamp"] = NOW.into();
        assert_eq!(cells(&done)[1], "Completed");
        assert_eq!(row(&done, NOW.parse().unwrap()).conditions.unwrap()[0]["reason"], "Succeeded");
        let evicted =
            json!({"spec": {"containers": [{}]}, "status": {"phase": "Failed", "reason": "Evicted"}});
        assert_eq!(cells(&evicted), ["0/1", "Evicted", "0"]);
        let pending = json!({"spec": {"containers": [{}]}, "status": {"phase": "Pending"}});
        assert_eq!(cells(&pending), ["0/1", "Pending", "0"]);
    }

    #[test]
    fn wide_columns() {
        let mut wide = pod(1, json!([running(0)]));
        let cells = |pod: &Value| row(pod, NOW.parse().unwrap()).cells[5..].to_vec();
        assert_eq!(cells(&wide), ["<none>", "<none>", "<none>", "<none>"]);
        wide["status"]["podIPs"] = json!([{"ip": "10.1.2.3"}]);
        wide["spec"]["nodeName"] = "n1".into();
        wide["spec"]["readinessGates"] = json!([{"conditionType": "a"}, {"conditionType": "b"}]);
        wide["status"]["conditions"] = json!([{"type": "b", "status": "True"}]);
        assert_eq!(cells(&wide), ["10.1.2.3", "n1", "<none>", "1/2"]);
    }
}
