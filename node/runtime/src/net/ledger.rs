//! Who put what into which set of a table. Several owners may claim the same element: it is the first one's, by name,
//! until that one is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::nft::{Element, Value};

type Place<S> = (S, Vec<u8>);

/// Elements of one owner.
pub(super) type Entries<S> = BTreeMap<Place<S>, Value>;

/// Elements by set.
pub(super) type Elements<S> = Vec<(S, Vec<Element>)>;

/// See the module. `S` names the sets.
#[derive(Debug)]
pub(super) struct Ledger<S> {
    claims: BTreeMap<Place<S>, BTreeMap<Arc<str>, Value>>,
    /// What stood at the places that were touched since the beginning.
    touched: BTreeMap<Place<S>, Option<Value>>,
}

impl<S> Default for Ledger<S> {
    fn default() -> Self {
        Self { claims: BTreeMap::new(), touched: BTreeMap::new() }
    }
}

impl<S: Copy + Ord> Ledger<S> {
    /// Changes are counted from here.
    pub(super) fn begin(&mut self) {
        self.touched.clear();
    }

    /// An owner's elements are others.
    pub(super) fn replace(&mut self, owner: &str, before: Entries<S>, after: Entries<S>) {
        let owner: Arc<str> = owner.into();
        for place in before.keys().filter(|place| !after.contains_key(*place)) {
            self.touch(place);
            if let Some(claims) = self.claims.get_mut(place) {
                claims.remove(&owner);
                if claims.is_empty() {
                    self.claims.remove(place);
                }
            }
        }
        for (place, value) in after {
            if before.get(&place) != Some(&value) {
                self.touch(&place);
                self.claims.entry(place).or_default().insert(owner.clone(), value);
            }
        }
    }

    /// What to delete and what to add since the beginning. An element that changed is in both.
    pub(super) fn end(&mut self) -> (Elements<S>, Elements<S>) {
        let (mut gone, mut new) = (BTreeMap::<S, Vec<Element>>::new(), BTreeMap::<S, Vec<Element>>::new());
        for (place, before) in std::mem::take(&mut self.touched) {
            let after = self.at(&place);
            if before.as_ref() == after {
                continue;
            }
            let (set, key) = place.clone();
            if let Some(value) = after.cloned() {
                new.entry(set).or_default().push(Element { key: key.clone(), value });
            }
            if let Some(before) = before {
                // Ranges go by both of their ends, other elements by their key.
                let value = if matches!(before, Value::Range { .. }) { before } else { Value::Nothing };
                gone.entry(set).or_default().push(Element { key, value });
            }
        }
        (gone.into_iter().collect(), new.into_iter().collect())
    }

    /// All elements of a set.
    pub(super) fn elements(&self, set: S) -> Vec<Element> {
        let of_set = self.claims.range((set, Vec::new())..).take_while(|((of, _), _)| *of == set);
        of_set
            .filter_map(|((_, key), claims)| {
                Some(Element { key: key.clone(), value: claims.values().next()?.clone() })
            })
            .collect()
    }

    /// Whether these are the keys of a set.
    pub(super) fn has_exactly(&self, set: S, keys: &BTreeSet<Vec<u8>>) -> bool {
        self.elements(set).iter().flat_map(Element::keys).eq(keys)
    }

    fn at(&self, place: &Place<S>) -> Option<&Value> {
        self.claims.get(place)?.values().next()
    }

    fn touch(&mut self, place: &Place<S>) {
        if !self.touched.contains_key(place) {
            let before = self.at(place).cloned();
            self.touched.insert(place.clone(), before);
        }
    }
}
