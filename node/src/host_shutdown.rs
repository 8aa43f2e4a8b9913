//! The host goes down: pods end in the order of their priority, and the node takes no new ones.
//!
//! ```text
//! notice ─► not ready, nothing admitted ─► for each group, lowest priority first: end, wait ─► told ─► stop
//! ```
//! Without a configured grace a notice changes nothing: a stop of the agent alone leaves containers running.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::Config;
use crate::config::ShutdownGrace;
use crate::node_state::NodeState;
use crate::pods::admission;
use crate::pods::dispatcher::Command;
use crate::pods::record::{End, Failure};
use crate::pods::roster::{Looked, Roster};
use crate::session::outbox::{Outbox, node_record};

const REASON: &str = "Terminated";
const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// How long the leader is given to store what became of the pods.
const TELL_TIME_MAX: Duration = Duration::from_secs(2);

/// What the shutdown works with.
pub(crate) struct Parts {
    pub(crate) config: Config,
    pub(crate) state: Arc<NodeState>,
    pub(crate) roster: Arc<Roster>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) pods: mpsc::Sender<Command>,
}

/// Waits for the notice; then ends pods and stops the agent.
pub(crate) async fn run(parts: Parts, notice: CancellationToken, shutdown: CancellationToken) {
    tokio::select! {
        () = shutdown.cancelled() => return,
        () = notice.cancelled() => {}
    }
    let groups = groups(&parts.config);
    if groups.is_empty() {
        tracing::warn!("the host goes down; shutdownGracePeriod is not set, so pods are left to the host");
        return;
    }
    tracing::info!("the host goes down: ending pods");
    parts.state.set_shutting_down();
    let name = &parts.config.node_name;
    let message = "Shutdown manager detected shutdown event".to_owned();
    parts.outbox.event(node_record(name, "NodeShutdown", message));
    tokio::select! {
        () = shutdown.cancelled() => return,
        () = parts.end_all(&groups) => {}
    }
    let patience = Instant::now() + TELL_TIME_MAX;
    while !parts.outbox.is_empty() && Instant::now() < patience {
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    shutdown.cancel();
}

/// Groups of pods in the order in which they end: the lowest priority first.
fn groups(config: &Config) -> Vec<ShutdownGrace> {
    let mut groups = config.shutdown_grace_period_by_pod_priority.clone();
    if !config.shutdown_grace_period.is_zero() {
        let critical = config.shutdown_grace_period_critical_pods;
        let seconds = |period: Duration| u32::try_from(period.as_secs()).unwrap_or(u32::MAX);
        let group =
            |priority, period| ShutdownGrace { priority, shutdown_grace_period_seconds: seconds(period) };
        groups = vec![
            group(0, config.shutdown_grace_period - critical),
            group(admission::PRIORITY_CRITICAL, critical),
        ];
    }
    groups.sort_by_key(|group| group.priority);
    groups
}

/// Which group a priority belongs to; one below all of them to the first.
fn group_of(groups: &[ShutdownGrace], priority: i32) -> usize {
    groups.iter().rposition(|group| group.priority <= priority).unwrap_or(0)
}

impl Parts {
    async fn end_all(&self, groups: &[ShutdownGrace]) {
        for (index, group) in groups.iter().enumerate() {
            let all = self.roster.all();
            let of_group: Vec<Looked> = all
                .into_iter()
                .filter(|looked| !looked.over && group_of(groups, admission::priority(&looked.pod)) == index)
                .collect();
            let limit = Duration::from_secs(u64::from(group.shutdown_grace_period_seconds));
            let patience = Instant::now() + limit;
            while of_group.iter().any(|looked| !self.roster.is_over(&looked.uid)) {
                if Instant::now() >= patience {
                    tracing::warn!(priority = group.priority, "pods did not end in the time that they had");
                    break;
                }
                // Asked again and again: a worker's mailbox may be full, and it hears the first word only.
                for looked in of_group.iter().filter(|looked| !self.roster.is_over(&looked.uid)) {
                    self.end(looked, *group).await;
                }
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        }
    }

    async fn end(&self, looked: &Looked, group: ShutdownGrace) {
        let own = looked.pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
        let given = i64::from(group.shutdown_grace_period_seconds);
        let failure = Failure {
            reason: REASON.to_owned(),
            message: MESSAGE.to_owned(),
            at: Timestamp::now(),
            grace_seconds: Some(own.map_or(given, |own| own.min(given))),
            disrupted: true,
            ..Failure::default()
        };
        let end = Box::new(End { failure, event: None });
        // A dispatcher that is gone means that the agent stops: containers go on, as ever.
        drop(self.pods.send(Command::End { uid: looked.uid.clone(), end }).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(extra: &str) -> Config {
        let minimal = "nodeName: n\ncontrolAddresses: [10.0.0.1:6443]\ninternalIp: 10.0.0.4\njoinToken: t\n";
        Config::parse(&format!("{minimal}{extra}")).unwrap()
    }

    #[test]
    fn groups_go_from_low_to_high() {
        assert!(groups(&config("")).is_empty());
        let two = groups(&config("shutdownGracePeriod: 30s\nshutdownGracePeriodCriticalPods: 10s\n"));
        let seconds: Vec<u32> = two.iter().map(|group| group.shutdown_grace_period_seconds).collect();
        assert_eq!(seconds, [20, 10]);
        let of = |priority| group_of(&two, priority);
        assert_eq!([of(-5), of(0), of(1_999_999_999), of(2_000_000_000)], [0, 0, 0, 1]);
        let own = groups(&config(
            "shutdownGracePeriodByPodPriority: [{priority: 1000, shutdownGracePeriodSeconds: 1},\
             {priority: 10, shutdownGracePeriodSeconds: 2}]\n",
        ));
        assert_eq!(own.iter().map(|group| group.priority).collect::<Vec<_>>(), [10, 1000]);
        assert_eq!([group_of(&own, 0), group_of(&own, 999), group_of(&own, 5000)], [0, 0, 1]);
    }
}
