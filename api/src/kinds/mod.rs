//! The table of served kinds.
//!
//! Owns what is the same for every object of a kind: group, version, names, scope, verbs, categories and
//! subresources. Promises that a kind stands here only if the API behaves as Kubernetes does for it. Does
//! not hold per-kind rules: those are keyed by [`Kind::kind`] in the modules beside this one. Kinds that users
//! register are rows of the same form ([`Kind::is_custom`]); they are made and looked up in [`crate::crd`].

mod table;

use std::cmp::Reverse;

use table::KINDS;
pub(crate) use table::{PLAIN, SCALE, STATUS_VERBS};

/// The group of CustomResourceDefinitions.
pub const EXTENSIONS_GROUP: &str = "apiextensions.k8s.io";
/// The group of what nodes and pods use; its kinds are no part of Kubernetes' own API.
pub const METRICS_GROUP: &str = "metrics.k8s.io";
/// The group of priority and fairness.
pub const FLOW_CONTROL_GROUP: &str = "flowcontrol.apiserver.k8s.io";
/// The group of roles and what binds them.
pub const RBAC_GROUP: &str = "rbac.authorization.k8s.io";

/// A subresource of a kind, such as `pods/status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subresource {
    /// The path segment after the object's name.
    pub name: &'static str,
    /// Group of the kind that the subresource takes and gives, when it differs from its parent's.
    pub group: &'static str,
    /// Version of that kind, when it differs from its parent's.
    pub version: &'static str,
    /// The kind that the subresource takes and gives.
    pub kind: &'static str,
    /// Verbs served.
    pub verbs: &'static [&'static str],
}

/// A served kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// Version within the group.
    pub version: &'static str,
    /// CamelCase kind, as objects carry it.
    pub kind: &'static str,
    /// The resource: lower-case plural, as paths carry it.
    pub plural: &'static str,
    /// Lower-case singular.
    pub singular: &'static str,
    /// Abbreviations that `kubectl` accepts.
    pub short_names: &'static [&'static str],
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Groups of kinds that the kind belongs to, such as `all`.
    pub categories: &'static [&'static str],
    /// Verbs served on the kind itself.
    pub verbs: &'static [&'static str],
    /// Subresources served.
    pub subresources: &'static [Subresource],
    /// Whether `status` is a subresource, so that a plain update leaves the status alone.
    pub has_status: bool,
    /// Whether `metadata.generation` counts the changes of the spec.
    pub has_generation: bool,
    /// Whether objects are taken in over the API but never stored (a review, a binding).
    pub virtual_only: bool,
    /// The kind of a list of these; empty: the kind followed by `List`.
    pub list: &'static str,
    /// Group and version as which objects are stored, if that is another row: the kind is a second version of it,
    /// and [`crate::versions`] converts.
    pub stored_as: Option<(&'static str, &'static str)>,
    /// Whether a CustomResourceDefinition registered the kind. Its rules are in a [`crate::crd::CustomKind`].
    pub is_custom: bool,
}

impl Subresource {
    /// Whether it is a connection rather than a document.
    pub fn is_connection(&self) -> bool {
        self.kind.ends_with("Options")
    }
}

/// Every served kind, in discovery order: core group first, then groups by name; kinds by plural.
pub fn kinds() -> &'static [Kind] {
    KINDS
}

/// The kind that a path names.
pub fn by_resource(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|k| k.plural == plural && k.version == version && k.group == group)
}

/// The kind that an object names.
pub fn by_kind(group: &str, version: &str, kind: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|k| k.kind == kind && k.version == version && k.group == group)
}

/// Splits an `apiVersion` into group and version (`v1` is the core group's).
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

impl Kind {
    /// The `apiVersion` that objects carry: `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// The resource qualified by its group, as error texts name it: `pods`, `deployments.apps`.
    pub fn group_resource(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// The kind qualified by its group, as `is invalid` texts name it: `Pod`, `Deployment.apps`.
    pub fn group_kind(&self) -> String {
        if self.group.is_empty() { self.kind.to_owned() } else { format!("{}.{}", self.kind, self.group) }
    }

    /// The kind of a list of these: `PodList`.
    pub fn list_kind(&self) -> String {
        if self.list.is_empty() { format!("{}List", self.kind) } else { self.list.to_owned() }
    }

    /// The group under which objects are stored.
    pub fn stored_group(&self) -> &'static str {
        self.stored_as.map_or(self.group, |(group, _)| group)
    }

    /// The kind as which objects are stored: mostly the kind itself.
    pub fn stored_kind(&self) -> &Kind {
        let stored = self.stored_as.and_then(|(group, version)| by_kind(group, version, self.kind));
        stored.unwrap_or(self)
    }

    /// The subresource of that name, if served.
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// Whether the verb is served on the kind itself.
    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }
}

/// The order in which versions of a group are preferred: `v2`, `v1`, `v1beta2`, `v1beta1`, `v1alpha1`, others.
pub(crate) fn version_preference(version: &str) -> (Reverse<u8>, Reverse<u64>, Reverse<u64>, String) {
    let other = (Reverse(0), Reverse(0), Reverse(0), version.to_owned());
    let Some(rest) = version.strip_prefix('v') else { return other };
    let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let Ok(major) = rest[..digits].parse() else { return other };
    let (stability, minor) = match &rest[digits..] {
        "" => (3, "0"),
        rest => match (rest.strip_prefix("beta"), rest.strip_prefix("alpha")) {
            (Some(minor), _) => (2, minor),
            (_, Some(minor)) => (1, minor),
            _ => return other,
        },
    };
    match minor.parse() {
        Ok(minor) => (Reverse(stability), Reverse(major), Reverse(minor), String::new()),
        Err(_) => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_qualified_by_group() {
        let pod = by_kind("", "v1", "Pod").unwrap();
        assert_eq!((pod.api_version().as_str(), pod.group_resource().as_str()), ("v1", "pods"));
        let lease = by_resource("coordination.k8s.io", "v1", "leases").unwrap();
        assert_eq!(lease.api_version(), "coordination.k8s.io/v1");
        assert_eq!(lease.group_resource(), "leases.coordination.k8s.io");
        assert_eq!(lease.group_kind(), "Lease.coordination.k8s.io");
        assert_eq!(split_api_version("apps/v1"), ("apps", "v1"));
        assert_eq!(split_api_version("v1"), ("", "v1"));
        assert!(by_resource("", "v1", "gadgets").is_none());
    }

    #[test]
    fn the_table_is_in_discovery_order_and_without_twins() {
        let keys: Vec<_> =
            kinds().iter().map(|k| (k.group, k.plural, version_preference(k.version))).collect();
        assert!(keys.is_sorted_by(|a, b| a < b), "not in order: {keys:#?}");
        for kind in kinds() {
            assert_eq!(kind.has_status, kind.subresource("status").is_some(), "{}", kind.kind);
        }
    }
}
