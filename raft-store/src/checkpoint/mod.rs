//! The applied state on disk, written behind by one thread, so that a restart replays little of the log.
//!
//! sled holds it: pages of records (sled's cost is by the key, not by the byte), and a header that names the
//! state (applied position, revisions, state hash) and carries the caller's own bytes. A checkpoint may be stale, never wrong: what
//! [`Checkpoint::open`] returns is exactly the state that some completed [`Checkpoint::write`] described,
//! proved by its hash. Anything else is set aside and reported as [`Loaded::Discarded`]; log, raft snapshot
//! or peers then rebuild it.
//!
//! ```text
//! write:   insert pages of new records ─ fsync ─ put header ─ fsync (durable)
//! crash:        └ old header: pages newer than it are deleted at open ┘
//! ```
//!
//! Records that compaction made unreachable stay in their pages, and are passed over when the state is
//! loaded. When the files have become much larger than the state ([`Checkpoint::is_bloated`]) the caller asks
//! the state for a full delta, which goes into new files.
//!
//! sled 0.34's own `flush` reaches no device flush on Linux and its `open` may panic on damaged files: every
//! call is made where a panic is caught, and every file is fsynced here. Its files never shrink, which is the
//! other reason for new ones.
//!
//! The directory: `LOCK`, `CURRENT` (names the generation), `gen-<n>/` (sled's files), `discarded/` (the last
//! state that could not be verified, for a look afterwards).
//!
//! It does not decide when to write, and knows no raft: purging the log behind [`Durable`] is the caller's.

mod directory;
mod error;
mod keys;
#[cfg(test)]
mod tests;
mod tree;

use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;

use bytes::Bytes;
use state_machine::{CheckpointDelta, Position, Rebuild, Record, SnapshotError, StateHeader, StateMachine};

use directory::Directory;
pub use error::Error;
use keys::Header;
use tree::{Batch, Tree};

/// The files may be this many times the live bytes before a rewrite is due...
const REWRITE_RATIO: u64 = 4;

/// ...and at least this large.
const REWRITE_BYTES_MIN: u64 = 64 * 1024 * 1024;

/// A page is full with so many bytes: sled keeps larger values apart, and rewrites neighbours of smaller ones.
const PAGE_BYTES: usize = 8 * 1024;

/// Pages that are read ahead while a state is loaded.
const PAGES_WAITING_MAX: usize = 256;

/// What was on disk.
#[derive(Debug)]
pub enum Loaded {
    /// Nothing.
    Fresh,
    /// A verified state. Damaged files may make it an older one than was last written: compare its applied
    /// position with where the log begins, and rebuild if there is a gap.
    State {
        /// The state.
        machine: Box<StateMachine>,
        /// What the caller gave with it.
        extra: Bytes,
    },
    /// Something that is not, or cannot be shown to be, a state that was written. It was set aside.
    Discarded {
        /// What was wrong.
        reason: String,
    },
}

/// A write that is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Durable {
    /// The last log entry that the checkpoint contains: the log behind it may be purged.
    pub applied: Option<Position>,
}

/// See the module's head. Synchronous: used from one thread of its own.
#[derive(Debug)]
pub struct Checkpoint {
    directory: Directory,
    /// `None` until the first state is written.
    current: Option<Current>,
    #[cfg(test)]
    observer: tests::Observer,
}

/// The generation in charge.
#[derive(Debug)]
struct Current {
    tree: Tree,
    /// What the header says.
    revision: u64,
    /// Of the state last written.
    live_bytes: u64,
}

impl Current {
    /// Opens the files for a write, and makes sure that they hold what they did.
    fn reopen(&mut self) -> Result<(), Error> {
        self.tree.reopen()?;
        let header =
            self.tree.get(keys::HEADER)?.ok_or(Error::Damaged { what: "the header (it is missing)" })?;
        match keys::decode_header(&header)?.state.revision {
            revision if revision == self.revision => Ok(()),
            _ => Err(Error::Damaged { what: "the header (it is not the one last written)" }),
        }
    }
}

/// What a write takes on disk, at most: so many times its records…
const WRITE_AMPLIFICATION: u64 = 4;
/// …and this, in segments that are begun anew, and for what else uses the disk meanwhile.
const ROOM_BYTES_MIN: u64 = 16 * 1024 * 1024;

/// Tells a test's observer how far a write is.
macro_rules! observe {
    ($checkpoint:expr, $step:expr) => {
        #[cfg(test)]
        $checkpoint.observer.call($step);
    };
}

/// Moments within a write, for tests that stop there.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    RecordsInserted,
    RecordsDurable,
    HeaderPut,
    HeaderDurable,
    GenerationFilled,
    GenerationCurrent,
}

impl Checkpoint {
    /// Opens the checkpoint in a directory of its own, creating it if need be, and loads what it holds.
    ///
    /// # Errors
    /// When the directory cannot be used (permissions, disk full, another process): that is for the operator.
    /// Damaged content is no error, see [`Loaded::Discarded`].
    pub fn open(path: impl AsRef<Path>) -> Result<(Self, Loaded), Error> {
        let directory = Directory::open(path.as_ref())?;
        let loaded = match directory.current() {
            Ok(Some(generation)) => load(&generation),
            // The very first write, if there was one, did not get to its end.
            Ok(None) => {
                directory.sweep()?;
                return Ok((Self::over(directory, None), Loaded::Fresh));
            }
            Err(error) => Err(error),
        };
        match loaded {
            Ok(LoadedState { mut current, machine, extra }) => {
                remove_newer(&current)?;
                current.tree.close();
                directory.sweep()?;
                let loaded = Loaded::State { machine: Box::new(machine), extra };
                Ok((Self::over(directory, Some(current)), loaded))
            }
            Err(error) if error.is_damage() => {
                let reason = error.to_string();
                tracing::warn!(
                    directory = %directory.path().display(),
                    %reason,
                    "the checkpoint cannot be trusted; it is set aside, and the state is rebuilt from the log, \
                     a snapshot or peers"
                );
                directory.set_aside()?;
                Ok((Self::over(directory, None), Loaded::Discarded { reason }))
            }
            Err(error) => Err(error),
        }
    }

    /// Brings the checkpoint to the state that the delta leads to. `extra` is returned by `open` with that
    /// very state. `read` reads the delta's next records. When this returns, the state is on disk.
    ///
    /// # Errors
    /// The checkpoint then still holds the state before, or already the new one. Give the delta back with
    /// `put_back_dirty` and try again; after [`Error::Panicked`] or [`Error::NeedsFull`] call
    /// `forget_checkpoint` on the state instead: the next delta is then full, and begins with new files.
    pub fn write(
        &mut self,
        delta: &mut CheckpointDelta,
        extra: &[u8],
        read: impl FnMut(&mut CheckpointDelta) -> Result<Option<Vec<Arc<Record>>>, SnapshotError>,
    ) -> Result<Durable, Error> {
        self.directory.check_room(delta.bytes * WRITE_AMPLIFICATION + ROOM_BYTES_MIN)?;
        let header = keys::encode_header(&delta.header, extra);
        let written = if delta.full {
            let filled = self.fill_generation(&header, |batch| insert(batch, delta, read).map(drop));
            filled.and_then(|next| self.put_in_charge(next, &delta.header))
        } else {
            self.write_changes(delta, &header, read)
        };
        if let Some(current) = &mut self.current {
            current.tree.close();
        }
        written?;
        if let Some(current) = &mut self.current {
            current.live_bytes = delta.live_bytes;
        }
        Ok(Durable { applied: delta.header.applied })
    }

    /// Bytes that the files take up on disk.
    ///
    /// # Errors
    /// When they cannot be looked at.
    pub fn disk_bytes(&self) -> Result<u64, Error> {
        self.current.as_ref().map_or(Ok(0), |current| current.tree.disk_bytes())
    }

    /// Whether the files have become much larger than the state, so that new ones would be worth their writing.
    ///
    /// # Errors
    /// When they cannot be looked at.
    pub fn is_bloated(&self) -> Result<bool, Error> {
        let disk_bytes = self.disk_bytes()?;
        let live_bytes = self.current.as_ref().map_or(0, |current| current.live_bytes);
        Ok(disk_bytes >= REWRITE_BYTES_MIN && disk_bytes / REWRITE_RATIO >= live_bytes)
    }

    fn over(directory: Directory, current: Option<Current>) -> Self {
        Self {
            directory,
            current,
            #[cfg(test)]
            observer: tests::Observer::default(),
        }
    }

    fn write_changes(
        &mut self,
        delta: &mut CheckpointDelta,
        header: &[u8],
        read: impl FnMut(&mut CheckpointDelta) -> Result<Option<Vec<Arc<Record>>>, SnapshotError>,
    ) -> Result<(), Error> {
        let held = self.current.as_ref().map_or(0, |current| current.revision);
        let needs_full = Error::NeedsFull { held_revision: held, base_revision: delta.base_revision };
        let Some(current) = self.current.as_mut().filter(|_| held >= delta.base_revision) else {
            return Err(needs_full);
        };
        match current.reopen() {
            Err(error) if error.is_damage() => {
                tracing::warn!(%error, "the checkpoint's files were damaged since they were opened; new ones are begun");
                return Err(needs_full);
            }
            result => result?,
        }
        let mut batch = Batch::new(&current.tree);
        let any = insert(&mut batch, delta, read)?;
        batch.apply()?;
        observe!(self, Step::RecordsInserted);
        // The header must not reach the disk before the records that it speaks of.
        if any {
            current.tree.sync()?;
        }
        observe!(self, Step::RecordsDurable);
        current.tree.put(keys::HEADER, header)?;
        observe!(self, Step::HeaderPut);
        current.tree.sync()?;
        current.revision = delta.header.revision;
        observe!(self, Step::HeaderDurable);
        Ok(())
    }

    /// Makes a new generation and fills it. It is durable, but not in charge.
    fn fill_generation(
        &self,
        header: &[u8],
        fill: impl FnOnce(&mut Batch<'_>) -> Result<(), Error>,
    ) -> Result<Tree, Error> {
        let mut tree = Tree::open(&self.directory.next_generation()?)?;
        let mut batch = Batch::new(&tree);
        fill(&mut batch)?;
        batch.apply()?;
        tree.put(keys::HEADER, header)?;
        tree.sync()?;
        observe!(self, Step::GenerationFilled);
        Ok(tree)
    }

    fn put_in_charge(&mut self, tree: Tree, state: &StateHeader) -> Result<(), Error> {
        self.directory.put_in_charge(tree.path())?;
        observe!(self, Step::GenerationCurrent);
        let live_bytes = self.current.as_ref().map_or(0, |current| current.live_bytes);
        // Closes the old files before they are removed.
        self.current = Some(Current { tree, revision: state.revision, live_bytes });
        self.directory.sweep()
    }
}

/// A state as it was found.
struct LoadedState {
    current: Current,
    machine: StateMachine,
    extra: Bytes,
}

fn load(generation: &Path) -> Result<LoadedState, Error> {
    let tree = Tree::open_existing(generation)?;
    let header = tree.get(keys::HEADER)?.ok_or(Error::Damaged { what: "the header (it is missing)" })?;
    let Header { state, extra } = keys::decode_header(&header)?;
    let revision = state.revision;
    let machine = thread::scope(|scope| {
        let (pages, waiting) = mpsc::sync_channel::<sled::IVec>(PAGES_WAITING_MAX);
        let tree = &tree;
        let reading = scope.spawn(move || {
            // The other side is gone only when it has found damage.
            tree.scan(keys::PAGES, |page| pages.send(page).is_ok())
        });
        // A write that failed may have left pages, and the one that made up for it wrote the same records again.
        let mut rebuild = Rebuild::in_any_order(state);
        waiting
            .into_iter()
            .try_for_each(|page| keys::read_page(&page, |record| Ok(rebuild.insert(record)?)))?;
        reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        // What does not belong was made unreachable by compaction, or lies in pages of a write that was cut off.
        Ok::<_, Error>(rebuild.finish()?)
    })?;
    let current = Current { tree, revision, live_bytes: machine.live_bytes() };
    Ok(LoadedState { current, machine, extra })
}

/// Fills pages with a delta's records, in their order; returns whether there were any.
fn insert(
    batch: &mut Batch<'_>,
    delta: &mut CheckpointDelta,
    mut read: impl FnMut(&mut CheckpointDelta) -> Result<Option<Vec<Arc<Record>>>, SnapshotError>,
) -> Result<bool, Error> {
    let revision = delta.header.revision;
    let mut page = Vec::with_capacity(2 * PAGE_BYTES);
    let mut number = 0;
    while let Some(records) = read(delta)? {
        for record in records {
            keys::append_record(&mut page, &record);
            if page.len() >= PAGE_BYTES {
                batch.insert(&keys::page_key(revision, number), &page)?;
                page.clear();
                number += 1;
            }
        }
    }
    if !page.is_empty() {
        batch.insert(&keys::page_key(revision, number), &page)?;
    }
    Ok(number > 0 || !page.is_empty())
}

/// Removes the pages of a write that was cut off.
fn remove_newer(current: &Current) -> Result<(), Error> {
    let mut batch = Batch::new(&current.tree);
    let newer = current.tree.keys_from(&keys::page_key(current.revision + 1, 0), keys::PAGES)?;
    newer.iter().try_for_each(|key| batch.remove(key))?;
    batch.apply()
}
