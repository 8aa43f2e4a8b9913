//! `barque snapshot`: the whole state of a store as one file.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand};
use proto::etcd::etcdserverpb as pb;
use raft_store::offline::{self, NewCluster};
use serde_json::json;

use super::print;
use crate::store::NewMember;
use crate::store::client::{Format, StoreClient, StoreFlags, said};

/// Revisions that a restored store is ahead of the snapshot, unless told otherwise: more than were written since.
const BUMP_REVISION: u64 = 1_000_000_000;

/// What can be done with snapshots.
#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Saves the state of a running store to a file.
    Save(SaveArgs),
    /// Checks a file and says what it holds.
    Status(StatusArgs),
    /// Makes a member's directory for a new cluster out of a file; once for each member.
    Restore(RestoreArgs),
}

/// Flags of `save`.
#[derive(Debug, Args)]
pub(crate) struct SaveArgs {
    #[command(flatten)]
    store: StoreFlags,
    /// The file to write.
    file: PathBuf,
}

/// Flags of `status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// The file.
    file: PathBuf,
    /// How the answer is printed.
    #[arg(short, long, value_enum, default_value_t = Format::Simple)]
    write_out: Format,
}

/// Flags of `restore`.
#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// The file.
    file: PathBuf,
    #[command(flatten)]
    member: NewMember,
    /// How many revisions later the new cluster goes on, so that nobody takes it for the old one; 0: none.
    #[arg(long, value_name = "REVISIONS", default_value_t = BUMP_REVISION)]
    bump_revision: u64,
    /// Watchers of the old cluster list again, because everything before is compacted. Only `false` with
    /// `--bump-revision 0`.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    mark_compacted: bool,
}

/// Carries the command out.
pub(crate) fn run(command: &SnapshotCommand) -> anyhow::Result<()> {
    match command {
        SnapshotCommand::Save(args) => super::event_loop(1)?.block_on(save(args)),
        SnapshotCommand::Status(args) => status(args),
        SnapshotCommand::Restore(args) => restore(args),
    }
}

async fn save(args: &SaveArgs) -> anyhow::Result<()> {
    let client = StoreClient::connect(&args.store).await?;
    let mut blobs = client.maintenance().snapshot(pb::SnapshotRequest {}).await.map_err(said)?.into_inner();
    let part = args.file.with_extension("part");
    let written = async {
        let mut file = std::fs::File::create(&part)?;
        while let Some(piece) = blobs.message().await.map_err(said)? {
            file.write_all(&piece.blob)?;
        }
        file.sync_all()?;
        anyhow::Ok(())
    };
    written.await.with_context(|| format!("cannot write {}", part.display()))?;
    offline::snapshot_status(&part).context("what was received is not whole")?;
    std::fs::rename(&part, &args.file).with_context(|| format!("cannot make {}", args.file.display()))?;
    print(&format!("Snapshot saved at {}\n", args.file.display()))
}

fn status(args: &StatusArgs) -> anyhow::Result<()> {
    let found = offline::snapshot_status(&args.file)?;
    let hash = (found.hash >> 32) as u32 ^ found.hash as u32;
    let row = vec![
        format!("{hash:x}"),
        found.revision.to_string(),
        found.keys.to_string(),
        format!("{:.1} kB", found.bytes as f64 / 1000.0),
    ];
    print(&match args.write_out {
        Format::Simple => row.join(", ") + "\n",
        Format::Table => super::boxed_table(&["HASH", "REVISION", "TOTAL KEYS", "TOTAL SIZE"], &[row]),
        Format::Json => {
            let (revision, keys, bytes) = (found.revision, found.keys, found.bytes);
            json!({ "hash": hash, "revision": revision, "totalKey": keys, "totalSize": bytes }).to_string()
                + "\n"
        }
    })
}

fn restore(args: &RestoreArgs) -> anyhow::Result<()> {
    ensure!(
        args.mark_compacted == (args.bump_revision > 0),
        "--mark-compacted and --bump-revision go together: a jump of the revision leaves nothing to read before it"
    );
    let new = args.member.restored(args.bump_revision)?;
    let revision = offline::restore(&args.file, &new)?;
    print(&report(&new, revision))
}

/// What was made.
pub(crate) fn report(new: &NewCluster, revision: u64) -> String {
    let names: BTreeMap<_, _> = new.members.iter().map(|(id, member)| (id, &member.name)).collect();
    let names: Vec<String> = names.iter().map(|(id, name)| format!("{name} ({id:x})")).collect();
    format!(
        "Made {} for member {:x} of a new cluster of {}; it goes on at revision {revision}\n",
        display(&new.data_dir),
        new.member_id,
        names.join(", ")
    )
}

fn display(path: &Path) -> String {
    path.display().to_string()
}
