//! Where objects lie in the store.
//!
//! `/registry/<group or "core">/<plural>/<namespace>/<name>`, without the namespace for kinds outside
//! namespaces. Names and namespaces hold no slash (validation sees to that), so keys split without doubt.

use api::Kind;
use bytes::Bytes;

fn push_kind(out: &mut String, kind: &Kind) {
    out.push_str("/registry/");
    // The versions of a kind lie in one place, even if their groups differ.
    let group = kind.stored_group();
    out.push_str(if group.is_empty() { "core" } else { group });
    out.push('/');
    out.push_str(kind.plural);
    out.push('/');
}

/// The key of one object. The namespace is left out for a kind outside namespaces.
pub fn object(kind: &Kind, namespace: &str, name: &str) -> Bytes {
    let mut out = String::with_capacity(64);
    push_kind(&mut out, kind);
    if kind.namespaced {
        out.push_str(namespace);
        out.push('/');
    }
    out.push_str(name);
    Bytes::from(out)
}

/// What every key of the kind (in the namespace, if one is given) begins with.
pub fn prefix(kind: &Kind, namespace: Option<&str>) -> Bytes {
    let mut out = String::with_capacity(64);
    push_kind(&mut out, kind);
    if let Some(namespace) = namespace.filter(|_| kind.namespaced) {
        out.push_str(namespace);
        out.push('/');
    }
    Bytes::from(out)
}

/// Namespace (empty outside namespaces) and name from a key.
pub fn split<'a>(kind: &Kind, key: &'a [u8]) -> (&'a str, &'a str) {
    let text = std::str::from_utf8(key).unwrap_or_default();
    let mut parts = text.rsplitn(3, '/');
    let name = parts.next().unwrap_or_default();
    match kind.namespaced {
        true => (parts.next().unwrap_or_default(), name),
        false => ("", name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_split_into_what_they_were_made_of() {
        let pod = api::kinds::by_kind("", "v1", "Pod").unwrap();
        let node = api::kinds::by_kind("", "v1", "Node").unwrap();
        let lease = api::kinds::by_kind("coordination.k8s.io", "v1", "Lease").unwrap();
        let key = object(pod, "default", "hello");
        assert_eq!(key, "/registry/core/pods/default/hello");
        assert_eq!(split(pod, &key), ("default", "hello"));
        assert_eq!(object(node, "", "n1"), "/registry/core/nodes/n1");
        assert_eq!(split(node, b"/registry/core/nodes/n1"), ("", "n1"));
        assert_eq!(object(lease, "a", "b"), "/registry/coordination.k8s.io/leases/a/b");
        assert!(object(lease, "a", "b").starts_with(&prefix(lease, Some("a"))));
        assert_eq!(prefix(node, Some("ignored")), "/registry/core/nodes/");
    }
}
