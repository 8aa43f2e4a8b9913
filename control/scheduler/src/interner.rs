//! Keeps one copy of equal pod classes and label sets, so that equal means the same address.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use crate::labels::LabelSet;
use crate::pod_class::PodClass;
use crate::pod_info::PodInfo;

/// Copies that nobody else holds are dropped when the table has grown to twice what was in use.
const SWEEP_AT_LEAST: usize = 1024;

#[derive(Debug)]
struct Table<T> {
    known: HashSet<Arc<T>>,
    sweep_at: usize,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { known: HashSet::new(), sweep_at: SWEEP_AT_LEAST }
    }
}

impl<T: Eq + Hash> Table<T> {
    fn intern(&mut self, value: Arc<T>) -> Arc<T> {
        if let Some(known) = self.known.get(&value) {
            return known.clone();
        }
        if self.known.len() >= self.sweep_at {
            self.known.retain(|value| Arc::strong_count(value) > 1);
            self.sweep_at = (self.known.len() * 2).max(SWEEP_AT_LEAST);
        }
        self.known.insert(value.clone());
        value
    }
}

/// The one copy of each class and label set.
#[derive(Debug, Default)]
pub(crate) struct Interner {
    classes: Table<PodClass>,
    labels: Table<LabelSet>,
}

impl Interner {
    /// The pod, sharing what it has in common with others.
    pub(crate) fn intern(&mut self, mut pod: PodInfo) -> PodInfo {
        pod.class = self.classes.intern(pod.class);
        pod.labels = self.labels.intern(pod.labels);
        pod
    }

    /// The same for a pod that others hold already.
    pub(crate) fn intern_shared(&mut self, pod: Arc<PodInfo>) -> Arc<PodInfo> {
        let class = self.classes.intern(pod.class.clone());
        let labels = self.labels.intern(pod.labels.clone());
        if Arc::ptr_eq(&class, &pod.class) && Arc::ptr_eq(&labels, &pod.labels) {
            return pod;
        }
        Arc::new(PodInfo { class, labels, ..PodInfo::clone(&pod) })
    }
}
