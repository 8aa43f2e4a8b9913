//! The log's own small state: everything but the entries. The writer and recovery change it through the same
//! functions, so that what is refused when writing is exactly what is damage when reading.

use bytes::Bytes;

/// Longest vote, committed hint and purge payload.
pub(super) const CONTROL_BYTES_MAX: usize = 1024;

const FIXED_BYTES: usize = 48;
/// Longest encoded state.
pub(super) const STATE_BYTES_MAX: usize = FIXED_BYTES + 3 * CONTROL_BYTES_MAX;

const HAS_NEXT: u8 = 1;
const HAS_VOTE: u8 = 2;
const HAS_COMMITTED: u8 = 4;
const HAS_PURGED: u8 = 8;

/// Up to where the log has been purged, with the caller's own encoding of that position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purged {
    /// Last index that is gone.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// Opaque to the log, at most 1 KiB; given back by recovery.
    pub position: Bytes,
}

/// What the log knows beside its entries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct LogState {
    pub(super) vote: Option<Bytes>,
    pub(super) committed: Option<Bytes>,
    pub(super) purged: Option<Purged>,
    /// The only index that may be appended next; `None`: any.
    pub(super) next: Option<u64>,
}

/// The index that belonged there.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Misplaced {
    pub(super) expected: u64,
}

impl LogState {
    pub(super) fn append(&mut self, index: u64) -> Result<(), Misplaced> {
        match self.next {
            Some(expected) if expected != index => Err(Misplaced { expected }),
            _ => match index.checked_add(1) {
                Some(next) => {
                    self.next = Some(next);
                    Ok(())
                }
                None => Err(Misplaced { expected: 0 }),
            },
        }
    }

    /// Voids entries from `from` on. `Ok(false)`: there are none, nothing changed.
    pub(super) fn truncate(&mut self, from: u64) -> Result<bool, Misplaced> {
        let floor = self.floor();
        if from < floor && from != 0 {
            return Err(Misplaced { expected: floor });
        }
        match self.next {
            Some(next) if from.max(floor) < next => {
                self.next = (from.max(floor) > 0).then_some(from.max(floor));
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Moves the purge point up. `false`: it is there already.
    pub(super) fn purge(&mut self, purged: &Purged) -> bool {
        if self.purged.as_ref().is_some_and(|current| current.index >= purged.index) {
            return false;
        }
        let floor = purged.index.saturating_add(1);
        self.next = Some(self.next.map_or(floor, |next| next.max(floor)));
        self.purged = Some(purged.clone());
        true
    }

    /// The lowest index that may be in the log.
    pub(super) fn floor(&self) -> u64 {
        self.purged.as_ref().map_or(0, |purged| purged.index.saturating_add(1))
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; FIXED_BYTES];
        let empty = Bytes::new();
        let position = self.purged.as_ref().map_or(&empty, |purged| &purged.position);
        let parts =
            [self.vote.as_ref().unwrap_or(&empty), self.committed.as_ref().unwrap_or(&empty), position];
        for (present, flag) in [
            (self.next.is_some(), HAS_NEXT),
            (self.vote.is_some(), HAS_VOTE),
            (self.committed.is_some(), HAS_COMMITTED),
            (self.purged.is_some(), HAS_PURGED),
        ] {
            out[0] |= if present { flag } else { 0 };
        }
        out[8..16].copy_from_slice(&self.next.unwrap_or(0).to_le_bytes());
        if let Some(purged) = &self.purged {
            out[16..24].copy_from_slice(&purged.index.to_le_bytes());
            out[24..32].copy_from_slice(&purged.term.to_le_bytes());
        }
        for (at, part) in parts.iter().enumerate() {
            let length = u32::try_from(part.len()).expect("bounded by CONTROL_BYTES_MAX");
            out[32 + at * 4..36 + at * 4].copy_from_slice(&length.to_le_bytes());
            out.extend_from_slice(part);
        }
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (fixed, mut rest) = bytes.split_at_checked(FIXED_BYTES)?;
        let word = |at: usize| fixed[at..at + 8].try_into().ok().map(u64::from_le_bytes);
        let mut part = |at: usize| {
            let length = fixed[32 + at * 4..36 + at * 4].try_into().ok().map(u32::from_le_bytes)? as usize;
            let (part, after) = rest.split_at_checked(length)?;
            rest = after;
            Some(Bytes::copy_from_slice(part))
        };
        let (vote, committed, position) = (part(0)?, part(1)?, part(2)?);
        if !rest.is_empty() {
            return None;
        }
        let has = |flag: u8| fixed[0] & flag != 0;
        Some(Self {
            vote: has(HAS_VOTE).then_some(vote),
            committed: has(HAS_COMMITTED).then_some(committed),
            purged: if has(HAS_PURGED) {
                Some(Purged { index: word(16)?, term: word(24)?, position })
            } else {
                None
            },
            next: if has(HAS_NEXT) { Some(word(8)?) } else { None },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn purged(index: u64) -> Purged {
        Purged { index, term: 2, position: Bytes::from_static(b"p") }
    }

    #[test]
    fn round_trip_with_each_part_present_or_not() {
        for bits in 0..16_u8 {
            let state = LogState {
                vote: (bits & 1 != 0).then(|| Bytes::from_static(b"vote")),
                committed: (bits & 2 != 0).then(Bytes::new),
                purged: (bits & 4 != 0).then(|| purged(9)),
                next: (bits & 8 != 0).then_some(77),
            };
            assert_eq!(LogState::decode(&state.encode()), Some(state));
        }
        assert_eq!(LogState::decode(&[0; 47]), None);
        assert_eq!(LogState::decode(&[0; 49]), None);
    }

    #[test]
    fn order_of_entries() {
        let mut state = LogState::default();
        state.append(5).unwrap();
        assert_eq!(state.append(7), Err(Misplaced { expected: 6 }));
        state.append(6).unwrap();
        assert!(state.truncate(6).unwrap());
        assert!(!state.truncate(6).unwrap(), "nothing left to void");
        state.append(6).unwrap();
        assert!(state.purge(&purged(5)) && !state.purge(&purged(4)));
        assert_eq!(state.truncate(5), Err(Misplaced { expected: 6 }));
        assert!(state.truncate(0).unwrap(), "all that is left");
        assert_eq!(state.next, Some(6));
        assert!(state.purge(&purged(100)), "beyond the end: a snapshot was installed");
        assert_eq!(state.append(7), Err(Misplaced { expected: 101 }));
    }
}
