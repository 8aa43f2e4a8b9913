//! Mistakes that can be switched on, to see that the fault tests notice them.
//!
//! Compiled in with the feature `mutants` only, which nothing but tests asks for; without it `is` is always false and costs
//! nothing. The choice is the process's, made once before anything opens: the one global of this package, because a
//! mistake is made where no configuration reaches.

/// A mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// The log says that it is on disk without a sync.
    AcknowledgeBeforeFsync,
    /// Linearizable reads ask nobody.
    SkipReadIndex,
    /// The vote is kept in memory only.
    ForgetVote,
    /// Some changes are not told to watchers.
    DropWatchEvent,
    /// The log is cut back as if the state were on disk.
    PurgeBeforeCheckpoint,
    /// Leases end after half of their time.
    EndLeasesEarly,
    /// Pods of nodes that nobody hears of count as ended.
    ForgetDeadNodes,
    /// Pods are placed as if they asked for nothing.
    ForgetRequests,
    /// Pods are bound whatever has become of them, and whoever leads.
    BindWithoutFence,
}

/// Names, as `barque --test-mutant=NAME` takes them.
#[cfg(feature = "mutants")]
const NAMES: &[(&str, Mutant)] = &[
    ("acknowledge-before-fsync", Mutant::AcknowledgeBeforeFsync),
    ("skip-read-index", Mutant::SkipReadIndex),
    ("forget-vote", Mutant::ForgetVote),
    ("drop-watch-event", Mutant::DropWatchEvent),
    ("purge-before-checkpoint", Mutant::PurgeBeforeCheckpoint),
    ("end-leases-early", Mutant::EndLeasesEarly),
    ("forget-dead-nodes", Mutant::ForgetDeadNodes),
    ("forget-requests", Mutant::ForgetRequests),
    ("bind-without-fence", Mutant::BindWithoutFence),
];

#[cfg(feature = "mutants")]
static CHOSEN: std::sync::OnceLock<Mutant> = std::sync::OnceLock::new();

/// Makes this process make a mistake, from now on.
///
/// # Errors
/// When there is no such mistake, or none was compiled in.
#[cfg(feature = "mutants")]
pub fn choose(name: &str) -> Result<(), String> {
    let known = NAMES.iter().find(|(known, _)| *known == name);
    let (_, mutant) = known.ok_or_else(|| format!("there is no mutant {name:?}"))?;
    CHOSEN.set(*mutant).map_err(|_| "this process has a mutant already".to_owned())
}

/// Refuses: nothing of the kind was compiled in.
///
/// # Errors
/// Always.
#[cfg(not(feature = "mutants"))]
pub fn choose(name: &str) -> Result<(), String> {
    Err(format!("mutant {name:?}: this program was built without the feature `mutants`"))
}

/// Whether this process makes that mistake.
#[cfg(feature = "mutants")]
pub fn is(mutant: Mutant) -> bool {
    CHOSEN.get() == Some(&mutant)
}

/// Whether this process makes that mistake: never.
#[cfg(not(feature = "mutants"))]
pub const fn is(_: Mutant) -> bool {
    false
}
