//! Mirror pods: the objects by which the API shows this node's static pods. Pure bookkeeping.
//!
//! Owns what is known of them and what was asked about them. A static pod without its mirror gets one; a mirror
//! that is being deleted, shows another content or shows nothing that runs is removed. Who deletes a mirror
//! therefore sees it come back.

use std::collections::BTreeMap;

use api::object::MIRROR_ANNOTATION;
use bytes::Bytes;
use k8s_openapi::api::core::v1::Pod;
use proto::node::MirrorPod;

use super::admission::annotation;

type Name = (String, String);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Mirrors {
    known: BTreeMap<Name, Known>,
    asked: BTreeMap<Name, Wish>,
    /// The leader has told every pod of the node: what is not known is not there.
    told: bool,
}

#[derive(Debug, PartialEq)]
struct Known {
    uid: String,
    hash: String,
    is_leaving: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum Wish {
    Create { hash: String },
    Delete { uid: String },
}

fn name_of(pod: &Pod) -> Name {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    (namespace.to_owned(), pod.metadata.name.clone().unwrap_or_default())
}

impl Mirrors {
    /// Every mirror of the node.
    pub(super) fn all<'a>(&mut self, mirrors: impl Iterator<Item = &'a Pod>) {
        self.known.clear();
        self.told = true;
        mirrors.for_each(|mirror| self.changed(mirror));
        self.asked.clear();
    }

    /// One is new or changed.
    pub(super) fn changed(&mut self, mirror: &Pod) {
        let name = name_of(mirror);
        self.asked.remove(&name);
        let known = Known {
            uid: mirror.metadata.uid.clone().unwrap_or_default(),
            hash: annotation(mirror, MIRROR_ANNOTATION).unwrap_or_default().to_owned(),
            is_leaving: mirror.metadata.deletion_timestamp.is_some(),
        };
        self.known.insert(name, known);
    }

    /// An object is gone. Returns whether it was a mirror.
    pub(super) fn removed(&mut self, uid: &str) -> bool {
        let Some(name) = self.known.iter().find(|(_, known)| known.uid == uid).map(|(name, _)| name.clone())
        else {
            return false;
        };
        self.asked.remove(&name);
        self.known.remove(&name);
        true
    }

    /// What was asked and has not come about is asked again.
    pub(super) fn ask_again(&mut self) {
        self.asked.clear();
    }

    /// Uids of mirrors, and of the static pods that they show.
    pub(super) fn aliases<'a>(&self, statics: impl Iterator<Item = &'a Pod>) -> BTreeMap<String, String> {
        let shown = statics.filter_map(|pod| {
            let uid = pod.metadata.uid.clone()?;
            let known = self.known.get(&name_of(pod)).filter(|known| known.hash == uid)?;
            Some((known.uid.clone(), uid))
        });
        shown.collect()
    }

    /// What to ask for now, so that every static pod that runs has its mirror and nothing else has.
    pub(super) fn wishes<'a>(&mut self, statics: impl Iterator<Item = &'a Pod>) -> Vec<MirrorPod> {
        if !self.told {
            return Vec::new();
        }
        let statics: BTreeMap<Name, &Pod> = statics.map(|pod| (name_of(pod), pod)).collect();
        let mut wishes = Vec::new();
        for (name, known) in &self.known {
            let shows = statics.get(name).is_some_and(|pod| pod.metadata.uid.as_deref() == Some(&known.hash));
            if !shows || known.is_leaving {
                wishes.push((name.clone(), Wish::Delete { uid: known.uid.clone() }));
            }
        }
        // One that ends keeps its mirror until it has ended, and gets no other.
        let goes_on = |pod: &Pod| pod.metadata.deletion_timestamp.is_none();
        let unshown = statics.iter().filter(|(name, pod)| !self.known.contains_key(*name) && goes_on(pod));
        for (name, pod) in unshown {
            let hash = pod.metadata.uid.clone().unwrap_or_default();
            wishes.push((name.clone(), Wish::Create { hash }));
        }
        wishes.retain(|(name, wish)| self.asked.get(name) != Some(wish));
        self.asked.extend(wishes.iter().cloned());
        let message = |(name, wish): (Name, Wish)| {
            let pod = statics.get(&name).copied();
            let (pod_json, uid) = match wish {
                Wish::Create { hash } => (pod.map(|pod| mirror_json(pod, &hash)).unwrap_or_default(), hash),
                Wish::Delete { uid } => (Bytes::new(), uid),
            };
            MirrorPod { sequence: 0, namespace: name.0, name: name.1, pod_json, uid }
        };
        wishes.into_iter().map(message).collect()
    }
}

/// The static pod as an object to be created.
fn mirror_json(pod: &Pod, hash: &str) -> Bytes {
    let mut mirror = pod.clone();
    mirror.metadata.uid = None;
    mirror.status = None;
    let annotations = mirror.metadata.annotations.get_or_insert_default();
    annotations.insert(MIRROR_ANNOTATION.to_owned(), hash.to_owned());
    serde_json::to_vec(&mirror).expect("API objects have string keys only").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, uid: &str, mirrored: Option<&str>) -> Pod {
        let mut pod = serde_json::json!({"metadata": {"name": name, "namespace": "d", "uid": uid}});
        if let Some(hash) = mirrored {
            pod["metadata"]["annotations"][MIRROR_ANNOTATION] = hash.into();
        }
        serde_json::from_value(pod).unwrap()
    }

    fn asked(mirrors: &mut Mirrors, statics: &[Pod]) -> Vec<String> {
        let wishes = mirrors.wishes(statics.iter());
        let text =
            |w: MirrorPod| format!("{} {} {}", w.name, w.uid, if w.pod_json.is_empty() { "-" } else { "+" });
        wishes.into_iter().map(text).collect()
    }

    #[test]
    fn every_static_pod_has_its_mirror_and_nothing_else_has() {
        let mut mirrors = Mirrors::default();
        let statics = [pod("a-n", "h1", None)];
        assert!(asked(&mut mirrors, &statics).is_empty(), "nothing is known yet");
        mirrors.all([pod("old-n", "m0", Some("h0"))].iter());
        assert_eq!(asked(&mut mirrors, &statics), ["old-n m0 -", "a-n h1 +"]);
        assert!(asked(&mut mirrors, &statics).is_empty(), "it is asked once");
        mirrors.ask_again();
        assert_eq!(asked(&mut mirrors, &statics).len(), 2);
        assert!(mirrors.removed("m0"));
        mirrors.changed(&pod("a-n", "m1", Some("h1")));
        assert!(asked(&mut mirrors, &statics).is_empty());
        assert_eq!(mirrors.aliases(statics.iter()), [("m1".to_owned(), "h1".to_owned())].into());
        let changed = [pod("a-n", "h2", None)];
        assert_eq!(asked(&mut mirrors, &changed), ["a-n m1 -"], "it shows something else");
        assert!(mirrors.aliases(changed.iter()).is_empty());
        assert!(mirrors.removed("m1") && !mirrors.removed("m1"));
        assert_eq!(asked(&mut mirrors, &changed), ["a-n h2 +"]);
    }

    #[test]
    fn a_pod_that_ends_keeps_its_mirror_and_gets_no_other() {
        let mut mirrors = Mirrors::default();
        let mut ending = pod("a-n", "h1", None);
        ending.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
        mirrors.all([pod("a-n", "m1", Some("h1"))].iter());
        assert!(asked(&mut mirrors, std::slice::from_ref(&ending)).is_empty());
        mirrors.removed("m1");
        assert!(asked(&mut mirrors, std::slice::from_ref(&ending)).is_empty());
        mirrors.changed(&pod("a-n", "m2", Some("h1")));
        assert_eq!(asked(&mut mirrors, &[]), ["a-n m2 -"]);
    }

    #[test]
    fn a_mirror_that_is_deleted_goes_and_comes_back() {
        let mut mirrors = Mirrors::default();
        let statics = [pod("a-n", "h1", None)];
        let mut mirror = pod("a-n", "m1", Some("h1"));
        mirrors.all([mirror.clone()].iter());
        assert!(asked(&mut mirrors, &statics).is_empty());
        mirror.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
        mirrors.changed(&mirror);
        assert_eq!(asked(&mut mirrors, &statics), ["a-n m1 -"]);
        mirrors.removed("m1");
        assert_eq!(asked(&mut mirrors, &statics), ["a-n h1 +"]);
    }
}
