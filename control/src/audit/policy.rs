//! Which requests are noted, and how much of them: the `Policy` of `audit.k8s.io/v1`. Pure.
//!
//! The first rule that a request meets decides; a request that meets none is not noted.

use serde::Deserialize;

use super::Stage;
use crate::auth::Identity;

/// How much of a request is noted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum Level {
    /// Nothing.
    #[default]
    None,
    /// Who, what, when; nothing of any body.
    Metadata,
    /// Its body too.
    Request,
    /// And that of the answer.
    RequestResponse,
}

/// A policy. The default notes nothing.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    omit_stages: Vec<Stage>,
    omit_managed_fields: bool,
    rules: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    #[serde(default)]
    metadata: serde_json::Value,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    #[serde(default)]
    omit_managed_fields: bool,
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    level: Level,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    user_groups: Vec<String>,
    #[serde(default)]
    verbs: Vec<String>,
    #[serde(default)]
    resources: Vec<Resources>,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default, rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    omit_managed_fields: Option<bool>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Resources {
    #[serde(default)]
    group: String,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    resource_names: Vec<String>,
}

/// A request, as rules look at it.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Who asks, before any impersonation.
    pub identity: &'a Identity,
    /// The verb; for a path that is no resource the method in lower case.
    pub verb: &'a str,
    /// Group, plural and subresource; `None`: a path that is no resource.
    pub resource: Option<(&'a str, &'a str, &'a str)>,
    /// The namespace, or empty.
    pub namespace: &'a str,
    /// The object's name, or empty.
    pub name: &'a str,
    /// The path.
    pub path: &'a str,
}

/// What a policy wants of one request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// How much.
    pub level: Level,
    omit_stages: Vec<Stage>,
    /// Whether `managedFields` are left out of bodies.
    pub omit_managed_fields: bool,
}

impl Decision {
    /// Whether an event of that stage is wanted.
    pub fn wants(&self, stage: Stage) -> bool {
        self.level > Level::None && !self.omit_stages.contains(&stage)
    }
}

impl Policy {
    /// Reads a policy file; says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: File = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        let File { api_version, kind, metadata, omit_stages, omit_managed_fields, rules } = file;
        drop(metadata);
        if api_version != "audit.k8s.io/v1" || kind != "Policy" {
            return Err(format!("it is a {kind} of {api_version:?}, not a Policy of \"audit.k8s.io/v1\""));
        }
        if rules.is_empty() {
            return Err("it has no rules; a policy with none would note nothing".to_owned());
        }
        for (index, rule) in rules.iter().enumerate() {
            let about_objects = !rule.resources.is_empty() || !rule.namespaces.is_empty();
            if about_objects && !rule.non_resource_urls.is_empty() {
                return Err(format!(
                    "rules[{index}] cannot apply to both regular resources and non-resource URLs"
                ));
            }
            for url in &rule.non_resource_urls {
                let inner = url.strip_suffix('*').unwrap_or(url);
                if url != "*" && !url.starts_with('/') || inner.contains('*') {
                    return Err(format!(
                        "rules[{index}].nonResourceURLs: {url:?} must begin with '/' or be '*', and '*' only ends it"
                    ));
                }
            }
        }
        Ok(Self { omit_stages, omit_managed_fields, rules })
    }

    /// What the policy wants of a request.
    pub fn decide(&self, subject: &Subject<'_>) -> Decision {
        let Some(rule) = self.rules.iter().find(|rule| rule.meets(subject)) else {
            return Decision::default();
        };
        Decision {
            level: rule.level,
            omit_stages: self.omit_stages.iter().chain(&rule.omit_stages).copied().collect(),
            omit_managed_fields: rule.omit_managed_fields.unwrap_or(self.omit_managed_fields),
        }
    }
}

impl Rule {
    fn meets(&self, subject: &Subject<'_>) -> bool {
        let is_listed = |list: &[String], own: &str| list.is_empty() || list.iter().any(|one| one == own);
        let groups = &subject.identity.groups;
        let in_groups =
            self.user_groups.is_empty() || self.user_groups.iter().any(|group| groups.contains(group));
        if !is_listed(&self.users, &subject.identity.user)
            || !in_groups
            || !is_listed(&self.verbs, subject.verb)
        {
            return false;
        }
        if !self.non_resource_urls.is_empty() {
            return subject.resource.is_none()
                && self.non_resource_urls.iter().any(|url| match url.strip_suffix('*') {
                    Some(prefix) => subject.path.starts_with(prefix),
                    None => subject.path == url,
                });
        }
        if self.resources.is_empty() && self.namespaces.is_empty() {
            return true;
        }
        let Some(resource) = subject.resource else { return false };
        is_listed(&self.namespaces, subject.namespace)
            && (self.resources.is_empty()
                || self.resources.iter().any(|own| own.meets(resource, subject.name)))
    }
}

impl Resources {
    fn meets(&self, (group, plural, subresource): (&str, &str, &str), name: &str) -> bool {
        if self.group != group {
            return false;
        }
        if self.resources.is_empty() {
            return true;
        }
        let named = self.resource_names.is_empty() || self.resource_names.iter().any(|own| own == name);
        named
            && self.resources.iter().any(|own| match own.split_once('/') {
                None => own == "*" || subresource.is_empty() && own == plural,
                Some((of, sub)) => {
                    !subresource.is_empty()
                        && (of == "*" || of == plural)
                        && (sub == "*" || sub == subresource)
                }
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
omitManagedFields: true
rules:
- level: None
  users: ["system:kube-proxy"]
  verbs: [watch]
  resources: [{group: "", resources: [endpoints, services]}]
- level: None
  userGroups: ["system:authenticated"]
  nonResourceURLs: ["/api*", /version]
- level: Request
  resources: [{group: "", resources: [configmaps]}]
  namespaces: [kube-system]
  omitStages: [ResponseStarted]
  omitManagedFields: false
- level: Metadata
  resources: [{group: "", resources: [secrets, "pods/log", "*/status"]}, {group: apps, resources: ["*"]}]
- level: RequestResponse
  resources: [{group: "", resources: [pods, "pods/*"], resourceNames: [one]}]
"#;

    fn level(user: &str, verb: &str, resource: Option<(&str, &str, &str)>, at: (&str, &str)) -> Level {
        let policy = Policy::parse(TEXT).unwrap();
        let identity = Identity {
            user: user.to_owned(),
            groups: vec!["system:authenticated".to_owned()],
            ..Identity::default()
        };
        let (namespace, name) = at;
        let path = if resource.is_some() { "/api/v1/x" } else { name };
        policy.decide(&Subject { identity: &identity, verb, resource, namespace, name, path }).level
    }

    #[test]
    fn the_first_rule_that_is_met_decides() {
        let core = |plural| Some(("", plural, ""));
        for (user, verb, resource, at, expected) in [
            ("system:kube-proxy", "watch", core("services"), ("", ""), Level::None),
            ("system:kube-proxy", "get", core("secrets"), ("a", "s"), Level::Metadata),
            ("jane", "get", None, ("", "/api/v1"), Level::None),
            ("jane", "get", None, ("", "/metrics"), Level::None),
            ("jane", "get", core("configmaps"), ("kube-system", "c"), Level::Request),
            ("jane", "get", core("configmaps"), ("default", "c"), Level::None),
            ("jane", "get", Some(("", "pods", "log")), ("a", "p"), Level::Metadata),
            ("jane", "get", Some(("", "nodes", "status")), ("", "n"), Level::Metadata),
            ("jane", "get", Some(("apps", "deployments", "scale")), ("a", "d"), Level::Metadata),
            ("jane", "get", core("pods"), ("a", "one"), Level::RequestResponse),
            ("jane", "create", Some(("", "pods", "exec")), ("a", "one"), Level::RequestResponse),
            ("jane", "get", core("pods"), ("a", "two"), Level::None),
        ] {
            assert_eq!(level(user, verb, resource, at), expected, "{user} {verb} {resource:?} {at:?}");
        }
        let policy = Policy::parse(TEXT).unwrap();
        let identity = Identity::default();
        let subject = Subject {
            identity: &identity,
            verb: "get",
            resource: core("configmaps"),
            namespace: "kube-system",
            name: "",
            path: "",
        };
        let decision = policy.decide(&subject);
        assert!(!decision.omit_managed_fields, "the rule's own word counts");
        assert!(!decision.wants(Stage::RequestReceived) && !decision.wants(Stage::ResponseStarted));
        assert!(decision.wants(Stage::ResponseComplete));
    }

    #[test]
    fn what_is_no_policy_is_refused_with_the_reason() {
        for (text, words) in [
            ("apiVersion: v1\nkind: Policy\nrules: [{level: None}]", "not a Policy of"),
            ("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: []", "no rules"),
            ("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: All}]", "All"),
            ("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: None, verb: [get]}]", "verb"),
            (
                "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: None, namespaces: [a], nonResourceURLs: [/a]}]",
                "cannot apply to both",
            ),
            (
                "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: None, nonResourceURLs: [a]}]",
                "must begin",
            ),
        ] {
            let why = Policy::parse(text).unwrap_err();
            assert!(why.contains(words), "{text}: {why}");
        }
    }
}
