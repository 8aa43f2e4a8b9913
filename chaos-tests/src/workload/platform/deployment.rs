//! A Deployment for each client, scaled and rolled out while things break.

use http::Method;
use serde_json::{Value, json};

use super::session::Session;
use super::{LABEL, template};

/// Replicas that are asked for, at least and at most.
const REPLICAS: [usize; 2] = [3, 5];
/// Pods above that number while it is rolled out.
const SURGE: usize = 1;

pub(super) async fn work(mut session: Session) {
    let name = format!("web-{}", session.index);
    let path = format!("deployments/{name}");
    let mut is_there = false;
    let mut round = 0_u64;
    while session.turn().await {
        if !is_there {
            let asked = json!({"label": session.label(), "most": REPLICAS[1] + SURGE});
            let body = deployment(&session, &name);
            let to = (Method::POST, "deployments");
            let made = session.operate("create-deployment", asked, to, Some(&body)).await;
            let exists = made.is_none()
                && session.operate("get", json!({}), (Method::GET, &path), None).await.is_some();
            is_there = made.is_some() || exists;
            continue;
        }
        if session.pick(2) == 0 {
            let replicas = REPLICAS[0] + session.pick(REPLICAS[1] - REPLICAS[0] + 1);
            let patch = json!({"spec": {"replicas": replicas}});
            let asked = json!({"replicas": replicas});
            session.operate("scale", asked, (Method::PATCH, &path), Some(&patch)).await;
        } else {
            round += 1;
            let annotations = json!({"round": round.to_string()});
            let patch = json!({"spec": {"template": {"metadata": {"annotations": annotations}}}});
            session.operate("roll-out", json!({"round": round}), (Method::PATCH, &path), Some(&patch)).await;
        }
    }
    if is_there {
        session.converge(&path, is_complete).await;
    }
    session.clean_up("deployments").await;
}

fn deployment(session: &Session, name: &str) -> Value {
    let mut template = template(session);
    template["spec"]["containers"][0]["readinessProbe"] =
        json!({"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1});
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": {LABEL: session.label()}},
        "spec": {
            "replicas": REPLICAS[1],
            "selector": {"matchLabels": {LABEL: session.label()}},
            "strategy": {"rollingUpdate": {"maxSurge": SURGE, "maxUnavailable": 1}},
            "template": template,
        },
    })
}

/// What `kubectl rollout status` waits for.
fn is_complete(deployment: &Value) -> Result<(), String> {
    let (spec, status) = (&deployment["spec"], &deployment["status"]);
    if status["observedGeneration"] != deployment["metadata"]["generation"] {
        return Err("its controller has not seen the last change".to_owned());
    }
    let count = |value: &Value| value.as_i64().unwrap_or(0);
    let wanted = count(&spec["replicas"]);
    for word in ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"] {
        if count(&status[word]) != wanted {
            return Err(format!("{word} is {}, not {wanted}", count(&status[word])));
        }
    }
    Ok(())
}
