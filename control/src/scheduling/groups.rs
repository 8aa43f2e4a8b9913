//! How many members pod groups need, as `PodGroup` objects say, if somebody has registered that kind.
//!
//! The kind is the coscheduling plug-in's (`scheduling.x-k8s.io`); its definition may come and go.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::custom_copies::Copies;
use crate::object_store::SharedStore;
use crate::reflector::{Delta, Feed, Reflector};

const GROUP: &str = "scheduling.x-k8s.io";
const KIND: &str = "PodGroup";

/// A group by namespace and name, and how many members it needs; `None`: it has no object.
pub(super) type Change = (String, String, Option<usize>);

/// The objects, while there is such a kind.
pub(super) struct Groups {
    copies: Copies,
    followed: Option<(Reflector<SharedStore>, Feed<SharedStore>)>,
    known: BTreeSet<(String, String)>,
}

impl Groups {
    pub(super) fn new(copies: Copies) -> Self {
        let mut groups = Self { copies, followed: None, known: BTreeSet::new() };
        groups.copies.mark_changed();
        groups
    }

    /// The next changes. Cancelling the wait loses nothing.
    pub(super) async fn next(&mut self) -> Vec<Change> {
        loop {
            let delta = async {
                match &mut self.followed {
                    Some((_, feed)) => feed.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.copies.changed() => match changed {
                    Ok(()) => {
                        let void = self.follow();
                        if !void.is_empty() {
                            return void;
                        }
                    }
                    Err(_) => std::future::pending().await,
                },
                delta = delta => return vec![self.take(&delta)],
            }
        }
    }

    /// Follows the kind as it is now; gives what no longer counts.
    fn follow(&mut self) -> Vec<Change> {
        let copies = self.copies.borrow_and_update();
        let is_it = |copy: &&Reflector<SharedStore>| copy.kind().group == GROUP && copy.kind().kind == KIND;
        let found = copies.iter().flatten().find(is_it).cloned();
        drop(copies);
        let is_same = match (&self.followed, &found) {
            (Some((before, _)), Some(now)) => before.is_same(now),
            (None, None) => true,
            _ => false,
        };
        if is_same {
            return Vec::new();
        }
        self.followed = found.map(|reflector| (reflector.clone(), Feed::new(reflector)));
        std::mem::take(&mut self.known).into_iter().map(|(namespace, name)| (namespace, name, None)).collect()
    }

    fn take(&mut self, delta: &Delta) -> Change {
        let object = delta.object();
        let key = (object.namespace().to_owned(), object.name().to_owned());
        let minimum = match delta {
            Delta::Applied(object) => minimum(object.value()),
            Delta::Deleted(_) => None,
        };
        match minimum {
            Some(_) => self.known.insert(key.clone()),
            None => self.known.remove(&key),
        };
        (key.0, key.1, minimum)
    }
}

fn minimum(object: &Value) -> Option<usize> {
    object["spec"]["minMember"].as_u64().and_then(|number| usize::try_from(number).ok())
}
