//! Torn tails are cut off, damage is refused, nothing wrong is ever served.

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::wal::error::Damage;
use crate::wal::record::{self, Content, Kind, Place};
use crate::wal::state::LogState;

/// A log of a few segments, closed cleanly, and what it holds.
struct Sample {
    dir: tempfile::TempDir,
    options: Options,
    content: Recovered,
}

impl Sample {
    fn new() -> Self {
        Self::with(100)
    }

    fn with(count: u64) -> Self {
        let dir = memory_dir();
        let options = Options { segment_bytes: 16 << 10, entry_bytes_max: 1 << 10, ..options(dir.path()) };
        let (wal, _) = Wal::open(&options).unwrap();
        wait(|done| wal.save_vote(Bytes::from_static(b"a vote"), done)).unwrap();
        for index in 0..count {
            append(&wal, vec![entry(index, 1, 300)]).unwrap();
        }
        drop(wal);
        let content = reopen(&options);
        assert_eq!(content.entries.len() as u64, count);
        Self { dir, options, content }
    }

    /// Segment files, oldest first.
    fn segments(&self) -> Vec<PathBuf> {
        let names = files(self.dir.path()).into_keys().filter(|name| name.ends_with(".wal"));
        names.map(|name| self.dir.path().join(name)).collect()
    }

    fn change(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(path).unwrap();
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
    }
}

/// A log whose last record is an entry nobody followed up on, as after a kill in the middle of a write.
struct Unfinished {
    sample: Sample,
    segment: PathBuf,
    bytes: Vec<u8>,
    /// Where the last entry's record begins and ends.
    last: std::ops::Range<usize>,
}

impl Unfinished {
    fn new() -> Self {
        let sample = Sample::with(10);
        let segment = sample.segments().remove(0);
        let mut bytes = fs::read(&segment).unwrap();
        // Entry records are as long as 300 bytes need; the marks behind the last one have no payload.
        let needle = &entry(9, 1, 300).payload[..];
        let payload = bytes.windows(needle.len()).position(|window| window == needle).unwrap();
        let last = payload - 40..payload + 304;
        bytes[last.end..].fill(0);
        fs::write(&segment, &bytes).unwrap();
        Self { sample, segment, bytes, last }
    }

    /// The log opens without the last entry, takes another, and keeps it.
    fn check(&self, changed: &[u8], what: &str) {
        fs::write(&self.segment, changed).unwrap();
        let (wal, recovered) =
            Wal::open(&self.sample.options).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(recovered.entries, entries(0..9, 300), "{what}");
        assert_eq!(recovered.vote, self.sample.content.vote, "{what}");
        let other = entry(9, 2, 100);
        append(&wal, vec![other.clone()]).unwrap();
        drop(wal);
        let again = reopen(&self.sample.options);
        assert_eq!(again.entries[9..], [other], "{what}");
        assert_eq!(again.truncated_tail_bytes, 0, "{what}");
    }
}

#[test]
fn an_unfinished_log_is_whole_without_changes() {
    let unfinished = Unfinished::new();
    let recovered = reopen(&unfinished.sample.options);
    assert_eq!(recovered.entries, entries(0..10, 300));
    assert_eq!(recovered.truncated_tail_bytes, 0);
}

#[test]
fn a_tail_torn_at_any_byte_is_cut_off() {
    let unfinished = Unfinished::new();
    for at in unfinished.last.clone() {
        let cut = &unfinished.bytes[..at];
        unfinished.check(cut, &format!("cut at {at}"));
    }
    // The payload ends with a byte that is not zero, so that zeros from any of its bytes on make a difference.
    for at in unfinished.last.start..unfinished.last.end - 4 {
        let mut zeros = unfinished.bytes.clone();
        zeros[at..].fill(0);
        unfinished.check(&zeros, &format!("zeros from {at} on"));
    }
    for at in unfinished.last.clone().step_by(3) {
        let mut garbage = unfinished.bytes.clone();
        for (step, byte) in garbage[at..unfinished.last.end].iter_mut().enumerate() {
            *byte ^= 0x5A ^ (step as u8);
        }
        unfinished.check(&garbage, &format!("garbage from {at} on"));
    }
}

#[test]
fn the_length_of_a_torn_tail_is_reported() {
    let unfinished = Unfinished::new();
    let mut torn = unfinished.bytes.clone();
    torn[unfinished.last.start + 100] ^= 1;
    fs::write(&unfinished.segment, torn).unwrap();
    // The last four bytes are padding.
    let bytes = reopen(&unfinished.sample.options).truncated_tail_bytes;
    assert_eq!(bytes, unfinished.last.len() as u64);
}

#[test]
fn a_later_part_of_a_torn_batch_does_not_come_back() {
    // One request, so one batch: its sectors may reach the disk in any order.
    let dir = memory_dir();
    let options = options(dir.path());
    let (wal, _) = Wal::open(&options).unwrap();
    append(&wal, entries(0..20, 300)).unwrap();
    drop(wal);
    let segment = dir.path().join("00000000000000000001.wal");
    let mut bytes = fs::read(&segment).unwrap();
    let first = bytes.windows(300).position(|window| window == &entry(5, 1, 300).payload[..]).unwrap() - 40;
    let length = 344;
    // As if the batch had been cut short: entry 5 is missing, the mark written later too.
    bytes[first..first + length].fill(0);
    bytes[first + 15 * length..].fill(0);
    fs::write(&segment, &bytes).unwrap();
    let (wal, recovered) = Wal::open(&options).unwrap();
    assert_eq!(recovered.entries, entries(0..5, 300));
    assert_eq!(recovered.truncated_tail_bytes, 15 * length as u64);
    append(&wal, vec![entry(5, 2, 100)]).unwrap();
    drop(wal);
    let again = reopen(&options).entries;
    assert_eq!((again.len(), again[5].term), (6, 2));
}

#[test]
fn a_hole_in_the_middle_is_refused() {
    let sample = Sample::new();
    // One more may have been prepared.
    let segments = sample.segments().into_iter().take(4).collect::<Vec<_>>();
    for path in &segments {
        let before = fs::read(path).unwrap();
        sample.change(path, |bytes| bytes[5000..5000 + 512].fill(0));
        match refused(&sample.options) {
            error @ Error::Damaged { damage: Damage::Record { .. } | Damage::Unsealed { .. }, .. } => {
                let text = error.to_string();
                assert!(
                    text.contains(path.to_str().unwrap())
                        && text.contains("Do not start this member with an empty directory"),
                    "{text}"
                );
            }
            other => panic!("{other}"),
        }
        fs::write(path, before).unwrap();
    }
    assert_eq!(reopen(&sample.options), sample.content, "nothing was changed by refusing");
}

#[test]
fn a_missing_segment_is_refused() {
    let sample = Sample::new();
    let segments = sample.segments();
    assert!(segments.len() >= 4);
    for path in &segments[..4] {
        let bytes = fs::read(path).unwrap();
        fs::remove_file(path).unwrap();
        let error = refused(&sample.options);
        assert!(
            matches!(
                error,
                Error::MissingSegment { .. } | Error::Damaged { damage: Damage::EntriesMissing { .. }, .. }
            ),
            "{error}"
        );
        fs::write(path, bytes).unwrap();
    }
    assert_eq!(reopen(&sample.options), sample.content);
    for path in sample.segments() {
        fs::remove_file(path).unwrap();
    }
    let error = refused(&sample.options);
    assert!(matches!(error, Error::MissingSegment { .. }), "a lost log is not a new one: {error}");
}

#[test]
fn swapped_foreign_and_misdirected_parts_are_refused() {
    let sample = Sample::new();
    let segments = sample.segments();
    let originals: Vec<_> = segments.iter().map(|path| fs::read(path).unwrap()).collect();
    let restore =
        || segments.iter().zip(&originals).for_each(|(path, bytes)| fs::write(path, bytes).unwrap());

    fs::write(&segments[0], &originals[1]).unwrap();
    fs::write(&segments[1], &originals[0]).unwrap();
    assert!(matches!(refused(&sample.options), Error::Damaged { damage: Damage::Renamed { found: 2 }, .. }));
    restore();

    let other = Sample::new();
    fs::copy(&other.segments()[1], &segments[1]).unwrap();
    assert!(matches!(refused(&sample.options), Error::Damaged { damage: Damage::Foreign { .. }, .. }));
    restore();

    // A block of the same segment at another place, and the block at the same place of another segment.
    for source in [&originals[0][4096..8192], &originals[1][8192..12288]] {
        sample.change(&segments[0], |bytes| bytes[8192..12288].copy_from_slice(source));
        assert!(matches!(refused(&sample.options), Error::Damaged { .. }));
        restore();
    }
    assert_eq!(reopen(&sample.options), sample.content);
}

#[test]
fn a_state_that_contradicts_the_segments_before_it_is_refused() {
    let sample = Sample::new();
    sample.change(&sample.segments()[1], |bytes| {
        let nonce = u64::from_le_bytes(bytes[40..48].try_into().unwrap());
        let record = record::decode(bytes, nonce, 4096).unwrap();
        let mut state = LogState::decode(record.payload).unwrap();
        state.vote = Some(Bytes::from_static(b"A VOTE"));
        let place = Place { nonce, offset: 4096, durable: record.header.durable };
        let payload = state.encode();
        let mut changed = Vec::new();
        record::encode(
            &mut changed,
            place,
            Content { kind: Kind::State, index: 0, term: 0, payload: &payload },
        );
        bytes[4096..4096 + changed.len()].copy_from_slice(&changed);
    });
    let error = refused(&sample.options);
    assert!(matches!(error, Error::Damaged { damage: Damage::StateMismatch, offset: 4096, .. }), "{error}");
}

#[test]
fn another_cluster_member_or_version_is_refused() {
    let sample = Sample::with(3);
    let other = Options { cluster_id: [9; 16], ..sample.options.clone() };
    let error = refused(&other).to_string();
    assert!(error.contains("nothing was changed") && error.contains("0909"), "{error}");
    let other = Options { member_id: 8, ..sample.options.clone() };
    assert!(matches!(refused(&other), Error::WrongIdentity { expected_member: 8, found_member: 7, .. }));
    // Without the identity file the segments still know.
    fs::remove_file(sample.dir.path().join("IDENTITY")).unwrap();
    assert!(matches!(refused(&other), Error::WrongIdentity { .. }));
    assert_eq!(reopen(&sample.options).entries.len(), 3);
    assert!(files(sample.dir.path()).contains_key("IDENTITY"), "made again");
    sample.change(&sample.segments()[0], |bytes| bytes[8] = 2);
    assert!(matches!(refused(&sample.options), Error::UnsupportedVersion { found: 2, supported: 1, .. }));
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let sample = Sample::with(3);
    for name in ["notes.txt", "1.wal", "x0000000000000000001.wal"] {
        fs::write(sample.dir.path().join(name), "hello").unwrap();
    }
    fs::write(sample.dir.path().join("00000000000000000009.tmp"), "left over").unwrap();
    assert_eq!(reopen(&sample.options), sample.content);
    let names = files(sample.dir.path());
    assert!(names.contains_key("notes.txt") && names.contains_key("1.wal"));
    assert!(!names.contains_key("00000000000000000009.tmp"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// A cleanly closed log: any flip either changes nothing, or is refused.
    #[test]
    fn a_flipped_bit_is_never_served(at in any::<prop::sample::Index>(), bit in 0..8_u8, length in 1..64_usize) {
        thread_local! {
            static SAMPLE: Sample = Sample::new();
        }
        SAMPLE.with(|sample| {
            let segments = sample.segments();
            let total: u64 = segments.iter().map(|path| fs::metadata(path).unwrap().len()).sum();
            let mut place = at.index(total as usize);
            let mut segments = segments.into_iter();
            let (path, original) = loop {
                let path = segments.next().unwrap();
                let bytes = fs::read(&path).unwrap();
                if place < bytes.len() {
                    break (path, bytes);
                }
                place -= bytes.len();
            };
            // One bit, or a run of bytes.
            let mut changed = original.clone();
            changed[place] ^= 1 << bit;
            if length > 32 {
                let end = (place + length).min(changed.len());
                changed[place..end].fill(0xFF);
            }
            // The copy keeps what opening repairs away from the sample.
            let copy = memory_dir();
            for name in files(sample.dir.path()).into_keys() {
                fs::copy(sample.dir.path().join(&name), copy.path().join(&name)).unwrap();
            }
            fs::write(copy.path().join(path.file_name().unwrap()), changed).unwrap();
            match Wal::open(&Options { dir: copy.path().to_owned(), ..sample.options.clone() }) {
                Ok((_, mut recovered)) => {
                    recovered.truncated_tail_bytes = 0;
                    // A run of bytes can hit the last batch together with its mark: that is what a torn write of
                    // this batch looks like (see the head of `wal`).
                    let last = sample.content.entries.len() - 1;
                    if length > 32 && recovered.entries.len() == last {
                        recovered.entries.push(sample.content.entries[last].clone());
                    }
                    assert!(recovered == sample.content, "byte {place} of {}", path.display());
                }
                Err(Error::Damaged { .. } | Error::UnsupportedVersion { .. }) => {}
                Err(other) => panic!("byte {place} of {}: {other}", path.display()),
            }
        });
    }

    /// Arbitrary files: an answer or an error, no panic, no huge allocation.
    #[test]
    fn arbitrary_content_is_survived(garbage in prop::collection::vec(any::<u8>(), 0..3000), at in 0..20_000_usize) {
        thread_local! {
            static SAMPLE: Sample = Sample::with(20);
        }
        SAMPLE.with(|sample| {
            let path = sample.segments().remove(0);
            let original = fs::read(&path).unwrap();
            let mut changed = original.clone();
            changed.truncate(at.max(garbage.len()));
            let start = changed.len().min(at).saturating_sub(garbage.len());
            let end = (start + garbage.len()).min(changed.len());
            changed[start..end].copy_from_slice(&garbage[..end - start]);
            let copy = memory_dir();
            fs::copy(sample.dir.path().join("IDENTITY"), copy.path().join("IDENTITY")).unwrap();
            fs::write(copy.path().join(path.file_name().unwrap()), changed).unwrap();
            if let Ok((_, recovered)) = Wal::open(&Options { dir: copy.path().to_owned(), ..sample.options.clone() }) {
                let count = recovered.entries.len();
                assert_eq!(recovered.entries, sample.content.entries[..count]);
            }
        });
    }
}
