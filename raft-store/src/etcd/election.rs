//! `v3electionpb.Election`: who has the oldest key under an election's name leads; the key's value is what it
//! proclaims.

use std::pin::Pin;

use bytes::Bytes;
use futures_util::Stream;
use proto::etcd::v3electionpb as pb;
use proto::etcd::v3electionpb::election_server::{Election, ElectionServer};
use state_machine::{Op, Record, TxnCommand};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use super::access::Caller;
use super::concurrency::{
    self, Abandon, Place, Session, created_at, get, head_of, key_of, prefix_end, put, range_at,
};
use super::{convert, status};
use crate::error::Error;
use crate::store::Store;

/// Proclamations that wait for an observer.
const OBSERVED_MAX: usize = 16;

pub(crate) fn service(store: Store) -> ElectionServer<ElectionService> {
    ElectionServer::new(ElectionService { store })
}

pub(crate) struct ElectionService {
    store: Store,
}

fn no_leader() -> Status {
    Status::new(Code::Unknown, "election: no leader")
}

fn not_leader() -> Status {
    Status::new(Code::Unknown, "election: not leader")
}

fn missing_leader_key() -> Status {
    Status::new(Code::Unknown, "\"leader\" field must be provided")
}

impl ElectionService {
    fn session<T>(&self, request: &Request<T>) -> Result<Session, Status> {
        Ok(Session { store: self.store.clone(), caller: Caller::of(&self.store, request)?.for_part() })
    }
}

fn place_of(leader: &pb::LeaderKey) -> Place {
    // No key was ever created at a negative revision.
    Place { key: leader.key.clone(), create_revision: u64::try_from(leader.rev).unwrap_or(u64::MAX) }
}

/// Says another value, as long as the place is still the caller's; returns the revision.
async fn proclaim(session: &Session, place: &Place, lease: i64, value: Bytes) -> Result<u64, Status> {
    if place.key.is_empty() {
        return Err(concurrency::passed_on(status::empty_key()));
    }
    let outcome = session
        .txn(TxnCommand {
            compares: vec![created_at(&place.key, place.create_revision)],
            success: vec![put(&place.key, value, lease)],
            ..TxnCommand::default()
        })
        .await?;
    if outcome.succeeded { Ok(outcome.revision) } else { Err(not_leader()) }
}

#[tonic::async_trait]
impl Election for ElectionService {
    type ObserveStream = Pin<Box<dyn Stream<Item = Result<pb::LeaderResponse, Status>> + Send>>;

    async fn campaign(
        &self,
        request: Request<pb::CampaignRequest>,
    ) -> Result<Response<pb::CampaignResponse>, Status> {
        let session = self.session(&request)?;
        let pb::CampaignRequest { name, lease, value } = request.into_inner();
        let lease = session.lease(lease).await?;
        let prefix = concurrency::prefix(&name);
        let key = key_of(&prefix, lease);
        let outcome = session
            .txn(TxnCommand {
                compares: vec![created_at(&key, 0)],
                success: vec![put(&key, value.clone(), lease)],
                failure: vec![Op::Range(get(&key))],
                ..TxnCommand::default()
            })
            .await?;
        let there = range_at(&outcome, 0).and_then(|found| found.kvs.first());
        let create_revision = there.map_or(outcome.revision, |there| there.create_revision);
        let place = Place { key: key.clone(), create_revision };
        let abandon = Abandon::guard(&session, &place);
        if there.is_some_and(|there| there.value != value) {
            proclaim(&session, &place, lease, value).await?;
        }
        session.wait_for_head(&prefix, &place).await?;
        abandon.disarm();
        let leader = pb::LeaderKey { name, key, rev: convert::signed(create_revision), lease };
        let header = session.header(outcome.revision);
        Ok(Response::new(pb::CampaignResponse { header, leader: Some(leader) }))
    }

    async fn proclaim(
        &self,
        request: Request<pb::ProclaimRequest>,
    ) -> Result<Response<pb::ProclaimResponse>, Status> {
        let session = self.session(&request)?;
        let pb::ProclaimRequest { leader, value } = request.into_inner();
        let leader = leader.ok_or_else(missing_leader_key)?;
        let lease = session.lease(leader.lease).await?;
        let revision = proclaim(&session, &place_of(&leader), lease, value).await?;
        Ok(Response::new(pb::ProclaimResponse { header: session.header(revision) }))
    }

    async fn leader(
        &self,
        request: Request<pb::LeaderRequest>,
    ) -> Result<Response<pb::LeaderResponse>, Status> {
        let session = self.session(&request)?;
        let prefix = concurrency::prefix(&request.into_inner().name);
        let found = session.range(&head_of(&prefix)).await?;
        let leader = found.kvs.first().ok_or_else(no_leader)?;
        let kv = Some(convert::key_value(leader));
        Ok(Response::new(pb::LeaderResponse { header: session.header(found.revision), kv }))
    }

    async fn observe(
        &self,
        request: Request<pb::LeaderRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let session = self.session(&request)?;
        let prefix = concurrency::prefix(&request.into_inner().name);
        let (tx, rx) = mpsc::channel(OBSERVED_MAX);
        self.store.tasks().spawn(async move {
            let observer = Observer { session: session.clone(), prefix, tx: tx.clone() };
            let error = tokio::select! {
                // The observer has gone.
                () = tx.closed() => return,
                () = session.store.stopping() => status::stopped(),
                Err(error) = observer.run() => error,
            };
            // One that does not listen any more needs no reason.
            let _ = tx.send(Err(error)).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }

    async fn resign(
        &self,
        request: Request<pb::ResignRequest>,
    ) -> Result<Response<pb::ResignResponse>, Status> {
        let session = self.session(&request)?;
        let leader = request.into_inner().leader.ok_or_else(missing_leader_key)?;
        if leader.key.is_empty() {
            return Err(concurrency::passed_on(status::empty_key()));
        }
        let outcome = session.leave(&place_of(&leader)).await?;
        Ok(Response::new(pb::ResignResponse { header: session.header(outcome.revision) }))
    }
}

/// Follows one election.
struct Observer {
    session: Session,
    prefix: Bytes,
    tx: mpsc::Sender<Result<pb::LeaderResponse, Status>>,
}

impl Observer {
    /// Never ends well: it is dropped when nobody observes any more.
    async fn run(&self) -> Result<std::convert::Infallible, Status> {
        loop {
            match self.follow_one().await {
                // What was missed is compacted: go on with who leads now.
                Ok(()) | Err(Followed::Watch(Error::Compacted { .. })) => {}
                Err(Followed::Watch(error)) => return Err(status::of_error(&error)),
                Err(Followed::Read(status)) => return Err(status),
            }
        }
    }

    /// Follows one leader, the present or the next, until its key is gone.
    async fn follow_one(&self) -> Result<(), Followed> {
        let found = self.session.range(&head_of(&self.prefix)).await?;
        let (key, revision) = match found.kvs.first() {
            Some(leader) => {
                self.send(leader, found.revision).await;
                (leader.key.clone(), found.revision)
            }
            None => self.first_campaign(found.revision).await?,
        };
        let mut watcher = self.session.store.watch(key, Bytes::new(), revision + 1)?;
        loop {
            for batch in watcher.next().await? {
                for event in batch.events {
                    if event.is_delete() {
                        return Ok(());
                    }
                    self.send(&event.kv, batch.revision).await;
                }
            }
        }
    }

    async fn first_campaign(&self, from: u64) -> Result<(Bytes, u64), Followed> {
        let mut watcher = self.session.store.watch(self.prefix.clone(), prefix_end(&self.prefix), from)?;
        loop {
            for batch in watcher.next().await? {
                if let Some(event) = batch.events.iter().find(|event| !event.is_delete()) {
                    self.send(&event.kv, batch.revision).await;
                    return Ok((event.kv.key.clone(), batch.revision));
                }
            }
        }
    }

    async fn send(&self, leader: &Record, revision: u64) {
        let response = pb::LeaderResponse {
            header: self.session.header(revision),
            kv: Some(convert::key_value(leader)),
        };
        // Fails when the observer has gone, which ends this task anyway.
        let _ = self.tx.send(Ok(response)).await;
    }
}

/// Why a leader could not be followed.
enum Followed {
    Watch(Error),
    Read(Status),
}

impl From<Error> for Followed {
    fn from(error: Error) -> Self {
        Self::Watch(error)
    }
}

impl From<Status> for Followed {
    fn from(status: Status) -> Self {
        Self::Read(status)
    }
}
