//! Power cuts at random moments of random schedules, each decided by a seed: everything acknowledged is there
//! afterwards, what was not is there as a prefix, and nothing is taken for damage.
//!
//! No threads: the writer is driven step by step, so a seed always does the same.

use std::collections::VecDeque;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::wal::disk::{Disk, DiskFile};
use crate::wal::open_writer;
use crate::wal::preparer::{Order, Preparer};
use crate::wal::queue::{Op, Request};
use crate::wal::segment::Segment;
use crate::wal::sim_disk::{SimDisk, SimFile};
use crate::wal::stats::Counters;
use crate::wal::supply::Supply;
use crate::wal::writer::Writer;

const LIVES: u32 = 6;

/// The helper's work, done when the test says so.
#[derive(Clone)]
struct StepSupply(Arc<Mutex<Steps>>);

struct Steps {
    preparer: Preparer<SimDisk>,
    order: Option<Order>,
    ready: Option<Result<Segment<SimFile>, Error>>,
    retired: VecDeque<(u64, u64)>,
}

impl Steps {
    fn step(&mut self) {
        if let Some((sequence, bytes)) = self.retired.pop_front() {
            if let Err(error) = self.preparer.retire(sequence, bytes) {
                self.ready = Some(Err(error));
            }
        } else if let Some(order) = self.order.take() {
            self.ready = Some(self.preparer.prepare(order, || true));
        }
    }
}

impl Supply<SimFile> for StepSupply {
    fn order(&mut self, order: Order) {
        let mut steps = self.0.lock().unwrap();
        if steps.ready.is_none() {
            steps.order = Some(order);
        }
    }

    fn take(&mut self, order: Order) -> Result<Segment<SimFile>, Error> {
        self.order(order);
        let mut steps = self.0.lock().unwrap();
        loop {
            if let Some(ready) = steps.ready.take() {
                return ready;
            }
            steps.step();
        }
    }

    fn retire(&mut self, sequence: u64, file_bytes: u64) {
        self.0.lock().unwrap().retired.push_back((sequence, file_bytes));
    }
}

/// What a log holds, by the simplest possible rules.
#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    entries: Vec<Entry>,
    vote: Option<Bytes>,
    purged: Option<Purged>,
}

/// The smallest acts, of which a crash may leave any prefix.
#[derive(Debug, Clone)]
enum Act {
    Entry(Entry),
    Vote(Bytes),
    Truncate(u64),
    Purge(Purged),
}

impl Model {
    fn act(&mut self, act: &Act) {
        match act {
            Act::Entry(entry) => self.entries.push(entry.clone()),
            Act::Vote(vote) => self.vote = Some(vote.clone()),
            Act::Truncate(from) => self.entries.retain(|entry| entry.index < *from),
            Act::Purge(purged) => {
                self.entries.retain(|entry| entry.index > purged.index);
                self.purged = Some(purged.clone());
            }
        }
    }

    fn next(&self) -> u64 {
        let floor = self.purged.as_ref().map_or(0, |purged| purged.index + 1);
        self.entries.last().map_or(floor, |last| last.index + 1)
    }
}

/// A log without threads.
struct Opened {
    writer: Writer<SimFile, StepSupply>,
    recovered: Recovered,
    counters: Arc<Counters>,
    supply: StepSupply,
}

fn open(disk: &SimDisk, options: &Options) -> Result<Opened, Error> {
    let counters = Arc::default();
    let mut shared = None;
    let (writer, recovered) = open_writer(disk, options, &counters, |preparer| {
        let steps = Steps { preparer, order: None, ready: None, retired: VecDeque::new() };
        let supply = StepSupply(Arc::new(Mutex::new(steps)));
        shared = Some(supply.clone());
        Ok(supply)
    })?;
    Ok(Opened { writer, recovered, counters, supply: shared.expect("made by opening") })
}

struct Simulation {
    random: StdRng,
    disk: SimDisk,
    options: Options,
    /// What is known to be durable.
    acknowledged: Model,
    /// What was asked after that, in order.
    pending: Vec<Act>,
    hints: u64,
    term: u64,
    rolled: bool,
    recycled: bool,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let options =
            Options { segment_bytes: 16 << 10, entry_bytes_max: 1 << 10, ..options(Path::new("/sim")) };
        Self {
            random: StdRng::seed_from_u64(seed),
            disk: SimDisk::default(),
            options,
            acknowledged: Model::default(),
            pending: Vec::new(),
            hints: 0,
            term: 1,
            rolled: false,
            recycled: false,
        }
    }

    /// Opens the log, works on it until the power goes or the process ends.
    fn life(&mut self) {
        let operations = self.random.random_range(0..400);
        self.disk.lose_power_after(self.random.random_bool(0.8).then_some(operations));
        match open(&self.disk, &self.options) {
            Ok(opened) => {
                self.check(opened.recovered);
                self.work(opened.writer, &opened.counters, &opened.supply);
            }
            Err(error) => assert!(!self.disk.has_power(), "a power cut was taken for damage: {error}"),
        }
        if !self.disk.has_power() || self.random.random_bool(0.5) {
            self.disk = self.disk.after_power_cut(&mut self.random);
        }
    }

    /// What was recovered must be all that was acknowledged, and a prefix of the rest.
    fn check(&mut self, recovered: Recovered) {
        let found = Model { entries: recovered.entries, vote: recovered.vote, purged: recovered.purged };
        let mut candidate = self.acknowledged.clone();
        let mut acts = self.pending.iter();
        while candidate != found {
            let Some(act) = acts.next() else {
                panic!(
                    "not what was acknowledged and some of the rest:\nfound        {}\nacknowledged {}\npending {:?}",
                    brief(&found),
                    brief(&self.acknowledged),
                    self.pending.len()
                );
            };
            candidate.act(act);
        }
        if let Some(hint) = recovered.committed {
            let hint = u64::from_le_bytes(hint[..].try_into().unwrap());
            assert!(hint < self.hints, "a hint nobody gave");
        }
        // It was made durable before it was shown.
        self.acknowledged = found;
        self.pending.clear();
    }

    fn work(
        &mut self,
        mut writer: Writer<SimFile, StepSupply>,
        counters: &Arc<Counters>,
        supply: &StepSupply,
    ) {
        let mut asked = self.acknowledged.clone();
        for _ in 0..self.random.random_range(1..60) {
            match self.random.random_range(0..10) {
                0 => writer.idle(),
                1 | 2 => supply.0.lock().unwrap().step(),
                _ => self.batch(&mut writer, counters, &mut asked),
            }
            let names = self.disk.names();
            self.rolled |= names.iter().any(|name| name.ends_with("2.wal"));
            self.recycled |= names.iter().any(|name| name.ends_with(".spare"));
            if writer.failure().is_some() {
                assert!(!self.disk.has_power(), "failed with power: {}", writer.failure().unwrap());
                return;
            }
        }
        if self.random.random_bool(0.5) {
            writer.close();
        }
    }

    fn batch(
        &mut self,
        writer: &mut Writer<SimFile, StepSupply>,
        counters: &Arc<Counters>,
        asked: &mut Model,
    ) {
        let answers = Arc::new(Mutex::new(Vec::new()));
        let mut acts_by_request = Vec::new();
        let mut requests = Vec::new();
        for at in 0..self.random.random_range(1..5) {
            let (op, acts) = self.request(asked);
            acts.iter().for_each(|act| asked.act(act));
            acts_by_request.push(acts);
            let answers = Arc::clone(&answers);
            let done: Done = Box::new(move |result| answers.lock().unwrap().push((at, result.is_ok())));
            counters.queued_bytes.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            requests.push(Request { op, done, queue_bytes: 1 });
        }
        let hint = self.random.random_bool(0.3).then(|| {
            self.hints += 1;
            Bytes::copy_from_slice(&(self.hints - 1).to_le_bytes())
        });
        writer.process(requests, hint);
        let answers = answers.lock().unwrap();
        assert_eq!(answers.len(), acts_by_request.len(), "each request is answered at once");
        for ((at, ok), acts) in answers.iter().zip(acts_by_request.iter().enumerate()) {
            assert_eq!(*at, acts.0, "in order");
            if *ok {
                assert!(self.pending.is_empty(), "acknowledged behind a failure");
                acts.1.iter().for_each(|act| self.acknowledged.act(act));
            } else {
                self.pending.extend(acts.1.iter().cloned());
            }
        }
    }

    fn request(&mut self, model: &Model) -> (Op, Vec<Act>) {
        let next = model.next();
        match self.random.random_range(0..12) {
            0 => {
                self.term += 1;
                let vote = Bytes::from(format!("vote in term {}", self.term));
                (Op::Vote(vote.clone()), vec![Act::Vote(vote)])
            }
            1 if !model.entries.is_empty() => {
                let from = self.random.random_range(model.entries[0].index..=next);
                (Op::Truncate { from }, vec![Act::Truncate(from)])
            }
            2 | 3 if !model.entries.is_empty() => {
                let purged = purged(self.random.random_range(model.entries[0].index..next + 3));
                (Op::Purge(purged.clone()), vec![Act::Purge(purged)])
            }
            _ => {
                let size = if self.random.random_bool(0.2) { 1024 } else { 200 };
                let new: Vec<_> = (next..next + self.random.random_range(1..8))
                    .map(|index| entry(index, self.term, self.random.random_range(0..=size)))
                    .collect();
                (Op::Append(new.clone()), new.into_iter().map(Act::Entry).collect())
            }
        }
    }
}

fn brief(model: &Model) -> String {
    let ends = model.entries.first().zip(model.entries.last()).map(|(first, last)| (first.index, last.index));
    format!("entries {ends:?}, vote {:?}, purged {:?}", model.vote, model.purged.as_ref().map(|p| p.index))
}

/// Runs seeds, and says which one failed.
fn run(seeds: std::ops::Range<u64>) -> (usize, usize) {
    let (mut rolled, mut recycled) = (0, 0);
    for seed in seeds {
        let result = std::panic::catch_unwind(|| {
            let mut simulation = Simulation::new(seed);
            (0..LIVES).for_each(|_| simulation.life());
            (simulation.rolled, simulation.recycled)
        });
        let (did_roll, did_recycle) = result.unwrap_or_else(|_| panic!("seed {seed} failed, see above"));
        rolled += usize::from(did_roll);
        recycled += usize::from(did_recycle);
    }
    (rolled, recycled)
}

#[test]
fn nothing_acknowledged_is_lost_in_a_power_cut() {
    let (rolled, recycled) = run(0..1500);
    assert!(
        rolled > 300 && recycled > 100,
        "the schedules are too tame: {rolled} rolled, {recycled} recycled"
    );
}

/// Appends without a thread.
fn append_to(opened: &mut Opened, entries: Vec<Entry>) {
    opened.counters.queued_bytes.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let done: Done = Box::new(|result| result.unwrap());
    opened.writer.process(vec![Request { op: Op::Append(entries), done, queue_bytes: 1 }], None);
}

#[test]
fn records_of_a_torn_batch_never_join_records_written_later() {
    let disk = SimDisk::default();
    let options = options(Path::new("/sim"));
    let mut opened = open(&disk, &options).unwrap();
    // The first segment's records begin at 4096 with a state of 88 bytes; the third of these begins a block.
    append_to(&mut opened, vec![entry(0, 1, 960), entry(1, 1, 2968), entry(2, 1, 100)]);
    drop(opened);
    let file = disk.open("00000000000000000001.wal").unwrap();
    let mut first = [0; 8];
    file.read_at(4096 + 88 + 40, &mut first).unwrap();
    assert_eq!(first[..], entry(0, 1, 8).payload[..], "the layout is as this test has it");
    // Entry 0 did not reach the disk, the later part of the batch did.
    file.write_at(4096 + 88, &[0; 1000]).unwrap();
    let mut opened = open(&disk, &options).unwrap();
    assert_eq!(opened.recovered.entries, []);
    // Together with the mark that opening writes, these end where the old entry 2 begins.
    append_to(&mut opened, vec![entry(0, 2, 960 - 40), entry(1, 2, 2968)]);
    drop(opened);
    let found = open(&disk, &options).unwrap().recovered.entries;
    assert_eq!(found, [entry(0, 2, 960 - 40), entry(1, 2, 2968)]);
}
