//! Priority and fairness: who is answered now, who waits, and who is told to come back.
//!
//! Owns the seats of this replica ([`Fairness`]); which request belongs to which level, and how large that is, users say
//! with FlowSchemas and PriorityLevelConfigurations ([`crate::flow_control`]), whose changes count at once. Each
//! level has seats of its own, so the crowd of one never takes those of another; within a level the flows (mostly:
//! the users) take turns ([`level`]), and one flow of many never has all seats, however long its requests hold them.
//! Queues are bounded: what does not fit is a 429 with `Retry-After`. The exempt and the members of the control plane
//! are not queued, but still bounded. Watches, logs and interactive streams are counted apart. Levels lend no seats.

mod level;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use api::Status;
use exposition::Exposition;
use http::Response;

pub(super) use self::level::Seat;
use self::level::{Level, LevelCounts, Limits, Refused};
use crate::auth::{Attributes, BARQUE_MEMBERS, Identity, SYSTEM_MASTERS};
use crate::flow_control::{Flow, FlowControl, Plan};
use crate::rest::respond::{self, Body};

/// Requests handled at once, streams aside, unless configured otherwise.
pub const REQUESTS_MAX: usize = 800;
/// Streams (watches, logs, interactive ones) open at once.
pub(super) const STREAMS_MAX: usize = 10_000;
/// After how many seconds somebody who was refused should try again.
const RETRY_AFTER_S: u32 = 1;
/// The schema of those who are not queued.
const EXEMPT: &str = "exempt";

/// Gives out the seats of one replica.
#[derive(Debug)]
pub(super) struct Fairness {
    requests_max: usize,
    flow_control: FlowControl,
    levels: Mutex<Levels>,
    streams: Arc<Level>,
}

/// The levels of a plan.
#[derive(Debug)]
struct Levels {
    of: Arc<Plan>,
    by_name: BTreeMap<String, Arc<Level>>,
}

/// As what a request is counted: the objects that say so, for its answer's headers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Classified {
    schema_uid: String,
    level_uid: String,
}

impl Classified {
    /// Says in an answer as what its request was counted.
    pub(super) fn mark(&self, response: &mut Response<Body>) {
        for (name, uid) in [
            ("x-kubernetes-pf-flowschema-uid", &self.schema_uid),
            ("x-kubernetes-pf-prioritylevel-uid", &self.level_uid),
        ] {
            if !uid.is_empty() {
                respond::set_header(response, name, uid);
            }
        }
    }
}

impl Fairness {
    /// With so many seats over all levels; the exempt have as many again.
    pub(super) fn new(requests_max: usize, flow_control: FlowControl) -> Self {
        let streams = Limits { seats: STREAMS_MAX, ..Limits::default() };
        let levels = Levels { of: flow_control.plan(), by_name: BTreeMap::new() };
        let fairness = Self {
            requests_max,
            flow_control,
            levels: Mutex::new(levels),
            streams: Arc::new(Level::new("long-running", streams)),
        };
        fairness.with_levels(|levels| levels.follow(levels.of.clone(), requests_max));
        fairness
    }

    /// As what a request is counted.
    pub(super) fn classify(&self, identity: &Identity, request: &Attributes<'_>) -> Classified {
        let plan = self.flow_control.plan();
        let of = |flow: Flow<'_>| Classified {
            schema_uid: flow.schema_uid.to_owned(),
            level_uid: flow.level_uid.to_owned(),
        };
        flow(&plan, identity, request).map(of).unwrap_or_default()
    }

    /// A seat for a request, when its turn has come.
    ///
    /// # Errors
    /// 429 when too many wait already, or it waited too long.
    pub(super) async fn seat(&self, identity: &Identity, request: &Attributes<'_>) -> Result<Seat, Status> {
        let plan = self.flow_control.plan();
        let flow = flow(&plan, identity, request);
        let flow = flow.ok_or_else(|| Status::internal("no FlowSchema is about the request"))?;
        let level = self.with_levels(|levels| {
            if !Arc::ptr_eq(&levels.of, &plan) {
                levels.follow(plan.clone(), self.requests_max);
            }
            levels.by_name.get(flow.level).cloned()
        });
        let level = level.ok_or_else(|| Status::internal("the request's priority level is not there"))?;
        let seat = level.clone().seat(&flow.key, flow.is_one_of_many).await;
        seat.map_err(|refused| self.refuse(&level, refused))
    }

    /// A place for a stream, until the stream ends.
    ///
    /// # Errors
    /// 429 when there are too many, of all or of this user.
    pub(super) async fn stream(&self, identity: &Identity) -> Result<Option<Seat>, Status> {
        if is_member(identity) || identity.in_group(SYSTEM_MASTERS) {
            return Ok(None);
        }
        let seat = self.streams.clone().seat(&identity.user, true).await;
        seat.map(Some).map_err(|refused| self.refuse(&self.streams, refused))
    }

    fn with_levels<T>(&self, act: impl FnOnce(&mut Levels) -> T) -> T {
        act(&mut self.levels.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn refuse(&self, level: &Level, refused: Refused) -> Status {
        tracing::debug!(level = level.name(), reason = refused.as_str(), "a request is refused");
        Status::too_many_requests("too many requests, please try again later", RETRY_AFTER_S)
    }

    /// Requests being handled.
    pub(super) fn executing(&self) -> usize {
        self.with_levels(|levels| levels.by_name.values().map(|level| level.counts().executing).sum())
    }

    /// Adds the numbers of every level to the text.
    pub(super) fn expose(&self, out: &mut Exposition) {
        let mut all: Vec<Arc<Level>> = self.with_levels(|levels| levels.by_name.values().cloned().collect());
        all.push(self.streams.clone());
        let all: Vec<_> = all.iter().map(|level| (level.name(), level.counts())).collect();
        let mut family = |name: &str, kind: &str, help: &str, value: &dyn Fn(&LevelCounts) -> u64| {
            let name = format!("apiserver_flowcontrol_{name}");
            out.head(&name, help, kind);
            for (level, counts) in &all {
                out.sample(&name, &format!("priority_level=\"{level}\""), value(counts));
            }
        };
        family("current_executing_requests", "gauge", "Requests that have a seat.", &|it| {
            it.executing as u64
        });
        family("current_inqueue_requests", "gauge", "Requests that wait for one.", &|it| it.waiting as u64);
        family("dispatched_requests_total", "counter", "Requests that got one.", &|it| it.dispatched);
        family("nominal_limit_seats", "gauge", "Seats of the level.", &|it| it.seats as u64);
        let name = "apiserver_flowcontrol_rejected_requests_total";
        out.head(name, "Requests that were told to come back.", "counter");
        for (level, counts) in &all {
            for (reason, count) in &counts.rejected {
                out.sample(name, &format!("priority_level=\"{level}\",reason=\"{reason}\""), count);
            }
        }
    }
}

impl Levels {
    /// Has levels as a plan wants them. What waits or is seated in a level stays there; a level that goes ends with
    /// the last of its requests.
    fn follow(&mut self, plan: Arc<Plan>, requests_max: usize) {
        let limited = || plan.levels().values().filter(|level| !level.is_exempt);
        let shares: u64 = limited().map(|level| level.shares).sum();
        let seats = |own: u64| {
            let part = (requests_max as u64).saturating_mul(own).div_ceil(shares.max(1));
            usize::try_from(part).unwrap_or(usize::MAX)
        };
        let mut by_name = BTreeMap::new();
        for (name, wanted) in plan.levels() {
            let limits = Limits {
                seats: if wanted.is_exempt { requests_max } else { seats(wanted.shares) },
                flow_waiting_max: wanted.flow_waiting_max,
                waiting_max: wanted.waiting_max,
            };
            let level = match self.by_name.remove(name) {
                Some(level) => level,
                None => Arc::new(Level::new(name, limits)),
            };
            level.limit(limits);
            by_name.insert(name.clone(), level);
        }
        self.by_name = by_name;
        self.of = plan;
    }
}

fn is_member(identity: &Identity) -> bool {
    identity.in_group(BARQUE_MEMBERS)
}

/// What a request is counted as. Members of the control plane are exempt whatever schemas say.
fn flow<'a>(plan: &'a Plan, identity: &Identity, request: &Attributes<'_>) -> Option<Flow<'a>> {
    match is_member(identity) {
        true => plan.of_schema(EXEMPT),
        false => plan.classify(identity, request),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_name_every_level() {
        let mut out = Exposition::default();
        Fairness::new(100, FlowControl::fixed()).expose(&mut out);
        let text = out.finish();
        for name in ["exempt", "leader-election", "node-high", "workload-low", "catch-all", "long-running"] {
            let line =
                format!("apiserver_flowcontrol_current_executing_requests{{priority_level=\"{name}\"}} 0");
            assert!(text.contains(&line), "{text}");
        }
        assert!(text.contains("nominal_limit_seats{priority_level=\"catch-all\"} 2"), "{text}");
    }

    #[test]
    fn members_of_the_control_plane_are_exempt() {
        let member = Identity { groups: vec![BARQUE_MEMBERS.to_owned()], ..Identity::default() };
        let plan = FlowControl::fixed().plan();
        assert_eq!(flow(&plan, &member, &Attributes::default()).map(|flow| flow.level), Some("exempt"));
    }
}
