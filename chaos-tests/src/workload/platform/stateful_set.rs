//! A StatefulSet for each client, whose pods are deleted while things break: each comes again under its name, and is never there
//! twice.

use http::Method;
use serde_json::{Value, json};

use super::session::{Session, all_ready};
use super::{LABEL, template};

const REPLICAS: usize = 3;

pub(super) async fn work(mut session: Session) {
    let name = format!("db-{}", session.index);
    let mut is_there = false;
    while session.turn().await {
        if is_there {
            let pod = format!("{name}-{}", session.pick(REPLICAS));
            let path = format!("pods/{pod}");
            session.operate("delete-pod", json!({"name": pod}), (Method::DELETE, &path), None).await;
            continue;
        }
        let asked = json!({"label": session.label(), "most": REPLICAS});
        let body = stateful_set(&session, &name);
        let made =
            session.operate("create-stateful-set", asked, (Method::POST, "statefulsets"), Some(&body)).await;
        let path = format!("statefulsets/{name}");
        let exists =
            made.is_none() && session.operate("get", json!({}), (Method::GET, &path), None).await.is_some();
        is_there = made.is_some() || exists;
    }
    if is_there {
        let own = format!("pods?labelSelector={LABEL}%3D{}", session.label());
        session.converge(&own, |list| all_ready(list, Some(REPLICAS))).await;
    }
    session.clean_up("statefulsets").await;
}

fn stateful_set(session: &Session, name: &str) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": name, "labels": {LABEL: session.label()}},
        "spec": {
            "replicas": REPLICAS,
            "serviceName": name,
            "selector": {"matchLabels": {LABEL: session.label()}},
            "template": template(session),
        },
    })
}
