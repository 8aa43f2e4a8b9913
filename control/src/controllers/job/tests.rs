//! Jobs through success, failure, deadlines, indexes, suspension and new leaders.

use api::object;
use serde_json::{Value, json};

use crate::controllers::Timings;
use crate::registry::{DeleteOptions, Target};
use crate::test_cluster::{TestCluster, any, condition};

fn job(spec: Value) -> Value {
    let mut job = json!({"metadata": {"name": "sum"}, "spec": {"template":
        {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i:1"}]}}}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        job["spec"][key] = value.clone();
    }
    job
}

/// Every pod ends, well or with that code.
fn ends(code: i64) -> impl Fn(&Value) -> Option<Value> {
    move |pod| (pod["status"]["phase"] == "Pending").then(|| ended(code))
}

fn ended(code: i64) -> Value {
    let phase = if code == 0 { "Succeeded" } else { "Failed" };
    json!({"phase": phase, "containerStatuses": [{"name": "c", "image": "i:1", "imageID": "", "ready": false,
        "restartCount": 0, "state": {"terminated": {"exitCode": code, "finishedAt": "2024-01-01T00:00:00Z"}}}]})
}

async fn until(cluster: &TestCluster, is_right: impl Fn(&Value) -> bool) -> Value {
    cluster.until_all("batch", "Job", |jobs| jobs.first().is_some_and(&is_right)).await.remove(0)
}

fn is(job: &Value, name: &str) -> bool {
    condition(job, name)["status"] == "True"
}

#[tokio::test]
async fn so_many_pods_end_well_and_are_counted_once() {
    let cluster = TestCluster::start(Timings::default()).await;
    let _agent = cluster.play(ends(0));
    cluster.make("batch", "Job", job(json!({"completions": 7, "parallelism": 3}))).await;
    let done = until(&cluster, |job| is(job, "Complete")).await;
    assert_eq!(done["status"]["succeeded"], 7);
    assert!(done["status"]["completionTime"].is_string());
    assert_eq!(condition(&done, "SuccessCriteriaMet")["reason"], "CompletionsReached");
    let pods = cluster
        .until_all("", "Pod", |pods| pods.iter().all(|pod| pod["metadata"]["finalizers"].is_null()))
        .await;
    assert_eq!(pods.len(), 7);
    assert!(pods.iter().all(|pod| pod["metadata"]["labels"]["batch.kubernetes.io/job-name"] == "sum"));
    assert_eq!(cluster.event("Completed", "sum").await, "Job completed");
}

#[tokio::test]
async fn new_leaders_neither_lose_nor_repeat_a_count() {
    let cluster = TestCluster::start(Timings::default()).await;
    let _agent = cluster.play(ends(0));
    cluster.make("batch", "Job", job(json!({"completions": 40, "parallelism": 8}))).await;
    for term in 2..20 {
        cluster.lead(term);
        tokio::time::sleep(std::time::Duration::from_millis(9)).await;
    }
    let done = until(&cluster, |job| is(job, "Complete")).await;
    assert_eq!(done["status"]["succeeded"], 40);
    assert_eq!(cluster.all("", "Pod").await.len(), 40);
}

#[tokio::test]
async fn a_job_that_fails_too_often_is_given_up() {
    let cluster = TestCluster::start(Timings::default()).await;
    let _agent = cluster.play(ends(1));
    cluster.make("batch", "Job", job(json!({"backoffLimit": 2}))).await;
    let failed = until(&cluster, |job| is(job, "Failed")).await;
    assert_eq!(condition(&failed, "Failed")["reason"], "BackoffLimitExceeded");
    assert_eq!(condition(&failed, "Failed")["message"], "Job has reached the specified backoff limit");
    assert_eq!(failed["status"]["failed"], 3);
    assert_eq!(
        cluster.event("BackoffLimitExceeded", "sum").await,
        "Job has reached the specified backoff limit"
    );
}

#[tokio::test]
async fn a_job_that_lasts_too_long_is_given_up() {
    let cluster = TestCluster::start(Timings::default()).await;
    let _agent = cluster.play(|_| None);
    cluster.make("batch", "Job", job(json!({"activeDeadlineSeconds": 1}))).await;
    let failed = until(&cluster, |job| is(job, "Failed")).await;
    assert_eq!(condition(&failed, "Failed")["reason"], "DeadlineExceeded");
    cluster.until_all("", "Pod", |pods| pods.is_empty()).await;
}

#[tokio::test]
async fn each_index_is_done_once_and_known_by_its_number() {
    let cluster = TestCluster::start(Timings::default()).await;
    let _agent = cluster.play(ends(0));
    let spec = json!({"completions": 5, "parallelism": 2, "completionMode": "Indexed"});
    cluster.make("batch", "Job", job(spec)).await;
    let done = until(&cluster, |job| is(job, "Complete")).await;
    assert_eq!(done["status"]["completedIndexes"], "0-4");
    assert_eq!(done["status"]["succeeded"], 5);
    let pods = cluster.all("", "Pod").await;
    let mut hosts: Vec<&str> = pods.iter().filter_map(|pod| pod["spec"]["hostname"].as_str()).collect();
    hosts.sort_unstable();
    assert_eq!(hosts, ["sum-0", "sum-1", "sum-2", "sum-3", "sum-4"]);
    assert_eq!(pods[0]["spec"]["containers"][0]["env"][0]["name"], "JOB_COMPLETION_INDEX");
}

#[tokio::test]
async fn a_failure_means_what_the_policy_says() {
    let cluster = TestCluster::start(Timings::default()).await;
    let _agent = cluster.play(ends(42));
    let rules = json!([{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}}]);
    cluster.make("batch", "Job", job(json!({"podFailurePolicy": {"rules": rules}}))).await;
    let failed = until(&cluster, |job| is(job, "Failed")).await;
    let why = condition(&failed, "Failed");
    assert_eq!(why["reason"], "PodFailurePolicy");
    let message = why["message"].as_str().unwrap_or_default();
    assert!(message.ends_with("failed with exit code 42 matching FailJob rule at index 0"), "{message}");
}

#[tokio::test]
async fn a_pod_that_is_evicted_does_not_count_if_the_policy_says_so() {
    let cluster = TestCluster::start(Timings::default()).await;
    let agent = cluster.play(|_| None);
    let rules =
        json!([{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]);
    cluster.make("batch", "Job", job(json!({"backoffLimit": 0, "podFailurePolicy": {"rules": rules}}))).await;
    let pods = cluster.until_all("", "Pod", |pods| pods.len() == 1).await;
    let name = object::name(&pods[0]);
    let evicted = cluster.registry.evict("default", name, &DeleteOptions::default()).await.unwrap();
    let told = condition(evicted.object.value(), "DisruptionTarget");
    assert_eq!((&told["status"], &told["reason"]), (&json!("True"), &json!("EvictionByEvictionAPI")));
    cluster.until_all("", "Pod", |pods| pods.iter().any(|pod| object::name(pod) != name)).await;
    drop(agent);
    let _agent = cluster.play(ends(0));
    let done = until(&cluster, |job| is(job, "Complete") || is(job, "Failed")).await;
    assert!(is(&done, "Complete"), "{done:#}");
    assert_eq!((&done["status"]["failed"], &done["status"]["succeeded"]), (&Value::Null, &json!(1)));
}

#[tokio::test]
async fn an_index_that_fails_does_not_fail_the_others() {
    let cluster = TestCluster::start(Timings::default()).await;
    let _agent = cluster.play(|pod| {
        let fails = pod["spec"]["hostname"] == "sum-1";
        (pod["status"]["phase"] == "Pending").then(|| ended(i64::from(fails)))
    });
    let spec =
        json!({"completions": 3, "parallelism": 3, "completionMode": "Indexed", "backoffLimitPerIndex": 0});
    cluster.make("batch", "Job", job(spec)).await;
    let failed = until(&cluster, |job| is(job, "Failed")).await;
    assert_eq!(condition(&failed, "Failed")["reason"], "FailedIndexes");
    assert_eq!(failed["status"]["completedIndexes"], "0,2");
    assert_eq!(failed["status"]["failedIndexes"], "1");
}

#[tokio::test]
async fn a_suspended_job_has_no_pods_and_goes_on_when_resumed() {
    let cluster = TestCluster::start(Timings::default()).await;
    let agent = cluster.play(|_| None);
    cluster.make("batch", "Job", job(json!({"parallelism": 2, "completions": 2}))).await;
    cluster.until_all("", "Pod", |pods| pods.len() == 2).await;
    let target = || Target::new(any("batch", "Job"), "default", "sum");
    cluster.modify(target(), |job| job["spec"]["suspend"] = json!(true)).await;
    cluster.until_all("", "Pod", |pods| pods.is_empty()).await;
    until(&cluster, |job| is(job, "Suspended")).await;
    drop(agent);
    let _agent = cluster.play(ends(0));
    cluster.modify(target(), |job| job["spec"]["suspend"] = json!(false)).await;
    let done = until(&cluster, |job| is(job, "Complete")).await;
    assert_eq!(condition(&done, "Suspended")["status"], "False");
}

#[tokio::test]
async fn an_ended_job_goes_when_its_time_is_over() {
    let cluster = TestCluster::start(Timings::default()).await;
    let _agent = cluster.play(ends(0));
    cluster.make("batch", "Job", job(json!({"ttlSecondsAfterFinished": 1}))).await;
    until(&cluster, |job| is(job, "Complete")).await;
    cluster.until_all("batch", "Job", |jobs| jobs.is_empty()).await;
    cluster.until_all("", "Pod", |pods| pods.is_empty()).await;
}
