//! What every request wants to know of the applied state, to be read without its lock.
//!
//! Written by whoever changes the state, while it holds the lock; so a request that was sent after a change
//! was acknowledged here sees it. Also here: short looks at the state under its lock.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use state_machine::{HashKv, StateMachine};

use crate::error::Error;
use crate::store::{Store, read_error};

/// See the module's head.
#[derive(Debug, Default)]
pub(crate) struct Gauges {
    auth_enabled: AtomicBool,
    corrupt: AtomicBool,
    bytes_in_use: AtomicU64,
    cluster_version: AtomicU32,
}

impl Gauges {
    /// Takes over what the state says. The caller holds its lock.
    pub(crate) fn set(&self, machine: &StateMachine) {
        self.auth_enabled.store(machine.auth().is_enabled(), Ordering::Release);
        self.corrupt.store(machine.is_corrupt(), Ordering::Release);
        self.bytes_in_use.store(machine.bytes_in_use(), Ordering::Release);
        self.cluster_version.store(machine.cluster_version(), Ordering::Release);
    }

    /// Whether requests need a user.
    pub(crate) fn is_auth_enabled(&self) -> bool {
        self.auth_enabled.load(Ordering::Acquire)
    }

    /// Whether reads and writes are refused because a member's state is damaged.
    pub(crate) fn is_corrupt(&self) -> bool {
        self.corrupt.load(Ordering::Acquire)
    }

    /// Bytes that the state takes of the quota.
    pub(crate) fn bytes_in_use(&self) -> u64 {
        self.bytes_in_use.load(Ordering::Acquire)
    }

    /// The version whose commands may be proposed.
    pub(crate) fn cluster_version(&self) -> u32 {
        self.cluster_version.load(Ordering::Acquire)
    }
}

impl Store {
    /// The hash of all versions of keys up to a revision (0: the newest), as applied here. Members at the same
    /// compact revision must agree.
    ///
    /// # Errors
    /// When that revision is compacted or in the future.
    pub fn hash_kv(&self, revision: u64) -> Result<HashKv, Error> {
        self.shared().read().machine.hash_kv(revision).map_err(read_error)
    }

    pub(crate) fn gauges(&self) -> &Gauges {
        &self.shared().gauges
    }

    /// Looks at the applied state under its lock: briefly.
    pub(crate) fn read_state<T>(&self, look: impl FnOnce(&StateMachine) -> T) -> T {
        look(&self.shared().read().machine)
    }
}
