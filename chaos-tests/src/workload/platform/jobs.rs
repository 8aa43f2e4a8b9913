//! Jobs, one after the other for each client: begun, followed to their end, and deleted.

use http::Method;
use serde_json::{Value, json};

use super::session::Session;
use super::{LABEL, template};

/// Pods that have to succeed, all of them at once.
const COMPLETIONS: u64 = 2;
/// Jobs of one client that may be there: those that were made without an answer go on beside the next.
const JOBS_MAX: u64 = 4;
/// Pods that may fail: those of dead nodes do.
const RETRIES: u64 = 20;

pub(super) async fn work(mut session: Session) {
    let mut current: Option<String> = None;
    let mut count = 0_u64;
    while session.turn().await {
        let Some(name) = &current else {
            count += 1;
            let name = format!("job-{}-{count}", session.index);
            let asked = json!({"name": name, "label": session.label(), "most": JOBS_MAX * COMPLETIONS});
            let body = job(&session, &name);
            let made = session.operate("create-job", asked, (Method::POST, "jobs"), Some(&body)).await;
            // One of which nobody knows whether it was made goes on or not; the clean-up finds it.
            current = made.map(|_| name);
            continue;
        };
        let path = format!("jobs/{name}");
        let asked = json!({"name": name});
        let found = session.operate("look-at-job", asked.clone(), (Method::GET, &path), None).await;
        if found.is_some_and(|job| is_complete(&job).is_ok()) {
            let path = format!("{path}?propagationPolicy=Background");
            session.operate("delete-job", asked, (Method::DELETE, &path), None).await;
            current = None;
        }
    }
    let own = format!("jobs?labelSelector={LABEL}%3D{}", session.label());
    session.converge(&own, all_complete).await;
    session.clean_up("jobs").await;
}

fn job(session: &Session, name: &str) -> Value {
    let mut template = template(session);
    template["spec"]["restartPolicy"] = json!("Never");
    template["spec"]["containers"][0]["command"] = json!(["/barque", "version"]);
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": {LABEL: session.label()}},
        "spec": {
            "completions": COMPLETIONS,
            "parallelism": COMPLETIONS,
            "backoffLimit": RETRIES,
            "template": template,
        },
    })
}

fn all_complete(list: &Value) -> Result<(), String> {
    let jobs = list["items"].as_array().ok_or("that is no list")?;
    jobs.iter().try_for_each(is_complete)
}

/// As many pods have succeeded as had to, and the Job says that it is through.
fn is_complete(job: &Value) -> Result<(), String> {
    let name = &job["metadata"]["name"];
    let conditions = job["status"]["conditions"].as_array();
    let says = |word: &str| {
        conditions.is_some_and(|all| all.iter().any(|one| one["type"] == word && one["status"] == "True"))
    };
    if says("Failed") {
        return Err(format!("job {name} has failed"));
    }
    if !says("Complete") {
        return Err(format!("job {name} is not complete"));
    }
    match job["status"]["succeeded"].as_u64() {
        Some(COMPLETIONS) => Ok(()),
        other => Err(format!("job {name} is complete with {other:?} of {COMPLETIONS} pods")),
    }
}
