//! Groups of pods that are of use only together: all of a group are bound at once, or none.

use http::Method;
use serde_json::json;

use super::session::Session;
use super::{GROUP_LABEL, template};

/// How many members a group has, and needs.
const MEMBERS: usize = 3;
/// Where a member says so.
const MIN_ANNOTATION: &str = "pod-group.scheduling.sigs.k8s.io/min-available";
/// Groups that one client has at a time.
const GROUPS_MAX: usize = 2;
/// More than a node has room for beside others: groups wait for each other.
const CPU: &str = "400m";

pub(super) async fn work(mut session: Session) {
    let mut alive: Vec<Vec<String>> = Vec::new();
    let mut count = 0_u64;
    while session.turn().await {
        if alive.len() >= GROUPS_MAX {
            for name in alive.remove(0) {
                let path = format!("pods/{name}");
                session.operate("delete-pod", json!({"name": name}), (Method::DELETE, &path), None).await;
            }
            continue;
        }
        count += 1;
        let group = format!("gang-{}-{count}", session.index);
        let mut names = Vec::new();
        for member in 0..MEMBERS {
            let name = format!("{group}-{member}");
            let mut pod = template(&session);
            pod["metadata"]["name"] = json!(name);
            pod["metadata"]["labels"][GROUP_LABEL] = json!(group);
            pod["metadata"]["annotations"] = json!({MIN_ANNOTATION: MEMBERS.to_string()});
            pod["spec"]["containers"][0]["resources"]["requests"]["cpu"] = json!(CPU);
            let asked = json!({"name": name, "group": group, "needs": MEMBERS});
            session.operate("create-pod", asked, (Method::POST, "pods"), Some(&pod)).await;
            names.push(name);
        }
        alive.push(names);
    }
    // Groups that never became whole wait for ever; there is nothing to wait for but their end.
    session.clean_up("pods").await;
}
