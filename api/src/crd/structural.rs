//! Whether a definition's schema is one that can be served: structural, in the words of Kubernetes.
//!
//! A structural schema says the type of every field outside of `allOf`, `anyOf`, `oneOf` and `not`; those may
//! only narrow. Everything a schema may not say is a cause here, before an object meets it.

use serde_json::{Map, Value};

use super::schema::{self, DEPTH_MAX, RULE_VARIABLES, Schema};
use super::validate::CAUSES_MAX;
use super::{fields, rules, validate};
use crate::cel::Expression;
use crate::status::Cause;

/// Most nodes of one schema.
const NODES_MAX: usize = 20_000;
const TYPES: &[&str] = &["array", "boolean", "integer", "number", "object", "string"];
const UNSUPPORTED: [&str; 7] =
    ["$ref", "definitions", "dependencies", "patternProperties", "additionalItems", "id", "$schema"];

/// Where in its parent a schema stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Field,
    Item,
}

struct Checker<'a> {
    causes: &'a mut Vec<Cause>,
    nodes: usize,
}

/// Adds why the schema cannot be served.
pub(super) fn check(schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    let before = causes.len();
    let mut checker = Checker { causes, nodes: 0 };
    checker.schema(schema, path, Level::Root, 0);
    if causes.len() == before {
        defaults(&Schema::parse(schema), schema, path, causes);
    }
}

fn key(path: &str, name: &str) -> String {
    format!("{path}.properties[{name}]")
}

impl Checker<'_> {
    fn forbid(&mut self, field: String, why: &str) {
        self.causes.push(Cause::forbidden(field, why));
    }

    fn schema(&mut self, json: &Value, path: &str, level: Level, depth: usize) {
        self.nodes += 1;
        if self.causes.len() >= CAUSES_MAX {
            return;
        }
        if depth > DEPTH_MAX {
            return self.forbid(path.to_owned(), &format!("schemas are nested at most {DEPTH_MAX} deep"));
        }
        if self.nodes > NODES_MAX {
            if self.nodes == NODES_MAX + 1 {
                self.forbid(path.to_owned(), &format!("a schema has at most {NODES_MAX} fields"));
            }
            return;
        }
        let Some(members) = json.as_object() else { return };
        for name in UNSUPPORTED.iter().filter(|name| members.contains_key(**name)) {
            self.forbid(format!("{path}.{name}"), &format!("{name} is not supported"));
        }
        if json["uniqueItems"].as_bool() == Some(true) {
            self.forbid(
                format!("{path}.uniqueItems"),
                "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
            );
        }
        self.ty(json, path, level);
        self.extensions(json, path);
        self.inner(json, path, level, depth);
        self.narrowing(json, path, depth);
        self.values(json, path);
        self.rules(json, path);
    }

    fn ty(&mut self, json: &Value, path: &str, level: Level) {
        let ty = json["type"].as_str().unwrap_or_default();
        let field = format!("{path}.type");
        let int_or_string = json["x-kubernetes-int-or-string"].as_bool() == Some(true);
        let preserves = json["x-kubernetes-preserve-unknown-fields"].as_bool() == Some(true);
        let embedded = json["x-kubernetes-embedded-resource"].as_bool() == Some(true);
        if embedded && ty != "object" {
            let why = "must be object if x-kubernetes-embedded-resource is true";
            self.causes.push(match ty {
                "" => Cause::required(field, why),
                ty => Cause::invalid(field, ty, why),
            });
            return;
        }
        if ty.is_empty() {
            if int_or_string || preserves {
                return;
            }
            let why = match level {
                Level::Root => "must not be empty at the root",
                Level::Item => "must not be empty for specified array items",
                Level::Field => "must not be empty for specified object fields",
            };
            self.causes.push(Cause::required(field, why));
            return;
        }
        if !TYPES.contains(&ty) {
            self.causes.push(Cause::not_supported(field, ty, TYPES));
            return;
        }
        if int_or_string {
            self.causes.push(Cause::invalid(
                field,
                ty,
                "must be empty if x-kubernetes-int-or-string is true",
            ));
        } else if preserves && ty != "object" && ty != "array" {
            let why = "must be object if x-kubernetes-preserve-unknown-fields is true";
            self.causes.push(Cause::invalid(field, ty, why));
        } else if level == Level::Root && ty != "object" {
            self.causes.push(Cause::invalid(field, ty, "must be object at the root"));
        }
    }

    fn extensions(&mut self, json: &Value, path: &str) {
        let ty = json["type"].as_str().unwrap_or_default();
        if json["x-kubernetes-preserve-unknown-fields"].as_bool() == Some(false) {
            let field = format!("{path}.x-kubernetes-preserve-unknown-fields");
            self.causes.push(Cause::invalid(field, false, "must be true or undefined"));
        }
        if let Some(map_type) = json["x-kubernetes-map-type"].as_str() {
            let field = format!("{path}.x-kubernetes-map-type");
            match map_type {
                "granular" | "atomic" if ty != "object" => {
                    let why = "must be object if x-kubernetes-map-type is specified";
                    self.causes.push(Cause::invalid(format!("{path}.type"), ty, why));
                }
                "granular" | "atomic" => {}
                other => self.causes.push(Cause::not_supported(field, other, &["granular", "atomic"])),
            }
        }
        let keys = schema::texts(&json["x-kubernetes-list-map-keys"]);
        let Some(list_type) = json["x-kubernetes-list-type"].as_str() else {
            if !keys.is_empty() {
                let field = format!("{path}.x-kubernetes-list-type");
                self.causes
                    .push(Cause::required(field, "must be map if x-kubernetes-list-map-keys is non-empty"));
            }
            return;
        };
        let field = format!("{path}.x-kubernetes-list-type");
        if ty != "array" {
            let why = "must be array if x-kubernetes-list-type is specified";
            self.causes.push(Cause::invalid(format!("{path}.type"), ty, why));
        }
        match list_type {
            "atomic" | "set" => {
                if !keys.is_empty() {
                    let why = "must be map if x-kubernetes-list-map-keys is non-empty";
                    self.causes.push(Cause::invalid(field, list_type, why));
                }
            }
            "map" => self.list_map(json, path, &keys),
            other => self.causes.push(Cause::not_supported(field, other, &["atomic", "map", "set"])),
        }
    }

    fn list_map(&mut self, json: &Value, path: &str, keys: &[String]) {
        if keys.is_empty() {
            let field = format!("{path}.x-kubernetes-list-map-keys");
            self.causes.push(Cause::required(field, "must not be empty if x-kubernetes-list-type is map"));
        }
        let required = schema::texts(&json["items"]["required"]);
        for (index, name) in keys.iter().enumerate() {
            let property = &json["items"]["properties"][name];
            if !property.is_object() {
                let field = format!("{path}.x-kubernetes-list-map-keys[{index}]");
                let why = "entries must all be names of item properties";
                self.causes.push(Cause::invalid(field, name.as_str(), why));
            } else if property.get("default").is_none() && !required.contains(name) {
                let why = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
                let field = format!("{path}.items.properties[{name}].default");
                self.causes.push(Cause::required(field, why));
            }
        }
    }

    fn inner(&mut self, json: &Value, path: &str, level: Level, depth: usize) {
        let properties = json["properties"].as_object();
        match &json["additionalProperties"] {
            Value::Null => {}
            _ if json["x-kubernetes-embedded-resource"].as_bool() == Some(true) => self.forbid(
                format!("{path}.additionalProperties"),
                "must not be used if x-kubernetes-embedded-resource is set",
            ),
            _ if level == Level::Root => {
                self.forbid(format!("{path}.additionalProperties"), "must not be used at the root");
            }
            _ if properties.is_some_and(|properties| !properties.is_empty()) => self.forbid(
                format!("{path}.additionalProperties"),
                "additionalProperties and properties are mutual exclusive",
            ),
            Value::Bool(false) => self.forbid(
                format!("{path}.additionalProperties"),
                "additionalProperties cannot be set to false",
            ),
            schema @ Value::Object(_) => {
                self.schema(schema, &format!("{path}.additionalProperties"), Level::Field, depth + 1);
            }
            _ => {}
        }
        match &json["items"] {
            Value::Null if json["type"] == "array" => {
                self.causes.push(Cause::required(format!("{path}.items"), "must be specified"));
            }
            Value::Array(_) => {
                self.forbid(format!("{path}.items"), "items must be a schema object and not an array");
            }
            schema @ Value::Object(_) => {
                self.schema(schema, &format!("{path}.items"), Level::Item, depth + 1)
            }
            _ => {}
        }
        for (name, property) in properties.into_iter().flatten() {
            self.schema(property, &key(path, name), Level::Field, depth + 1);
        }
        let embedded = json["x-kubernetes-embedded-resource"].as_bool() == Some(true);
        if let Some(properties) = properties.filter(|_| level == Level::Root || embedded) {
            self.object_members(properties, path);
        }
    }

    /// `apiVersion`, `kind` and `metadata` are the API's.
    fn object_members(&mut self, properties: &Map<String, Value>, path: &str) {
        for name in ["kind", "apiVersion"] {
            let ty = properties.get(name).map(|property| property["type"].as_str().unwrap_or_default());
            if let Some(ty) = ty.filter(|ty| *ty != "string") {
                let field = format!("{}.type", key(path, name));
                self.causes.push(Cause::invalid(field, ty, "must be string"));
            }
        }
        let Some(metadata) = properties.get("metadata") else { return };
        let ty = metadata["type"].as_str().unwrap_or_default();
        if ty != "object" {
            let field = format!("{}.type", key(path, "metadata"));
            self.causes.push(Cause::invalid(field, ty, "must be object"));
        }
        let others = metadata["properties"].as_object().into_iter().flat_map(Map::keys);
        if others.into_iter().any(|name| name != "name" && name != "generateName") {
            self.forbid(
                key(path, "metadata"),
                "must not specify anything other than name and generateName, but metadata is implicitly specified",
            );
        }
    }

    /// What `allOf` and the like hold only narrows.
    fn narrowing(&mut self, json: &Value, path: &str, depth: usize) {
        let int_or_string = json["x-kubernetes-int-or-string"].as_bool() == Some(true);
        for name in ["allOf", "anyOf", "oneOf"] {
            for (index, inner) in json[name].as_array().into_iter().flatten().enumerate() {
                // The well-known way to say "a whole number or a text" names types.
                if !(int_or_string && name != "oneOf") {
                    self.narrow(json, inner, &format!("{path}.{name}[{index}]"), depth + 1);
                }
            }
        }
        if json["not"].is_object() {
            self.narrow(json, &json["not"], &format!("{path}.not"), depth + 1);
        }
    }

    fn narrow(&mut self, outer: &Value, json: &Value, path: &str, depth: usize) {
        self.nodes += 1;
        if depth > DEPTH_MAX || self.nodes > NODES_MAX || self.causes.len() >= CAUSES_MAX {
            return;
        }
        for (name, why) in [
            ("type", "must be empty to be structural"),
            ("title", "must be empty to be structural"),
            ("description", "must be empty to be structural"),
            ("default", "must be undefined to be structural"),
            ("additionalProperties", "must be undefined to be structural"),
            ("nullable", "must be false to be structural"),
            ("x-kubernetes-preserve-unknown-fields", "must be undefined to be structural"),
            ("x-kubernetes-embedded-resource", "must be false to be structural"),
            ("x-kubernetes-int-or-string", "must be false to be structural"),
            ("x-kubernetes-list-type", "must be undefined to be structural"),
            ("x-kubernetes-list-map-keys", "must be empty to be structural"),
            ("x-kubernetes-validations", "must be empty to be structural"),
        ] {
            let is_unset = matches!(&json[name], Value::Null | Value::Bool(false))
                || json[name].as_str() == Some("")
                || json[name].as_array().is_some_and(Vec::is_empty);
            if !is_unset || (name == "additionalProperties" && json[name] == Value::Bool(false)) {
                self.forbid(format!("{path}.{name}"), why);
            }
        }
        for (name, property) in json["properties"].as_object().into_iter().flatten() {
            let at = key(path, name);
            let own = &outer["properties"][name];
            if own.is_null() {
                let outside = at.split_once(".allOf").or_else(|| at.split_once(".anyOf"));
                let outside = outside.or_else(|| at.split_once(".oneOf")).or_else(|| at.split_once(".not"));
                let base = outside.map_or(path, |(base, _)| base);
                let why = format!("because it is defined in {at}");
                self.causes.push(Cause::required(key(base, name), &why));
            } else {
                self.narrow(own, property, &at, depth + 1);
            }
        }
        if json["items"].is_object() {
            if outer["items"].is_object() {
                self.narrow(&outer["items"], &json["items"], &format!("{path}.items"), depth + 1);
            } else {
                let why = format!("because it is defined in {path}.items");
                self.causes.push(Cause::required(format!("{path}.items"), &why));
            }
        }
        self.values(json, path);
        for name in ["allOf", "anyOf", "oneOf"] {
            for (index, inner) in json[name].as_array().into_iter().flatten().enumerate() {
                self.narrow(outer, inner, &format!("{path}.{name}[{index}]"), depth + 1);
            }
        }
        if json["not"].is_object() {
            self.narrow(outer, &json["not"], &format!("{path}.not"), depth + 1);
        }
    }

    fn values(&mut self, json: &Value, path: &str) {
        if let Some(pattern) = json["pattern"].as_str()
            && let Err(error) = schema::pattern(pattern)
        {
            let why = format!("must be a valid regular expression, but isn't: {error}");
            self.causes.push(Cause::invalid(format!("{path}.pattern"), pattern, &why));
        }
    }

    fn rules(&mut self, json: &Value, path: &str) {
        let Some(list) = json["x-kubernetes-validations"].as_array() else { return };
        let schema = Schema::parse(json);
        for (index, rule) in list.iter().enumerate() {
            let at = format!("{path}.x-kubernetes-validations[{index}]");
            let source = rule["rule"].as_str().unwrap_or_default();
            if source.trim().is_empty() {
                self.causes.push(Cause::required(format!("{at}.rule"), "rule is not specified"));
                continue;
            }
            match Expression::compile(source, RULE_VARIABLES) {
                Ok(expression) => self.paths(&expression, &schema, &format!("{at}.rule"), source),
                Err(error) => {
                    self.causes.push(Cause::invalid(format!("{at}.rule"), source, &error.to_string()))
                }
            }
            if let Some(text) = rule["messageExpression"].as_str()
                && let Err(error) = Expression::compile(text, RULE_VARIABLES)
            {
                self.causes.push(Cause::invalid(format!("{at}.messageExpression"), text, &error.to_string()));
            }
            if rule["message"].as_str().is_some_and(|message| message.contains('\n')) {
                let why = "message must not contain line breaks";
                self.causes.push(Cause::invalid(format!("{at}.message"), rule["message"].clone(), why));
            }
            if let Some(reason) = rule["reason"].as_str() {
                let known =
                    ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
                if !known.contains(&reason) {
                    self.causes.push(Cause::not_supported(format!("{at}.reason"), reason, &known));
                }
            }
        }
    }

    /// A rule names fields that there are.
    fn paths(&mut self, expression: &Expression, schema: &Schema, at: &str, source: &str) {
        for path in ["self", "oldSelf"].iter().flat_map(|variable| expression.paths(variable)) {
            let mut place = schema;
            for name in &path {
                let found = place.properties.iter().find(|(own, _)| rules::escape(own) == *name);
                let object_member = matches!(name.as_str(), "metadata" | "apiVersion" | "kind");
                match found {
                    Some((_, inner)) => place = inner,
                    None if place.properties.is_empty() || place.preserve_unknown || object_member => break,
                    None => {
                        let why = format!("compilation failed: ERROR: undefined field '{name}'");
                        self.causes.push(Cause::invalid(at, source, &why));
                        return;
                    }
                }
            }
        }
    }
}

/// Defaults fit the schema that they stand in.
fn defaults(schema: &Schema, json: &Value, path: &str, causes: &mut Vec<Cause>) {
    if let Some(default) = &schema.default {
        let at = format!("{path}.default");
        let mut pruned = default.clone();
        let unknown = fields::prune(schema, &mut pruned);
        if !unknown.is_empty() && pruned != *default {
            let why = format!("must not have unknown fields: {}", unknown.join(", "));
            causes.push(Cause::invalid(at.clone(), default.clone(), &why));
        }
        fields::default(schema, &mut pruned);
        validate::check(schema, &pruned, None, &mut at.clone(), causes);
    }
    for (name, inner) in &schema.properties {
        defaults(inner, &json["properties"][name], &key(path, name), causes);
    }
    if let Some(inner) = &schema.items {
        defaults(inner, &json["items"], &format!("{path}.items"), causes);
    }
    if let Some(inner) = schema.additional.as_ref().filter(|_| json["additionalProperties"].is_object()) {
        defaults(inner, &json["additionalProperties"], &format!("{path}.additionalProperties"), causes);
    }
}
