//! Label selectors.
//!
//! Owns the text form (`a=b,c in (d,e),!f,g>3`) and the structured form (`matchLabels`, `matchExpressions`).
//! Promises that keys and values are checked as labels are. An empty selector matches everything.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use serde_json::{Map, Value};

use crate::name;
use crate::status::{Status, quoted};

/// How a requirement compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operator {
    /// The label is one of the values.
    In,
    /// The label is missing or none of the values.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is missing.
    DoesNotExist,
    /// The label is an integer greater than the value.
    GreaterThan,
    /// The label is an integer less than the value.
    LessThan,
}

/// One condition on one label.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// The comparison.
    pub operator: Operator,
    /// What it is compared with, sorted; empty for the existence operators.
    pub values: Vec<String>,
}

/// A conjunction of requirements.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

/// Something that has labels.
pub trait Source {
    /// The value of a label.
    fn get_label(&self, key: &str) -> Option<&str>;
}

impl Source for BTreeMap<String, String> {
    fn get_label(&self, key: &str) -> Option<&str> {
        self.get(key).map(String::as_str)
    }
}

impl Source for Map<String, Value> {
    fn get_label(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Value::as_str)
    }
}

impl<T: Source> Source for Option<T> {
    fn get_label(&self, key: &str) -> Option<&str> {
        self.as_ref()?.get_label(key)
    }
}

impl<T: Source> Source for &T {
    fn get_label(&self, key: &str) -> Option<&str> {
        (*self).get_label(key)
    }
}

impl Requirement {
    /// A checked requirement.
    pub fn new(key: &str, operator: Operator, mut values: Vec<String>) -> Result<Self, String> {
        let mut problems: Vec<String> = name::qualified_name(key)
            .into_iter()
            .map(|m| format!("key: Invalid value: {}: {m}", quoted(key)))
            .collect();
        match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                problems.push(
                    "values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty"
                        .into(),
                );
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                problems.push(format!(
                    "values: Invalid value: {}: values set must be empty for exists and does not exist",
                    Value::from(values.clone())
                ));
            }
            Operator::GreaterThan | Operator::LessThan if values.len() != 1 => {
                problems.push(format!(
                    "values: Invalid value: {}: for 'Gt', 'Lt' operators, exactly one value is required",
                    Value::from(values.clone())
                ));
            }
            Operator::GreaterThan | Operator::LessThan if values[0].parse::<i64>().is_err() => {
                problems.push(format!(
                    "values[0]: Invalid value: {}: for 'Gt', 'Lt' operators, the value must be an integer",
                    quoted(&values[0])
                ));
            }
            _ => {}
        }
        for (index, value) in values.iter().enumerate() {
            for message in name::label_value(value) {
                problems.push(format!("values[{index}][{key}]: Invalid value: {}: {message}", quoted(value)));
            }
        }
        if !problems.is_empty() {
            return Err(if problems.len() == 1 {
                problems.swap_remove(0)
            } else {
                format!("[{}]", problems.join(", "))
            });
        }
        values.sort();
        values.dedup();
        Ok(Self { key: key.to_owned(), operator, values })
    }

    /// Whether the labels meet the requirement.
    pub fn matches(&self, labels: &impl Source) -> bool {
        let value = labels.get_label(&self.key);
        match self.operator {
            Operator::In => value.is_some_and(|v| self.values.iter().any(|x| x == v)),
            Operator::NotIn => value.is_none_or(|v| self.values.iter().all(|x| x != v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan => self.numbers(value).is_some_and(|(have, bound)| have > bound),
            Operator::LessThan => self.numbers(value).is_some_and(|(have, bound)| have < bound),
        }
    }

    fn numbers(&self, value: Option<&str>) -> Option<(i64, i64)> {
        Some((value?.parse().ok()?, self.values.first()?.parse().ok()?))
    }
}

impl LabelSelector {
    /// Matches everything.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Matches nothing.
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    /// Matches what meets every requirement.
    pub fn all_of(requirements: Vec<Requirement>) -> Self {
        Self { requirements, nothing: false }
    }

    /// Reads the text form.
    pub fn parse(text: &str) -> Result<Self, Status> {
        let requirements = Parser::new(text)
            .parse()
            .map_err(|m| Status::bad_request(format!("unable to parse requirement: {m}")))?;
        Ok(Self { requirements, nothing: false })
    }

    /// The selector that a `metav1.LabelSelector` means; none selects nothing, an empty one everything.
    pub fn from_typed(selector: Option<&meta::LabelSelector>) -> Result<Self, String> {
        let Some(selector) = selector else { return Ok(Self::nothing()) };
        let mut requirements = Vec::new();
        for (key, value) in selector.match_labels.iter().flatten() {
            requirements.push(Requirement::new(key, Operator::In, vec![value.clone()])?);
        }
        for expression in selector.match_expressions.iter().flatten() {
            let operator = match expression.operator.as_str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return Err(format!("{} is not a valid label selector operator", quoted(other))),
            };
            let values = expression.values.clone().unwrap_or_default();
            requirements.push(Requirement::new(&expression.key, operator, values)?);
        }
        Ok(Self { requirements, nothing: false })
    }

    /// Whether the labels are selected.
    pub fn matches(&self, labels: &impl Source) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(labels))
    }

    /// Whether an object held as JSON is selected.
    pub fn matches_object(&self, object: &Value) -> bool {
        self.matches(&crate::object::labels_value(object))
    }

    /// Whether nothing is asked, so that everything matches.
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    /// The conjunction's members.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        match (self.operator, self.values.as_slice()) {
            (Operator::Exists, _) => f.write_str(key),
            (Operator::DoesNotExist, _) => write!(f, "!{key}"),
            (Operator::In, [one]) => write!(f, "{key}={one}"),
            (Operator::NotIn, [one]) => write!(f, "{key}!={one}"),
            (Operator::In, many) => write!(f, "{key} in ({})", many.join(",")),
            (Operator::NotIn, many) => write!(f, "{key} notin ({})", many.join(",")),
            (Operator::GreaterThan, many) => write!(f, "{key}>{}", many.join(",")),
            (Operator::LessThan, many) => write!(f, "{key}<{}", many.join(",")),
        }
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            requirement.fmt(f)?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Symbol(&'static str),
    End,
}

impl Token {
    fn text(&self) -> &str {
        match self {
            Self::Word(word) => word,
            Self::Symbol(symbol) => symbol,
            Self::End => "",
        }
    }

    /// A word, or a keyword read as a word.
    fn is(&self, text: &str) -> bool {
        !matches!(self, Self::End) && self.text() == text
    }
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

const SYMBOLS: &[&str] = &["==", "!=", "=", "!", "(", ")", ",", ">", "<"];

impl Parser {
    fn new(text: &str) -> Self {
        let mut tokens = Vec::new();
        let mut rest = text.trim_start();
        while !rest.is_empty() {
            if let Some(symbol) = SYMBOLS.iter().find(|s| rest.starts_with(**s)) {
                tokens.push(Token::Symbol(symbol));
                rest = rest[symbol.len()..].trim_start();
                continue;
            }
            let end = rest.find(|c: char| c.is_whitespace() || "=!(),<>".contains(c)).unwrap_or(rest.len());
            tokens.push(Token::Word(rest[..end].to_owned()));
            rest = rest[end..].trim_start();
        }
        Self { tokens, at: 0 }
    }

    fn peek(&self) -> Token {
        self.tokens.get(self.at).cloned().unwrap_or(Token::End)
    }

    fn next(&mut self) -> Token {
        let token = self.peek();
        self.at += 1;
        token
    }

    fn parse(&mut self) -> Result<Vec<Requirement>, String> {
        let mut requirements = Vec::new();
        if self.tokens.is_empty() {
            return Ok(requirements);
        }
        loop {
            match self.peek() {
                Token::Word(_) | Token::Symbol("!") => requirements.push(self.requirement()?),
                other => {
                    return Err(format!(
                        "found '{}', expected: !, identifier, or 'end of string'",
                        other.text()
                    ));
                }
            }
            match self.next() {
                Token::End => return Ok(requirements),
                Token::Symbol(",") => {
                    let after = self.peek();
                    if !matches!(after, Token::Word(_) | Token::Symbol("!")) {
                        return Err(format!("found '{}', expected: identifier after ','", after.text()));
                    }
                }
                other => return Err(format!("found '{}', expected: ',' or 'end of string'", other.text())),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let negated = self.peek() == Token::Symbol("!");
        if negated {
            self.next();
        }
        let key = match self.next() {
            Token::Word(word) => word,
            other => return Err(format!("found '{}', expected: identifier", other.text())),
        };
        if negated {
            return Requirement::new(&key, Operator::DoesNotExist, Vec::new());
        }
        if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            return Requirement::new(&key, Operator::Exists, Vec::new());
        }
        let token = self.next();
        let (operator, values) = match &token {
            t if t.is("in") => (Operator::In, self.set()?),
            t if t.is("notin") => (Operator::NotIn, self.set()?),
            Token::Symbol("=" | "==") => (Operator::In, vec![self.exact()?]),
            Token::Symbol("!=") => (Operator::NotIn, vec![self.exact()?]),
            Token::Symbol(">") => (Operator::GreaterThan, vec![self.exact()?]),
            Token::Symbol("<") => (Operator::LessThan, vec![self.exact()?]),
            other => {
                return Err(format!("found '{}', expected: in, notin, =, ==, !=, gt, lt", other.text()));
            }
        };
        Requirement::new(&key, operator, values)
    }

    /// The value after `=`, which may be empty.
    fn exact(&mut self) -> Result<String, String> {
        match self.peek() {
            Token::End | Token::Symbol(",") => Ok(String::new()),
            Token::Word(word) => {
                self.next();
                Ok(word)
            }
            other => Err(format!("found '{}', expected: identifier", other.text())),
        }
    }

    /// The values between parentheses; `(a,,b)` holds an empty one.
    fn set(&mut self) -> Result<Vec<String>, String> {
        match self.next() {
            Token::Symbol("(") => {}
            other => return Err(format!("found '{}' expected: '('", other.text())),
        }
        let mut values = Vec::new();
        loop {
            match self.next() {
                Token::Word(word) => {
                    values.push(word);
                    match self.next() {
                        Token::Symbol(",") => {
                            if self.peek() == Token::Symbol(")") {
                                values.push(String::new());
                            }
                        }
                        Token::Symbol(")") => return Ok(values),
                        other => return Err(format!("found '{}', expected: ',' or ')'", other.text())),
                    }
                }
                Token::Symbol(",") => {
                    values.push(String::new());
                    if self.peek() == Token::Symbol(")") {
                        values.push(String::new());
                    }
                }
                Token::Symbol(")") => {
                    if values.is_empty() {
                        values.push(String::new());
                    }
                    return Ok(values);
                }
                other => return Err(format!("found '{}', expected: ',', or identifier", other.text())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn the_grammar_selects() {
        let have = labels(&[("app", "web"), ("tier", ""), ("n", "7"), ("example.com/x", "y")]);
        for (text, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier=", true),
            ("app!=web", false),
            ("missing!=web", true),
            ("app in (db, web)", true),
            ("app notin (db,web)", false),
            ("missing notin (db)", true),
            ("tier in ()", true),
            ("tier in (,a)", true),
            ("app", true),
            ("!app", false),
            ("!missing , app", true),
            ("n>6,n<8", true),
            ("n > 7", false),
            ("example.com/x=y", true),
            ("in in (in)", false),
        ] {
            assert_eq!(LabelSelector::parse(text).unwrap().matches(&have), expected, "{text}");
        }
    }

    #[test]
    fn mistakes_are_worded_as_kubernetes_does() {
        for (text, message) in [
            ("a=b,", "unable to parse requirement: found '', expected: identifier after ','"),
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'"),
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("=b", "unable to parse requirement: found '=', expected: !, identifier, or 'end of string'"),
            (
                "n>x",
                "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be an integer",
            ),
        ] {
            let error = LabelSelector::parse(text).unwrap_err();
            assert_eq!((error.code(), error.message()), (400, message), "{text}");
        }
        let error = LabelSelector::parse("a=$").unwrap_err().to_string();
        assert!(
            error.contains("values[0][a]: Invalid value: \"$\": a valid label must be an empty string"),
            "{error}"
        );
    }

    #[test]
    fn the_typed_form_selects() {
        let typed: meta::LabelSelector = serde_json::from_value(serde_json::json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [{"key": "x", "operator": "NotIn", "values": ["1"]}]
        }))
        .unwrap();
        let selector = LabelSelector::from_typed(Some(&typed)).unwrap();
        assert!(selector.matches(&labels(&[("app", "web")])));
        assert!(!selector.matches(&labels(&[("app", "web"), ("x", "1")])));
        assert!(!LabelSelector::from_typed(None).unwrap().matches(&labels(&[])));
        assert!(LabelSelector::from_typed(Some(&meta::LabelSelector::default())).unwrap().is_everything());
    }

    proptest! {
        #[test]
        fn printing_and_reading_again_gives_the_same(
            parts in proptest::collection::vec(
                ("[a-z][a-z0-9]{0,5}", 0..4usize, proptest::collection::vec("[a-z0-9]{0,4}", 1..4)), 1..5)
        ) {
            let text = parts.iter().map(|(key, op, values)| match op {
                0 => key.clone(),
                1 => format!("!{key}"),
                2 => format!("{key} in ({})", values.join(",")),
                _ => format!("{key}notin !=")
                    .replace("notin !=", &format!(" notin ({})", values.join(","))),
            }).collect::<Vec<_>>().join(",");
            let selector = LabelSelector::parse(&text).unwrap();
            prop_assert_eq!(LabelSelector::parse(&selector.to_string()).unwrap(), selector);
        }

        #[test]
        fn no_text_panics(text in "[a-z=!,() <>]{0,24}") {
            let _ = LabelSelector::parse(&text);
        }
    }
}
