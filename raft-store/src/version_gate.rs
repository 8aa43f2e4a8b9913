//! Says in the log which version this member supports, and, where it leads, raises the cluster's version to
//! the lowest that all members support. See `state_machine::VersionCommand`.

use std::collections::BTreeSet;
use std::time::Duration;

use state_machine::{CLUSTER_VERSION_SUPPORTED, Command, VersionCommand};
use tokio::time::Instant;

use crate::error::Error;
use crate::store::Store;

/// Between two looks while something is left to say.
const UNSETTLED_PAUSE: Duration = Duration::from_millis(25);
/// Between two looks otherwise: for members that come, or come back upgraded.
const SETTLED_PAUSE: Duration = Duration::from_secs(1);

impl Store {
    /// The version whose commands may be proposed: the lowest that all members said they support.
    pub fn cluster_version(&self) -> u32 {
        self.gauges().cluster_version()
    }

    /// Waits a while for the members to agree on a version: a new group does so in its first moments.
    pub(crate) async fn wait_cluster_version(&self, needed: u32) -> Result<(), Error> {
        let deadline = Instant::now() + self.config().propose_timeout;
        while self.cluster_version() < needed {
            if Instant::now() >= deadline {
                let cluster = self.cluster_version();
                let reason = format!(
                    "not all members support version {needed} (the cluster is at {cluster}): upgrade them all"
                );
                return Err(Error::Unavailable { reason });
            }
            tokio::time::sleep(UNSETTLED_PAUSE).await;
        }
        Ok(())
    }
}

/// Runs until the store stops.
pub(crate) async fn run(store: Store) {
    loop {
        let pause = if step(&store).await { SETTLED_PAUSE } else { UNSETTLED_PAUSE };
        tokio::select! {
            () = store.stopping() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Does what is to be done; returns whether nothing is.
async fn step(store: &Store) -> bool {
    let leadership = store.leadership();
    let status = store.status();
    if leadership.leader.is_none() || !status.members.iter().any(|member| member.id == store.member_id()) {
        return false;
    }
    let (cluster, said): (u32, Vec<_>) =
        store.read_state(|machine| (machine.cluster_version(), machine.supported_versions().collect()));
    let supported = |id| said.iter().find(|(member, _)| *member == id).map(|(_, version)| *version);
    let command = if supported(store.member_id()) != Some(CLUSTER_VERSION_SUPPORTED) {
        let version = CLUSTER_VERSION_SUPPORTED;
        VersionCommand::Supports { member_id: store.member_id(), version }
    } else if leadership.is_self {
        let members: BTreeSet<u64> = status.members.iter().map(|member| member.id).collect();
        let lowest = members.iter().map(|id| supported(*id)).min().flatten();
        match lowest {
            Some(version) if version > cluster => VersionCommand::Raise { version, members },
            Some(_) => return true,
            None => return false,
        }
    } else {
        return cluster > 0 && status.members.iter().all(|member| supported(member.id).is_some());
    };
    match store.propose(&Command::Version(command)).await {
        // It is in the log. A member that lags sees that late, and must not go on saying it meanwhile.
        Ok(_) => !leadership.is_self,
        Err(error) => {
            tracing::debug!(%error, "cannot speak about versions now; trying again");
            false
        }
    }
}
