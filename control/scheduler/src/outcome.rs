//! What came of scheduling: what the shell has to do now.

use std::sync::Arc;

use crate::fit_error::FitError;
use crate::pod_info::PodInfo;
use crate::preemption::Displacement;

/// What came of one pod, or of one group.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// The pod is assumed on this node: bind it, then report [`crate::Scheduler::bind_failed`] if that fails.
    Bind {
        /// The pod, in the version decided on.
        pod: Arc<PodInfo>,
        /// The node's name.
        node: Arc<str>,
    },
    /// These members of a group are assumed: bind all of them or none.
    BindGroup {
        /// The pods with their nodes.
        pods: Vec<(Arc<PodInfo>, Arc<str>)>,
    },
    /// The pod fits nowhere and waits.
    Unschedulable {
        /// The pod.
        pod: Arc<PodInfo>,
        /// Why.
        error: FitError,
    },
    /// The pod fits nowhere as it is, and will on this node once the victims are gone: let them go.
    Displace {
        /// The pod.
        pod: Arc<PodInfo>,
        /// Why it fits nowhere now.
        error: FitError,
        /// Where, and who has to leave.
        displacement: Displacement,
    },
}
