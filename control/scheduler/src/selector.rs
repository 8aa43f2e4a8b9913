//! Node selector terms: the expressions of `nodeAffinity`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};

/// The one field that `matchFields` may name.
const FIELD_NAME: &str = "metadata.name";

/// A selector that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSelector {
    /// The operator is none of In, NotIn, Exists, DoesNotExist, Gt, Lt.
    #[error("{operator:?} is not a valid node selector operator")]
    Operator {
        /// What stands there.
        operator: String,
    },
    /// `Gt` and `Lt` take exactly one integer.
    #[error("values {values:?} of operator {operator}: must be one integer")]
    NotAnInteger {
        /// `Gt` or `Lt`.
        operator: String,
        /// What stands there.
        values: Vec<String>,
    },
    /// `matchFields` names another field than `metadata.name`.
    #[error("field {field:?} is not supported in matchFields; use metadata.name")]
    Field {
        /// What stands there.
        field: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
    Above(i64),
    Below(i64),
}

impl Test {
    fn new(requirement: &NodeSelectorRequirement) -> Result<Self, InvalidSelector> {
        let values = requirement.values.clone().unwrap_or_default();
        let integer = |values: &[String]| {
            match values {
                [one] => one.parse::<i64>().ok(),
                _ => None,
            }
            .ok_or_else(|| InvalidSelector::NotAnInteger {
                operator: requirement.operator.clone(),
                values: values.to_vec(),
            })
        };
        match requirement.operator.as_str() {
            "In" => Ok(Self::In(values)),
            "NotIn" => Ok(Self::NotIn(values)),
            "Exists" => Ok(Self::Exists),
            "DoesNotExist" => Ok(Self::DoesNotExist),
            "Gt" => integer(&values).map(Self::Above),
            "Lt" => integer(&values).map(Self::Below),
            other => Err(InvalidSelector::Operator { operator: other.to_owned() }),
        }
    }

    fn holds(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|value| value.parse::<i64>().ok());
        match self {
            Self::In(values) => value.is_some_and(|value| values.iter().any(|known| known == value)),
            Self::NotIn(values) => !value.is_some_and(|value| values.iter().any(|known| known == value)),
            Self::Exists => value.is_some(),
            Self::DoesNotExist => value.is_none(),
            Self::Above(limit) => number().is_some_and(|number| number > *limit),
            Self::Below(limit) => number().is_some_and(|number| number < *limit),
        }
    }
}

/// One term: all of its expressions must hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NodeTerm {
    labels: Vec<(String, Test)>,
    names: Vec<Test>,
}

impl NodeTerm {
    /// Reads a term.
    pub fn new(term: &NodeSelectorTerm) -> Result<Self, InvalidSelector> {
        let labels = term
            .match_expressions
            .iter()
            .flatten()
            .map(|requirement| Ok((requirement.key.clone(), Test::new(requirement)?)))
            .collect::<Result<_, InvalidSelector>>()?;
        let names = term
            .match_fields
            .iter()
            .flatten()
            .map(|requirement| match requirement.key.as_str() {
                FIELD_NAME => Test::new(requirement),
                field => Err(InvalidSelector::Field { field: field.to_owned() }),
            })
            .collect::<Result<_, InvalidSelector>>()?;
        Ok(Self { labels, names })
    }

    /// Whether the term says nothing. An empty required term matches no node; an empty preferred term is
    /// left out.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.names.is_empty()
    }

    /// The nodes that the term's fields name, when it asks for one of them by name.
    pub fn named_nodes(&self) -> Option<&[String]> {
        self.names.iter().find_map(|test| match test {
            Test::In(names) => Some(names.as_slice()),
            _ => None,
        })
    }

    /// Whether every expression holds for a node of this name and these labels.
    pub fn matches(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        !self.is_empty()
            && self.labels.iter().all(|(key, test)| test.holds(labels.get(key).map(String::as_str)))
            && self.names.iter().all(|test| test.holds(Some(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requirement(key: &str, operator: &str, values: &[&str]) -> NodeSelectorRequirement {
        NodeSelectorRequirement {
            key: key.to_owned(),
            operator: operator.to_owned(),
            values: (!values.is_empty()).then(|| values.iter().map(|&value| value.to_owned()).collect()),
        }
    }

    #[test]
    fn every_operator() {
        let labels = BTreeMap::from([("zone".into(), "a".into()), ("cores".into(), "16".into())]);
        for (key, operator, values, expected) in [
            ("zone", "In", &["a", "b"][..], true),
            ("zone", "In", &["b"], false),
            ("disk", "In", &["ssd"], false),
            ("zone", "NotIn", &["b"], true),
            ("disk", "NotIn", &["ssd"], true),
            ("zone", "Exists", &[], true),
            ("disk", "DoesNotExist", &[], true),
            ("cores", "Gt", &["8"], true),
            ("cores", "Lt", &["16"], false),
            ("zone", "Gt", &["8"], false),
        ] {
            let term = NodeTerm::new(&NodeSelectorTerm {
                match_expressions: Some(vec![requirement(key, operator, values)]),
                match_fields: None,
            })
            .expect("valid term");
            assert_eq!(term.matches("n", &labels), expected, "{key} {operator} {values:?}");
        }
    }

    #[test]
    fn fields_match_the_name_and_an_empty_term_matches_nothing() {
        let term = NodeTerm::new(&NodeSelectorTerm {
            match_expressions: None,
            match_fields: Some(vec![requirement("metadata.name", "In", &["n1"])]),
        })
        .expect("valid term");
        assert!(term.matches("n1", &BTreeMap::new()));
        assert!(!term.matches("n2", &BTreeMap::new()));
        let empty = NodeTerm::new(&NodeSelectorTerm::default()).expect("valid term");
        assert!(!empty.matches("n1", &BTreeMap::new()));
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        let term =
            |requirement| NodeSelectorTerm { match_expressions: Some(vec![requirement]), match_fields: None };
        assert!(NodeTerm::new(&term(requirement("a", "Like", &["x"]))).is_err());
        assert!(NodeTerm::new(&term(requirement("a", "Gt", &["x"]))).is_err());
        assert!(NodeTerm::new(&term(requirement("a", "Gt", &["1", "2"]))).is_err());
    }
}
