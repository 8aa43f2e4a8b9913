//! Chapter 6: a pod's status, restarts, probes, hooks, the way it starts and ends.

mod ends;
mod hooks;
mod probes;
mod restarts;
mod starts;

use super::reader::Session;

/// The chapter's sessions. The longest begin first.
pub(super) const SESSIONS: &[Session] = &[
    ("back-off", restarts::back_off),
    ("liveness", probes::liveness),
    ("grace", ends::grace),
    ("pre-stop", ends::pre_stop),
    ("kinds-of-probes", probes::kinds),
    ("post-start", hooks::post_start),
    ("warm-up", hooks::warm_up),
    ("status", restarts::status),
    ("restart", restarts::restart),
    ("pull-policies", starts::pull_policies),
    ("order", starts::order),
];
