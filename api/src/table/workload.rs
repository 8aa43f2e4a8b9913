//! Tables of what makes pods of a template.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use serde_json::Value;

use super::{AGE, Column, NAME, age, integer, list_at, name, text, text_at, wide};
use crate::duration;
use crate::object;
use crate::selector::LabelSelector;

const CONTAINERS: Column = wide(text("Containers", "Names of each container in the template."));
const IMAGES: Column = wide(text("Images", "Images referenced by each container in the template."));
const SELECTOR: Column = wide(text("Selector", "Which pods are its own."));

pub(super) const DEPLOYMENT: &[Column] = &[
    NAME,
    text("Ready", "Number of the pod with ready state"),
    integer("Up-to-date", "Pods made of the newest template."),
    integer("Available", "Pods that have been ready long enough."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
pub(super) const REPLICA_SET: &[Column] = &[
    NAME,
    integer("Desired", "How many pods there should be."),
    integer("Current", "How many there are."),
    integer("Ready", "How many are ready."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
pub(super) const STATEFUL_SET: &[Column] =
    &[NAME, text("Ready", "Number of the pod with ready state"), AGE, CONTAINERS, IMAGES];
pub(super) const DAEMON_SET: &[Column] = &[
    NAME,
    integer("Desired", "How many nodes should run a pod."),
    integer("Current", "How many do."),
    integer("Ready", "How many of those are ready."),
    integer("Up-to-date", "How many run the newest template."),
    integer("Available", "How many have been ready long enough."),
    text("Node Selector", "Which nodes should run a pod."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
pub(super) const CONTROLLER_REVISION: &[Column] =
    &[NAME, text("Controller", "Whose revision it is."), integer("Revision", "Which one it is."), AGE];
pub(super) const JOB: &[Column] = &[
    NAME,
    text("Status", "Whether it runs, has ended well or badly."),
    text("Completions", "How many pods have ended well, of how many."),
    text("Duration", "How long it has been running."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
pub(super) const CRON_JOB: &[Column] = &[
    NAME,
    text("Schedule", "When jobs are made."),
    text("TimeZone", "The time zone of the schedule."),
    text("Suspend", "Whether no new ones are made."),
    integer("Active", "How many jobs are running."),
    text("Last Schedule", "When the last one was made."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
pub(super) const POD_TEMPLATE: &[Column] = &[
    NAME,
    text("Containers", "Names of each container in the template."),
    text("Images", "Images referenced by each container in the template."),
    text("Pod Labels", "The labels of its pods."),
];

fn count(object: &Value, pointer: &str) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
}

/// Names and images of the containers of the template at that pointer.
fn containers(object: &Value, pointer: &str) -> [Value; 2] {
    let containers = list_at(object, pointer);
    let each = |field: &str| -> Value {
        let texts = containers.iter().map(|container| container[field].as_str().unwrap_or_default());
        texts.collect::<Vec<_>>().join(",").into()
    };
    [each("name"), each("image")]
}

pub(super) fn selector(value: &Value) -> Value {
    let selector = serde_json::from_value::<meta::LabelSelector>(value.clone()).ok();
    let selector = LabelSelector::from_typed(selector.as_ref());
    selector.map_or_else(|why| why, |selector| selector.to_string()).into()
}

fn template(object: &Value) -> [Value; 3] {
    let [names, images] = containers(object, "/spec/template/spec/containers");
    [names, images, selector(&object["spec"]["selector"])]
}

pub(super) fn deployment(object: &Value, now: Timestamp) -> Vec<Value> {
    let ready = format!("{}/{}", count(object, "/status/readyReplicas"), count(object, "/spec/replicas"));
    let mut cells = vec![
        name(object),
        ready.into(),
        count(object, "/status/updatedReplicas").into(),
        count(object, "/status/availableReplicas").into(),
        age(object, now),
    ];
    cells.extend(template(object));
    cells
}

pub(super) fn replica_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut cells = vec![
        name(object),
        count(object, "/spec/replicas").into(),
        count(object, "/status/replicas").into(),
        count(object, "/status/readyReplicas").into(),
        age(object, now),
    ];
    cells.extend(template(object));
    cells
}

/// Its selector is a plain set of labels.
pub(super) fn replication_controller(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut cells = replica_set(object, now);
    if let Some(selector) = cells.last_mut() {
        *selector = labels(&object["spec"]["selector"], "<none>");
    }
    cells
}

/// Labels as they are written, or what is printed for none.
pub(super) fn labels(value: &Value, none: &str) -> Value {
    let labels = value.as_object().into_iter().flatten();
    let texts: Vec<String> =
        labels.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    if texts.is_empty() { none.into() } else { texts.join(",").into() }
}

pub(super) fn stateful_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let ready = format!("{}/{}", count(object, "/status/readyReplicas"), count(object, "/spec/replicas"));
    let [names, images] = containers(object, "/spec/template/spec/containers");
    vec![name(object), ready.into(), age(object, now), names, images]
}

pub(super) fn daemon_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut cells = vec![name(object)];
    for field in [
        "desiredNumberScheduled",
        "currentNumberScheduled",
        "numberReady",
        "updatedNumberScheduled",
        "numberAvailable",
    ] {
        cells.push(count(&object["status"], &format!("/{field}")).into());
    }
    cells.push(labels(&object["spec"]["template"]["spec"]["nodeSelector"], "<none>"));
    cells.push(age(object, now));
    cells.extend(template(object));
    cells
}

pub(super) fn controller_revision(object: &Value, now: Timestamp) -> Vec<Value> {
    let owner = object::owner_references(object).iter().find(|owner| owner["controller"] == true);
    let owner = owner.map_or_else(
        || "<none>".to_owned(),
        |owner| {
            let (group, _) = crate::kinds::split_api_version(text_at(owner, "/apiVersion"));
            let kind = text_at(owner, "/kind").to_lowercase();
            let dot = if group.is_empty() { "" } else { "." };
            format!("{kind}{dot}{group}/{}", text_at(owner, "/name"))
        },
    );
    vec![name(object), owner.into(), object["revision"].clone(), age(object, now)]
}

fn has_condition(object: &Value, kind: &str) -> bool {
    list_at(object, "/status/conditions")
        .iter()
        .any(|condition| condition["type"] == kind && condition["status"] == "True")
}

pub(super) fn job(object: &Value, now: Timestamp) -> Vec<Value> {
    let done = count(object, "/status/succeeded");
    let completions = match (object["spec"]["completions"].as_i64(), object["spec"]["parallelism"].as_i64()) {
        (Some(all), _) => format!("{done}/{all}"),
        (None, Some(workers)) if workers > 1 => format!("{done}/1 of {workers}"),
        (None, _) => format!("{done}/1"),
    };
    let status = if has_condition(object, "Complete") {
        "Complete"
    } else if has_condition(object, "Failed") {
        "Failed"
    } else if object::deletion_timestamp(object).is_some() {
        "Terminating"
    } else if has_condition(object, "Suspended") {
        "Suspended"
    } else if has_condition(object, "FailureTarget") {
        "FailureTarget"
    } else if has_condition(object, "SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    };
    let began = object::parse_timestamp(text_at(object, "/status/startTime"));
    let ended = object::parse_timestamp(text_at(object, "/status/completionTime"));
    let lasted = began.map(|began| duration::human(ended.unwrap_or(now).duration_since(began).as_secs()));
    let mut cells = vec![
        name(object),
        status.into(),
        completions.into(),
        lasted.unwrap_or_default().into(),
        age(object, now),
    ];
    cells.extend(template(object));
    cells
}

pub(super) fn cron_job(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &object["spec"];
    let suspended = match spec["suspend"].as_bool() {
        Some(true) => "True",
        Some(false) => "False",
        None => "<unset>",
    };
    let zone = spec["timeZone"].as_str().unwrap_or("<none>");
    let last = match object["status"]["lastScheduleTime"].as_str() {
        Some(_) => duration::since_field(object.pointer("/status/lastScheduleTime"), now),
        None => "<none>".to_owned(),
    };
    let job = "/spec/jobTemplate/spec";
    let [names, images] = containers(object, &format!("{job}/template/spec/containers"));
    let selects = object.pointer(&format!("{job}/selector")).filter(|selector| !selector.is_null());
    vec![
        name(object),
        text_at(object, "/spec/schedule").into(),
        zone.into(),
        suspended.into(),
        list_at(object, "/status/active").len().into(),
        last.into(),
        age(object, now),
        names,
        images,
        selects.map_or_else(|| "<none>".into(), selector),
    ]
}

pub(super) fn pod_template(object: &Value) -> Vec<Value> {
    let [names, images] = containers(object, "/template/spec/containers");
    vec![name(object), names, images, labels(&object["template"]["metadata"]["labels"], "<none>")]
}
