//! A custom kind's schema in the form that objects are held against.
//!
//! Owns reading a structural OpenAPI v3 schema. Reading is lenient: what a schema may say is checked when its
//! definition is written ([`super::structural`]). A pattern or rule that cannot be read refuses every value,
//! so that nothing passes unchecked.

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::Value;

use crate::cel::{self, Expression};
use crate::status::CauseKind;

/// Deepest schema; definitions that go deeper are refused.
pub(super) const DEPTH_MAX: usize = 64;

/// What a value must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Type {
    /// Anything.
    #[default]
    Any,
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
    /// A whole number or a text.
    IntOrString,
}

impl Type {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Any => "",
            Self::Object => "object",
            Self::Array => "array",
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
            Self::IntOrString => "integer,string",
        }
    }
}

/// How items of a list are told apart.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum ListType {
    #[default]
    Atomic,
    Set,
    Map(Vec<String>),
}

/// Bounds on one value.
#[derive(Debug, Clone, Default)]
pub(super) struct Checks {
    pub(super) required: Vec<String>,
    pub(super) choices: Vec<Value>,
    pub(super) minimum: Option<Value>,
    pub(super) minimum_excluded: bool,
    pub(super) maximum: Option<Value>,
    pub(super) maximum_excluded: bool,
    pub(super) multiple_of: Option<Value>,
    pub(super) length_min: Option<u64>,
    pub(super) length_max: Option<u64>,
    pub(super) pattern: Option<(String, Option<Regex>)>,
    pub(super) format: Option<String>,
    pub(super) items_min: Option<u64>,
    pub(super) items_max: Option<u64>,
    pub(super) members_min: Option<u64>,
    pub(super) members_max: Option<u64>,
}

/// A rule in CEL.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    pub(super) source: String,
    pub(super) expression: Result<Expression, cel::Error>,
    pub(super) message: String,
    pub(super) message_expression: Option<Expression>,
    pub(super) reason: CauseKind,
    pub(super) field_path: String,
    pub(super) is_transition: bool,
    pub(super) optional_old: bool,
}

/// A schema of one value and what is inside it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Schema {
    pub(crate) ty: Type,
    pub(super) nullable: bool,
    pub(crate) properties: BTreeMap<String, Schema>,
    /// For members that are not named; `None`: there are none.
    pub(crate) additional: Option<Box<Schema>>,
    pub(crate) items: Option<Box<Schema>>,
    pub(crate) default: Option<Value>,
    pub(super) preserve_unknown: bool,
    pub(crate) embedded: bool,
    pub(crate) list_type: ListType,
    /// Whether an object is one value to those who apply.
    pub(crate) is_atomic: bool,
    pub(super) checks: Checks,
    pub(super) all_of: Vec<Schema>,
    pub(super) any_of: Vec<Schema>,
    pub(super) one_of: Vec<Schema>,
    pub(super) not: Option<Box<Schema>>,
    pub(super) rules: Vec<Rule>,
    /// Whether there is a rule here or further in.
    pub(super) has_rules: bool,
}

impl Schema {
    /// Reads a schema.
    pub(super) fn parse(json: &Value) -> Self {
        Self::parse_at(json, 0)
    }

    fn parse_at(json: &Value, depth: usize) -> Self {
        if depth > DEPTH_MAX {
            return Self::default();
        }
        let inner = |json: &Value| Self::parse_at(json, depth + 1);
        let flag = |name: &str| json[name].as_bool().unwrap_or(false);
        let list = |name: &str| json[name].as_array().into_iter().flatten().map(inner).collect::<Vec<_>>();
        let additional = match &json["additionalProperties"] {
            Value::Bool(true) => Some(Box::new(Self { preserve_unknown: true, ..Self::default() })),
            schema @ Value::Object(_) => Some(Box::new(inner(schema))),
            _ => None,
        };
        let properties: BTreeMap<String, Self> = json["properties"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, schema)| (name.clone(), inner(schema)))
            .collect();
        let items = json["items"].is_object().then(|| Box::new(inner(&json["items"])));
        let rules: Vec<Rule> =
            json["x-kubernetes-validations"].as_array().into_iter().flatten().map(Rule::parse).collect();
        let has_rules = !rules.is_empty()
            || properties.values().any(|schema| schema.has_rules)
            || additional.as_ref().is_some_and(|schema| schema.has_rules)
            || items.as_ref().is_some_and(|schema| schema.has_rules);
        Self {
            ty: ty(json),
            nullable: flag("nullable"),
            properties,
            additional,
            items,
            default: json.get("default").filter(|default| !default.is_null()).cloned(),
            preserve_unknown: flag("x-kubernetes-preserve-unknown-fields"),
            embedded: flag("x-kubernetes-embedded-resource"),
            list_type: list_type(json),
            is_atomic: json["x-kubernetes-map-type"] == "atomic",
            checks: Checks::parse(json),
            all_of: list("allOf"),
            any_of: list("anyOf"),
            one_of: list("oneOf"),
            not: json["not"].is_object().then(|| Box::new(inner(&json["not"]))),
            rules,
            has_rules,
        }
    }

    /// The schema of a member, if it may be there.
    pub(crate) fn member(&self, name: &str) -> Option<&Self> {
        self.properties.get(name).or(self.additional.as_deref())
    }
}

fn ty(json: &Value) -> Type {
    if json["x-kubernetes-int-or-string"].as_bool() == Some(true) {
        return Type::IntOrString;
    }
    match json["type"].as_str().unwrap_or_default() {
        "object" => Type::Object,
        "array" => Type::Array,
        "string" => Type::String,
        "integer" => Type::Integer,
        "number" => Type::Number,
        "boolean" => Type::Boolean,
        _ => Type::Any,
    }
}

fn list_type(json: &Value) -> ListType {
    match json["x-kubernetes-list-type"].as_str().unwrap_or_default() {
        "set" => ListType::Set,
        "map" => ListType::Map(texts(&json["x-kubernetes-list-map-keys"])),
        _ => ListType::Atomic,
    }
}

pub(super) fn texts(json: &Value) -> Vec<String> {
    json.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Reads a pattern; Kubernetes' are Go's, of which the Rust ones are a superset in all but rare corners.
pub(super) fn pattern(text: &str) -> Result<Regex, regex::Error> {
    regex::RegexBuilder::new(text).size_limit(1 << 20).build()
}

impl Checks {
    fn parse(json: &Value) -> Self {
        let count = |name: &str| json[name].as_u64();
        let number = |name: &str| json.get(name).filter(|number| number.is_number()).cloned();
        let flag = |name: &str| json[name].as_bool().unwrap_or(false);
        let text = |name: &str| json[name].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        Self {
            required: texts(&json["required"]),
            choices: json["enum"].as_array().cloned().unwrap_or_default(),
            minimum: number("minimum"),
            minimum_excluded: flag("exclusiveMinimum"),
            maximum: number("maximum"),
            maximum_excluded: flag("exclusiveMaximum"),
            multiple_of: number("multipleOf"),
            length_min: count("minLength"),
            length_max: count("maxLength"),
            pattern: text("pattern").map(|text| {
                let regex = pattern(&text).ok();
                (text, regex)
            }),
            format: text("format"),
            items_min: count("minItems"),
            items_max: count("maxItems"),
            members_min: count("minProperties"),
            members_max: count("maxProperties"),
        }
    }
}

/// The variables of a rule.
pub(super) const RULE_VARIABLES: &[&str] = &["self", "oldSelf"];

impl Rule {
    fn parse(json: &Value) -> Self {
        let text = |name: &str| json[name].as_str().unwrap_or_default().to_owned();
        let source = text("rule");
        let expression = Expression::compile(&source, RULE_VARIABLES);
        let message_expression = json["messageExpression"]
            .as_str()
            .and_then(|text| Expression::compile(text, RULE_VARIABLES).ok());
        let is_transition = expression.as_ref().is_ok_and(|expression| expression.uses("oldSelf"));
        Self {
            source,
            expression,
            message: text("message"),
            message_expression,
            reason: match json["reason"].as_str() {
                Some("FieldValueForbidden") => CauseKind::Forbidden,
                Some("FieldValueRequired") => CauseKind::Required,
                Some("FieldValueDuplicate") => CauseKind::Duplicate,
                _ => CauseKind::Invalid,
            },
            field_path: text("fieldPath"),
            is_transition,
            optional_old: json["optionalOldSelf"].as_bool().unwrap_or(false),
        }
    }
}
