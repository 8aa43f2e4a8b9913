//! A piece of history as the watchers of one range see it, read once and encoded once for all of them.

use std::sync::OnceLock;

use bytes::Bytes;
use state_machine::{Event, EventBatch, ReadError, StateMachine};

use super::hub::Range;

/// Changes that one step looks at while it holds the read lock.
const EVENTS_PER_STEP_MAX: usize = 512;
/// Keys and values in one chunk, unless a single revision has more.
const CHUNK_BYTES_MAX: usize = 1024 * 1024;
/// In how many ways events may be encoded: with or without the pair before, the puts, the deletions.
pub(crate) const VARIANTS: usize = 8;

/// Events as they go over the wire.
#[derive(Debug, Default)]
pub(crate) struct Encoded {
    /// All events, one after the other.
    pub(crate) bytes: Bytes,
    /// Where each ends.
    pub(crate) ends: Vec<usize>,
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Chunk {
    /// First revision looked at.
    pub(super) from: u64,
    /// Last revision looked at.
    pub(crate) through: u64,
    /// There was more history after `through`.
    pub(super) more: bool,
    /// Keys and values, about.
    pub(super) bytes: usize,
    /// What touched the range, by revision; may be nothing.
    pub(crate) batches: Vec<EventBatch>,
    encoded: [OnceLock<Encoded>; VARIANTS],
}

impl Chunk {
    /// Reads history from `from` on; `None` while that has not happened.
    pub(super) fn read(machine: &StateMachine, range: &Range, from: u64) -> Result<Option<Self>, ReadError> {
        if from > machine.revision() {
            return Ok(None);
        }
        let mut chunk = Self {
            from,
            through: from,
            more: false,
            bytes: 0,
            batches: Vec::new(),
            encoded: Default::default(),
        };
        for changes in machine.events_since(from, EVENTS_PER_STEP_MAX)? {
            chunk.through = changes.revision();
            let mut events = Vec::new();
            for (kv, prev) in changes.iter().filter(|(kv, _)| range.contains(kv.key)) {
                chunk.bytes += kv.key.len() + kv.value.len();
                events.push(Event { kv: kv.to_record(), prev_kv: prev.map(|prev| prev.to_record()) });
            }
            if !events.is_empty() {
                chunk.batches.push(EventBatch { revision: chunk.through, events });
            }
            if chunk.bytes >= CHUNK_BYTES_MAX {
                break;
            }
        }
        chunk.more = chunk.through < machine.revision();
        Ok(Some(chunk))
    }

    /// The events in one of the variants; encoded by whoever asks first.
    pub(crate) fn encoded(&self, variant: usize, encode: impl FnOnce(&[EventBatch]) -> Encoded) -> &Encoded {
        self.encoded[variant].get_or_init(|| encode(&self.batches))
    }
}
