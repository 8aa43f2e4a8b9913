//! Store leases as replicated facts: which exist, their time to live, what they had left at the last
//! checkpoint, and which keys hang on them. Nothing here knows the time; the lessor on the leader does.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::hash;
use crate::outcome::ApplyError;
use crate::record::RECORD_OVERHEAD_BYTES;

/// The longest time to live, as in etcd.
pub const LEASE_TTL_SECONDS_MAX: i64 = 9_000_000_000;

/// The id that stands for "no lease".
pub const LEASE_NONE: i64 = 0;

/// A store lease without its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseState {
    /// The lease's id.
    pub id: i64,
    /// Its time to live.
    pub ttl_seconds: i64,
    /// What was left of it at the last checkpoint; 0: no checkpoint, the full time.
    pub remaining_ttl_seconds: i64,
}

impl LeaseState {
    fn hash(&self) -> u64 {
        let words = [self.id, self.ttl_seconds, self.remaining_ttl_seconds].map(i64::cast_unsigned);
        hash::words(LEASE_HASH_DOMAIN, &words)
    }
}

const LEASE_HASH_DOMAIN: u64 = 0x6c65_6173_6500_0001;

#[derive(Debug)]
struct Lease {
    state: LeaseState,
    keys: BTreeSet<Bytes>,
}

fn charge(key: &[u8]) -> u64 {
    key.len() as u64 + RECORD_OVERHEAD_BYTES
}

/// All store leases.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    by_id: BTreeMap<i64, Lease>,
    hash: u64,
    /// Keys on all leases, with the flat charge for each.
    key_bytes: u64,
}

impl Leases {
    pub(crate) fn grant(&mut self, id: i64, ttl_seconds: i64) -> Result<(), ApplyError> {
        if id == LEASE_NONE {
            return Err(ApplyError::LeaseNotFound { id });
        }
        if !(1..=LEASE_TTL_SECONDS_MAX).contains(&ttl_seconds) {
            return Err(ApplyError::LeaseTtl { ttl_seconds, ttl_seconds_max: LEASE_TTL_SECONDS_MAX });
        }
        if self.by_id.contains_key(&id) {
            return Err(ApplyError::LeaseExists { id });
        }
        self.insert(LeaseState { id, ttl_seconds, remaining_ttl_seconds: 0 });
        Ok(())
    }

    /// Puts a lease in as it was written down; it replaces one of the same id.
    pub(crate) fn insert(&mut self, state: LeaseState) {
        self.hash = self.hash.wrapping_add(state.hash());
        let lease = Lease { state, keys: BTreeSet::new() };
        if let Some(replaced) = self.by_id.insert(state.id, lease) {
            self.key_bytes -= replaced.keys.iter().map(|key| charge(key)).sum::<u64>();
            self.hash = self.hash.wrapping_sub(replaced.state.hash());
        }
    }

    /// Removes a lease and returns its keys in order.
    pub(crate) fn revoke(&mut self, id: i64) -> Result<BTreeSet<Bytes>, ApplyError> {
        let lease = self.by_id.remove(&id).ok_or(ApplyError::LeaseNotFound { id })?;
        self.hash = self.hash.wrapping_sub(lease.state.hash());
        self.key_bytes -= lease.keys.iter().map(|key| charge(key)).sum::<u64>();
        Ok(lease.keys)
    }

    /// Notes what a lease has left; passes over one that is gone.
    pub(crate) fn checkpoint(&mut self, id: i64, remaining_ttl_seconds: i64) {
        let Some(lease) = self.by_id.get_mut(&id) else { return };
        self.hash = self.hash.wrapping_sub(lease.state.hash());
        lease.state.remaining_ttl_seconds = remaining_ttl_seconds.clamp(0, lease.state.ttl_seconds);
        self.hash = self.hash.wrapping_add(lease.state.hash());
    }

    pub(crate) fn contains(&self, id: i64) -> bool {
        self.by_id.contains_key(&id)
    }

    /// Hangs a key on a lease; returns whether the lease exists.
    pub(crate) fn attach(&mut self, id: i64, key: Bytes) -> bool {
        let Some(lease) = self.by_id.get_mut(&id) else { return false };
        let bytes = charge(&key);
        if lease.keys.insert(key) {
            self.key_bytes += bytes;
        }
        true
    }

    pub(crate) fn detach(&mut self, id: i64, key: &[u8]) {
        if let Some(lease) = self.by_id.get_mut(&id)
            && lease.keys.remove(key)
        {
            self.key_bytes -= charge(key);
        }
    }

    /// Bytes that the store's accounting charges for leases and the keys on them.
    pub(crate) fn bytes(&self) -> u64 {
        self.by_id.len() as u64 * RECORD_OVERHEAD_BYTES + self.key_bytes
    }

    pub(crate) fn get(&self, id: i64) -> Option<(LeaseState, &BTreeSet<Bytes>)> {
        self.by_id.get(&id).map(|lease| (lease.state, &lease.keys))
    }

    pub(crate) fn states(&self) -> impl Iterator<Item = LeaseState> {
        self.by_id.values().map(|lease| lease.state)
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }
}
