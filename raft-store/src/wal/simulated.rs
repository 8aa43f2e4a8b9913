//! The log in a simulation: on a disk in memory, written by a task in the simulation's time.
//!
//! Everything but the threads is the log's own: queue, writer, recovery. A batch is taken, its flush lasts as long as the
//! simulation says, then it is written and its requests are completed. When the member's event loop ends, as a process does when
//! it is killed, what was taken or queued and not written is lost.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::disk::Disk;
use super::error::Error;
use super::preparer::{Order, Preparer};
use super::queue::{Queue, Work};
use super::segment::Segment;
use super::sim_disk::SimDisk;
use super::stats::Counters;
use super::supply::Supply;
use super::{Inner, Options, Recovered, Wal, WriterEnded, open_writer};

/// How long the next flush lasts.
pub(crate) type FlushTime = Arc<dyn Fn() -> Duration + Send + Sync>;

impl Wal {
    /// Opens the log on a simulated disk. Must be called on the event loop that is to write it.
    pub(crate) fn simulate(
        disk: &SimDisk,
        options: &Options,
        flush_time: FlushTime,
    ) -> Result<(Self, Recovered), Error> {
        let counters = Arc::new(Counters::default());
        let supply = |preparer| Ok(Inline { preparer, next: None, failed: None });
        let (mut writer, recovered) = open_writer(disk, options, &counters, supply)?;
        let queue = Arc::new(Queue::new(options.queue_bytes_max, Arc::clone(&counters)));
        let (shared, disk) = (Arc::clone(&queue), disk.clone());
        tokio::spawn(async move {
            let guard = WriterEnded { queue: &shared, _disk: disk };
            loop {
                let work = guard.queue.take_in_task(writer.idle_after()).await;
                if matches!(work, Work::Batch { .. }) {
                    tokio::time::sleep(flush_time()).await;
                }
                if !writer.turn(work, guard.queue) {
                    return;
                }
            }
        });
        let inner =
            Inner { queue, counters, entry_bytes_max: options.entry_bytes_max, writer: Mutex::default() };
        Ok((Self { inner: Arc::new(inner) }, recovered))
    }
}

/// Segments made when they are ordered.
struct Inline<D: Disk> {
    preparer: Preparer<D>,
    next: Option<Segment<D::File>>,
    /// A segment could not be retired: the log ends with the next that is needed.
    failed: Option<Error>,
}

impl<D: Disk> Supply<D::File> for Inline<D> {
    fn order(&mut self, order: Order) {
        if self.next.is_none() && self.failed.is_none() {
            match self.preparer.prepare(order, || true) {
                Ok(segment) => self.next = Some(segment),
                Err(error) => self.failed = Some(error),
            }
            self.preparer.counters.next_ready.store(self.next.is_some(), Relaxed);
        }
    }

    fn take(&mut self, order: Order) -> Result<Segment<D::File>, Error> {
        self.order(order);
        match (self.failed.take(), self.next.take()) {
            (Some(failed), _) => Err(failed),
            (None, Some(segment)) => Ok(segment),
            (None, None) => Err(Error::Closed),
        }
    }

    fn retire(&mut self, sequence: u64, file_bytes: u64) {
        if let Err(error) = self.preparer.retire(sequence, file_bytes) {
            self.failed = Some(error);
        }
    }
}
