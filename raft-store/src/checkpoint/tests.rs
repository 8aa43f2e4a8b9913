//! What a checkpoint promises, with writes cut off at every step and files damaged.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use state_machine::{
    Command, DeleteRangeRequest, KeyValue, Op, Outcome, PutRequest, RangeRequest, RecordRef, TxnCommand,
};
use tempfile::TempDir;

use super::*;

/// Called at each step of a write.
#[derive(Default)]
pub(super) struct Observer(Option<Box<dyn Fn(Step) + Send>>);

impl Observer {
    pub(super) fn call(&self, step: Step) {
        if let Some(observer) = &self.0 {
            observer(step);
        }
    }
}

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Observer")
    }
}

/// A state that commands are applied to.
#[derive(Default)]
struct Store {
    machine: StateMachine,
    log_index: u64,
}

impl Store {
    fn over(machine: StateMachine) -> Self {
        let log_index = machine.applied().map_or(0, |applied| applied.log_index);
        Self { machine, log_index }
    }

    fn apply(&mut self, command: &Command) {
        self.log_index += 1;
        let outcome = self.machine.apply(Position { log_index: self.log_index, term: 1 }, command);
        assert!(!matches!(outcome, Outcome::Rejected(_)), "{outcome:?}");
        self.machine.discard_events();
    }

    fn put(&mut self, key: &str, value: impl Into<Bytes>) {
        let put =
            PutRequest { key: Bytes::from(key.to_owned()), value: value.into(), ..PutRequest::default() };
        self.apply(&Command::Txn(TxnCommand::of(Op::Put(put))));
    }

    fn delete(&mut self, key: &str) {
        let delete = DeleteRangeRequest { key: Bytes::from(key.to_owned()), ..Default::default() };
        self.apply(&Command::Txn(TxnCommand::of(Op::DeleteRange(delete))));
    }

    /// Writes what the state has that the checkpoint has not.
    fn write_to(&mut self, checkpoint: &mut Checkpoint, extra: &[u8]) -> Result<Durable, Error> {
        let mut delta = self.machine.take_dirty();
        self.write_delta(checkpoint, &mut delta, extra)
    }

    fn write_delta(
        &self,
        checkpoint: &mut Checkpoint,
        delta: &mut CheckpointDelta,
        extra: &[u8],
    ) -> Result<Durable, Error> {
        checkpoint.write(delta, extra, |delta| self.machine.read_dirty(delta, 1000))
    }

    fn compact(&mut self) {
        self.apply(&Command::Compact { revision: self.machine.revision() });
        while self.machine.trim(1000) {}
    }

    /// Some of everything.
    fn fill(&mut self, keys: usize, round: usize) {
        for at in 0..keys {
            self.put(&format!("/registry/pods/{at:05}"), vec![round as u8; 100 + at % 50]);
        }
        self.delete("/registry/pods/00001");
        self.apply(&Command::LeaseGrant { id: round as i64 + 1, ttl_seconds: 30 });
    }
}

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn open(path: &Path) -> (Checkpoint, StateMachine, Bytes) {
    match Checkpoint::open(path).unwrap() {
        (checkpoint, Loaded::State { machine, extra }) => (checkpoint, *machine, extra),
        (_, other) => panic!("{other:?}"),
    }
}

fn everything(machine: &StateMachine) -> Vec<KeyValue> {
    let all = RangeRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        ..RangeRequest::default()
    };
    machine.range(&all).unwrap().kvs.iter().map(|record| (***record).clone()).collect()
}

fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_directory(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Copies the directory, as a kill at that moment would leave it, at each step of the writes to come.
fn copy_at_each_step(checkpoint: &mut Checkpoint, from: &Path, to: &Path) -> Arc<Mutex<Vec<Step>>> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (from, to, steps) = (from.to_path_buf(), to.to_path_buf(), seen.clone());
    checkpoint.observer = Observer(Some(Box::new(move |step| {
        copy_directory(&from, &to.join(format!("{step:?}")));
        steps.lock().unwrap().push(step);
    })));
    seen
}

#[test]
fn what_was_written_comes_back_with_the_callers_bytes() {
    let dir = directory();
    let mut store = Store::default();
    {
        let (mut checkpoint, loaded) = Checkpoint::open(dir.path()).unwrap();
        assert!(matches!(loaded, Loaded::Fresh));
        store.fill(1200, 0);
        let durable = store.write_to(&mut checkpoint, b"members: 1 2 3").unwrap();
        assert_eq!(durable.applied, store.machine.applied());
        store.fill(700, 1);
        store.compact();
        store.write_to(&mut checkpoint, b"members: 1 2 3 4").unwrap();
    }
    let (mut checkpoint, machine, extra) = open(dir.path());
    assert_eq!(machine.header(), store.machine.header());
    assert_eq!(everything(&machine), everything(&store.machine));
    assert_eq!(&extra[..], b"members: 1 2 3 4");
    // And goes on from there, with changes only.
    let mut reopened = Store::over(machine);
    reopened.put("/registry/nodes/a", "x");
    let mut delta = reopened.machine.take_dirty();
    assert!(!delta.full && delta.bytes < 100);
    reopened.write_delta(&mut checkpoint, &mut delta, b"").unwrap();
    drop(checkpoint);
    let (_checkpoint, machine, extra) = open(dir.path());
    assert_eq!((machine.header(), extra), (reopened.machine.header(), Bytes::new()));
}

#[test]
fn what_compaction_left_in_the_files_goes_with_the_next_full_write() {
    let dir = directory();
    let (mut checkpoint, _) = Checkpoint::open(dir.path()).unwrap();
    let mut store = Store::default();
    for round in 0..5 {
        store.fill(300, round);
        store.write_to(&mut checkpoint, b"").unwrap();
    }
    store.compact();
    store.write_to(&mut checkpoint, b"").unwrap();
    let held = |checkpoint: &mut Checkpoint| {
        let mut records = 0;
        let tree = &mut checkpoint.current.as_mut().unwrap().tree;
        tree.reopen().unwrap();
        let mut count = |_: RecordRef<'_>| {
            records += 1;
            Ok(())
        };
        tree.scan(keys::PAGES, |page| keys::read_page(&page, &mut count).is_ok()).unwrap();
        records
    };
    assert!(held(&mut checkpoint) > store.machine.records());
    drop(checkpoint);
    let (mut checkpoint, machine, _) = open(dir.path());
    assert_eq!(machine.header(), store.machine.header());
    assert_eq!(everything(&machine), everything(&store.machine));
    assert!(!checkpoint.is_bloated().unwrap(), "the files are far below the size that makes new ones due");
    store.machine.forget_checkpoint();
    store.write_to(&mut checkpoint, b"").unwrap();
    assert_eq!(held(&mut checkpoint), store.machine.records());
}

#[test]
fn a_delta_that_overlaps_what_is_held_adds_nothing_twice() {
    let dir = directory();
    let (mut checkpoint, _) = Checkpoint::open(dir.path()).unwrap();
    let mut store = Store::default();
    store.fill(10, 0);
    store.write_to(&mut checkpoint, b"").unwrap();
    store.fill(10, 1);
    let mut reported_as_failed = store.machine.take_dirty();
    store.write_delta(&mut checkpoint, &mut reported_as_failed, b"").unwrap();
    store.machine.put_back_dirty(reported_as_failed);
    store.fill(10, 2);
    store.write_to(&mut checkpoint, b"").unwrap();
    drop(checkpoint);
    assert_eq!(open(dir.path()).1.header(), store.machine.header());
}

/// Cuts a write off at every step and opens what is left: the state before or the state after, never a mix,
/// and one that can be led on.
fn cut_off_everywhere(
    before: &StateHeader,
    copies: &Path,
    steps: &[Step],
    after: &StateHeader,
    first_new: Step,
) {
    let mut new = false;
    for step in steps {
        new |= *step == first_new;
        let path = copies.join(format!("{step:?}"));
        let (mut checkpoint, machine, extra) = open(&path);
        let either = [(before, "before"), (after, "after")];
        let (found, name) = either.into_iter().find(|(header, _)| **header == machine.header()).unwrap();
        assert_eq!(&extra[..], name.as_bytes(), "{step:?}");
        if new {
            assert_eq!(found, after, "{step:?}");
        }
        let mut store = Store::over(machine);
        store.put("/registry/pods/00002", "led on");
        store.write_to(&mut checkpoint, b"led on").unwrap();
        drop(checkpoint);
        let (_checkpoint, machine, extra) = open(&path);
        assert_eq!((machine.header(), &extra[..]), (store.machine.header(), &b"led on"[..]), "{step:?}");
    }
}

#[test]
fn a_write_cut_off_anywhere_leaves_the_state_before_or_after_it() {
    let (dir, copies) = (directory(), directory());
    let (mut checkpoint, _) = Checkpoint::open(dir.path()).unwrap();
    let mut store = Store::default();
    store.fill(1200, 0);
    store.fill(1100, 1);
    store.write_to(&mut checkpoint, b"before").unwrap();
    let before = store.machine.header();
    // More than a batch.
    store.compact();
    store.fill(1100, 2);
    let mut changes = store.machine.take_dirty();
    assert!(!changes.full && changes.bytes > 100_000);
    let steps = copy_at_each_step(&mut checkpoint, dir.path(), copies.path());
    store.write_delta(&mut checkpoint, &mut changes, b"after").unwrap();
    let steps = steps.lock().unwrap();
    assert_eq!(steps.len(), 4);
    cut_off_everywhere(&before, copies.path(), &steps, &store.machine.header(), Step::HeaderDurable);
}

#[test]
fn a_full_write_cut_off_anywhere_leaves_one_generation_in_charge() {
    let (dir, copies) = (directory(), directory());
    let (mut checkpoint, _) = Checkpoint::open(dir.path()).unwrap();
    let mut store = Store::default();
    store.fill(600, 0);
    store.write_to(&mut checkpoint, b"before").unwrap();
    let before = store.machine.header();
    store.fill(600, 1);
    store.machine.forget_checkpoint();
    let mut full = store.machine.take_dirty();
    assert!(full.full);
    let steps = copy_at_each_step(&mut checkpoint, dir.path(), copies.path());
    store.write_delta(&mut checkpoint, &mut full, b"after").unwrap();
    let filled = steps.lock().unwrap().clone();
    cut_off_everywhere(&before, copies.path(), &filled, &store.machine.header(), Step::GenerationCurrent);

    drop(checkpoint);
    let generations = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let generations = generations.filter(|name| name.to_string_lossy().starts_with("gen-"));
    assert_eq!(generations.count(), 1);
}

#[test]
fn the_first_write_cut_off_leaves_nothing() {
    let (dir, copies) = (directory(), directory());
    let (mut checkpoint, _) = Checkpoint::open(dir.path()).unwrap();
    let mut store = Store::default();
    store.fill(600, 0);
    copy_at_each_step(&mut checkpoint, dir.path(), copies.path());
    store.write_to(&mut checkpoint, b"").unwrap();
    let (_, loaded) = Checkpoint::open(copies.path().join("GenerationFilled")).unwrap();
    assert!(matches!(loaded, Loaded::Fresh));
}

#[test]
fn a_write_that_failed_goes_along_with_the_next() {
    let dir = directory();
    let (mut checkpoint, _) = Checkpoint::open(dir.path()).unwrap();
    let mut store = Store::default();
    store.fill(10, 0);
    store.write_to(&mut checkpoint, b"").unwrap();
    store.fill(10, 1);
    let failed = store.machine.take_dirty();
    store.machine.put_back_dirty(failed);
    store.compact();
    store.write_to(&mut checkpoint, b"").unwrap();
    drop(checkpoint);
    assert_eq!(open(dir.path()).1.header(), store.machine.header());
}

#[test]
fn changes_to_a_state_that_is_not_there_are_refused() {
    let (dir, other) = (directory(), directory());
    let mut store = Store::default();
    store.put("a", "1");
    let (mut checkpoint, _) = Checkpoint::open(dir.path()).unwrap();
    store.write_to(&mut checkpoint, b"").unwrap();
    store.put("a", "2");
    let mut changes = store.machine.take_dirty();
    let (mut empty, _) = Checkpoint::open(other.path()).unwrap();
    assert!(matches!(store.write_delta(&mut empty, &mut changes, b""), Err(Error::NeedsFull { .. })));
    store.machine.forget_checkpoint();
    store.write_to(&mut empty, b"").unwrap();
}

#[test]
fn values_of_a_megabyte_and_awkward_keys_come_back() {
    let dir = directory();
    let (mut checkpoint, _) = Checkpoint::open(dir.path()).unwrap();
    let mut store = Store::default();
    for (at, key) in ["a", "a\0", "a\0\u{1}", "a\u{1}", "\0", "ab"].into_iter().enumerate() {
        store.put(key, vec![at as u8; 1_000_000]);
        store.put(key, vec![at as u8; 1_400_000]);
    }
    store.write_to(&mut checkpoint, b"").unwrap();
    store.put("ab", vec![9; 1_500_000]);
    store.write_to(&mut checkpoint, b"").unwrap();
    drop(checkpoint);
    let (_checkpoint, machine, _) = open(dir.path());
    assert_eq!(machine.header(), store.machine.header());
    assert_eq!(everything(&machine), everything(&store.machine));
}

#[test]
fn one_process_at_a_time() {
    let dir = directory();
    let (first, _) = Checkpoint::open(dir.path()).unwrap();
    assert!(matches!(Checkpoint::open(dir.path()), Err(Error::Locked { .. })));
    drop(first);
    Checkpoint::open(dir.path()).unwrap();
}

/// A checkpoint that was written three times; every header that it held.
fn written_thrice(path: &Path) -> Vec<StateHeader> {
    let (mut checkpoint, _) = Checkpoint::open(path).unwrap();
    let mut store = Store::default();
    let mut headers = Vec::new();
    for round in 0..3 {
        store.fill(400, round);
        store.write_to(&mut checkpoint, b"extra").unwrap();
        headers.push(store.machine.header());
    }
    headers
}

fn files(path: &Path, found: &mut BTreeMap<std::path::PathBuf, u64>) {
    for entry in fs::read_dir(path).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            files(&entry.path(), found);
        } else {
            found.insert(entry.path(), entry.metadata().unwrap().len());
        }
    }
}

#[test]
fn a_flipped_bit_never_gives_another_state_and_never_panics() {
    const FLIPS_PER_FILE: u64 = 16;
    let (dir, copy) = (directory(), directory());
    let headers = written_thrice(dir.path());
    let mut originals = BTreeMap::new();
    files(dir.path(), &mut originals);
    let (mut discarded, mut held) = (0, 0);
    for (file, length) in originals.into_iter().filter(|(_, length)| *length > 0) {
        let name = file.strip_prefix(dir.path()).unwrap();
        for flip in 0..FLIPS_PER_FILE.min(length) {
            let path = copy.path().join(format!("{}-{flip}", name.display().to_string().replace('/', "-")));
            copy_directory(dir.path(), &path);
            let mut bytes = fs::read(path.join(name)).unwrap();
            let at = (length / FLIPS_PER_FILE.min(length) * flip + flip * 37 % 19).min(length - 1) as usize;
            bytes[at] ^= 1 << (flip % 8);
            fs::write(path.join(name), bytes).unwrap();
            match Checkpoint::open(&path).unwrap() {
                (mut checkpoint, Loaded::Discarded { reason }) => {
                    assert!(!reason.is_empty());
                    discarded += 1;
                    let mut store = Store::default();
                    store.put("a", "rebuilt");
                    store.write_to(&mut checkpoint, b"").unwrap();
                    drop(checkpoint);
                    assert_eq!(open(&path).1.header(), store.machine.header());
                }
                // The bit lay where nothing is read, or sled fell back to an earlier write as a whole.
                (_, Loaded::State { machine, .. }) => {
                    assert!(headers.contains(&machine.header()), "{} at {at}", name.display());
                    held += 1;
                }
                (_, Loaded::Fresh) => panic!("{} at {at}: the loss was not noticed", name.display()),
            }
            fs::remove_dir_all(&path).unwrap();
        }
    }
    assert!(discarded > 0, "no flip was noticed; {held} were harmless");
}

#[test]
fn cut_and_missing_files_are_noticed() {
    for (name, left) in
        [("db", None), ("db", Some(0)), ("db", Some(100_000)), ("conf", None), ("conf", Some(3))]
    {
        let dir = directory();
        let headers = written_thrice(dir.path());
        let generation = fs::read_to_string(dir.path().join("CURRENT")).unwrap();
        let file = dir.path().join(generation.trim_end()).join(name);
        match left {
            None => fs::remove_file(&file).unwrap(),
            Some(length) => {
                fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(length).unwrap();
            }
        }
        match Checkpoint::open(dir.path()).unwrap().1 {
            Loaded::Discarded { .. } => assert!(dir.path().join("discarded").is_dir()),
            Loaded::State { machine, .. } => assert!(headers.contains(&machine.header()), "{name} {left:?}"),
            Loaded::Fresh => panic!("{name} {left:?}: the loss was not noticed"),
        }
    }
}

#[test]
fn files_that_are_damaged_between_two_writes_are_replaced() {
    for lose in [true, false] {
        let dir = directory();
        let (mut checkpoint, _) = Checkpoint::open(dir.path()).unwrap();
        let mut store = Store::default();
        store.fill(100, 0);
        store.write_to(&mut checkpoint, b"").unwrap();
        let generation = fs::read_to_string(dir.path().join("CURRENT")).unwrap();
        let log = dir.path().join(generation.trim_end()).join("db");
        if lose {
            fs::remove_file(&log).unwrap();
        } else {
            fs::OpenOptions::new().write(true).open(&log).unwrap().set_len(1000).unwrap();
        }
        store.fill(100, 1);
        let failed = store.write_to(&mut checkpoint, b"");
        assert!(matches!(failed, Err(Error::NeedsFull { .. })), "{failed:?}");
        store.machine.forget_checkpoint();
        store.write_to(&mut checkpoint, b"").unwrap();
        drop(checkpoint);
        assert_eq!(open(dir.path()).1.header(), store.machine.header());
    }
}

#[test]
fn a_wiped_directory_is_fresh() {
    let dir = directory();
    written_thrice(dir.path());
    fs::remove_dir_all(dir.path()).unwrap();
    assert!(matches!(Checkpoint::open(dir.path()).unwrap().1, Loaded::Fresh));
}
