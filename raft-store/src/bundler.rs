//! Where commands become log entries: those that arrive while entries are on their way share the next one.
//!
//! An entry costs its way through consensus, log and network once, however many commands it holds; so under
//! load the cost of a write is little more than its own bytes, while a lone write waits for nobody. Each
//! command keeps its own revision, outcome and fate; order is that of arrival.
//!
//! ```text
//! propose_here ─► queue ─► bundle (at most ENTRIES_IN_FLIGHT_MAX on their way) ─► client_write ─► outcomes
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use openraft::errors::{ClientWriteError, RaftError};
use state_machine::{Envelope, Outcome};
use tokio::sync::{mpsc, oneshot};

use crate::error::Error;
use crate::full_disk;
use crate::propose::{Attempt, ENVELOPE_CLUSTER_VERSION};
use crate::quota;
use crate::raft::types::Proposal;
use crate::store::Store;

/// Commands that wait to become part of an entry; more are refused.
pub(crate) const PROPOSALS_WAITING_MAX: usize = 16 * 1024;
/// Entries on their way at once. Two keep the disk busy while the next fills.
const ENTRIES_IN_FLIGHT_MAX: usize = 2;
/// Commands in one entry…
const BUNDLE_COMMANDS_MAX: usize = 256;
/// …which gets no further command once it has this many bytes.
const BUNDLE_BYTES_MAX: usize = 512 * 1024;

type Reply = oneshot::Sender<Result<Outcome, Attempt>>;

/// Whoever takes it decides a waiting command's fate: the bundler, that it is proposed; or the one who waits,
/// that it never will be.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ticket(Arc<AtomicBool>);

impl Ticket {
    /// Whether the caller is the first.
    pub(crate) fn take(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

/// A command that waits to be proposed here.
pub(crate) struct Waiting {
    command: Bytes,
    ticket: Ticket,
    reply: Reply,
}

impl Waiting {
    pub(crate) fn new(command: Bytes) -> (Self, Ticket, oneshot::Receiver<Result<Outcome, Attempt>>) {
        let (reply, receiver) = oneshot::channel();
        let ticket = Ticket::default();
        (Self { command, ticket: ticket.clone(), reply }, ticket, receiver)
    }
}

/// Proposes what waits, until the store stops.
///
/// An entry costs the same whatever it holds. So one follows others that are on their way only when it holds as
/// many commands as they do: a few clients are soon served in two groups instead of one by one.
pub(crate) async fn run(store: Store, mut queue: mpsc::Receiver<Waiting>) {
    let mut in_flight = FuturesUnordered::new();
    let mut commands_in_flight = 0;
    let mut arrived = Vec::new();
    loop {
        let room = BUNDLE_COMMANDS_MAX - arrived.len();
        tokio::select! {
            () = store.stopping() => break,
            Some(commands) = in_flight.next() => commands_in_flight -= commands,
            count = queue.recv_many(&mut arrived, room), if room > 0 => if count == 0 { break },
        }
        let follows = in_flight.len() < ENTRIES_IN_FLIGHT_MAX && arrived.len() >= commands_in_flight;
        if arrived.is_empty() || !(in_flight.is_empty() || follows) {
            continue;
        }
        if store.is_disk_full() {
            refuse_growth(&mut arrived);
        }
        for (entry, replies) in bundles(&store, &mut arrived) {
            if store.log_takes(entry.len()).await {
                commands_in_flight += replies.len();
                in_flight.push(propose(&store, entry, replies));
            } else {
                refuse(replies);
            }
        }
    }
    queue.close();
    while let Some(waiting) = queue.recv().await {
        arrived.push(waiting);
    }
    for waiting in arrived {
        let _ = waiting.reply.send(Err(Attempt::NotAppended("this member is stopping".into())));
    }
    // What is on its way is answered by consensus itself, which ends with an error at the latest.
    while in_flight.next().await.is_some() {}
}

fn refuse_growth(arrived: &mut Vec<Waiting>) {
    let refused = arrived.extract_if(.., |waiting| full_disk::takes_space(&waiting.command));
    refuse(refused.map(|waiting| waiting.reply));
}

fn refuse(replies: impl IntoIterator<Item = Reply>) {
    for reply in replies {
        // Whoever asked may have given up.
        let _ = reply.send(Ok(quota::refusal()));
    }
}

/// Entries of bounded size from what arrived; normally one.
fn bundles(store: &Store, arrived: &mut Vec<Waiting>) -> Vec<(Bytes, Vec<Reply>)> {
    let together = store.gauges().cluster_version() >= ENVELOPE_CLUSTER_VERSION;
    let mut entries = Vec::new();
    let (mut commands, mut replies, mut bytes) = (Vec::new(), Vec::new(), 0);
    for Waiting { command, ticket, reply } in arrived.drain(..) {
        // Given up meanwhile.
        if !ticket.take() {
            continue;
        }
        if !commands.is_empty() && (!together || bytes + command.len() > BUNDLE_BYTES_MAX) {
            entries.push((Envelope::bundle(&commands), std::mem::take(&mut replies)));
            commands.clear();
            bytes = 0;
        }
        bytes += command.len();
        commands.push(command);
        replies.push(reply);
    }
    if !commands.is_empty() {
        entries.push((Envelope::bundle(&commands), replies));
    }
    entries
}

/// Sees one entry through, and returns how many commands it held.
async fn propose(store: &Store, entry: Bytes, replies: Vec<Reply>) -> usize {
    let commands = replies.len();
    let attempt = match store.raft().client_write(Proposal(entry)).await {
        Ok(response) if response.data.0.len() == replies.len() => {
            for (reply, outcome) in replies.into_iter().zip(response.data.0) {
                // Whoever asked may have given up.
                let _ = reply.send(Ok(outcome));
            }
            return commands;
        }
        Ok(_) => Attempt::Failed(Error::Refused { reason: "the entry carried other commands".into() }),
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
            Attempt::NotAppended(format!("this member does not lead ({:?})", forward.reason))
        }
        Err(RaftError::APIError(error)) => Attempt::Unknown(error.to_string()),
        // It may have been appended, and even replicated, before consensus ended.
        Err(RaftError::Fatal(fatal)) => {
            Attempt::Unknown(format!("this member stopped while the write waited: {fatal}"))
        }
    };
    for reply in replies {
        let _ = reply.send(Err(attempt.clone()));
    }
    commands
}
