//! The node agent: dials the control plane, receives the pods bound to its node, runs them, and says
//! truthfully what became of them.
//!
//! The agent holds no truth of its own: what should run comes from the leader's session, what does run
//! from the runtime. What it decided in between (restart counts, back-off, addresses) lies in small files,
//! so that an agent that died is replaced by one that adopts the running containers.

mod agent;
mod allocatable;
mod config;
pub mod cri;
mod cri_client;
mod dns;
pub mod engine;
mod error;
mod eviction;
mod exec;
mod handlers;
mod hooks;
mod host_shutdown;
mod image_upkeep;
pub mod images;
mod ingress;
mod join;
pub mod local;
mod local_volumes;
mod machine;
mod measurements;
mod network;
mod node_state;
mod node_status;
mod objects;
mod pods;
mod probes;
mod resource_usage;
mod session;
mod static_pods;
mod streaming;
mod tokens;
mod user_ids;

pub use agent::{run, run_until};
pub use config::{BackoffConfig, Config, ConfigError, ShutdownGrace, Taint, TlsFiles};
pub use error::Error;
pub use join::JoinError;
pub use network::{CniConfig, Encapsulation, PodNetworkConfig};
pub use user_ids::UserNamespacesConfig;
