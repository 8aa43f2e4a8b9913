//! One rule of a role, what it allows, and whether rules cover one another. Pure.

use api::status::quoted;
use serde::{Deserialize, Serialize};

use crate::auth::Attributes;

/// Stands for everything of its list.
const ALL: &str = "*";

/// A rule as it stands in a role (`PolicyRule` of the Kubernetes API reference).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyRule {
    /// What may be done: `get`, …, or `*`.
    pub verbs: Vec<String>,
    /// In which API groups; empty text is the core group.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    /// To which resources: `pods`, `pods/log`, `*/scale`, `*`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    /// Only to objects of these names; none: to all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    /// On which paths that are no resources; may end in `*`.
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    pub non_resource_urls: Vec<String>,
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|entry| entry == ALL || entry == wanted)
}

fn path_matches(pattern: &str, path: &str) -> bool {
    pattern == ALL
        || pattern == path
        || pattern.strip_suffix('*').is_some_and(|start| path.starts_with(start))
}

impl PolicyRule {
    /// A rule on resources.
    pub(crate) fn on_resources(verbs: &[&str], groups: &[&str], resources: &[&str]) -> Self {
        Self {
            verbs: owned(verbs),
            api_groups: owned(groups),
            resources: owned(resources),
            ..Self::default()
        }
    }

    /// A rule on paths.
    pub(crate) fn on_paths(verbs: &[&str], paths: &[&str]) -> Self {
        Self { verbs: owned(verbs), non_resource_urls: owned(paths), ..Self::default() }
    }

    /// Whether the rule allows a request.
    pub fn allows(&self, request: &Attributes<'_>) -> bool {
        if !has(&self.verbs, request.verb) {
            return false;
        }
        let Some(resource) = request.resource else {
            return self.non_resource_urls.iter().any(|pattern| path_matches(pattern, request.path));
        };
        has(&self.api_groups, resource.group)
            && self.has_resource(resource.plural, request.subresource)
            && (self.resource_names.is_empty() || self.resource_names.iter().any(|name| name == request.name))
    }

    fn has_resource(&self, plural: &str, subresource: &str) -> bool {
        self.resources.iter().any(|entry| match entry.split_once('/') {
            _ if entry == ALL => true,
            None => subresource.is_empty() && entry == plural,
            Some((of, sub)) => !subresource.is_empty() && sub == subresource && (of == ALL || of == plural),
        })
    }

    /// The rule taken apart into rules of one verb on one resource (of one name) or path each.
    fn atoms(&self) -> Vec<PolicyRule> {
        let mut atoms = Vec::new();
        let one = |text: &String| vec![text.clone()];
        for verb in &self.verbs {
            for path in &self.non_resource_urls {
                atoms.push(PolicyRule { verbs: one(verb), non_resource_urls: one(path), ..Self::default() });
            }
            for group in &self.api_groups {
                for resource in &self.resources {
                    let atom = PolicyRule {
                        verbs: one(verb),
                        api_groups: one(group),
                        resources: one(resource),
                        ..Self::default()
                    };
                    if self.resource_names.is_empty() {
                        atoms.push(atom.clone());
                    }
                    let named = self.resource_names.iter();
                    atoms.extend(named.map(|name| PolicyRule { resource_names: one(name), ..atom.clone() }));
                }
            }
        }
        atoms
    }

    /// Whether the rule alone allows all that an atom does.
    fn covers(&self, atom: &PolicyRule) -> bool {
        if !atom.verbs.iter().all(|verb| has(&self.verbs, verb)) {
            return false;
        }
        if let Some(path) = atom.non_resource_urls.first() {
            return self.non_resource_urls.iter().any(|pattern| path_matches(pattern, path));
        }
        let names = &self.resource_names;
        atom.api_groups.iter().all(|group| has(&self.api_groups, group))
            && atom.resources.iter().all(|resource| {
                let (of, sub) = resource.split_once('/').unwrap_or((resource, ""));
                self.has_resource(of, sub)
            })
            && (names.is_empty()
                || !atom.resource_names.is_empty()
                    && atom.resource_names.iter().all(|name| names.contains(name)))
    }
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

/// What of `wanted` no rule of `held` covers, in few rules.
pub fn uncovered(held: &[PolicyRule], wanted: &[PolicyRule]) -> Vec<PolicyRule> {
    let atoms = wanted.iter().flat_map(PolicyRule::atoms);
    compact(atoms.filter(|atom| !held.iter().any(|rule| rule.covers(atom))))
}

/// Joins rules that differ in their verbs only.
fn compact(rules: impl Iterator<Item = PolicyRule>) -> Vec<PolicyRule> {
    let mut joined: Vec<PolicyRule> = Vec::new();
    for rule in rules {
        let same = joined.iter_mut().find(|other| {
            other.api_groups == rule.api_groups
                && other.resources == rule.resources
                && other.resource_names == rule.resource_names
                && other.non_resource_urls == rule.non_resource_urls
        });
        match same {
            Some(other) => {
                let new = rule.verbs.into_iter().filter(|verb| !other.verbs.contains(verb));
                let new: Vec<_> = new.collect();
                other.verbs.extend(new);
            }
            None => joined.push(rule),
        }
    }
    joined
}

/// As Kubernetes prints a rule in refusals.
impl std::fmt::Display for PolicyRule {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lists = [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.non_resource_urls),
            ("ResourceNames", &self.resource_names),
            ("Verbs", &self.verbs),
        ];
        let parts = lists.iter().filter(|(_, list)| !list.is_empty()).map(|(name, list)| {
            let texts: Vec<String> = list.iter().map(|text| quoted(text)).collect();
            format!("{name}:[{}]", texts.join(" "))
        });
        write!(out, "{{{}}}", parts.collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::ResourceName;

    fn request<'a>(verb: &'a str, group: &'a str, resource: &'a str, name: &'a str) -> Attributes<'a> {
        let (plural, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let resource = Some(ResourceName { group, plural });
        Attributes { verb, resource, subresource, name, ..Attributes::default() }
    }

    #[test]
    fn a_rule_allows_what_all_its_lists_name() {
        let pods = PolicyRule::on_resources(&["get", "list"], &[""], &["pods", "*/scale"]);
        for (verb, group, resource, allowed) in [
            ("get", "", "pods", true),
            ("delete", "", "pods", false),
            ("get", "apps", "pods", false),
            ("get", "", "pods/log", false),
            ("get", "", "anything/scale", true),
            ("get", "", "scale", false),
        ] {
            assert_eq!(
                pods.allows(&request(verb, group, resource, "x")),
                allowed,
                "{verb} {group} {resource}"
            );
        }
        let all = PolicyRule::on_resources(&["*"], &["*"], &["*"]);
        assert!(all.allows(&request("escalate", "x.y", "a/b", "")));
        assert!(!all.allows(&Attributes { verb: "get", path: "/metrics", ..Attributes::default() }));
        let one = PolicyRule { resource_names: owned(&["a"]), ..pods };
        assert!(one.allows(&request("get", "", "pods", "a")));
        assert!(!one.allows(&request("get", "", "pods", "b")));
        assert!(!one.allows(&request("list", "", "pods", "")), "a list names nobody");
        let paths = PolicyRule::on_paths(&["get"], &["/healthz", "/apis/*"]);
        for (path, allowed) in
            [("/healthz", true), ("/healthz/x", false), ("/apis/x/y", true), ("/apis", false)]
        {
            let request = Attributes { verb: "get", path, ..Attributes::default() };
            assert_eq!(paths.allows(&request), allowed, "{path}");
        }
    }

    #[test]
    fn what_is_not_held_is_told_in_few_rules() {
        let held = [
            PolicyRule::on_resources(&["get", "list"], &["", "apps"], &["pods", "deployments"]),
            PolicyRule {
                resource_names: owned(&["a"]),
                ..PolicyRule::on_resources(&["*"], &[""], &["secrets"])
            },
        ];
        let less = PolicyRule::on_resources(&["get"], &["apps"], &["deployments"]);
        assert!(uncovered(&held, &[less]).is_empty());
        let more = PolicyRule::on_resources(&["get", "delete", "watch"], &[""], &["pods", "secrets"]);
        let missing: Vec<String> = uncovered(&held, &[more]).iter().map(ToString::to_string).collect();
        assert_eq!(
            missing,
            [
                r#"{APIGroups:[""], Resources:["secrets"], Verbs:["get" "delete" "watch"]}"#,
                r#"{APIGroups:[""], Resources:["pods"], Verbs:["delete" "watch"]}"#
            ]
        );
        let star = PolicyRule::on_resources(&["*"], &["*"], &["*"]);
        let star = [star];
        assert_eq!(uncovered(&held, &star), star);
        assert!(uncovered(&star, &held).is_empty());
        let own = PolicyRule {
            resource_names: owned(&["a"]),
            ..PolicyRule::on_resources(&["get"], &[""], &["secrets"])
        };
        assert!(uncovered(&held, &[own]).is_empty());
    }
}
