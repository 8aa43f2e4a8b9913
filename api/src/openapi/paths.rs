//! The paths of a document: where each kind is served, and what each operation takes and gives.

use serde_json::{Map, Value, json};

use super::{group_version_kind, reference, schema_name};
use crate::kinds::{Kind, Subresource};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const PATCH_TYPES: &[&str] = &[
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// What an operation speaks of.
struct Subject<'a> {
    kind: &'a Kind,
    /// Group, version and kind that the operation takes and gives.
    group_version_kind: Value,
    schema: String,
}

pub(super) fn of(kinds: &[&Kind]) -> Map<String, Value> {
    let mut paths = Map::new();
    for kind in kinds {
        let base = if kind.group.is_empty() {
            format!("/api/{}", kind.version)
        } else {
            format!("/apis/{}/{}", kind.group, kind.version)
        };
        let collection = if kind.namespaced {
            format!("{base}/namespaces/{{namespace}}/{}", kind.plural)
        } else {
            format!("{base}/{}", kind.plural)
        };
        let subject = Subject {
            kind,
            group_version_kind: group_version_kind(kind.group, kind.version, kind.kind),
            schema: schema_name(kind.group, kind.version, kind.kind),
        };
        paths.insert(collection.clone(), self::collection(&subject));
        if kind.namespaced && kind.has_verb("list") {
            let everywhere = format!("{base}/{}", kind.plural);
            paths.insert(everywhere, json!({"get": list(&subject), "parameters": list_parameters()}));
        }
        let item = format!("{collection}/{{name}}");
        if kind.has_verb("get") {
            paths.insert(item.clone(), operations(&subject, kind.verbs, true));
        }
        for sub in kind.subresources {
            paths.insert(format!("{item}/{}", sub.name), subresource(kind, sub));
        }
    }
    paths
}

fn collection(subject: &Subject<'_>) -> Value {
    let kind = subject.kind;
    let mut value = json!({"parameters": place(kind, false)});
    if kind.has_verb("list") {
        let mut get = list(subject);
        get["parameters"] = list_parameters();
        value["get"] = get;
    }
    if kind.has_verb("create") {
        value["post"] = operation(subject, "post", Some(&["*/*"]), write_parameters());
    }
    if kind.has_verb("deletecollection") {
        let mut delete = operation(subject, "deletecollection", None, list_parameters());
        delete["responses"] = answer(&format!("{META}.Status"));
        value["delete"] = delete;
    }
    value
}

fn list(subject: &Subject<'_>) -> Value {
    let kind = subject.kind;
    let mut get = operation(subject, "list", None, json!([]));
    get["responses"] = answer(&schema_name(kind.group, kind.version, &kind.list_kind()));
    get
}

/// The operations on one object.
fn operations(subject: &Subject<'_>, verbs: &[&str], with_delete: bool) -> Value {
    let mut value = json!({"parameters": place(subject.kind, true)});
    for verb in verbs {
        match *verb {
            "get" => value["get"] = operation(subject, "get", None, json!([])),
            "update" => value["put"] = operation(subject, "put", Some(&["*/*"]), write_parameters()),
            "patch" => {
                // How lists of custom kinds merge nobody says.
                let types: Vec<&str> = PATCH_TYPES
                    .iter()
                    .copied()
                    .filter(|ty| !subject.kind.is_custom || !ty.contains("strategic"))
                    .collect();
                let mut patch = operation(subject, "patch", Some(types.as_slice()), write_parameters());
                for content in &types {
                    patch["requestBody"]["content"][*content] =
                        json!({"schema": reference(&format!("{META}.Patch"))});
                }
                value["patch"] = patch;
            }
            "delete" if with_delete => {
                let mut delete = operation(subject, "delete", None, json!([dry_run()]));
                delete["requestBody"] =
                    json!({"content": {"*/*": {"schema": reference(&format!("{META}.DeleteOptions"))}}});
                delete["responses"] = answer(&format!("{META}.Status"));
                value["delete"] = delete;
            }
            _ => {}
        }
    }
    value
}

fn subresource(kind: &Kind, sub: &Subresource) -> Value {
    if sub.is_connection() {
        return connection(sub);
    }
    let (group, version) =
        if sub.version.is_empty() { (kind.group, kind.version) } else { (sub.group, sub.version) };
    let subject = Subject {
        kind,
        group_version_kind: group_version_kind(group, version, sub.kind),
        schema: schema_name(group, version, sub.kind),
    };
    let mut value = operations(&subject, sub.verbs, false);
    if sub.verbs.contains(&"create") {
        value["post"] = operation(&subject, "post", Some(&["*/*"]), write_parameters());
    }
    if sub.name == "log" {
        value["get"]["responses"] =
            json!({"200": {"description": "OK", "content": {"text/plain": {"schema": {"type": "string"}}}}});
    }
    value
}

/// A connection takes and answers with streams: there is no object to describe.
fn connection(sub: &Subresource) -> Value {
    let connect = json!({
        "responses": {"200": {"description": "OK", "content": {"*/*": {"schema": {"type": "string"}}}}},
        "x-kubernetes-action": "connect",
        "x-kubernetes-group-version-kind": group_version_kind("", "v1", sub.kind),
    });
    let mut value = json!({});
    for verb in sub.verbs {
        let method = match *verb {
            "create" => "post",
            "update" => "put",
            verb => verb,
        };
        value[method] = connect.clone();
    }
    value
}

fn operation(subject: &Subject<'_>, action: &str, takes: Option<&[&str]>, parameters: Value) -> Value {
    let mut value = json!({
        "responses": answer(&subject.schema),
        "parameters": parameters,
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": subject.group_version_kind,
    });
    if let Some(types) = takes {
        let content: Map<String, Value> =
            types.iter().map(|t| ((*t).to_owned(), json!({"schema": reference(&subject.schema)}))).collect();
        value["requestBody"] = json!({"content": content, "required": true});
    }
    value
}

fn answer(schema: &str) -> Value {
    json!({"200": {"description": "OK", "content": {"application/json": {"schema": reference(schema)}}}})
}

fn query(name: &str, ty: &str, description: &str) -> Value {
    json!({"name": name, "in": "query", "description": description,
        "schema": {"type": ty, "uniqueItems": true}})
}

fn dry_run() -> Value {
    query("dryRun", "string", "All: the request is checked and answered, but nothing is stored.")
}

fn write_parameters() -> Value {
    json!([
        dry_run(),
        query("fieldManager", "string", "Who makes the change."),
        query(
            "fieldValidation",
            "string",
            "What is done about unknown and duplicate fields: Ignore, Warn (the default) or Strict.",
        ),
    ])
}

fn list_parameters() -> Value {
    json!([
        query("allowWatchBookmarks", "boolean", "Whether a watch may send bookmarks."),
        query("continue", "string", "Where the page before ended."),
        query("fieldSelector", "string", "Only objects whose fields match."),
        query("labelSelector", "string", "Only objects whose labels match."),
        query("limit", "integer", "Most objects in one answer."),
        query("resourceVersion", "string", "How old the answer may be, or where a watch begins."),
        query("resourceVersionMatch", "string", "How resourceVersion is meant."),
        query("sendInitialEvents", "boolean", "Whether a watch begins with what there is."),
        query("timeoutSeconds", "integer", "When the request ends at the latest."),
        query("watch", "boolean", "Whether changes are streamed instead of listed."),
    ])
}

/// The parameters in the path.
fn place(kind: &Kind, named: bool) -> Value {
    let path = |name: &str, description: String| {
        json!({"name": name, "in": "path", "required": true, "description": description,
            "schema": {"type": "string", "uniqueItems": true}})
    };
    let mut parameters = Vec::new();
    if named {
        parameters.push(path("name", format!("name of the {}", kind.kind)));
    }
    if kind.namespaced {
        parameters
            .push(path("namespace", "object name and auth scope, such as for teams and projects".to_owned()));
    }
    Value::from(parameters)
}
