//! When each node was last heard of, by this replica.
//!
//! In memory only: heartbeats never reach the log. Written by node sessions; read by the node lifecycle
//! controller (which gives every node a fresh grace period when this replica begins to lead) and by whoever
//! asks for the cluster's status. Holds one small entry per node that ever had a session here since it was
//! last forgotten.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// What is known of a node's session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// When the node last said anything.
    pub at: Instant,
    /// Whether it has a session here now.
    pub connected: bool,
}

/// The beats of all nodes; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Heartbeats {
    beats: Arc<Mutex<BTreeMap<String, Beat>>>,
}

impl Heartbeats {
    /// The node said something.
    pub fn beat(&self, node: &str, at: Instant) {
        let mut beats = self.lock();
        match beats.get_mut(node) {
            Some(beat) => *beat = Beat { at, connected: true },
            None => {
                beats.insert(node.to_owned(), Beat { at, connected: true });
            }
        }
    }

    /// The node's session ended.
    pub fn disconnected(&self, node: &str) {
        if let Some(beat) = self.lock().get_mut(node) {
            beat.connected = false;
        }
    }

    /// The node's object is gone; nothing is remembered unless it has a session.
    pub fn forget(&self, node: &str) {
        let mut beats = self.lock();
        if beats.get(node).is_some_and(|beat| !beat.connected) {
            beats.remove(node);
        }
    }

    /// What is known of one node.
    pub fn get(&self, node: &str) -> Option<Beat> {
        self.lock().get(node).copied()
    }

    /// What is known of every node, by name.
    pub fn all(&self) -> Vec<(String, Beat)> {
        self.lock().iter().map(|(node, beat)| (node.clone(), *beat)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Beat>> {
        self.beats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
