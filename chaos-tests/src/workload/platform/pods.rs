//! Pods that nobody keeps: made, left to run, and deleted again.

use std::collections::VecDeque;

use http::Method;
use serde_json::json;

use super::session::{Session, all_ready};
use super::{LABEL, template};

/// Pods that one client has at a time.
const ALIVE_MAX: usize = 4;

pub(super) async fn work(mut session: Session) {
    let mut alive = VecDeque::new();
    let mut count = 0_u64;
    while session.turn().await {
        let oldest = (alive.len() >= ALIVE_MAX).then(|| alive.pop_front()).flatten();
        if let Some(name) = oldest {
            let path = format!("pods/{name}");
            session.operate("delete-pod", json!({"name": name}), (Method::DELETE, &path), None).await;
            continue;
        }
        count += 1;
        let name = format!("pod-{}-{count}", session.index);
        let mut pod = template(&session);
        pod["metadata"]["name"] = json!(name);
        // Whether it was made or not: an attempt to delete it shows.
        alive.push_back(name.clone());
        session.operate("create-pod", json!({"name": name}), (Method::POST, "pods"), Some(&pod)).await;
    }
    let own = format!("pods?labelSelector={LABEL}%3D{}", session.label());
    session.converge(&own, |list| all_ready(list, None)).await;
    session.clean_up("pods").await;
}
