//! What can be asked of a store, and with how many clients by default.

use clap::ValueEnum;

/// How many keys `range-500` asks for.
pub(crate) const RANGE_LIMIT: i64 = 500;
/// Of ten operations of `mixed`, this many read.
pub(crate) const MIXED_READS_OF_TEN: u64 = 8;

/// A kind of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
pub(crate) enum Work {
    /// Overwrite a random key.
    Put,
    /// Create a new key if it does not exist.
    TxnCreate,
    /// Overwrite the client's own key if its mod revision is the one last seen.
    TxnCas,
    /// Read a random key, linearizable.
    Range,
    /// Read a random key from the member's own state.
    RangeSerializable,
    /// The first 500 keys of all, linearizable, as a Kubernetes list does it.
    #[value(name = "range-500")]
    Range500,
    /// Events to many watchers of one range; the client count is the number of watchers.
    WatchFanout,
    /// Grant a lease and revoke it: one operation.
    Lease,
    /// Eight linearizable reads and two puts of ten.
    Mixed,
    /// Load --keys keys; memory of each member after that, and the time a restart takes.
    Memory,
    /// Kill the leader with SIGKILL under load, --kills times; the time until the next acknowledged write.
    LeaderKill,
}

impl Work {
    /// What is measured when nothing else is asked for.
    pub(crate) const DEFAULT: [Self; 9] = [
        Self::Put,
        Self::TxnCreate,
        Self::TxnCas,
        Self::Range,
        Self::RangeSerializable,
        Self::Range500,
        Self::WatchFanout,
        Self::Lease,
        Self::Mixed,
    ];

    /// Its name on the command line and in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::TxnCreate => "txn-create",
            Self::TxnCas => "txn-cas",
            Self::Range => "range",
            Self::RangeSerializable => "range-serializable",
            Self::Range500 => "range-500",
            Self::WatchFanout => "watch-fanout",
            Self::Lease => "lease",
            Self::Mixed => "mixed",
            Self::Memory => "memory",
            Self::LeaderKill => "leader-kill",
        }
    }

    /// The client counts used unless told otherwise.
    pub(crate) fn default_clients(self) -> &'static [usize] {
        match self {
            Self::Put | Self::Range => &[1, 10, 100, 1000],
            Self::RangeSerializable | Self::WatchFanout => &[1000],
            Self::Range500 | Self::Lease => &[10],
            Self::TxnCreate | Self::TxnCas | Self::Mixed => &[100],
            Self::Memory | Self::LeaderKill => &[],
        }
    }

    /// Needs processes that can be killed and started again.
    pub(crate) fn needs_group(self) -> bool {
        matches!(self, Self::Memory | Self::LeaderKill)
    }
}
