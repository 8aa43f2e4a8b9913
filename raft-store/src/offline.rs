//! Work on data directories and snapshot files while no member runs on them: what an operator does when a
//! cluster is made anew from what is left.
//!
//! A new cluster gets a new id, so that members of the old one never mistake it for theirs, and a revision far
//! ahead with everything before it compacted, so that watchers and caches list again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use bytes::Bytes;
use openraft::storage::RaftLogReader;
use state_machine::{
    Command, DeleteRangeRequest, Envelope, Op, Position, PutRequest, StateMachine, TxnCommand,
};

use crate::config::Config;
use crate::raft::types::{LogId, Membership, Payload, SnapshotMeta, StoredMembership, Vote, log_id};
use crate::raft::{Member, MemberId, codec, snapshot_transfer};
use crate::store::{Disk, OpenError};
use crate::wal::{self, Wal};

/// Marks a directory of a cluster that was given up: no member starts on it.
const FENCE: &str = "FENCED";
/// Written and deleted once in a new cluster, so that its first revision is a real one.
const MARKER_KEY: &[u8] = b"\0barque-new-cluster";
const HASH_BYTES: u64 = 32;
const READ_BYTES: usize = 256 * 1024;

/// Why the work was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A snapshot file is not what was saved.
    #[error("{path}: {reason}; save the snapshot again, or use another one")]
    Snapshot {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// The target is there already.
    #[error("{path} is not empty; give a directory that does not exist yet")]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// A survivor's directory cannot be read.
    #[error("{path}: {reason}")]
    Survivor {
        /// The directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The new member's log.
    #[error("cannot make the new log: {0}")]
    Wal(#[from] wal::Error),
    /// The new cluster makes no sense.
    #[error("{0}")]
    Members(String),
}

/// The cluster that is made, and the member whose directory is.
#[derive(Debug, Clone)]
pub struct NewCluster {
    /// Its id.
    pub cluster_id: [u8; 16],
    /// The member.
    pub member_id: MemberId,
    /// All members; the same when the directory of each is made.
    pub members: BTreeMap<MemberId, Member>,
    /// The member's new directory.
    pub data_dir: PathBuf,
    /// How many revisions later the new cluster goes on; 0: it keeps revision and history.
    pub bump_revision: u64,
}

/// What a snapshot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotStatus {
    /// As `HashKV` gives it.
    pub hash: u64,
    /// The revision.
    pub revision: u64,
    /// Live versions of keys.
    pub keys: u64,
    /// Size of the file.
    pub bytes: u64,
}

/// Reads a snapshot file whole and checks it.
///
/// # Errors
/// When it cannot be read, or is not what was saved.
pub fn snapshot_status(path: &Path) -> Result<SnapshotStatus, Error> {
    let (machine, _) = read_snapshot(path)?;
    let bytes = fs::metadata(path).map_err(|source| Error::Io { path: path.to_owned(), source })?.len();
    let hash = machine.hash_kv(0).map_or(0, |found| found.hash);
    Ok(SnapshotStatus { hash, revision: machine.revision(), keys: machine.records(), bytes })
}

/// Makes a member's directory out of a snapshot file.
///
/// # Errors
/// When the file is damaged, or the directory cannot be made.
pub fn restore(snapshot: &Path, new: &NewCluster) -> Result<u64, Error> {
    let (machine, last) = read_snapshot(snapshot)?;
    make_directory(machine, last, new)
}

/// Makes the directory of a one-member cluster out of the freshest of the surviving directories, and marks
/// all of them so that no member starts on them again. Returns the one that was taken, and the revision.
///
/// # Errors
/// When none can be read. Then nothing is marked.
pub fn recover(survivors: &[PathBuf], new: &NewCluster) -> Result<(PathBuf, u64), Error> {
    let mut freshest: Option<(LogId, &PathBuf, StateMachine)> = None;
    for path in survivors {
        let (last, machine) = read_survivor(path)?;
        if freshest.as_ref().is_none_or(|(other, ..)| last > *other) {
            freshest = Some((last, path, machine));
        }
    }
    let (last, path, machine) =
        freshest.ok_or_else(|| Error::Members("give the directory of at least one survivor".into()))?;
    let revision = make_directory(machine, Some(last), new)?;
    for survivor in survivors {
        fence(survivor, &new.data_dir)?;
    }
    Ok((path.clone(), revision))
}

/// Why no member may start on a directory, if it was given up.
pub(crate) fn fenced(data_dir: &Path) -> Option<String> {
    fs::read_to_string(data_dir.join(FENCE)).ok().map(|text| text.trim_end().to_owned())
}

fn fence(data_dir: &Path, successor: &Path) -> Result<(), Error> {
    let path = data_dir.join(FENCE);
    let text = format!(
        "this member's cluster was given up; {} took its place. Remove this directory when nothing in it is needed\n",
        successor.display()
    );
    let write = || {
        let mut file = File::create(&path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        File::open(data_dir)?.sync_all()
    };
    write().map_err(|source| Error::Io { path: path.clone(), source })
}

fn read_snapshot(path: &Path) -> Result<(StateMachine, Option<LogId>), Error> {
    check_hash(path)?;
    let (meta, machine) = snapshot_transfer::restore(path)
        .map_err(|error| Error::Snapshot { path: path.to_owned(), reason: error.to_string() })?;
    Ok((machine, meta.last_log_id))
}

/// The file ends with the SHA-256 of what comes before.
fn check_hash(path: &Path) -> Result<(), Error> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let damaged = |reason: &str| Error::Snapshot { path: path.to_owned(), reason: reason.to_owned() };
    let mut file = File::open(path).map_err(io)?;
    let bytes = file.metadata().map_err(io)?.len();
    let mut left = bytes.checked_sub(HASH_BYTES).ok_or_else(|| damaged("it is too short"))?;
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    let mut buffer = vec![0; READ_BYTES];
    while left > 0 {
        let wanted = usize::try_from(left).map_or(READ_BYTES, |left| left.min(READ_BYTES));
        file.read_exact(&mut buffer[..wanted]).map_err(io)?;
        hash.update(&buffer[..wanted]);
        left -= wanted as u64;
    }
    let mut expected = [0; HASH_BYTES as usize];
    file.read_exact(&mut expected).map_err(io)?;
    match hash.finish().as_ref() == expected {
        true => Ok(()),
        false => Err(damaged("its SHA-256 does not fit: it was cut or changed")),
    }
}

/// What a directory holds: all entries of its log applied, also those that nobody knows to be committed, for
/// they may have been acknowledged.
fn read_survivor(data_dir: &Path) -> Result<(LogId, StateMachine), Error> {
    let failed = |reason: String| Error::Survivor { path: data_dir.to_owned(), reason };
    if let Some(reason) = fenced(data_dir) {
        return Err(failed(reason));
    }
    let identity = wal::identity_in(&data_dir.join("wal"))?
        .ok_or_else(|| failed("there is no member's log in it".into()))?;
    let config = Config::new(identity.cluster_id, identity.member_id, BTreeMap::new(), data_dir.to_owned());
    let disk = Disk::open(&config).map_err(|error: OpenError| failed(error.to_string()))?;
    let mut log = disk.log.clone();
    let shared = disk.shared;
    let from = shared.read().last_applied.map_or(0, |id| id.index + 1);
    let entries = futures_util::FutureExt::now_or_never(log.try_get_log_entries(from..));
    let entries = entries
        .expect("entries are read from memory, without waiting")
        .map_err(|error| failed(error.to_string()))?;
    // A copy by way of bytes: the state is shared with a thread that writes checkpoints.
    let (mut machine, mut last) = {
        let state = shared.read();
        let bytes = state.machine.snapshot().write_all(&state.machine, Vec::new());
        let bytes = bytes.map_err(|error| failed(error.to_string()))?;
        let machine = StateMachine::restore(&bytes[..]).map_err(|error| failed(error.to_string()))?;
        (machine, state.last_applied)
    };
    for entry in entries {
        let position = Position { log_index: entry.log_id.index, term: entry.log_id.leader_id.term };
        match &entry.payload {
            Payload::Normal(proposal) => {
                let commands = Envelope::decode_all(proposal.0.clone());
                machine.apply_all(position, &commands.map_err(|error| failed(error.to_string()))?);
            }
            Payload::Blank | Payload::Membership(_) => machine.skip(position),
        }
        machine.discard_events();
        last = Some(entry.log_id);
    }
    let last = last.ok_or_else(|| failed("it is empty".into()))?;
    Ok((last, machine))
}

fn make_directory(mut machine: StateMachine, last: Option<LogId>, new: &NewCluster) -> Result<u64, Error> {
    if !new.members.contains_key(&new.member_id) {
        return Err(Error::Members("the new cluster does not name the member".into()));
    }
    let directory = |name: &str| {
        let path = new.data_dir.join(name);
        crate::directories::make(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
        Ok::<_, Error>(path)
    };
    if fs::read_dir(&new.data_dir).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Error::NotEmpty { path: new.data_dir.clone() });
    }
    let last = last.unwrap_or_else(|| log_id(1, 0));
    let mut at = Position { log_index: last.index, term: last.leader_id.term };
    if new.bump_revision > 0 {
        advance(&mut machine, &mut at, new.bump_revision);
    }
    let last = log_id(at.term, at.log_index);
    let voters: BTreeSet<MemberId> = new.members.keys().copied().collect();
    let membership = Membership::new(vec![voters], new.members.clone())
        .map_err(|error| Error::Members(error.to_string()))?;
    let last_membership = StoredMembership::new(Some(last), membership);
    let meta = SnapshotMeta { last_log_id: Some(last), last_membership };
    let snapshot_failed = |error: snapshot_transfer::SnapshotFileError| Error::Survivor {
        path: new.data_dir.clone(),
        reason: error.to_string(),
    };
    snapshot_transfer::write_installed(&directory("snapshot")?, &meta, &machine).map_err(snapshot_failed)?;
    // The log comes last: without it a half-made directory is an empty one.
    let options = wal::Options::new(directory("wal")?, new.cluster_id, new.member_id);
    let (wal, _) = Wal::open(&options)?;
    // Elections of the new cluster begin after the old one's terms, so that terms never go back in the log.
    let vote = Vote::new(last.leader_id.term, new.member_id);
    let (done, saved) = mpsc::channel();
    // The receiver waits below.
    wal.save_vote(codec::vote_to_record(&vote), Box::new(move |result| drop(done.send(result))));
    match saved.recv() {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            return Err(Error::Survivor { path: new.data_dir.clone(), reason: error.to_string() });
        }
        Err(_) => return Err(Error::Wal(wal::Error::WriterGone)),
    }
    Ok(machine.revision())
}

/// Goes far ahead, with a first revision that is written and compacted like any other.
fn advance(machine: &mut StateMachine, at: &mut Position, by: u64) {
    machine.advance_revision(by);
    let key = Bytes::from_static(MARKER_KEY);
    let put = Op::Put(PutRequest { key: key.clone(), ..PutRequest::default() });
    let delete = Op::DeleteRange(DeleteRangeRequest { key, ..DeleteRangeRequest::default() });
    for op in [put, delete] {
        at.log_index += 1;
        machine.apply(*at, &Command::Txn(TxnCommand::of(op)));
    }
    at.log_index += 1;
    let revision = machine.revision();
    machine.apply(*at, &Command::Compact { revision });
    machine.discard_events();
}
