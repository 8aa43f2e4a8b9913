//! Validation of Jobs and CronJobs.

use std::collections::BTreeSet;

use k8s_openapi::api::batch::v1::{CronJob, Job, JobSpec, PodFailurePolicy};
use serde_json::{Value, json};

use super::{not_negative, one_of, workload};
use crate::cron::Schedule;
use crate::selector::LabelSelector;
use crate::status::Cause;

/// Most pods of an Indexed job at once, and most completions it can tell apart.
const INDEXED_MAX: i32 = 100_000;
const FAILURE_RULES_MAX: usize = 20;
const EXIT_CODES_MAX: usize = 255;
/// A CronJob's name is followed by eleven more letters in the names of its jobs.
const CRON_JOB_NAME_MAX: usize = 52;

pub(super) fn job(job: &Job, causes: &mut Vec<Cause>) {
    let Some(spec) = &job.spec else {
        return causes.push(Cause::required("spec.template", ""));
    };
    check(spec, "spec", causes);
    let Some(selector) = &spec.selector else {
        return causes.push(Cause::required("spec.selector", ""));
    };
    let labels =
        spec.template.metadata.as_ref().and_then(|metadata| metadata.labels.clone()).unwrap_or_default();
    match LabelSelector::from_typed(Some(selector)) {
        Err(why) => causes.push(Cause::invalid("spec.selector", json!(selector), &why)),
        Ok(parsed) if !parsed.matches_object(&json!({"metadata": {"labels": labels}})) => {
            let why = "`selector` does not match template `labels`";
            causes.push(Cause::invalid("spec.template.metadata.labels", json!(labels), why));
        }
        Ok(_) => {}
    }
}

fn check(spec: &JobSpec, path: &str, causes: &mut Vec<Cause>) {
    let at = |field: &str| format!("{path}.{field}");
    let counts = [
        ("parallelism", spec.parallelism.map(i64::from)),
        ("completions", spec.completions.map(i64::from)),
        ("activeDeadlineSeconds", spec.active_deadline_seconds),
        ("backoffLimit", spec.backoff_limit.map(i64::from)),
        ("ttlSecondsAfterFinished", spec.ttl_seconds_after_finished.map(i64::from)),
        ("backoffLimitPerIndex", spec.backoff_limit_per_index.map(i64::from)),
        ("maxFailedIndexes", spec.max_failed_indexes.map(i64::from)),
    ];
    for (field, count) in counts {
        not_negative(&at(field), count.unwrap_or(0), causes);
    }
    indexed(spec, path, causes);
    workload::check_template(&at("template"), &spec.template, causes);
    let policy =
        spec.template.spec.as_ref().and_then(|pod| pod.restart_policy.as_deref()).unwrap_or_default();
    let field = at("template.spec.restartPolicy");
    match policy {
        // Filled in by default, which is why nobody's wish is quoted.
        "Always" | "" => causes.push(Cause::required(field, "valid values: \"OnFailure\", \"Never\"")),
        "Never" => {}
        "OnFailure" if spec.pod_failure_policy.is_some() => {
            let why = "only \"Never\" is supported when podFailurePolicy is specified";
            causes.push(Cause::invalid(field, policy, why));
        }
        _ => {}
    }
    if let Some(failure) = &spec.pod_failure_policy {
        failure_policy(failure, spec, &at("podFailurePolicy"), causes);
        if spec.pod_replacement_policy.as_deref() == Some("TerminatingOrFailed") {
            let field = at("podReplacementPolicy");
            causes.push(Cause::not_supported(field, "TerminatingOrFailed", &["Failed"]));
        }
    }
    if let Some(policy) = spec.pod_replacement_policy.as_deref() {
        one_of(&at("podReplacementPolicy"), policy, &["Failed", "TerminatingOrFailed"], causes);
    }
}

fn indexed(spec: &JobSpec, path: &str, causes: &mut Vec<Cause>) {
    let at = |field: &str| format!("{path}.{field}");
    let mode = spec.completion_mode.as_deref().unwrap_or_default();
    one_of(&at("completionMode"), mode, &["Indexed", "NonIndexed"], causes);
    if mode == "Indexed" {
        match spec.completions {
            None => {
                let why = "when completion mode is Indexed";
                causes.push(Cause::required(at("completions"), why));
            }
            Some(count) if count > INDEXED_MAX && spec.parallelism.unwrap_or(0) > INDEXED_MAX / 10 => {
                let why =
                    format!("must be less than or equal to {INDEXED_MAX} when completion mode is Indexed");
                causes.push(Cause::invalid(at("completions"), count, &why));
            }
            Some(_) => {}
        }
        if let Some(parallelism) = spec.parallelism.filter(|parallelism| *parallelism > INDEXED_MAX) {
            let why = format!("must be less than or equal to {INDEXED_MAX} when completion mode is Indexed");
            causes.push(Cause::invalid(at("parallelism"), parallelism, &why));
        }
    } else {
        let per_index = [
            ("backoffLimitPerIndex", spec.backoff_limit_per_index),
            ("maxFailedIndexes", spec.max_failed_indexes),
        ];
        for (field, value) in per_index {
            if let Some(value) = value {
                causes.push(Cause::invalid(at(field), value, "requires indexed completion mode"));
            }
        }
    }
    if spec.max_failed_indexes.is_some() && spec.backoff_limit_per_index.is_none() && mode == "Indexed" {
        causes.push(Cause::required(at("backoffLimitPerIndex"), "when maxFailedIndexes is specified"));
    }
}

fn failure_policy(policy: &PodFailurePolicy, spec: &JobSpec, path: &str, causes: &mut Vec<Cause>) {
    let at = |index: usize, field: &str| format!("{path}.rules[{index}].{field}");
    if policy.rules.len() > FAILURE_RULES_MAX {
        causes.push(Cause::too_many(format!("{path}.rules"), policy.rules.len(), FAILURE_RULES_MAX));
    }
    let pod = spec.template.spec.as_ref();
    let containers = pod.map_or(&[][..], |pod| pod.containers.as_slice()).iter();
    let init = pod.and_then(|pod| pod.init_containers.as_deref()).unwrap_or_default().iter();
    let names: BTreeSet<&str> = containers.chain(init).map(|container| container.name.as_str()).collect();
    for (index, rule) in policy.rules.iter().enumerate() {
        one_of(&at(index, "action"), &rule.action, &["Count", "FailIndex", "FailJob", "Ignore"], causes);
        if rule.action == "FailIndex" && spec.backoff_limit_per_index.is_none() {
            let why = "requires the backoffLimitPerIndex to be set";
            causes.push(Cause::invalid(at(index, "action"), rule.action.as_str(), why));
        }
        let conditions = rule.on_pod_conditions.as_deref().unwrap_or_default();
        match (&rule.on_exit_codes, conditions.is_empty()) {
            (None, true) => {
                let why = "specifying one of OnExitCodes and OnPodConditions is required";
                causes.push(Cause::invalid(format!("{path}.rules[{index}]"), json!(rule), why));
            }
            (Some(_), false) => {
                let why = "specifying both OnExitCodes and OnPodConditions is not supported";
                causes.push(Cause::invalid(format!("{path}.rules[{index}]"), json!(rule), why));
            }
            _ => {}
        }
        for (number, condition) in conditions.iter().enumerate() {
            let field = at(index, &format!("onPodConditions[{number}].status"));
            one_of(&field, condition.status.as_str(), &["False", "True", "Unknown"], causes);
        }
        let Some(codes) = &rule.on_exit_codes else { continue };
        one_of(&at(index, "onExitCodes.operator"), &codes.operator, &["In", "NotIn"], causes);
        if let Some(name) = codes.container_name.as_deref().filter(|name| !names.contains(name)) {
            let why = "must be one of the container or initContainer names in the pod template";
            causes.push(Cause::invalid(at(index, "onExitCodes.containerName"), name, why));
        }
        if codes.values.is_empty() {
            causes.push(Cause::invalid(
                at(index, "onExitCodes.values"),
                json!([]),
                "at least one value is required",
            ));
        } else if codes.values.len() > EXIT_CODES_MAX {
            causes.push(Cause::too_many(at(index, "onExitCodes.values"), codes.values.len(), EXIT_CODES_MAX));
        }
        if codes.operator == "In" && codes.values.contains(&0) {
            let why = "must not be 0 for the In operator";
            causes.push(Cause::invalid(at(index, "onExitCodes.values"), 0, why));
        }
    }
}

pub(super) fn cron_job(cron: &CronJob, causes: &mut Vec<Cause>) {
    let Some(spec) = &cron.spec else {
        return causes.push(Cause::required("spec.schedule", ""));
    };
    let name = cron.metadata.name.as_deref().unwrap_or_default();
    if name.len() > CRON_JOB_NAME_MAX {
        let why = format!("must be no more than {CRON_JOB_NAME_MAX} characters");
        causes.push(Cause::invalid("metadata.name", name, &why));
    }
    let zone = spec.time_zone.as_deref();
    if spec.schedule.is_empty() {
        causes.push(Cause::required("spec.schedule", ""));
    } else if spec.schedule.contains("TZ") {
        let why = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        causes.push(Cause::invalid("spec.schedule", spec.schedule.as_str(), why));
    } else if let Err(why) = Schedule::parse(&spec.schedule, None) {
        causes.push(Cause::invalid("spec.schedule", spec.schedule.as_str(), &why.to_string()));
    }
    match zone {
        Some("") => {
            causes.push(Cause::invalid("spec.timeZone", "", "timeZone must be nil or non-empty string"));
        }
        Some(zone) if jiff::tz::TimeZone::get(zone).is_err() || zone.eq_ignore_ascii_case("local") => {
            causes.push(Cause::invalid("spec.timeZone", zone, &format!("unknown time zone {zone}")));
        }
        _ => {}
    }
    let policy = spec.concurrency_policy.as_deref().unwrap_or_default();
    one_of("spec.concurrencyPolicy", policy, &["Allow", "Forbid", "Replace"], causes);
    not_negative("spec.startingDeadlineSeconds", spec.starting_deadline_seconds.unwrap_or(0), causes);
    not_negative("spec.successfulJobsHistoryLimit", spec.successful_jobs_history_limit.unwrap_or(0), causes);
    not_negative("spec.failedJobsHistoryLimit", spec.failed_jobs_history_limit.unwrap_or(0), causes);
    let Some(job) = &spec.job_template.spec else {
        return causes.push(Cause::required("spec.jobTemplate.spec.template", ""));
    };
    // The job's own defaults come when it is made.
    let mut job = job.clone();
    job.completion_mode.get_or_insert_with(|| "NonIndexed".to_owned());
    check(&job, "spec.jobTemplate.spec", causes);
    if job.manual_selector == Some(true) {
        let field = "spec.jobTemplate.spec.manualSelector";
        causes.push(Cause::not_supported(field, "true", &["nil", "false"]));
    }
}

/// What a job has counted so far hangs on these.
pub(super) fn job_update(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    let (before, after) = (&old["spec"], &new["spec"]);
    let is_elastic = before["completionMode"] == "Indexed"
        && after["completions"] == after["parallelism"]
        && before["completions"] == before["parallelism"];
    for field in ["completions", "selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex"] {
        if before[field] != after[field] && !(field == "completions" && is_elastic) {
            causes.push(Cause::invalid(format!("spec.{field}"), after[field].clone(), "field is immutable"));
        }
    }
    // A suspended job that has not begun may yet be moved elsewhere.
    let waits = before["suspend"] == true && old["status"]["startTime"].is_null();
    let fixed = |spec: &Value| {
        let mut template = spec["template"].clone();
        if waits {
            for place in ["affinity", "nodeSelector", "tolerations", "schedulingGates"] {
                if let Some(pod) = template.get_mut("spec").and_then(Value::as_object_mut) {
                    pod.remove(place);
                }
            }
            if let Some(metadata) = template.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.remove("labels");
                metadata.remove("annotations");
            }
        }
        template
    };
    if fixed(before) != fixed(after) {
        causes.push(Cause::invalid("spec.template", after["template"].clone(), "field is immutable"));
    }
}
