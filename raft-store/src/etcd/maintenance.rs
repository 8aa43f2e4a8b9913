//! `etcdserverpb.Maintenance`: status, alarms, hashes, snapshots, leadership.
//!
//! What etcd does to its database file and there is no need for here (defragmentation, downgrades) is answered
//! honestly.

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use proto::etcd::etcdserverpb as pb;
use proto::etcd::etcdserverpb::maintenance_server::{Maintenance, MaintenanceServer};
use state_machine::{Alarm, AlarmAction, AlarmKind, Command, HashKv};
use tonic::{Request, Response, Status};

use super::access::Caller;
use super::{VERSION, convert, status};
use crate::raft::snapshot_transfer;
use crate::status::Role;
use crate::store::Store;

pub(crate) fn service(store: Store) -> MaintenanceServer<MaintenanceService> {
    MaintenanceServer::new(MaintenanceService { store })
}

pub(crate) struct MaintenanceService {
    store: Store,
}

impl MaintenanceService {
    fn header(&self) -> Option<pb::ResponseHeader> {
        Some(self.store.etcd_header(self.store.revision()))
    }

    fn root<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let caller = Caller::of(&self.store, request)?;
        caller.must_be_root(&self.store)?;
        Ok(caller)
    }

    fn hash_at(&self, revision: i64) -> Result<HashKv, Status> {
        let revision = u64::try_from(revision).unwrap_or(0);
        self.store.hash_kv(revision).map_err(|error| status::of_error(&error))
    }

    async fn change_alarm(
        &self,
        caller: &Caller,
        action: AlarmAction,
        kind: AlarmKind,
        member_id: u64,
    ) -> Result<Vec<Alarm>, Status> {
        let raised = |store: &Store| {
            let alarms = store.alarms().into_iter();
            alarms.filter(|alarm| alarm.kind == kind && (member_id == 0 || alarm.member_id == member_id))
        };
        let changed: Vec<Alarm> = match action {
            AlarmAction::Activate if raised(&self.store).next().is_some() => Vec::new(),
            AlarmAction::Activate => vec![Alarm { kind, member_id }],
            AlarmAction::Deactivate => raised(&self.store).collect(),
        };
        for alarm in &changed {
            let command = Command::Alarm { action, alarm: *alarm };
            caller.propose(&self.store, &command).await?;
        }
        Ok(changed)
    }
}

fn alarm_member(alarm: Alarm) -> pb::AlarmMember {
    let kind = match alarm.kind {
        AlarmKind::NoSpace => pb::AlarmType::Nospace,
        AlarmKind::Corrupt => pb::AlarmType::Corrupt,
    };
    pb::AlarmMember { member_id: alarm.member_id, alarm: kind.into() }
}

fn alarm_kind(number: i32) -> Option<AlarmKind> {
    match pb::AlarmType::try_from(number) {
        Ok(pb::AlarmType::Nospace) => Some(AlarmKind::NoSpace),
        Ok(pb::AlarmType::Corrupt) => Some(AlarmKind::Corrupt),
        _ => None,
    }
}

#[tonic::async_trait]
impl Maintenance for MaintenanceService {
    type SnapshotStream = BoxStream<'static, Result<pb::SnapshotResponse, Status>>;

    async fn status(&self, _: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        let store = &self.store;
        let now = store.status();
        let mut errors = Vec::new();
        if now.leadership.leader.is_none() {
            errors.push("etcdserver: no leader".to_owned());
        }
        for alarm in store.alarms() {
            let pb::AlarmMember { member_id, .. } = alarm_member(alarm);
            let kind = match alarm.kind {
                AlarmKind::NoSpace => "NOSPACE",
                AlarmKind::Corrupt => "CORRUPT",
            };
            errors.push(format!("memberID:{member_id} alarm:{kind} "));
        }
        let bytes = convert::signed(store.bytes_in_use());
        Ok(Response::new(pb::StatusResponse {
            header: self.header(),
            version: VERSION.to_owned(),
            db_size: bytes,
            leader: now.leadership.leader.unwrap_or(0),
            raft_index: now.committed_index.max(now.applied_index),
            raft_term: now.leadership.term,
            raft_applied_index: now.applied_index,
            errors,
            db_size_in_use: bytes,
            is_learner: now.role == Role::Learner,
            db_size_quota: store.quota_bytes().map_or(0, convert::signed),
            ..pb::StatusResponse::default()
        }))
    }

    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        let caller = self.root(&request)?;
        let asked = request.into_inner();
        let kind = alarm_kind(asked.alarm);
        use pb::alarm_request::AlarmAction as A;
        let alarms = match (A::try_from(asked.action), kind) {
            (Ok(A::Get), kind) => {
                let wanted = |alarm: &Alarm| {
                    kind.is_none_or(|kind| alarm.kind == kind)
                        && (asked.member_id == 0 || alarm.member_id == asked.member_id)
                };
                self.store.alarms().into_iter().filter(wanted).collect()
            }
            (Ok(A::Activate), Some(kind)) => {
                self.change_alarm(&caller, AlarmAction::Activate, kind, asked.member_id).await?
            }
            (Ok(A::Deactivate), Some(kind)) => {
                self.change_alarm(&caller, AlarmAction::Deactivate, kind, asked.member_id).await?
            }
            _ => Vec::new(),
        };
        let alarms = alarms.into_iter().map(alarm_member).collect();
        Ok(Response::new(pb::AlarmResponse { header: self.header(), alarms }))
    }

    /// Nothing is fragmented: space of what was compacted comes back by itself. The checkpoint is written.
    async fn defragment(
        &self,
        request: Request<pb::DefragmentRequest>,
    ) -> Result<Response<pb::DefragmentResponse>, Status> {
        self.root(&request)?;
        let written = self.store.shared().checkpoint_now().await;
        written.map_err(|error| Status::internal(format!("etcdserver: {error}")))?;
        Ok(Response::new(pb::DefragmentResponse { header: self.header() }))
    }

    async fn hash(&self, request: Request<pb::HashRequest>) -> Result<Response<pb::HashResponse>, Status> {
        self.root(&request)?;
        let hash = self.hash_at(0)?.hash32();
        Ok(Response::new(pb::HashResponse { header: self.header(), hash }))
    }

    async fn hash_kv(
        &self,
        request: Request<pb::HashKvRequest>,
    ) -> Result<Response<pb::HashKvResponse>, Status> {
        self.root(&request)?;
        let found = self.hash_at(request.get_ref().revision)?;
        Ok(Response::new(pb::HashKvResponse {
            header: self.header(),
            hash: found.hash32(),
            compact_revision: convert::signed(found.compact_revision),
            hash_revision: convert::signed(found.revision),
        }))
    }

    async fn snapshot(
        &self,
        request: Request<pb::SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        self.root(&request)?;
        let header = self.header();
        let bytes = self.store.bytes_in_use();
        let mut sent = 0_u64;
        let blobs = snapshot_transfer::stream_file(self.store.shared().state().clone());
        let responses = blobs.map(move |blob: Result<Bytes, std::io::Error>| {
            let blob = blob.map_err(|error| Status::internal(format!("etcdserver: {error}")))?;
            sent += blob.len() as u64;
            Ok(pb::SnapshotResponse {
                header,
                // The size of what is still to come is not known before it is encoded; this is close.
                remaining_bytes: bytes.saturating_sub(sent),
                blob,
                version: VERSION.to_owned(),
            })
        });
        Ok(Response::new(responses.boxed()))
    }

    async fn move_leader(
        &self,
        request: Request<pb::MoveLeaderRequest>,
    ) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        self.root(&request)?;
        let target = request.get_ref().target_id;
        let store = &self.store;
        if !store.leadership().is_self {
            return Err(status::not_leader());
        }
        if !store.members().iter().any(|member| member.id == target && member.voter) {
            return Err(status::bad_leader_transferee());
        }
        if target != store.member_id() {
            store.transfer_leader(target).await.map_err(|error| status::of_error(&error))?;
            let mut leadership = store.watch_leadership();
            let moved = leadership.wait_for(|leadership| leadership.leader == Some(target));
            match tokio::time::timeout(store.config().propose_timeout, moved).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) => return Err(status::stopped()),
                Err(_) => return Err(status::timeout()),
            }
        }
        Ok(Response::new(pb::MoveLeaderResponse { header: self.header() }))
    }

    /// There is no older version that could take over.
    async fn downgrade(
        &self,
        request: Request<pb::DowngradeRequest>,
    ) -> Result<Response<pb::DowngradeResponse>, Status> {
        self.root(&request)?;
        use pb::downgrade_request::DowngradeAction as A;
        Err(match A::try_from(request.get_ref().action) {
            Ok(A::Validate | A::Enable) => status::invalid_downgrade_target(),
            Ok(A::Cancel) => status::no_inflight_downgrade(),
            Err(_) => status::invalid_downgrade_target(),
        })
    }
}
