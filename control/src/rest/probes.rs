//! `/livez`, `/readyz`, `/healthz`: whether this replica lives, and whether clients should use it.

use http::{Response, StatusCode};

use super::path::Probe;
use super::query::Query;
use super::respond::{self, Body};
use crate::object_store::{Leadership, ObjectStore, SharedStore};

struct Check {
    name: &'static str,
    ok: bool,
}

/// Answers a probe, or one of its checks (`/readyz/raft`).
pub(super) fn respond(
    probe: &Probe,
    only: Option<&str>,
    query: &Query,
    store: &SharedStore,
    stopping: bool,
) -> Response<Body> {
    let leadership = *store.leadership().borrow();
    let mut checks = checks(probe, leadership, stopping);
    if let Some(only) = only {
        checks.retain(|check| check.name == only);
        if checks.is_empty() {
            return respond::not_found();
        }
    }
    let name = match probe {
        Probe::Live => "livez",
        Probe::Ready => "readyz",
        _ => "healthz",
    };
    let failed = checks.iter().any(|check| !check.ok);
    if !failed && !query.flag("verbose") {
        return respond::text(StatusCode::OK, "ok");
    }
    let mut report = String::new();
    for check in &checks {
        match check.ok {
            true => report.push_str(&format!("[+]{} ok\n", check.name)),
            false => report.push_str(&format!("[-]{} failed: reason withheld\n", check.name)),
        }
    }
    let verdict = if failed { "failed" } else { "passed" };
    report.push_str(&format!("{name} check {verdict}\n"));
    let code = if failed { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
    respond::text(code, report)
}

fn checks(probe: &Probe, leadership: Leadership, stopping: bool) -> Vec<Check> {
    let mut checks = vec![Check { name: "ping", ok: true }];
    if *probe != Probe::Live {
        // Without a leader there is no quorum within reach: neither writes nor fresh reads.
        checks.push(Check { name: "raft", ok: leadership.leader.is_some() });
    }
    if *probe == Probe::Ready {
        checks.push(Check { name: "shutdown", ok: !stopping });
    }
    checks
}
