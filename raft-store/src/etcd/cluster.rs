//! `etcdserverpb.Cluster`: the members, and changes of them.
//!
//! Any member takes a request; the leader decides. etcd's answers and texts throughout.

use proto::etcd::etcdserverpb as pb;
use proto::etcd::etcdserverpb::cluster_server::{Cluster, ClusterServer};
use proto::raft as wire;
use tonic::{Request, Response, Status};

use super::access::Caller;
use super::status;
use crate::raft::membership::{Change, ChangeError};
use crate::raft::{MemberId, codec};
use crate::status::MemberStatus;
use crate::store::Store;

pub(crate) fn service(store: Store) -> ClusterServer<ClusterService> {
    ClusterServer::new(ClusterService { store })
}

pub(crate) struct ClusterService {
    store: Store,
}

impl Store {
    /// Changes the membership here or at the leader. Once only: a change whose fate is unknown is not sent again.
    pub(crate) async fn change_members_anywhere(&self, change: Change) -> Result<MemberId, Status> {
        let leader = self.leadership().leader.ok_or_else(status::no_leader)?;
        if leader == self.member_id() {
            return self.change_members(change).await.map_err(|error| of_change_error(&error));
        }
        let mut client = self.leader_client(leader).map_err(|_| status::no_leader())?;
        let call = client.change_members(change_to_wire(change));
        let answer = tokio::time::timeout(self.config().propose_timeout, call).await;
        let response = answer.map_err(|_| status::timeout())??.into_inner();
        match response.result {
            Some(wire::change_members_response::Result::Changed(changed)) => Ok(changed.member_id),
            _ => Err(status::no_leader()),
        }
    }
}

/// What a refused change is to an etcd client.
pub(crate) fn of_change_error(error: &ChangeError) -> Status {
    match error {
        ChangeError::NotLeader => status::no_leader(),
        ChangeError::NotFound => status::member_not_found(),
        ChangeError::BadUrls => status::member_bad_urls(),
        ChangeError::UrlsExist => status::peer_urls_exist(),
        ChangeError::NotEnoughStarted => status::not_enough_started(),
        ChangeError::NotLearner => status::member_not_learner(),
        ChangeError::NotReady => status::learner_not_ready(),
        ChangeError::TooManyLearners => status::too_many_learners(),
        ChangeError::Unhealthy => status::unhealthy_cluster(),
        ChangeError::Unknown(_) => status::timeout(),
        ChangeError::Stopped => status::stopped(),
    }
}

pub(crate) fn change_to_wire(change: Change) -> wire::ChangeMembersRequest {
    use wire::change_members_request::Change as C;
    let change = match change {
        Change::Add { peer_urls, learner } => C::Add(wire::AddMember { peer_urls, learner }),
        Change::Remove(id) => C::Remove(id),
        Change::Promote(id) => C::Promote(id),
        Change::Update { id, peer_urls } => C::Update(wire::UpdateMember { id, peer_urls }),
        Change::Publish(id, member) => C::Publish(codec::member_to_wire(id, &member)),
    };
    wire::ChangeMembersRequest { change: Some(change) }
}

pub(crate) fn change_from_wire(request: wire::ChangeMembersRequest) -> Option<Change> {
    use wire::change_members_request::Change as C;
    Some(match request.change? {
        C::Add(add) => Change::Add { peer_urls: add.peer_urls, learner: add.learner },
        C::Remove(id) => Change::Remove(id),
        C::Promote(id) => Change::Promote(id),
        C::Update(update) => Change::Update { id: update.id, peer_urls: update.peer_urls },
        C::Publish(member) => {
            let (id, member) = codec::member_from_wire(&member);
            Change::Publish(id, member)
        }
    })
}

fn member(status: MemberStatus) -> pb::Member {
    let MemberStatus { id, member, voter, .. } = status;
    let peer_urls = match member.peer_urls.is_empty() {
        true => vec![format!("http://{}", member.address)],
        false => member.peer_urls,
    };
    pb::Member {
        id,
        name: if member.started { member.name } else { String::new() },
        peer_ur_ls: peer_urls,
        client_ur_ls: member.client_urls,
        is_learner: !voter && !member.joining,
    }
}

impl ClusterService {
    fn header(&self) -> Option<pb::ResponseHeader> {
        // Membership has no revision of its own; etcd leaves it 0 too.
        Some(pb::ResponseHeader { revision: 0, ..self.store.etcd_header(0) })
    }

    fn members(&self) -> Vec<pb::Member> {
        self.store.members().into_iter().map(member).collect()
    }

    async fn change<T>(&self, request: &Request<T>, change: Change) -> Result<MemberId, Status> {
        Caller::of(&self.store, request)?.must_be_root(&self.store)?;
        let id = self.store.change_members_anywhere(change).await?;
        // The answer shows the change, also at a member that only handed it on.
        self.store.linearize().await.map_err(|error| status::of_error(&error))?;
        Ok(id)
    }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn member_add(
        &self,
        request: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        let asked = request.get_ref();
        let change = Change::Add { peer_urls: asked.peer_ur_ls.clone(), learner: asked.is_learner };
        let id = self.change(&request, change).await?;
        let members = self.members();
        let member = members.iter().find(|member| member.id == id).cloned();
        Ok(Response::new(pb::MemberAddResponse { header: self.header(), member, members }))
    }

    async fn member_remove(
        &self,
        request: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        let change = Change::Remove(request.get_ref().id);
        self.change(&request, change).await?;
        let members = self.members();
        Ok(Response::new(pb::MemberRemoveResponse { header: self.header(), members }))
    }

    async fn member_update(
        &self,
        request: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        let asked = request.get_ref();
        let change = Change::Update { id: asked.id, peer_urls: asked.peer_ur_ls.clone() };
        self.change(&request, change).await?;
        let members = self.members();
        Ok(Response::new(pb::MemberUpdateResponse { header: self.header(), members }))
    }

    async fn member_list(
        &self,
        request: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        if request.get_ref().linearizable {
            self.store.linearize().await.map_err(|error| status::of_error(&error))?;
        }
        let members = self.members();
        Ok(Response::new(pb::MemberListResponse { header: self.header(), members }))
    }

    async fn member_promote(
        &self,
        request: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        let change = Change::Promote(request.get_ref().id);
        self.change(&request, change).await?;
        let members = self.members();
        Ok(Response::new(pb::MemberPromoteResponse { header: self.header(), members }))
    }
}
