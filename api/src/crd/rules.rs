//! Rules in CEL (`x-kubernetes-validations`), run over an object.
//!
//! A rule that speaks of `oldSelf` runs only where the value replaces another one. All rules of one object
//! share a [`Budget`]; when it is used up, that is a cause of its own and no further rule runs.

use std::sync::LazyLock;

use serde_json::Value;

use super::schema::{ListType, RULE_VARIABLES, Rule, Schema, Type};
use super::validate::{CAUSES_MAX, push, same_item};
use crate::cel::{self, Budget, Expression};
use crate::status::{Cause, CauseKind};

/// Longest message that an expression may give.
const MESSAGE_BYTES_MAX: usize = 5 * 1024;

/// Adds the causes that the rules give.
pub(super) fn check(schema: &Schema, value: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let mut run = Run { budget: Budget::default(), over: false, causes };
    run.value(schema, value, old, &mut String::new());
}

struct Run<'a> {
    budget: Budget,
    over: bool,
    causes: &'a mut Vec<Cause>,
}

impl Run<'_> {
    fn value(&mut self, schema: &Schema, value: &Value, old: Option<&Value>, path: &mut String) {
        if !schema.has_rules || self.over || value.is_null() {
            return;
        }
        self.own(schema, value, old, path);
        match value {
            Value::Object(members) => {
                for (name, member) in members {
                    let Some(inner) = schema.member(name) else { continue };
                    let length = push(path, name, !schema.properties.contains_key(name));
                    self.value(inner, member, old.and_then(|old| old.get(name)), path);
                    path.truncate(length);
                }
            }
            Value::Array(items) => {
                let Some(inner) = &schema.items else { return };
                for (index, item) in items.iter().enumerate() {
                    let length = path.len();
                    path.push_str(&format!("[{index}]"));
                    let before = match schema.list_type {
                        ListType::Map(_) => old.and_then(|old| same_item(schema, old, item)),
                        // Items without names have no past.
                        _ => None,
                    };
                    self.value(inner, item, before, path);
                    path.truncate(length);
                }
            }
            _ => {}
        }
    }

    fn own(&mut self, schema: &Schema, value: &Value, old: Option<&Value>, path: &str) {
        let runs = |rule: &&Rule| !rule.is_transition || old.is_some() || rule.optional_old;
        let mut rules = schema.rules.iter().filter(runs).peekable();
        if rules.peek().is_none() {
            return;
        }
        let own = to_cel(schema, value);
        let before = old.map(|old| to_cel(schema, old));
        for rule in rules {
            if self.over || self.causes.len() >= CAUSES_MAX {
                return;
            }
            let previous = match (&before, rule.optional_old) {
                (Some(before), _) => before.clone(),
                (None, _) => cel::Value::Null,
            };
            let mut variables = vec![("self", &own)];
            if rule.is_transition {
                variables.push(("oldSelf", &previous));
            }
            let outcome = match &rule.expression {
                Ok(expression) => expression.is_true(&variables, &mut self.budget),
                Err(error) => Err(error.clone()),
            };
            match outcome {
                Ok(true) => {}
                Ok(false) => {
                    let message = self.message(rule, &variables);
                    let field = format!("{path}{}", rule.field_path);
                    let field =
                        if path.is_empty() { field.trim_start_matches('.').to_owned() } else { field };
                    self.causes.push(cause(rule.reason, field, schema, &message));
                }
                Err(error) => self.failed(&error, rule, schema, path),
            }
        }
    }

    fn message(&mut self, rule: &Rule, variables: &[cel::Variable<'_>]) -> String {
        let own = match (rule.message.is_empty(), rule.source.trim()) {
            (true, source) => format!("failed rule: {source}"),
            (false, _) => rule.message.clone(),
        };
        let Some(expression) = &rule.message_expression else { return own };
        match expression.text(variables, &mut self.budget) {
            Ok(Some(text))
                if !text.trim().is_empty() && text.len() <= MESSAGE_BYTES_MAX && !text.contains('\n') =>
            {
                text
            }
            _ => own,
        }
    }

    fn failed(&mut self, error: &cel::Error, rule: &Rule, schema: &Schema, path: &str) {
        let source = rule.source.trim();
        let message = match error {
            cel::Error::OutOfBudget => {
                self.over = true;
                error.to_string()
            }
            cel::Error::TooCostly => {
                self.over = true;
                format!("{error} for rule: {source}, no further validation rules will be run")
            }
            cel::Error::Compile(why) => format!("rule compile error: {why}"),
            cel::Error::Evaluation(why) => format!("{why} evaluating rule: {source}"),
        };
        self.causes.push(cause(CauseKind::Invalid, path.to_owned(), schema, &message));
    }
}

fn cause(kind: CauseKind, field: String, schema: &Schema, message: &str) -> Cause {
    match kind {
        CauseKind::Forbidden => Cause::forbidden(field, message),
        CauseKind::Required => Cause::required(field, message),
        CauseKind::Duplicate => Cause {
            message: format!("Duplicate value: {:?}", schema.ty.name()),
            ..Cause::duplicate(field, schema.ty.name())
        },
        _ => Cause::invalid(field, schema.ty.name(), message),
    }
}

/// A value as rules see it: names of fields are made names of CEL, numbers have their schema's type.
pub(super) fn to_cel(schema: &Schema, value: &Value) -> cel::Value {
    match value {
        Value::Object(members) => cel::map(members.iter().map(|(name, member)| {
            let seen = if schema.properties.contains_key(name) { escape(name) } else { name.clone() };
            let inner = schema.member(name);
            (seen, inner.map_or_else(|| cel::from_json(member), |inner| to_cel(inner, member)))
        })),
        Value::Array(items) => {
            let item = |item| match &schema.items {
                Some(inner) => to_cel(inner, item),
                None => cel::from_json(item),
            };
            cel::list(items.iter().map(item).collect())
        }
        Value::Number(number) if schema.ty == Type::Number => {
            cel::Value::Float(number.as_f64().unwrap_or(f64::NAN))
        }
        Value::String(_) => match schema.checks.format.as_deref() {
            Some("date-time") => convert(&TIMESTAMP, value),
            Some("duration") => convert(&DURATION, value),
            _ => cel::from_json(value),
        },
        _ => cel::from_json(value),
    }
}

static TIMESTAMP: LazyLock<Option<Expression>> =
    LazyLock::new(|| Expression::compile("timestamp(self)", RULE_VARIABLES).ok());
static DURATION: LazyLock<Option<Expression>> =
    LazyLock::new(|| Expression::compile("duration(self)", RULE_VARIABLES).ok());

/// A text as what it stands for; as itself if it stands for nothing.
fn convert(by: &Option<Expression>, value: &Value) -> cel::Value {
    let text = cel::from_json(value);
    let converted = by.as_ref().map(|by| by.evaluate(&[("self", &text)], &mut Budget::default()));
    match converted {
        Some(Ok(converted)) => converted,
        _ => text,
    }
}

/// Words of CEL that a field's name may be.
const RESERVED: [&str; 24] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
    "int",
    "string",
    "bool",
];

/// A field's name as expressions write it.
pub(super) fn escape(name: &str) -> String {
    if RESERVED[..21].contains(&name) {
        return format!("__{name}__");
    }
    name.replace("__", "__underscores__")
        .replace('.', "__dot__")
        .replace('-', "__dash__")
        .replace('/', "__slash__")
}
