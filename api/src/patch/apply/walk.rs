//! Walks over values by their shapes: which fields a value has, what changed, merging, taking out.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::fields::{FieldSet, Node, member};
use super::shape::{Child, Shape};

/// The fields of a configuration: every value in it, and the items of lists besides what is in them.
pub(super) fn field_set(shape: Shape<'_>, value: &Value) -> FieldSet {
    let mut set = FieldSet::default();
    for child in shape.children(value) {
        let is_branch = child.shape.is_branch(child.value);
        let is_empty_list = child.shape.is_list() && !is_branch;
        let declared = child.step.strip_prefix("f:").is_some_and(|name| shape.is_declared(name));
        let is_member = !declared || (!is_branch && !is_empty_list);
        let below = match is_branch {
            true => field_set(child.shape, child.value),
            false => FieldSet::default(),
        };
        set.put(child.step, Node { is_member, below });
    }
    set
}

/// What differs between two values.
#[derive(Debug, Default)]
pub(super) struct Difference {
    pub(super) added: FieldSet,
    pub(super) modified: FieldSet,
    pub(super) removed: FieldSet,
}

impl Difference {
    pub(super) fn is_empty(&self) -> bool {
        self.added.is_empty() && self.modified.is_empty() && self.removed.is_empty()
    }

    fn put(&mut self, step: &str, added: Node, modified: Node, removed: Node) {
        self.added.put(step.to_owned(), added);
        self.modified.put(step.to_owned(), modified);
        self.removed.put(step.to_owned(), removed);
    }
}

/// Compares two values of a shape; null stands for none.
pub(super) fn compare(shape: Shape<'_>, old: &Value, new: &Value) -> Difference {
    let mut difference = Difference::default();
    let mut before: BTreeMap<String, Child<'_>> = BTreeMap::new();
    for child in shape.children(old) {
        before.entry(child.step.clone()).or_insert(child);
    }
    let mut seen = BTreeSet::new();
    for child in shape.children(new) {
        if seen.insert(child.step.clone()) {
            let old = before.remove(&child.step).map(|child| child.value);
            compare_child(&child, old, Some(child.value), &mut difference);
        }
    }
    for child in before.into_values() {
        compare_child(&child, Some(child.value), None, &mut difference);
    }
    difference
}

fn compare_child(child: &Child<'_>, old: Option<&Value>, new: Option<&Value>, out: &mut Difference) {
    if old == new {
        return;
    }
    let branch = |value: Option<&Value>| value.is_some_and(|value| child.shape.is_branch(value));
    let leaf = |is_member| Node { is_member, below: FieldSet::default() };
    if !branch(old) && !branch(new) {
        let (added, removed) = (old.is_none(), new.is_none());
        return out.put(&child.step, leaf(added), leaf(!added && !removed), leaf(removed));
    }
    let (old_below, new_below) = (old.filter(|_| branch(old)), new.filter(|_| branch(new)));
    let below = compare(child.shape, old_below.unwrap_or(&Value::Null), new_below.unwrap_or(&Value::Null));
    out.put(
        &child.step,
        Node { is_member: old.is_none() && !child.is_plain, below: below.added },
        Node { is_member: false, below: below.modified },
        Node { is_member: new.is_none(), below: below.removed },
    );
}

/// The live value with the configuration merged in.
pub(super) fn merge(shape: Shape<'_>, live: &Value, config: &Value) -> Value {
    match (live, config) {
        (Value::Object(live), Value::Object(config)) if shape.is_object() => {
            let mut merged = live.clone();
            for (name, value) in config.iter().filter(|(_, value)| !value.is_null()) {
                let (shape, _) = shape.member(name);
                let value = merged.get(name).map_or_else(|| value.clone(), |live| merge(shape, live, value));
                merged.insert(name.clone(), value);
            }
            Value::Object(merged)
        }
        (Value::Array(live), Value::Array(config)) if shape.is_list() => {
            Value::Array(merge_lists(shape, live, config))
        }
        _ => config.clone(),
    }
}

/// The items of the configuration in its order; others stay where they were, before what followed them.
fn merge_lists(shape: Shape<'_>, live: &[Value], config: &[Value]) -> Vec<Value> {
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for (place, item) in config.iter().enumerate() {
        places.entry(shape.item_step(item)).or_insert(place);
    }
    let mut wanted: Vec<Value> = config.to_vec();
    let live_places: Vec<Option<usize>> =
        live.iter().map(|item| places.get(&shape.item_step(item)).copied()).collect();
    // Of items that stand there twice, the first counts.
    for (item, place) in live.iter().zip(&live_places).rev() {
        if let Some(place) = *place {
            wanted[place] = merge(shape.item(), item, &config[place]);
        }
    }
    let mut wanted = wanted.into_iter();
    let mut next = 0;
    let mut merged = Vec::with_capacity(live.len() + config.len());
    for (item, place) in live.iter().zip(live_places) {
        match place {
            None => merged.push(item.clone()),
            Some(place) if place >= next => {
                merged.extend(wanted.by_ref().take(place + 1 - next));
                next = place + 1;
            }
            Some(_) => {}
        }
    }
    merged.extend(wanted);
    merged
}

/// Takes out of a value what was in `last` and nobody owns now. A member that the type declares goes when
/// nothing below it is owned; an item of a list, or a member of a map, when it is not owned itself.
pub(super) fn prune(shape: Shape<'_>, value: &mut Value, last: &FieldSet, owned: &FieldSet) {
    let empty = FieldSet::default();
    let goes = |step: &str, declared: bool| {
        let (last, owned) = (last.get(step), owned.get(step));
        match declared {
            true => last.is_some() && owned.is_none(),
            false => last.is_some_and(|last| last.is_member) && owned.is_none_or(|owned| !owned.is_member),
        }
    };
    let below = |step: &str| {
        let owned = owned.get(step).map_or(&empty, |owned| &owned.below);
        last.get(step).filter(|last| !last.below.is_empty()).map(|last| (&last.below, owned))
    };
    match value {
        Value::Object(members) if shape.is_object() => {
            members.retain(|name, _| !goes(&member(name), shape.is_declared(name)));
            for (name, value) in members.iter_mut() {
                if let Some((last, owned)) = below(&member(name)) {
                    prune(shape.member(name).0, value, last, owned);
                }
            }
        }
        Value::Array(items) if shape.is_list() => {
            items.retain(|item| !goes(&shape.item_step(item), false));
            for item in items.iter_mut() {
                if let Some((last, owned)) = below(&shape.item_step(item)) {
                    prune(shape.item(), item, last, owned);
                }
            }
        }
        _ => {}
    }
}

/// The keys that stand more than once in the lists of a configuration, which makes no sense there.
pub(super) fn duplicate(shape: Shape<'_>, value: &Value, at: &str) -> Option<String> {
    if !shape.is_branch(value) {
        return None;
    }
    let mut seen = BTreeSet::new();
    for child in shape.children(value) {
        let mut one = FieldSet::default();
        one.insert(child.step.clone());
        let place = one.places().pop().unwrap_or_default();
        if !seen.insert(child.step) {
            return Some(format!("{at}: duplicate entries for key {place}"));
        }
        if let Some(found) = duplicate(child.shape, child.value, &format!("{at}{place}")) {
            return Some(found);
        }
    }
    None
}

/// A copy without nulls.
pub(super) fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let kept = members.iter().filter(|(_, value)| !value.is_null());
            Value::Object(
                kept.map(|(name, value)| (name.clone(), without_nulls(value))).collect::<Map<_, _>>(),
            )
        }
        Value::Array(items) => Value::Array(items.iter().map(without_nulls).collect()),
        other => other.clone(),
    }
}
