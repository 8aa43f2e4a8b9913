//! What a failed pod means to its job (`spec.podFailurePolicy`). Pure.

use api::object;
use serde_json::Value;

use crate::registry::Object;

/// What a failure means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Meaning {
    /// One more towards the back-off limit.
    Count,
    /// Nothing: another pod is made in its place.
    Ignore,
    /// Its part of the job has failed.
    FailIndex,
    /// The whole job has failed, for this reason.
    FailJob(String),
}

/// The meaning of a pod's failure: that of the first rule that fits.
pub(super) fn meaning(job: &Value, pod: &Object) -> Meaning {
    let rules = job["spec"]["podFailurePolicy"]["rules"].as_array().into_iter().flatten();
    for (index, rule) in rules.enumerate() {
        let Some(why) = fits(rule, pod) else { continue };
        return match rule["action"].as_str() {
            Some("FailJob") => {
                let (namespace, name) = (pod.namespace(), pod.name());
                Meaning::FailJob(match why {
                    Why::ExitCode { container, code } => format!(
                        "Container {container} for pod {namespace}/{name} failed with exit code {code} matching FailJob rule at index {index}"
                    ),
                    Why::Condition(condition) => format!(
                        "Pod {namespace}/{name} has condition {condition} matching FailJob rule at index {index}"
                    ),
                })
            }
            Some("Ignore") => Meaning::Ignore,
            Some("FailIndex") => Meaning::FailIndex,
            _ => Meaning::Count,
        };
    }
    Meaning::Count
}

enum Why {
    ExitCode { container: String, code: i64 },
    Condition(String),
}

fn fits(rule: &Value, pod: &Object) -> Option<Why> {
    let value = pod.value();
    let conditions = rule["onPodConditions"].as_array().into_iter().flatten();
    for wanted in conditions {
        let status = wanted["status"].as_str().unwrap_or("True");
        let own = value["status"]["conditions"].as_array().into_iter().flatten();
        if own.into_iter().any(|own| own["type"] == wanted["type"] && own["status"] == status) {
            return Some(Why::Condition(wanted["type"].as_str().unwrap_or_default().to_owned()));
        }
    }
    let codes = rule["onExitCodes"].as_object()?;
    // Exit codes say something only once the pod has ended by itself.
    if value["status"]["phase"] != "Failed" || object::uid(value).is_empty() {
        return None;
    }
    let values: Vec<i64> = codes
        .get("values")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_i64)
        .collect();
    let is_in = codes.get("operator").and_then(Value::as_str) == Some("In");
    let only = codes.get("containerName").and_then(Value::as_str);
    let lists = ["containerStatuses", "initContainerStatuses"];
    let statuses = lists.iter().filter_map(|list| value["status"][*list].as_array()).flatten();
    for status in statuses {
        let name = status["name"].as_str().unwrap_or_default();
        let code = status["state"]["terminated"]["exitCode"].as_i64().unwrap_or(0);
        if code == 0 || only.is_some_and(|only| only != name) {
            continue;
        }
        if values.contains(&code) == is_in {
            return Some(Why::ExitCode { container: name.to_owned(), code });
        }
    }
    None
}
