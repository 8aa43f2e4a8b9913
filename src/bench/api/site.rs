//! Where it is measured: replicas of our own, or somebody's cluster.

use std::path::Path;

use anyhow::Context as _;
use http::Method;
use serde_json::{Value, json};

use super::args::BenchApiArgs;
use crate::bench::pods::api::Api;
use crate::bench::scheduler::cluster::Cluster;
use crate::bench::usage::{Usage, resident_bytes};
use crate::kubeconfig::{self, Access};

/// The namespace of everything that is made.
pub(crate) const NAMESPACE: &str = "barque-bench-api";

/// The replicas.
pub(crate) enum Site {
    /// Ours; gone when it is dropped.
    Own(Cluster),
    /// Somebody's.
    Given(Access),
}

impl Site {
    /// Reaches or starts the replicas, and makes the namespace.
    pub(crate) async fn open(args: &BenchApiArgs) -> anyhow::Result<Self> {
        let temporary = std::env::temp_dir();
        let parent: &Path = args.dir.as_deref().unwrap_or(&temporary);
        let site = match &args.kubeconfig {
            Some(file) => Self::Given(kubeconfig::read(file)?),
            None => Self::Own(Cluster::start(parent, None).await?),
        };
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
        let made = site.api(0)?.send(Method::POST, "/api/v1/namespaces", &namespace).await;
        made.with_context(|| format!("cannot make the namespace {NAMESPACE}"))?;
        Ok(site)
    }

    /// A client; clients are spread over our replicas by number.
    pub(crate) fn api(&self, number: usize) -> anyhow::Result<Api> {
        match self {
            Self::Own(cluster) => cluster.api(number),
            Self::Given(access) => Api::new(access),
        }
    }

    /// What our replicas have used so far; nothing is known of somebody's.
    pub(crate) fn usage(&self) -> Option<Usage> {
        match self {
            Self::Own(cluster) => Some(Usage::of(&cluster.pids(), None)),
            Self::Given(_) => None,
        }
    }

    /// The memory of the largest of our replicas.
    pub(crate) fn resident_bytes(&self) -> Option<u64> {
        match self {
            Self::Own(cluster) => resident_bytes(&cluster.pids()).into_iter().max(),
            Self::Given(_) => None,
        }
    }

    /// Takes back what was made in somebody's cluster. Ours goes as a whole.
    pub(crate) async fn clear(&self) -> anyhow::Result<()> {
        if let Self::Given(_) = self {
            let path = format!("/api/v1/namespaces/{NAMESPACE}");
            self.api(0)?.send(Method::DELETE, &path, &Value::Null).await?;
        }
        Ok(())
    }
}
