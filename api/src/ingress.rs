//! Which Ingresses are served by the cluster's own nodes, and what they refer to.
//!
//! An Ingress names its class, an IngressClass says which controller answers for it; ours is [`CONTROLLER`]. The control
//! plane tells nodes by these rules, and nodes lead requests by the same ones.

use std::collections::BTreeSet;

use k8s_openapi::api::networking::v1::{Ingress, IngressClass};

use crate::references::{Reference, ReferenceKind};

/// The controller that IngressClasses of ours name.
pub const CONTROLLER: &str = "barque.io/ingress";
/// The IngressClass that every cluster begins with.
pub const CLASS: &str = "barque";
/// What an IngressClass carries that counts where an Ingress names none.
pub const DEFAULT_ANNOTATION: &str = "ingressclass.kubernetes.io/is-default-class";
/// The label of nodes that take requests from outside. No node can give it to itself.
pub const NODE_LABEL: &str = "node-restriction.kubernetes.io/ingress";
/// With `"false"` an Ingress with certificates answers plain requests too, instead of sending callers to `https`.
pub const REDIRECT_ANNOTATION: &str = "barque.io/ssl-redirect";
/// How an Ingress named its class before it had a field for it.
pub const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

/// The names of the classes that we answer for.
pub fn own_classes<'a>(classes: impl IntoIterator<Item = &'a IngressClass>) -> BTreeSet<String> {
    let is_own = |class: &&IngressClass| {
        class.spec.as_ref().and_then(|spec| spec.controller.as_deref()) == Some(CONTROLLER)
    };
    classes.into_iter().filter(is_own).filter_map(|class| class.metadata.name.clone()).collect()
}

/// Whether an Ingress is of one of these classes.
pub fn is_served(ingress: &Ingress, own: &BTreeSet<String>) -> bool {
    let field = ingress.spec.as_ref().and_then(|spec| spec.ingress_class_name.as_ref());
    let annotations = ingress.metadata.annotations.as_ref();
    let class = field.or_else(|| annotations.and_then(|all| all.get(CLASS_ANNOTATION)));
    class.is_some_and(|class| own.contains(class))
}

/// The Secrets that hold its certificates.
pub fn secrets(ingress: &Ingress) -> impl Iterator<Item = Reference> {
    let namespace = ingress.metadata.namespace.as_deref().unwrap_or_default();
    let tls = ingress.spec.iter().flat_map(|spec| spec.tls.iter().flatten());
    let names = tls.filter_map(|tls| tls.secret_name.as_deref()).filter(|name| !name.is_empty());
    names.map(move |name| Reference::new(ReferenceKind::Secret, namespace, name))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_class_decides_who_serves() {
        let class = |name: &str, controller: &str| -> IngressClass {
            serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"controller": controller}}))
                .unwrap()
        };
        let own = own_classes(&[class("barque", CONTROLLER), class("nginx", "k8s.io/ingress-nginx")]);
        assert_eq!(own, BTreeSet::from(["barque".to_owned()]));
        for (ingress, served) in [
            (json!({"metadata": {}, "spec": {"ingressClassName": "barque"}}), true),
            (json!({"metadata": {}, "spec": {"ingressClassName": "nginx"}}), false),
            (json!({"metadata": {"annotations": {CLASS_ANNOTATION: "barque"}}, "spec": {}}), true),
            (json!({"metadata": {}, "spec": {}}), false),
        ] {
            let ingress: Ingress = serde_json::from_value(ingress).unwrap();
            assert_eq!(is_served(&ingress, &own), served, "{ingress:?}");
        }
    }

    #[test]
    fn certificates_are_of_its_namespace() {
        let ingress: Ingress = serde_json::from_value(json!({
            "metadata": {"namespace": "shop"},
            "spec": {"tls": [{"hosts": ["a.example"], "secretName": "a"}, {"hosts": ["b.example"]}]},
        }))
        .unwrap();
        let all: Vec<Reference> = secrets(&ingress).collect();
        assert_eq!(all, [Reference::new(ReferenceKind::Secret, "shop", "a")]);
    }
}
