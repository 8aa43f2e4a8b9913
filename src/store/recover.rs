//! `barque store recover`: goes on with what is left when the majority is lost for good.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser;
use raft_store::offline;

use super::NewMember;

/// Revisions that the new cluster is ahead, so that nobody takes it for the old one.
const BUMP_REVISION: u64 = 1_000_000_000;

/// Makes a cluster of one member out of the freshest of the surviving directories, with a new cluster id, and
/// marks the old directories so that no member starts on them again. For when the majority is lost for good:
/// what the lost members alone had is lost. Stop every member of the old cluster first.
#[derive(Debug, Parser)]
#[command(name = "barque store recover", max_term_width = 100)]
pub(crate) struct RecoverArgs {
    /// The data directory of a survivor; give all there are.
    #[arg(long = "from", value_name = "DIR", required = true)]
    from: Vec<PathBuf>,
    #[command(flatten)]
    member: NewMember,
}

/// Carries the command out.
pub(crate) fn run(args: impl IntoIterator<Item = OsString>) -> anyhow::Result<()> {
    let name = std::iter::once(OsString::from("barque store recover"));
    let args = RecoverArgs::parse_from(name.chain(args));
    let new = args.member.recovered(BUMP_REVISION)?;
    let (taken, revision) = offline::recover(&args.from, &new)?;
    crate::commands::print(&format!(
        "Took the state of {}, the freshest of {}\n{}",
        taken.display(),
        args.from.len(),
        crate::commands::snapshot::report(&new, revision)
    ))
}
