//! `etcdserverpb.Lease`: leases as clients see them. Time is the leader's (`lessor`); existence and keys are
//! read here, linearizably.

use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use proto::etcd::etcdserverpb as pb;
use proto::etcd::etcdserverpb::lease_server::{Lease, LeaseServer};
use state_machine::{Command, LEASE_NONE, LEASE_TTL_SECONDS_MAX, Op, Outcome, PutRequest, TxnCommand};
use tonic::{Request, Response, Status, Streaming};

use super::access::Caller;
use super::status;
use crate::chance;
use crate::store::Store;

pub(crate) fn service(store: Store) -> LeaseServer<LeaseService> {
    LeaseServer::new(LeaseService::new(store)).max_encoding_message_size(usize::MAX)
}

pub(crate) struct LeaseService {
    store: Store,
}

/// Shorter leases could run out while a leader is elected. As etcd: one and a half election timeouts, in
/// whole seconds.
fn ttl_seconds_min(election_timeout: Duration) -> i64 {
    let millis = election_timeout.as_millis() * 3 / 2;
    i64::try_from(millis.div_ceil(1000)).unwrap_or(i64::MAX).max(1)
}

/// Grants a lease. Id 0: one is chosen.
pub(crate) async fn grant(
    store: &Store,
    caller: &Caller,
    id: i64,
    ttl_seconds: i64,
) -> Result<pb::LeaseGrantResponse, Status> {
    if ttl_seconds > LEASE_TTL_SECONDS_MAX {
        return Err(status::lease_ttl_too_large());
    }
    let ttl_seconds = ttl_seconds.max(ttl_seconds_min(store.config().election_timeout_max));
    let id = match id {
        LEASE_NONE => (chance::number() >> 1).max(1) as i64,
        id => id,
    };
    match caller.propose(store, &Command::LeaseGrant { id, ttl_seconds }).await? {
        Outcome::LeaseGranted { id, ttl_seconds, revision } => Ok(pb::LeaseGrantResponse {
            header: Some(store.etcd_header(revision)),
            id,
            ttl: ttl_seconds,
            error: String::new(),
        }),
        _ => Err(status::unexpected_outcome()),
    }
}

impl LeaseService {
    pub(crate) fn new(store: Store) -> Self {
        Self { store }
    }

    /// Revoking deletes the lease's keys: the caller must be allowed to.
    fn may_revoke(&self, caller: &Caller, id: i64) -> Result<(), Status> {
        let success = {
            let shared = self.store.shared();
            let state = shared.read();
            let Some((_, keys)) = state.machine.lease(id) else { return Ok(()) };
            keys.iter().map(|key| Op::Put(PutRequest { key: key.clone(), ..Default::default() })).collect()
        };
        caller.may_txn(&self.store, &TxnCommand { success, ..TxnCommand::default() })
    }

    async fn linearize(&self) -> Result<(), Status> {
        self.store.linearize().await.map_err(|error| status::of_error(&error))
    }
}

async fn keep_alive(store: &Store, id: i64) -> Result<pb::LeaseKeepAliveResponse, Status> {
    // From before: what happens to the lease's keys afterwards is newer than the header.
    let header = Some(store.etcd_header(store.revision()));
    let time = store.lease_renew(id).await.map_err(|error| status::of_error(&error))?;
    Ok(pb::LeaseKeepAliveResponse { header, id, ttl: time.map_or(0, |time| time.ttl_seconds) })
}

#[tonic::async_trait]
impl Lease for LeaseService {
    type LeaseKeepAliveStream =
        Pin<Box<dyn Stream<Item = Result<pb::LeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        let caller = Caller::of(&self.store, &request)?;
        let request = request.into_inner();
        grant(&self.store, &caller, request.id, request.ttl).await.map(Response::new)
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        let caller = Caller::of(&self.store, &request)?;
        let id = request.into_inner().id;
        self.may_revoke(&caller, id)?;
        match caller.propose(&self.store, &Command::LeaseRevoke { id, fence: None }).await? {
            Outcome::LeaseRevoked { revision, .. } => {
                let header = Some(self.store.etcd_header(revision));
                Ok(Response::new(pb::LeaseRevokeResponse { header }))
            }
            _ => Err(status::unexpected_outcome()),
        }
    }

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        Caller::of(&self.store, &request)?;
        let store = self.store.clone();
        let stop = self.store.stop_token();
        let answers = request.into_inner().then(move |request| {
            let store = store.clone();
            async move { keep_alive(&store, request?.id).await }
        });
        Ok(Response::new(answers.take_until(stop.cancelled_owned()).boxed()))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        let caller = Caller::of(&self.store, &request)?;
        let pb::LeaseTimeToLiveRequest { id, keys } = request.into_inner();
        let time = self.store.lease_time(id).await.map_err(|error| status::of_error(&error))?;
        self.linearize().await?;
        let (found, revision) = {
            let shared = self.store.shared();
            let state = shared.read();
            let keys = state.machine.lease(id).map(|(_, attached)| match keys {
                true => attached.iter().cloned().collect(),
                false => Vec::new(),
            });
            (time.zip(keys), state.machine.revision())
        };
        let header = Some(self.store.etcd_header(revision));
        let Some((time, keys)) = found else {
            let gone = pb::LeaseTimeToLiveResponse { header, id, ttl: -1, ..Default::default() };
            return Ok(Response::new(gone));
        };
        for key in &keys {
            caller.may_range(&self.store, key, &bytes::Bytes::new())?;
        }
        Ok(Response::new(pb::LeaseTimeToLiveResponse {
            header,
            id,
            ttl: i64::try_from(time.remaining.as_secs()).unwrap_or(i64::MAX),
            granted_ttl: time.ttl_seconds,
            keys,
        }))
    }

    async fn lease_leases(
        &self,
        request: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        Caller::of(&self.store, &request)?;
        self.linearize().await?;
        let shared = self.store.shared();
        let state = shared.read();
        let leases = state.machine.leases().map(|lease| pb::LeaseStatus { id: lease.id }).collect();
        let header = Some(self.store.etcd_header(state.machine.revision()));
        Ok(Response::new(pb::LeaseLeasesResponse { header, leases }))
    }
}
