//! One client: a place at a member, a name in the history, and what became of a request.

use std::future::Future;
use std::time::Duration;

use proto::etcd::etcdserverpb as pb;
use proto::etcd::etcdserverpb::kv_client::KvClient;
use proto::etcd::etcdserverpb::lease_client::LeaseClient;
use proto::etcd::etcdserverpb::watch_client::WatchClient;
use proto::etcd::v3electionpb::election_client::ElectionClient;
use proto::etcd::v3lockpb::lock_client::LockClient;
use rand::Rng as _;
use rand::rngs::StdRng;
use serde_json::Value;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use super::Target;
use super::pace::{Pace, random_of};
use super::voice::Voice;

/// Largest answer that is taken.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// What became of a request without success.
#[derive(Debug, Clone)]
pub enum Failure {
    /// It was certainly not carried out.
    NotDone(String),
    /// Nobody knows.
    Unknown(String),
}

impl Failure {
    fn of(status: &Status) -> Self {
        let text = format!("{:?}: {}", status.code(), status.message());
        // What the store says of its own state before it takes a request in. All else may have been carried out.
        match status.code() {
            Code::InvalidArgument
            | Code::NotFound
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::ResourceExhausted
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented => Self::NotDone(text),
            _ => Self::Unknown(text),
        }
    }
}

/// See the module.
pub struct Session {
    target: Target,
    /// Tells clients apart, and is where each begins.
    pub index: usize,
    voice: Voice,
    at: usize,
    channel: Channel,
    pace: Pace,
    /// What this client chooses by.
    pub random: StdRng,
}

impl Session {
    /// A client that begins at the member of its number.
    pub fn new(target: &Target, index: usize, process: i64, pause: Duration) -> Self {
        let at = index % target.endpoints.len();
        Self {
            channel: (target.channel)(target.endpoints[at]),
            random: random_of(target.seed, index),
            voice: Voice::new(target.recorder.clone(), process),
            target: target.clone(),
            index,
            at,
            pace: Pace::new(target.stop.clone(), pause),
        }
    }

    /// Waits for this client's next turn; false when it is time to end.
    pub async fn turn(&mut self) -> bool {
        self.pace.turn().await
    }

    /// Whether it is time to end.
    pub fn is_over(&self) -> bool {
        self.target.stop.is_cancelled()
    }

    /// Completes when it is time to end.
    pub async fn over(&self) {
        self.target.stop.cancelled().await;
    }

    /// Goes to the next member.
    pub fn move_on(&mut self) {
        self.at = (self.at + 1) % self.target.endpoints.len();
        self.channel = (self.target.channel)(self.target.endpoints[self.at]);
    }

    /// A number between nothing and `until`.
    pub fn pick(&mut self, until: u64) -> u64 {
        self.random.random_range(0..until.max(1))
    }

    pub(super) fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub(super) fn leases(&self) -> LeaseClient<Channel> {
        LeaseClient::new(self.channel.clone())
    }

    pub(super) fn watches(&self) -> WatchClient<Channel> {
        WatchClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub(super) fn locks(&self) -> LockClient<Channel> {
        LockClient::new(self.channel.clone())
    }

    pub(super) fn elections(&self) -> ElectionClient<Channel> {
        ElectionClient::new(self.channel.clone())
    }

    /// Waits for an answer, but not longer than allowed.
    pub(super) async fn answer<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(self.target.timeout, call).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(Failure::of(&status)),
            Err(_) => Err(Failure::Unknown(format!("no answer within {:?}", self.target.timeout))),
        }
    }

    /// A linearizable read.
    pub(super) async fn range(&self, request: pb::RangeRequest) -> Result<pb::RangeResponse, Failure> {
        let mut kv = self.kv();
        // A read that failed had no effect, whatever became of it.
        self.answer(kv.range(request)).await.map_err(|failure| match failure {
            Failure::NotDone(text) | Failure::Unknown(text) => Failure::NotDone(text),
        })
    }

    pub(super) async fn txn(&self, request: pb::TxnRequest) -> Result<pb::TxnResponse, Failure> {
        let mut kv = self.kv();
        self.answer(kv.txn(request)).await
    }

    /// A call begins.
    pub fn invoke(&self, f: &str, value: Value) {
        self.voice.invoke(f, value);
    }

    /// It was done.
    pub fn ok(&self, f: &str, value: Value) {
        self.voice.ok(f, value);
    }

    /// It was not, or nobody knows. The client goes to the next member, and to a new name if its last call may still be carried
    /// out.
    pub fn failed(&mut self, f: &str, value: Value, failure: Failure) {
        self.voice.failed(f, value, failure);
        self.move_on();
    }

    /// It was refused by a comparison: certain, and no reason to leave this member.
    pub fn refused(&self, f: &str, value: Value) {
        self.voice.fail(f, value, "the comparison did not hold");
    }
}
