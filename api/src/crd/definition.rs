//! CustomResourceDefinitions themselves: defaults, validation, and the conditions of their status.

use serde_json::{Value, json};

use super::columns::JsonPath;
use super::structural;
use crate::name;
use crate::object;
use crate::status::Cause;
use crate::validation;

/// Holds a definition until every object of its kind is gone.
pub const CLEANUP_FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";
const APPROVAL: &str = "api-approved.kubernetes.io";
const COLUMN_TYPES: &[&str] = &["boolean", "date", "integer", "number", "string"];

/// Fills in what a definition leaves out.
pub(crate) fn defaults(definition: &mut Value) {
    let Some(spec) = definition.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let conversion = spec.entry("conversion").or_insert_with(|| json!({"strategy": "None"}));
    if let Some(service) =
        conversion.pointer_mut("/webhook/clientConfig/service").and_then(Value::as_object_mut)
    {
        service.entry("port").or_insert_with(|| json!(443));
    }
    if let Some(names) = spec.get_mut("names").and_then(Value::as_object_mut) {
        let kind = names.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
        let is_unset = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().is_empty();
        if is_unset(names.get("singular")) && !kind.is_empty() {
            names.insert("singular".to_owned(), Value::from(kind.to_lowercase()));
        }
        if is_unset(names.get("listKind")) && !kind.is_empty() {
            names.insert("listKind".to_owned(), Value::from(format!("{kind}List")));
        }
    }
}

/// The version that objects are stored in.
pub fn storage_version(definition: &Value) -> &str {
    let versions = definition["spec"]["versions"].as_array().into_iter().flatten();
    let stored = versions.into_iter().find(|version| version["storage"] == true);
    stored.and_then(|version| version["name"].as_str()).unwrap_or_default()
}

/// The `clientConfig` of the webhook that converts between versions, if one does.
pub fn conversion_webhook(definition: &Value) -> Option<&Value> {
    let conversion = &definition["spec"]["conversion"];
    (conversion["strategy"] == "Webhook").then(|| &conversion["webhook"]["clientConfig"])
}

/// Notes that objects may be stored in the storage version from now on.
pub fn note_storage_version(definition: &mut Value) {
    let version = storage_version(definition).to_owned();
    if !definition["status"].is_object() {
        definition["status"] = json!({});
    }
    let versions = &mut definition["status"]["storedVersions"];
    if !versions.is_array() {
        *versions = json!([]);
    }
    if let Some(versions) = versions.as_array_mut()
        && !versions.iter().any(|known| *known == version.as_str())
    {
        versions.push(Value::from(version));
    }
}

/// Whether a condition of the definition is true.
pub fn is_true(definition: &Value, condition: &str) -> bool {
    let conditions = definition["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|own| own["type"] == condition && own["status"] == "True")
}

/// Sets a condition; its time moves only when its status does.
pub fn set_condition(definition: &mut Value, condition: Value) {
    if !definition["status"].is_object() {
        definition["status"] = json!({});
    }
    let conditions = &mut definition["status"]["conditions"];
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let Some(conditions) = conditions.as_array_mut() else { return };
    match conditions.iter_mut().find(|own| own["type"] == condition["type"]) {
        Some(own) => {
            let time = match own["status"] == condition["status"] {
                true => own["lastTransitionTime"].clone(),
                false => condition["lastTransitionTime"].clone(),
            };
            *own = condition;
            own["lastTransitionTime"] = time;
        }
        None => conditions.push(condition),
    }
}

/// Why the definition may not be stored.
pub(crate) fn check(definition: &Value, causes: &mut Vec<Cause>) {
    let spec = &definition["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (group, plural) = (text(&spec["group"]), text(&spec["names"]["plural"]));
    let name = object::name(definition);
    if name != format!("{plural}.{group}") {
        let why = "must be spec.names.plural+\".\"+spec.group";
        causes.push(Cause::invalid("metadata.name", name, why));
    }
    check_group(definition, &group, causes);
    match spec["scope"].as_str().unwrap_or_default() {
        "" => causes.push(Cause::required("spec.scope", "")),
        "Cluster" | "Namespaced" => {}
        other => causes.push(Cause::not_supported("spec.scope", other, &["Cluster", "Namespaced"])),
    }
    check_names(&spec["names"], causes);
    check_versions(spec, causes);
    check_conversion(&spec["conversion"], causes);
    if spec["preserveUnknownFields"] == true {
        let why = "must be false in order to serve apiextensions.k8s.io/v1 definitions: set \
                   x-kubernetes-preserve-unknown-fields in the schema instead";
        causes.push(Cause::invalid("spec.preserveUnknownFields", true, why));
    }
    let stored = definition["status"]["storedVersions"].as_array();
    for (index, version) in stored.into_iter().flatten().enumerate() {
        let mut versions = spec["versions"].as_array().into_iter().flatten();
        if !versions.any(|own| own["name"] == *version) {
            let why = format!(
                "missing from spec.versions; {} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {0} and removes {0} from status.storedVersions",
                text(version)
            );
            causes.push(Cause::invalid(format!("status.storedVersions[{index}]"), version.clone(), &why));
        }
    }
}

/// Why the definition may not replace the older one.
pub(crate) fn check_update(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    let mut fixed = vec!["group"];
    if is_true(old, "Established") {
        fixed.push("scope");
    }
    for field in fixed {
        if old["spec"][field] != new["spec"][field] {
            let value = new["spec"][field].clone();
            causes.push(Cause::invalid(format!("spec.{field}"), value, "field is immutable"));
        }
    }
    if is_true(old, "Established") && old["spec"]["names"]["kind"] != new["spec"]["names"]["kind"] {
        let value = new["spec"]["names"]["kind"].clone();
        causes.push(Cause::invalid("spec.names.kind", value, "field is immutable"));
    }
    if old["spec"]["names"]["plural"] != new["spec"]["names"]["plural"] {
        let value = new["spec"]["names"]["plural"].clone();
        causes.push(Cause::invalid("spec.names.plural", value, "field is immutable"));
    }
}

fn check_group(definition: &Value, group: &str, causes: &mut Vec<Cause>) {
    if group.is_empty() {
        return causes.push(Cause::required("spec.group", ""));
    }
    let problems = name::dns1123_subdomain(group);
    if problems.is_empty() && !group.contains('.') {
        causes.push(Cause::invalid("spec.group", group, "should be a domain with at least one dot"));
    }
    causes.extend(problems.iter().map(|why| Cause::invalid("spec.group", group, why)));
    let is_protected =
        ["k8s.io", "kubernetes.io"].iter().any(|own| group == *own || group.ends_with(&format!(".{own}")));
    if is_protected {
        let field = format!("metadata.annotations[{APPROVAL}]");
        match object::annotation(definition, APPROVAL).unwrap_or_default() {
            "" => causes.push(Cause::required(
                field,
                "protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111",
            )),
            text if text.starts_with("unapproved") || text.contains("://") => {}
            text => causes.push(Cause::invalid(
                field,
                text,
                "protected groups must have approval annotation \"api-approved.kubernetes.io\" with either a URL or a reason starting with \"unapproved\", see https://github.com/kubernetes/enhancements/pull/1111",
            )),
        }
    }
}

fn check_names(names: &Value, causes: &mut Vec<Cause>) {
    let text = |field: &str| names[field].as_str().unwrap_or_default().to_owned();
    let mut label = |field: String, value: &str, required: bool| match value {
        "" if required => causes.push(Cause::required(field, "")),
        "" => {}
        value => {
            let lower = value.to_lowercase();
            let problems = name::dns1035_label(&lower);
            causes.extend(problems.iter().map(|why| Cause::invalid(field.clone(), value, why)));
        }
    };
    for field in ["plural", "singular", "kind", "listKind"] {
        let value = text(field);
        label(format!("spec.names.{field}"), &value, matches!(field, "plural" | "kind"));
        if matches!(field, "plural" | "singular") && value != value.to_lowercase() {
            label(format!("spec.names.{field}"), "-", false);
        }
    }
    for list in ["shortNames", "categories"] {
        for (index, value) in names[list].as_array().into_iter().flatten().enumerate() {
            label(format!("spec.names.{list}[{index}]"), value.as_str().unwrap_or_default(), true);
        }
    }
    let (kind, list) = (text("kind"), text("listKind"));
    if !kind.is_empty() && kind == list {
        causes.push(Cause::invalid("spec.names.listKind", list, "kind and listKind may not be the same"));
    }
}

fn check_versions(spec: &Value, causes: &mut Vec<Cause>) {
    let versions = spec["versions"].as_array().map_or(&[][..], Vec::as_slice);
    if versions.is_empty() {
        return causes.push(Cause::required("spec.versions", "must have at least one version"));
    }
    let mut names = Vec::new();
    for (index, version) in versions.iter().enumerate() {
        let at = format!("spec.versions[{index}]");
        let own = version["name"].as_str().unwrap_or_default();
        let problems = name::dns1035_label(own);
        causes.extend(problems.iter().map(|why| Cause::invalid(format!("{at}.name"), own, why)));
        if names.contains(&own) {
            causes.push(Cause::invalid("spec.versions", own, "must contain unique version names"));
        }
        names.push(own);
        let schema = &version["schema"]["openAPIV3Schema"];
        if schema.is_null() {
            causes.push(Cause::required(format!("{at}.schema.openAPIV3Schema"), "schemas are required"));
        } else {
            structural::check(schema, &format!("{at}.schema.openAPIV3Schema"), causes);
        }
        check_columns(version, &at, causes);
        check_scale(version, &at, causes);
        check_selectable(version, &at, causes);
    }
    if versions.iter().filter(|version| version["storage"] == true).count() != 1 {
        let shown: Vec<Value> = versions.iter().map(|version| version["name"].clone()).collect();
        let why = "must have exactly one version marked as storage version";
        causes.push(Cause::invalid("spec.versions", shown, why));
    }
}

fn check_columns(version: &Value, at: &str, causes: &mut Vec<Cause>) {
    for (index, column) in version["additionalPrinterColumns"].as_array().into_iter().flatten().enumerate() {
        let at = format!("{at}.additionalPrinterColumns[{index}]");
        let text = |field: &str| column[field].as_str().unwrap_or_default();
        if text("name").is_empty() {
            causes.push(Cause::required(format!("{at}.name"), ""));
        }
        match text("type") {
            "" => causes.push(Cause::required(
                format!("{at}.type"),
                "must be one of boolean,date,integer,number,string",
            )),
            ty if COLUMN_TYPES.contains(&ty) => {}
            ty => causes.push(Cause::invalid(
                format!("{at}.type"),
                ty,
                "must be one of boolean,date,integer,number,string",
            )),
        }
        match text("jsonPath") {
            "" => causes.push(Cause::required(format!("{at}.jsonPath"), "")),
            path => {
                if let Err(why) = JsonPath::parse(path) {
                    causes.push(Cause::invalid(format!("{at}.jsonPath"), path, &why));
                }
            }
        }
    }
}

fn check_scale(version: &Value, at: &str, causes: &mut Vec<Cause>) {
    let scale = &version["subresources"]["scale"];
    if scale.is_null() {
        return;
    }
    for (field, root, required) in [
        ("specReplicasPath", ".spec", true),
        ("statusReplicasPath", ".status", true),
        ("labelSelectorPath", "", false),
    ] {
        let at = format!("{at}.subresources.scale.{field}");
        let path = scale[field].as_str().unwrap_or_default();
        if path.is_empty() {
            if required {
                causes.push(Cause::required(at, ""));
            }
            continue;
        }
        let is_plain = JsonPath::parse(path).is_ok_and(|path| path.fields().is_some());
        let is_under = match root {
            "" => path.starts_with(".spec.") || path.starts_with(".status."),
            root => path.starts_with(&format!("{root}.")),
        };
        if !is_plain {
            causes.push(Cause::invalid(at, path, "should be a json path without the array notation"));
        } else if !is_under {
            let root = if root.is_empty() { "either .status or .spec" } else { root };
            causes.push(Cause::invalid(at, path, &format!("should be a json path under {root}")));
        }
    }
}

fn check_selectable(version: &Value, at: &str, causes: &mut Vec<Cause>) {
    const SELECTABLE_MAX: usize = 8;
    let fields = version["selectableFields"].as_array().map_or(&[][..], Vec::as_slice);
    if fields.len() > SELECTABLE_MAX {
        causes.push(Cause::too_many(format!("{at}.selectableFields"), fields.len(), SELECTABLE_MAX));
    }
    for (index, field) in fields.iter().enumerate() {
        let at = format!("{at}.selectableFields[{index}].jsonPath");
        let path = field["jsonPath"].as_str().unwrap_or_default();
        let parsed = JsonPath::parse(path);
        let Some(names) = parsed.as_ref().ok().and_then(JsonPath::fields) else {
            causes.push(Cause::invalid(at, path, "must be a simple path of fields, such as .spec.color"));
            continue;
        };
        if names.first() == Some(&"metadata") {
            causes.push(Cause::invalid(at, path, "must not point to fields in metadata"));
            continue;
        }
        let schema = &version["schema"]["openAPIV3Schema"];
        let found = names.iter().fold(schema, |schema, name| &schema["properties"][*name]);
        if !matches!(found["type"].as_str(), Some("string" | "integer" | "boolean")) {
            let why = "is an invalid path: the path must point to a field of type string, boolean or integer";
            causes.push(Cause::invalid(at, path, why));
        }
    }
}

fn check_conversion(conversion: &Value, causes: &mut Vec<Cause>) {
    match conversion["strategy"].as_str().unwrap_or_default() {
        "None" if conversion.get("webhook").is_some_and(|webhook| !webhook.is_null()) => {
            causes.push(Cause::forbidden(
                "spec.conversion.webhook",
                "should not be set when strategy is not set to Webhook",
            ));
        }
        "None" => {}
        "Webhook" => check_webhook(&conversion["webhook"], causes),
        "" => causes.push(Cause::required("spec.conversion.strategy", "")),
        other => {
            causes.push(Cause::not_supported("spec.conversion.strategy", other, &["None", "Webhook"]));
        }
    }
}

fn check_webhook(webhook: &Value, causes: &mut Vec<Cause>) {
    let path = "spec.conversion.webhook";
    let config = &webhook["clientConfig"];
    if config.is_null() {
        let why = "required when strategy is set to Webhook";
        causes.push(Cause::required(format!("{path}.clientConfig"), why));
    } else {
        validation::client_config(&format!("{path}.clientConfig"), config, causes);
    }
    let versions = webhook["conversionReviewVersions"].as_array().cloned().unwrap_or_default();
    let path = format!("{path}.conversionReviewVersions");
    if versions.is_empty() {
        causes.push(Cause::required(path, ""));
    } else if !versions.iter().any(|version| version == "v1") {
        causes.push(Cause::invalid(path, versions, "must include at least one of v1"));
    }
}
