//! Segments before and after use: preparing the next one, recycling the obsolete ones.
//!
//! [`Preparer`] does the work, synchronously; `supply` lets a thread do it ahead of the writer. Whatever bears a segment's name has a durable header, full size and a durable directory
//! entry: a prepared segment is built under a temporary name (or in a spare) and renamed last.
//!
//! Obsolete segments are retired oldest first, each with its own directory sync, so that after a power cut the
//! segments that remain are always without a hole.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::disk::{Disk, DiskFile};
use super::error::Error;
use super::segment::{Identity, Segment, SegmentHeader, segment_name, spare_name, temporary_name};
use super::stats::Counters;
use crate::chance;

/// Zero-filling proceeds in steps of this size, each followed by a sync, so that the log's own syncs never wait
/// behind more than one step.
const FILL_STEP_BYTES: usize = 1 << 20;

/// Which segment to prepare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) sequence: u64,
    pub(super) previous_nonce: u64,
    pub(super) segment_bytes: u64,
}

/// A file kept for reuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spare {
    pub(super) sequence: u64,
    pub(super) file_bytes: u64,
}

/// Makes segments ready and takes back obsolete ones.
#[derive(Debug)]
pub(super) struct Preparer<D> {
    pub(super) disk: D,
    pub(super) identity: Identity,
    pub(super) spares: VecDeque<Spare>,
    /// At most so many files wait for reuse.
    pub(super) spares_max: usize,
    /// Smaller files are removed instead of kept.
    pub(super) spare_bytes_min: u64,
    pub(super) counters: Arc<Counters>,
}

impl<D: Disk> Preparer<D> {
    /// Makes the ordered segment: durable, under its final name, without records. `pause` is called between steps
    /// of a long fill and says whether to go on.
    pub(super) fn prepare(
        &mut self,
        order: Order,
        pause: impl Fn() -> bool,
    ) -> Result<Segment<D::File>, Error> {
        let reuse = self.spares.iter().position(|spare| spare.file_bytes >= order.segment_bytes);
        let (name, file, file_bytes) = match reuse.and_then(|at| self.spares.remove(at)) {
            Some(spare) => {
                let name = spare_name(spare.sequence);
                let file = self.disk.open(&name).map_err(|e| self.error("open", &name, e))?;
                (name, file, spare.file_bytes)
            }
            None => {
                let name = temporary_name(order.sequence);
                let file = self.fill(&name, order.segment_bytes, pause)?;
                (name, file, order.segment_bytes)
            }
        };
        let header = SegmentHeader {
            identity: self.identity,
            sequence: order.sequence,
            nonce: chance::number(),
            previous_nonce: order.previous_nonce,
            segment_bytes: file_bytes,
            recycled: reuse.is_some(),
        };
        file.write_at(0, &header.encode()).map_err(|e| self.error("write", &name, e))?;
        file.sync_data().map_err(|e| self.error("sync", &name, e))?;
        let target = segment_name(order.sequence);
        self.disk.rename(&name, &target).map_err(|e| self.error("rename", &name, e))?;
        self.sync_dir()?;
        self.count_spares();
        Ok(Segment { header, file })
    }

    /// A new zero-filled file. What is left of a failed attempt is removed, so that a full disk does not stay full.
    fn fill(&self, name: &str, bytes: u64, pause: impl Fn() -> bool) -> Result<D::File, Error> {
        let file = self.disk.create(name).map_err(|e| self.error("create", name, e))?;
        match self.fill_file(&file, name, bytes, pause) {
            Ok(()) => Ok(file),
            Err(error) => {
                drop(file);
                self.disk.remove(name).map_err(|e| self.error("remove", name, e))?;
                Err(error)
            }
        }
    }

    fn fill_file(
        &self,
        file: &D::File,
        name: &str,
        bytes: u64,
        pause: impl Fn() -> bool,
    ) -> Result<(), Error> {
        let zeros = vec![0; FILL_STEP_BYTES.min(usize::try_from(bytes).unwrap_or(FILL_STEP_BYTES))];
        let mut offset = 0;
        while offset < bytes {
            if offset > 0 && !pause() {
                return Err(Error::Closed);
            }
            let step = (zeros.len() as u64).min(bytes - offset) as usize;
            file.write_at(offset, &zeros[..step]).map_err(|e| self.error("zero-fill", name, e))?;
            offset += step as u64;
            // The last step is synced together with the header.
            if offset < bytes {
                file.sync_data().map_err(|e| self.error("sync", name, e))?;
            }
        }
        Ok(())
    }

    /// Takes segment `sequence` out of the log: its file becomes a spare, or goes.
    pub(super) fn retire(&mut self, sequence: u64, file_bytes: u64) -> Result<(), Error> {
        let name = segment_name(sequence);
        if file_bytes >= self.spare_bytes_min && self.spares.len() < self.spares_max {
            let spare = spare_name(sequence);
            self.disk.rename(&name, &spare).map_err(|e| self.error("rename", &name, e))?;
            self.spares.push_back(Spare { sequence, file_bytes });
        } else {
            self.disk.remove(&name).map_err(|e| self.error("remove", &name, e))?;
        }
        self.count_spares();
        self.sync_dir()
    }

    fn sync_dir(&self) -> Result<(), Error> {
        self.disk.sync_dir().map_err(|e| Error::io("sync the directory", self.disk.dir(), e))
    }

    fn count_spares(&self) {
        self.counters.spare_segments.store(self.spares.len() as u64, Relaxed);
    }

    fn error(&self, operation: &'static str, name: &str, source: std::io::Error) -> Error {
        Error::io(operation, &self.disk.dir().join(name), source)
    }
}
