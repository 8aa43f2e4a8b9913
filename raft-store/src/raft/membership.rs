//! Who belongs to the group, and how that changes.
//!
//! The list of members is a replicated entry. Only the leader changes it, one change at a time; any member
//! takes the request and hands it on. Promises:
//!
//! - Ids are drawn at random, so that the id of a removed member never comes back.
//! - A new voter is replicated to before it counts: it begins as a learner that is *joining*, and the leader
//!   makes it a voter when it has caught up. Adding a member that never starts costs no majority.
//! - What a member says about itself (name, client URLs, that it has started) it publishes here.
//!
//! ```text
//!   add ─► joining ──(caught up)──► voter ─► removed      add learner ─► learner ──(promote)──► voter
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{ChangeMembers, Instant as _};
use tokio::time::Instant;

use super::types::{Member, MemberId};
use crate::chance;
use crate::status::MemberStatus;
use crate::store::Store;

/// A learner that lacks no more than so many entries has caught up: the rest takes a moment.
const CAUGHT_UP_ENTRIES: u64 = 1000;
/// A member that answered a heartbeat within this time is there.
const CONNECTED_WITHIN: Duration = Duration::from_secs(5);
/// Between two looks of the leader after joining members and unfinished changes.
const STEWARD_PAUSE: Duration = Duration::from_millis(100);
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// Between two attempts to publish.
const PUBLISH_PAUSE: Duration = Duration::from_millis(200);
const URLS_MAX: usize = 16;

/// A change of the membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Add { peer_urls: Vec<String>, learner: bool },
    Remove(MemberId),
    Promote(MemberId),
    Update { id: MemberId, peer_urls: Vec<String> },
    Publish(MemberId, Member),
}

/// Why a change was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChangeError {
    #[error("this member does not lead")]
    NotLeader,
    #[error("there is no such member")]
    NotFound,
    #[error("the URLs cannot be used")]
    BadUrls,
    #[error("another member has one of these URLs")]
    UrlsExist,
    #[error("too few members have started to change the membership safely")]
    NotEnoughStarted,
    #[error("the member is no learner")]
    NotLearner,
    #[error("the learner has not caught up yet")]
    NotReady,
    #[error("there are as many learners as are allowed")]
    TooManyLearners,
    #[error("not every member answers")]
    Unhealthy,
    #[error("a majority did not confirm the change in time; it may or may not be made: {0}")]
    Unknown(String),
    #[error("this member is stopping")]
    Stopped,
}

impl Store {
    /// The members as applied here, in the order of their ids.
    pub fn members(&self) -> Vec<MemberStatus> {
        let state = self.shared().read();
        let membership = state.membership.membership();
        let voters: BTreeSet<MemberId> = membership.voter_ids().collect();
        let status = |(id, member): (&MemberId, &Member)| MemberStatus {
            id: *id,
            member: member.clone(),
            voter: voters.contains(id),
            matched_index: None,
        };
        membership.nodes().map(status).collect()
    }

    /// Changes the membership here, at the leader; returns whom it concerned.
    pub(crate) async fn change_members(&self, change: Change) -> Result<MemberId, ChangeError> {
        if !self.leadership().is_self {
            return Err(ChangeError::NotLeader);
        }
        let deadline = Instant::now() + self.config().propose_timeout;
        let _one_at_a_time = tokio::time::timeout_at(deadline, self.membership_lock().lock())
            .await
            .map_err(|_| ChangeError::Unknown("another change is under way".into()))?;
        let view = View::of(self);
        let (id, change) = match change {
            Change::Add { peer_urls, learner } => view.add(self, peer_urls, learner)?,
            Change::Remove(id) => (id, view.remove(self, id)?),
            Change::Promote(id) => (id, view.promote(id)?),
            Change::Update { id, peer_urls } => (id, view.update(id, peer_urls)?),
            Change::Publish(id, member) => match view.publish(id, &member)? {
                Some(change) => (id, change),
                None => return Ok(id),
            },
        };
        self.commit_change(change, deadline).await?;
        Ok(id)
    }

    async fn commit_change(
        &self,
        change: ChangeMembers<MemberId, Member>,
        deadline: Instant,
    ) -> Result<(), ChangeError> {
        loop {
            let attempt = self.raft().change_membership(change.clone(), false);
            let result = tokio::time::timeout_at(deadline, attempt).await;
            let error = match result {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => error,
                Err(_) => return Err(ChangeError::Unknown("no answer of a majority".into())),
            };
            match error {
                RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => {
                    return Err(ChangeError::NotLeader);
                }
                RaftError::APIError(ClientWriteError::ChangeMembershipError(
                    ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_),
                )) if Instant::now() + RETRY_PAUSE < deadline => tokio::time::sleep(RETRY_PAUSE).await,
                RaftError::APIError(ClientWriteError::ChangeMembershipError(
                    ChangeMembershipError::LearnerNotFound(_),
                )) => return Err(ChangeError::NotFound),
                RaftError::APIError(error) => return Err(ChangeError::Unknown(error.to_string())),
                RaftError::Fatal(_) => return Err(ChangeError::Stopped),
            }
        }
    }
}

/// The membership as the leader sees it, with what it knows of each member.
struct View {
    members: BTreeMap<MemberId, Member>,
    voters: BTreeSet<MemberId>,
    /// Answered lately; this member among them.
    connected: BTreeSet<MemberId>,
    matched: BTreeMap<MemberId, u64>,
    last_log_index: u64,
}

impl View {
    fn of(store: &Store) -> Self {
        let metrics = store.raft().metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let mut connected = BTreeSet::from([store.member_id()]);
        for (id, answered) in metrics.heartbeat.iter().flatten() {
            if answered.as_ref().is_some_and(|answered| answered.elapsed() < CONNECTED_WITHIN) {
                connected.insert(*id);
            }
        }
        let progress = metrics.replication.iter().flatten();
        Self {
            members: membership.nodes().map(|(id, member)| (*id, member.clone())).collect(),
            voters: membership.voter_ids().collect(),
            connected,
            matched: progress.filter_map(|(id, matched)| Some((*id, matched.as_ref()?.index))).collect(),
            last_log_index: metrics.last_log_index.unwrap_or(0),
        }
    }

    /// Voters, and those that become voters by themselves.
    fn voting(&self) -> impl Iterator<Item = (MemberId, &Member)> {
        let votes = |(id, member): &(&MemberId, &Member)| self.voters.contains(*id) || member.joining;
        self.members.iter().filter(votes).map(|(id, member)| (*id, member))
    }

    fn add(
        &self,
        store: &Store,
        peer_urls: Vec<String>,
        learner: bool,
    ) -> Result<(MemberId, ChangeMembers<MemberId, Member>), ChangeError> {
        let address = checked_address(&peer_urls)?;
        self.urls_are_free(None, &peer_urls)?;
        if learner {
            let learners = self.members.len() - self.voting().count();
            if learners >= store.config().learners_max {
                return Err(ChangeError::TooManyLearners);
            }
        } else if store.config().strict_membership {
            let (started, total) = self.started(None);
            // The second member of a group of one cannot be asked whether it is there.
            let voters_after = total + 1;
            if !(started == 1 && total == 1) && started < voters_after / 2 + 1 {
                return Err(ChangeError::NotEnoughStarted);
            }
            if !self.voting().all(|(id, _)| self.connected.contains(&id)) {
                return Err(ChangeError::Unhealthy);
            }
        }
        let id = loop {
            let id: MemberId = chance::number();
            if id != 0 && !self.members.contains_key(&id) {
                break id;
            }
        };
        let member = Member { address, peer_urls, joining: !learner, ..Member::default() };
        Ok((id, ChangeMembers::AddNodes(BTreeMap::from([(id, member)]))))
    }

    fn remove(&self, store: &Store, id: MemberId) -> Result<ChangeMembers<MemberId, Member>, ChangeError> {
        let member = self.members.get(&id).ok_or(ChangeError::NotFound)?;
        let votes = self.voters.contains(&id);
        if votes && self.voters.len() == 1 {
            return Err(ChangeError::NotEnoughStarted);
        }
        if store.config().strict_membership && (votes || member.joining) {
            let (started, total) = self.started(Some(id));
            if started < total / 2 + 1 {
                return Err(ChangeError::NotEnoughStarted);
            }
            let left: Vec<MemberId> = self.voting().map(|(id, _)| id).filter(|other| *other != id).collect();
            let active = left.iter().filter(|id| self.connected.contains(*id)).count();
            // A member that is down may go: it is not part of the majority that works.
            if self.connected.contains(&id) && active < left.len() / 2 + 1 {
                return Err(ChangeError::Unhealthy);
            }
        }
        let ids = BTreeSet::from([id]);
        Ok(if votes { ChangeMembers::RemoveVoters(ids) } else { ChangeMembers::RemoveNodes(ids) })
    }

    fn promote(&self, id: MemberId) -> Result<ChangeMembers<MemberId, Member>, ChangeError> {
        let member = self.members.get(&id).ok_or(ChangeError::NotFound)?;
        if self.voters.contains(&id) || member.joining {
            return Err(ChangeError::NotLearner);
        }
        if !self.caught_up(id) {
            return Err(ChangeError::NotReady);
        }
        Ok(self.make_voter(id, member))
    }

    fn update(
        &self,
        id: MemberId,
        peer_urls: Vec<String>,
    ) -> Result<ChangeMembers<MemberId, Member>, ChangeError> {
        let member = self.members.get(&id).ok_or(ChangeError::NotFound)?;
        let address = checked_address(&peer_urls)?;
        self.urls_are_free(Some(id), &peer_urls)?;
        let member = Member { address, peer_urls, ..member.clone() };
        Ok(ChangeMembers::SetNodes(BTreeMap::from([(id, member)])))
    }

    /// `None`: it is known already.
    fn publish(
        &self,
        id: MemberId,
        published: &Member,
    ) -> Result<Option<ChangeMembers<MemberId, Member>>, ChangeError> {
        let member = self.members.get(&id).ok_or(ChangeError::NotFound)?;
        let next = Member {
            name: published.name.clone(),
            client_urls: published.client_urls.clone(),
            started: true,
            ..member.clone()
        };
        Ok((next != *member).then(|| ChangeMembers::SetNodes(BTreeMap::from([(id, next)]))))
    }

    fn make_voter(&self, id: MemberId, member: &Member) -> ChangeMembers<MemberId, Member> {
        let member = Member { joining: false, ..member.clone() };
        ChangeMembers::Batch(vec![
            ChangeMembers::SetNodes(BTreeMap::from([(id, member)])),
            ChangeMembers::AddVoterIds(BTreeSet::from([id])),
        ])
    }

    fn caught_up(&self, id: MemberId) -> bool {
        let matched = self.matched.get(&id);
        self.connected.contains(&id)
            && matched.is_some_and(|matched| matched + CAUGHT_UP_ENTRIES >= self.last_log_index)
    }

    /// How many voting members have started, of how many; one left out.
    fn started(&self, without: Option<MemberId>) -> (usize, usize) {
        let voting = self.voting().filter(|(id, _)| Some(*id) != without);
        voting
            .fold((0, 0), |(started, total), (_, member)| (started + usize::from(member.started), total + 1))
    }

    fn urls_are_free(&self, own: Option<MemberId>, urls: &[String]) -> Result<(), ChangeError> {
        let mut others = self.members.iter().filter(|(id, _)| Some(**id) != own);
        let taken = others.any(|(_, member)| member.peer_urls.iter().any(|url| urls.contains(url)));
        if taken { Err(ChangeError::UrlsExist) } else { Ok(()) }
    }
}

/// `host:port` of the first of the URLs, all of which must be well formed.
fn checked_address(urls: &[String]) -> Result<String, ChangeError> {
    let mut address = None;
    if urls.is_empty() || urls.len() > URLS_MAX {
        return Err(ChangeError::BadUrls);
    }
    for url in urls {
        let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
        let authority = rest.map(|rest| rest.trim_end_matches('/')).ok_or(ChangeError::BadUrls)?;
        let (host, port) = authority.rsplit_once(':').ok_or(ChangeError::BadUrls)?;
        if host.is_empty() || host.contains('/') || port.parse::<u16>().is_err() {
            return Err(ChangeError::BadUrls);
        }
        address.get_or_insert_with(|| authority.to_owned());
    }
    address.ok_or(ChangeError::BadUrls)
}

/// At the leader: makes joining members voters once they have caught up, and finishes changes that a former
/// leader left half-way.
pub(crate) async fn steward(store: Store) {
    loop {
        tokio::select! {
            () = store.stopping() => return,
            () = tokio::time::sleep(STEWARD_PAUSE) => {}
        }
        if !store.leadership().is_self {
            continue;
        }
        let half_way = {
            let metrics = store.raft().metrics();
            let metrics = metrics.borrow_watched();
            metrics.membership_config.membership().get_joint_config().len() > 1
        };
        let view = View::of(&store);
        let ready = view
            .members
            .iter()
            .find(|(id, member)| member.joining && !view.voters.contains(*id) && view.caught_up(**id));
        let change = match ready {
            Some((id, member)) => view.make_voter(*id, member),
            None if half_way => ChangeMembers::AddVoterIds(BTreeSet::new()),
            None => continue,
        };
        // A change that an operator has under way comes first; this one is looked at again.
        let Ok(_one_at_a_time) = store.membership_lock().try_lock() else { continue };
        let deadline = Instant::now() + store.config().propose_timeout;
        match (store.commit_change(change, deadline).await, ready) {
            (Ok(()), Some((id, _))) => {
                tracing::info!(member_id = %format!("{id:x}"), "a member has caught up and votes from now on");
            }
            (Ok(()), None) => {}
            (Err(error), _) => tracing::debug!(%error, "a change of the membership is tried again"),
        }
    }
}

/// Tells the group this member's name and client URLs, and that it has started.
pub(crate) async fn publish(store: Store) {
    let own = store.config().member.clone();
    let id = store.member_id();
    loop {
        tokio::select! {
            () = store.stopping() => return,
            () = tokio::time::sleep(PUBLISH_PAUSE) => {}
        }
        let known = store.members().into_iter().find(|member| member.id == id).map(|status| status.member);
        let Some(known) = known else { continue };
        if known.started && known.name == own.name && known.client_urls == own.client_urls {
            return;
        }
        let change = Change::Publish(id, own.clone());
        if let Err(status) = store.change_members_anywhere(change).await {
            tracing::debug!(%status, "could not publish this member's URLs yet");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_checked() {
        let check =
            |urls: &[&str]| checked_address(&urls.iter().map(|&url| url.to_owned()).collect::<Vec<_>>());
        assert_eq!(check(&["http://a:1", "http://b:2"]), Ok("a:1".to_owned()));
        assert_eq!(check(&["https://[::1]:1/"]), Ok("[::1]:1".to_owned()));
        for bad in [&[][..], &["a:1"], &["http://a"], &["http://a:x"], &["http://:1"], &["http://a/b:1"]] {
            assert_eq!(check(bad), Err(ChangeError::BadUrls), "{bad:?}");
        }
    }

    fn view(members: &[(MemberId, bool, bool)], connected: &[MemberId]) -> View {
        let member = |started| Member { started, ..Member::default() };
        View {
            members: members.iter().map(|(id, _, started)| (*id, member(*started))).collect(),
            voters: members.iter().filter(|(_, voter, _)| *voter).map(|(id, ..)| *id).collect(),
            connected: connected.iter().copied().collect(),
            matched: connected.iter().map(|id| (*id, 5000)).collect(),
            last_log_index: 5000,
        }
    }

    #[test]
    fn only_a_learner_that_is_there_and_caught_up_is_promoted() {
        let mut view = view(&[(1, true, true), (2, false, true), (3, false, true)], &[1, 2]);
        assert!(view.promote(2).is_ok());
        assert_eq!(view.promote(1), Err(ChangeError::NotLearner));
        assert_eq!(view.promote(3), Err(ChangeError::NotReady));
        assert_eq!(view.promote(9), Err(ChangeError::NotFound));
        view.matched.insert(2, 5000 - CAUGHT_UP_ENTRIES - 1);
        assert_eq!(view.promote(2), Err(ChangeError::NotReady));
    }

    #[test]
    fn a_member_publishes_only_what_is_new() {
        let view = view(&[(1, true, true)], &[1]);
        assert_eq!(view.publish(1, &Member::default()), Ok(None));
        assert!(matches!(view.publish(1, &Member::new("a", "")), Ok(Some(_))));
        assert_eq!(view.publish(2, &Member::default()), Err(ChangeError::NotFound));
    }
}
