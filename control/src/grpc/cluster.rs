//! The service `barque.control.v1.Cluster`: status, joining of nodes, hand-over of leadership.
//!
//! Who may ask: status and hand-over, operators (`system:masters`) and members; joining, whoever brings a
//! valid node token. The store's numbers come through [`StoreStatus`]; this module knows no raft.

use std::future::Future;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use proto::control::cluster_server::{Cluster as Service, ClusterServer};
use proto::control::{
    ExplainPodRequest, ExplainPodResponse, JoinNodeRequest, JoinNodeResponse, MemberStatus, NodeHeartbeat,
    NodeVerdict, PluginScore, StatusRequest, StatusResponse, TransferLeaderRequest, TransferLeaderResponse,
};
use tonic::{Request, Response, Status};

use super::identity;
use crate::auth::{BARQUE_MEMBERS, SYSTEM_MASTERS};
use crate::heartbeats::Heartbeats;
use crate::pki::{Authority, Error as PkiError, NodeToken};
use crate::scheduling::{ExplainError, Explainer, Explanation};

/// A member as the store sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemberSnapshot {
    /// Its id in the consensus group.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Where it is reached.
    pub address: String,
    /// Whether it votes.
    pub voter: bool,
    /// How far its log matches the leader's; 0 where this replica does not know.
    pub matched_index: u64,
}

/// The store's numbers at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreStatusSnapshot {
    /// This member's id.
    pub member_id: u64,
    /// `leader`, `follower`, `candidate` or `learner`.
    pub role: String,
    /// The raft term.
    pub term: u64,
    /// The leader; 0 if none is known.
    pub leader_id: u64,
    /// Last index in the log.
    pub last_log_index: u64,
    /// Last index known to be committed.
    pub committed_index: u64,
    /// Last index applied.
    pub applied_index: u64,
    /// Last index purged from the log.
    pub purged_index: u64,
    /// Applied index of the newest checkpoint known to be on disk.
    pub checkpoint_index: u64,
    /// The store's revision.
    pub revision: u64,
    /// Hash of the applied state at `applied_index`.
    pub state_hash: u64,
    /// The members.
    pub members: Vec<MemberSnapshot>,
}

/// Why leadership was not handed over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// Only the leader can hand over.
    #[error("this replica does not lead; ask member {leader_id}")]
    NotLeader {
        /// Who leads; 0 if unknown.
        leader_id: u64,
    },
    /// The target is no voter.
    #[error("member {member_id} is no voter of this cluster")]
    NoSuchVoter {
        /// What was asked for.
        member_id: u64,
    },
    /// It did not happen in time, or the store refused.
    #[error("leadership was not handed over: {reason}")]
    Failed {
        /// Why, in a sentence.
        reason: String,
    },
}

/// The future that [`StoreStatus::transfer_leader`] gives.
pub type TransferFuture<'a> = Pin<Box<dyn Future<Output = Result<(), TransferError>> + Send + 'a>>;

/// What this service asks of the store.
pub trait StoreStatus: Send + Sync + 'static {
    /// The store's numbers now.
    fn status(&self) -> StoreStatusSnapshot;

    /// Hands leadership to another voter.
    fn transfer_leader(&self, to_member_id: u64) -> TransferFuture<'_>;
}

/// The service.
#[derive(Clone)]
pub struct Cluster {
    member_name: String,
    store: Arc<dyn StoreStatus>,
    authority: Arc<Authority>,
    heartbeats: Heartbeats,
    explainer: Option<Explainer>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Cluster").field("member_name", &self.member_name).finish_non_exhaustive()
    }
}

impl Cluster {
    /// The service of the member of this name.
    pub fn new(
        member_name: String,
        store: Arc<dyn StoreStatus>,
        authority: Arc<Authority>,
        heartbeats: Heartbeats,
    ) -> Self {
        Self { member_name, store, authority, heartbeats, explainer: None }
    }

    /// The same, which also answers why pods are where they are.
    pub fn with_explainer(self, explainer: Explainer) -> Self {
        Self { explainer: Some(explainer), ..self }
    }

    /// The gRPC service. The server in front of it puts the caller's `Identity` into each request.
    pub fn service(&self) -> ClusterServer<Self> {
        ClusterServer::new(self.clone())
    }
}

fn check_operator<T>(request: &Request<T>) -> Result<(), Status> {
    let identity = identity(request);
    if [SYSTEM_MASTERS, BARQUE_MEMBERS].iter().any(|group| identity.in_group(group)) {
        return Ok(());
    }
    Err(Status::permission_denied(format!(
        "{:?} may not do this: a client certificate of group {SYSTEM_MASTERS} is needed",
        identity.user
    )))
}

#[tonic::async_trait]
impl Service for Cluster {
    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        check_operator(&request)?;
        let store = self.store.status();
        let now = Instant::now();
        let nodes = self.heartbeats.all().into_iter().map(|(node_name, beat)| NodeHeartbeat {
            node_name,
            milliseconds_since_heartbeat: u64::try_from(now.duration_since(beat.at).as_millis())
                .unwrap_or(u64::MAX),
            connected: beat.connected,
        });
        let members = store.members.into_iter().map(|member| MemberStatus {
            id: member.id,
            name: member.name,
            address: member.address,
            voter: member.voter,
            matched_index: member.matched_index,
        });
        Ok(Response::new(StatusResponse {
            cluster_id: self.authority.cluster_id(),
            member_id: store.member_id,
            member_name: self.member_name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            role: store.role,
            term: store.term,
            leader_id: store.leader_id,
            last_log_index: store.last_log_index,
            committed_index: store.committed_index,
            applied_index: store.applied_index,
            purged_index: store.purged_index,
            checkpoint_index: store.checkpoint_index,
            revision: store.revision,
            state_hash: store.state_hash,
            members: members.collect(),
            resident_bytes: resident_bytes(),
            nodes: nodes.collect(),
        }))
    }

    async fn join_node(
        &self,
        request: Request<JoinNodeRequest>,
    ) -> Result<Response<JoinNodeResponse>, Status> {
        let JoinNodeRequest { token, node_name, csr_pem } = request.into_inner();
        if let Some(problem) = api::name::dns1123_subdomain(&node_name).into_iter().next() {
            return Err(Status::invalid_argument(format!("node name {node_name:?}: {problem}")));
        }
        let token = NodeToken::from_str(token.trim())
            .map_err(|error| Status::invalid_argument(format!("the node token cannot be read: {error}")))?;
        let now = SystemTime::now();
        let refused = |error: PkiError| Status::unauthenticated(format!("the node may not join: {error}"));
        self.authority.verify_node_token(&token, now).map_err(refused)?;
        let certificate_pem = self
            .authority
            .sign_node_csr(&node_name, &csr_pem, now)
            .map_err(|error| Status::invalid_argument(format!("the request is not signed: {error}")))?;
        tracing::info!(node = node_name, token = token.id(), "a node joins");
        let ca_pem = self.authority.certificate_pem().to_owned();
        Ok(Response::new(JoinNodeResponse { certificate_pem, ca_pem }))
    }

    async fn explain_pod(
        &self,
        request: Request<ExplainPodRequest>,
    ) -> Result<Response<ExplainPodResponse>, Status> {
        check_operator(&request)?;
        let ExplainPodRequest { namespace, name } = request.into_inner();
        let explainer = self.explainer.as_ref().ok_or_else(|| Status::unavailable("no scheduler here"))?;
        let record = explainer.explain(&namespace, &name).await.map_err(|error| match error {
            ExplainError::NotLeader => Status::failed_precondition(error.to_string()),
            ExplainError::Unknown { .. } => Status::not_found(error.to_string()),
            ExplainError::Busy => Status::unavailable(error.to_string()),
        })?;
        Ok(Response::new(explained(&record)))
    }

    async fn transfer_leader(
        &self,
        request: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderResponse>, Status> {
        check_operator(&request)?;
        let to = request.into_inner().to_member_id;
        self.store.transfer_leader(to).await.map_err(|error| match error {
            TransferError::NotLeader { .. } => Status::failed_precondition(error.to_string()),
            TransferError::NoSuchVoter { .. } => Status::not_found(error.to_string()),
            TransferError::Failed { .. } => Status::unavailable(error.to_string()),
        })?;
        Ok(Response::new(TransferLeaderResponse {}))
    }
}

fn explained(record: &Explanation) -> ExplainPodResponse {
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let nodes = record.examined.iter().map(|node| {
        let (plugin, reason) = node.rejected.clone().unwrap_or_default();
        let scores =
            node.scores.iter().map(|(plugin, score)| PluginScore { plugin: plugin.clone(), score: *score });
        NodeVerdict {
            node: node.node.to_string(),
            rejected_by: plugin,
            reason,
            scores: scores.collect(),
            total: node.scores.iter().map(|(_, score)| score).sum(),
        }
    });
    ExplainPodResponse {
        uid: record.pod.uid.to_string(),
        resource_version: record.pod.resource_version.to_string(),
        node: record.node.as_deref().unwrap_or_default().to_owned(),
        message: record.message.clone(),
        feasible: count(record.feasible),
        nodes_total: count(record.nodes),
        in_hurry: record.in_hurry,
        nodes: nodes.collect(),
    }
}

/// This process's resident memory, from the second number of `/proc/self/statm`; 0 if it cannot be read.
fn resident_bytes() -> u64 {
    /// The page size of every platform that Barque runs on.
    const PAGE_BYTES: u64 = 4096;
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * PAGE_BYTES
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::auth::Identity;
    use crate::pki::ControlToken;

    struct Fixed;

    impl StoreStatus for Fixed {
        fn status(&self) -> StoreStatusSnapshot {
            let member = MemberSnapshot { id: 1, name: "m1".into(), voter: true, ..Default::default() };
            StoreStatusSnapshot {
                role: "leader".into(),
                term: 3,
                members: vec![member],
                ..Default::default()
            }
        }

        fn transfer_leader(&self, to_member_id: u64) -> TransferFuture<'_> {
            Box::pin(async move { Err(TransferError::NoSuchVoter { member_id: to_member_id }) })
        }
    }

    fn cluster() -> (Cluster, Arc<Authority>, Heartbeats) {
        let token = ControlToken::generate(SystemTime::now()).expect("random numbers");
        let authority = Arc::new(Authority::from_token(&token).expect("an authority"));
        let heartbeats = Heartbeats::default();
        let cluster = Cluster::new("m1".into(), Arc::new(Fixed), authority.clone(), heartbeats.clone());
        (cluster, authority, heartbeats)
    }

    fn by<T>(message: T, group: &str) -> Request<T> {
        let mut request = Request::new(message);
        let identity =
            Identity { user: "somebody".into(), groups: vec![group.into()], ..Identity::default() };
        request.extensions_mut().insert(identity);
        request
    }

    #[tokio::test]
    async fn operators_see_the_status_and_others_do_not() {
        let (cluster, _, heartbeats) = cluster();
        heartbeats.beat("n1", Instant::now());
        let status =
            cluster.status(by(StatusRequest {}, SYSTEM_MASTERS)).await.expect("allowed").into_inner();
        assert_eq!((status.role.as_str(), status.term, status.members.len()), ("leader", 3, 1));
        assert!(status.nodes[0].connected && status.resident_bytes > 0);
        let refused = cluster.status(by(StatusRequest {}, "system:nodes")).await.expect_err("refused");
        assert_eq!(refused.code(), tonic::Code::PermissionDenied);
        let refused = cluster.status(Request::new(StatusRequest {})).await.expect_err("refused");
        assert_eq!(refused.code(), tonic::Code::PermissionDenied);
        let transfer = by(TransferLeaderRequest { to_member_id: 9 }, SYSTEM_MASTERS);
        let refused = cluster.transfer_leader(transfer).await.expect_err("no such member");
        assert_eq!(refused.code(), tonic::Code::NotFound);
    }

    #[tokio::test]
    async fn a_node_joins_with_a_valid_token_only() {
        let (cluster, authority, _) = cluster();
        let now = SystemTime::now();
        let key = rcgen::KeyPair::generate().expect("a key");
        let csr = rcgen::CertificateParams::default().serialize_request(&key).expect("a request");
        let csr_pem = csr.pem().expect("PEM");
        let join = |token: String| {
            let request = JoinNodeRequest { token, node_name: "n1".into(), csr_pem: csr_pem.clone() };
            cluster.join_node(Request::new(request))
        };
        let token = authority.issue_node_token(Duration::from_secs(60), now).expect("a token");
        let joined = join(token.to_secret_text()).await.expect("joined").into_inner();
        assert!(joined.certificate_pem.contains("BEGIN CERTIFICATE"));
        assert_eq!(joined.ca_pem, authority.certificate_pem());
        let past = now - Duration::from_secs(3600);
        let expired = authority.issue_node_token(Duration::from_secs(60), past).expect("a token");
        let refused = join(expired.to_secret_text()).await.expect_err("expired");
        assert_eq!(refused.code(), tonic::Code::Unauthenticated);
        assert_eq!(join("nonsense".into()).await.expect_err("no token").code(), tonic::Code::InvalidArgument);
    }
}
