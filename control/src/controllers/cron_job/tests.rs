//! Jobs at their times, what happens when they overlap, and which are kept.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::controllers::Timings;
use crate::registry::Target;
use crate::test_cluster::{TestCluster, any};

fn cron(spec: Value) -> Value {
    let mut cron = json!({"metadata": {"name": "tick"}, "spec": {"schedule": "* * * * *", "jobTemplate":
        {"metadata": {"labels": {"of": "tick"}}, "spec": {"template":
            {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i:1"}]}}}}}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        cron["spec"][key] = value.clone();
    }
    cron
}

/// Makes the CronJob believe that so many minutes have passed since its last job.
async fn missed(cluster: &TestCluster, minutes: i64) {
    let last = Timestamp::now() - SignedDuration::from_mins(minutes);
    let target = Target::status(any("batch", "CronJob"), "default", "tick");
    let text = api::object::timestamp(last);
    cluster.modify(target, |cron| cron["status"]["lastScheduleTime"] = json!(text)).await;
}

fn active(crons: &[Value]) -> usize {
    crons[0]["status"]["active"].as_array().map_or(0, Vec::len)
}

#[tokio::test]
async fn a_time_that_has_come_makes_one_job() {
    let cluster = TestCluster::start(Timings::default()).await;
    cluster.make("batch", "CronJob", cron(json!({}))).await;
    missed(&cluster, 5).await;
    let jobs = cluster.until_all("batch", "Job", |jobs| !jobs.is_empty()).await;
    let name = jobs[0]["metadata"]["name"].as_str().unwrap_or_default();
    assert_eq!(name, format!("tick-{}", Timestamp::now().as_second() / 60), "only the newest time counts");
    assert_eq!(jobs[0]["metadata"]["labels"]["of"], "tick");
    assert_eq!(jobs[0]["metadata"]["ownerReferences"][0]["kind"], "CronJob");
    cluster.until_all("batch", "CronJob", |crons| active(crons) == 1).await;
    assert_eq!(cluster.event("SuccessfulCreate", "tick").await, format!("Created job: {name}"));
}

#[tokio::test]
async fn what_overlaps_is_forbidden_or_replaced() {
    for policy in ["Forbid", "Replace"] {
        let cluster = TestCluster::start(Timings::default()).await;
        cluster.make("batch", "CronJob", cron(json!({"concurrencyPolicy": policy, "suspend": true}))).await;
        let mut job = cron(json!({}))["spec"]["jobTemplate"].clone();
        let owner = cluster.all("batch", "CronJob").await.remove(0);
        job["metadata"] = json!({"name": "tick-1", "ownerReferences": [{"apiVersion": "batch/v1", "kind": "CronJob",
            "name": "tick", "uid": owner["metadata"]["uid"], "controller": true}]});
        cluster.make("batch", "Job", job).await;
        missed(&cluster, 2).await;
        cluster.until_all("batch", "CronJob", |crons| active(crons) == 1).await;
        let target = Target::new(any("batch", "CronJob"), "default", "tick");
        cluster.modify(target, |cron| cron["spec"]["suspend"] = json!(false)).await;
        match policy {
            "Forbid" => {
                let why = cluster.event("JobAlreadyActive", "tick").await;
                assert!(why.contains("concurrency policy is Forbid"), "{why}");
                assert_eq!(cluster.all("batch", "Job").await.len(), 1);
            }
            _ => {
                cluster
                    .until_all("batch", "Job", |jobs| {
                        jobs.len() == 1 && jobs[0]["metadata"]["name"] != "tick-1"
                    })
                    .await;
            }
        }
    }
}

#[tokio::test]
async fn ended_jobs_are_kept_up_to_a_number() {
    let cluster = TestCluster::start(Timings::default()).await;
    let spec = json!({"suspend": true, "successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 0});
    cluster.make("batch", "CronJob", cron(spec)).await;
    let owner = cluster.all("batch", "CronJob").await.remove(0);
    for (name, how, start) in [
        ("tick-1", "Complete", "2024-01-01T00:00:00Z"),
        ("tick-2", "Complete", "2024-01-02T00:00:00Z"),
        ("tick-3", "Failed", "2024-01-03T00:00:00Z"),
    ] {
        let mut job = cron(json!({}))["spec"]["jobTemplate"].clone();
        job["metadata"] = json!({"name": name, "ownerReferences": [{"apiVersion": "batch/v1", "kind": "CronJob",
            "name": "tick", "uid": owner["metadata"]["uid"], "controller": true}]});
        job["spec"]["suspend"] = json!(true);
        cluster.make("batch", "Job", job).await;
        let target = Target::status(any("batch", "Job"), "default", name);
        cluster
            .modify(target, |job| {
                job["status"] = json!({"startTime": start, "conditions": [{"type": how, "status": "True",
                    "lastTransitionTime": start}]});
            })
            .await;
    }
    let left = cluster.until_all("batch", "Job", |jobs| jobs.len() == 1).await;
    assert_eq!(left[0]["metadata"]["name"], "tick-2");
}
