//! The state hash: a sum (modulo 2^64) of the hashes of all live records and leases, closed with the small
//! state. Order-independent, so it is kept up in O(1) per change; two members with the same state have the
//! same hash, however they came to it.
//!
//! The element hash is XXH3-64, seeded through, so that key, value and versions all reach every bit. It
//! finds accidents (a flipped bit, a lost or doubled record, a diverged member); it does not resist somebody
//! who chooses records to collide.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::record::RecordRef;

/// Hash of one version of one key.
pub(crate) fn record(kv: &RecordRef<'_>) -> u64 {
    let mut fields = [0u8; 56];
    let words = [
        kv.create_revision,
        kv.mod_revision,
        u64::from(kv.sub),
        kv.version,
        kv.lease.cast_unsigned(),
        kv.key.len() as u64,
        kv.value.len() as u64,
    ];
    for (slot, word) in fields.chunks_exact_mut(8).zip(words) {
        slot.copy_from_slice(&word.to_le_bytes());
    }
    let key = xxh3_64(kv.key);
    let content = xxh3_64_with_seed(kv.value, key);
    xxh3_64_with_seed(&fields, content)
}

/// Hash of a short list of numbers, told apart from others by `domain`.
pub(crate) fn words(domain: u64, words: &[u64]) -> u64 {
    words.iter().fold(domain, |seed, word| xxh3_64_with_seed(&word.to_le_bytes(), seed))
}

/// Hash of a byte string, told apart from others by `domain`.
pub(crate) fn bytes(domain: u64, bytes: &[u8]) -> u64 {
    xxh3_64_with_seed(bytes, domain)
}
