//! `barque store`: one member of a store alone, in place of etcd.
//!
//! Composition root: settings, ids, the store, its ports; and their order at the start and at the end.
//!
//! ```text
//!   flags, ETCD_*, file ─► settings ─► store ─► peer ports (barque.raft.v1)
//!                                           └─► client ports (etcd v3, /health, /metrics)
//! ```

mod bare_authority;
mod body;
pub(crate) mod client;
mod cluster;
mod config_file;
mod flags;
mod ids;
mod listener;
mod metrics;
mod plain;
mod recover;
mod settings;
mod tls;
mod unary;
mod url;

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use raft_store::etcd::{AuthToken, Unary};
use raft_store::{Member, Store, wal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::RoutesBuilder;

pub(crate) use cluster::NewMember;
use flags::{Asked, Given};
use listener::{Port, Services};
use metrics::GrpcMetrics;
use plain::Plain;
use settings::{ClusterState, Settings};
use tls::{Callers, Watched};

use crate::{logging, signals};

/// Worker threads: consensus is one task after another, and requests are short.
const WORKER_THREADS_MAX: usize = 8;

/// Runs a member until TERM or INT; prints help or version when asked to.
pub(crate) fn run(args: impl IntoIterator<Item = OsString>) -> anyhow::Result<()> {
    let mut args = args.into_iter().peekable();
    if args.next_if(|first| first == "recover").is_some() {
        return recover::run(args);
    }
    let mutant = |arg: &OsString| Some(arg.to_str()?.strip_prefix("--test-mutant=")?.to_owned());
    if let Some(name) = args.peek().and_then(mutant) {
        args.next();
        raft_store::mutants::choose(&name).map_err(anyhow::Error::msg)?;
    }
    let given = match flags::read(args, std::env::vars_os())? {
        Asked::Run(given) => given,
        Asked::Help => return crate::commands::print(&flags::help()),
        Asked::Version => {
            return crate::commands::print(&format!(
                "barque {}\netcd version: {}\n",
                env!("CARGO_PKG_VERSION"),
                raft_store::etcd::VERSION
            ));
        }
    };
    let given = match given.get("config-file") {
        Some(path) => config_file::read(Path::new(path))?,
        None => given,
    };
    let settings = Settings::of(&given)?;
    logging::start(&settings.log_level)?;
    remark(&given);
    crate::commands::run_service(WORKER_THREADS_MAX, serve(settings))
}

fn remark(given: &Given) {
    for remark in &given.remarks {
        tracing::warn!("{remark}");
    }
}

async fn serve(settings: Settings) -> anyhow::Result<()> {
    let shutdown = signals::shutdown_token()?;
    let peer_files = settings.peer_tls.as_ref().map(Watched::now);
    let config = store_config(&settings).await?;
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let client_tls = settings.client_tls.as_ref().map(|files| {
        let callers = if files.client_cert_auth { Callers::Must } else { Callers::May };
        tls::serving(files, callers, &tasks, &stop)
    });
    let client_tls = client_tls.transpose().context("the certificates for clients")?;
    let peer_tls = settings.peer_tls.as_ref().map(|files| tls::serving(files, Callers::Must, &tasks, &stop));
    let peer_tls = peer_tls.transpose().context("the certificates for members")?;

    // Everything is bound before the store opens: a second process fails here, and peers do not wait for it.
    let mut peer_ports = Vec::new();
    for url in &settings.listen_peer {
        peer_ports.push(Port::bind(url, peer_tls.as_ref()).await?);
    }
    let mut client_ports = Vec::new();
    for url in &settings.listen_client {
        client_ports.push(Port::bind(url, client_tls.as_ref()).await?);
    }
    let mut plain_ports = Vec::new();
    for url in settings.listen_metrics.iter().chain(&settings.listen_http) {
        plain_ports.push(Port::bind(url, client_tls.as_ref()).await?);
    }

    let member_id = config.member_id;
    let store = Store::open(config)
        .await
        .with_context(|| format!("the directory {}", settings.data_dir.display()))?;
    if let Some(files) = peer_files {
        let store = store.clone();
        files.follow(&tasks, &stop, move |files| {
            store.set_peer_tls(tls::peer(files)?);
            Ok(())
        });
    }
    let mut peer_routes = RoutesBuilder::default();
    peer_routes.add_service(store.peer_service());
    let peers = Services {
        grpc: Some(peer_routes.routes().prepare()),
        unary: None,
        plain: None,
        metrics: None,
        allowed_cn: settings.peer_allowed_cn.as_deref().map(Arc::from),
    };
    let grpc = Arc::new(GrpcMetrics::default());
    let plain = Arc::new(Plain { store: store.clone(), grpc: Arc::clone(&grpc) });
    let clients = Services {
        grpc: Some(raft_store::etcd::services(&store).prepare()),
        unary: Some(Arc::new(Unary::new(&store))),
        plain: Some(Arc::clone(&plain)),
        metrics: Some(grpc),
        allowed_cn: None,
    };
    let plain = Services { grpc: None, unary: None, plain: Some(plain), metrics: None, allowed_cn: None };
    // Peers are answered until the very end: a leader hands over through this port.
    let stop_peers = CancellationToken::new();
    for port in peer_ports {
        tasks.spawn(port.serve(peers.clone(), stop_peers.clone()));
    }
    for (ports, services) in [(client_ports, &clients), (plain_ports, &plain)] {
        for port in ports {
            tasks.spawn(port.serve(services.clone(), stop.clone()));
        }
    }
    let clients = settings::texts(&settings.listen_client).join(",");
    tracing::info!(name = settings.name, member_id = %format!("{member_id:x}"), clients, "serving");
    let failed = tokio::select! {
        () = shutdown.cancelled() => None,
        reason = store.failed() => Some(reason),
    };
    stop.cancel();
    store.shutdown().await;
    stop_peers.cancel();
    tasks.close();
    tasks.wait().await;
    match failed {
        None => Ok(()),
        Some(reason) => bail!("this member has stopped by itself: {reason}"),
    }
}

/// Translates the settings into the store's configuration.
async fn store_config(settings: &Settings) -> anyhow::Result<raft_store::Config> {
    refuse_foreign(&settings.data_dir)?;
    let mut config = match wal::identity_in(&settings.data_dir.join("wal"))? {
        // A member that has started before is who it was; the flags about the cluster are of no account.
        Some(identity) => {
            let (_, members) = cluster::initial(&settings.initial_cluster, &settings.token);
            raft_store::Config::new(
                identity.cluster_id,
                identity.member_id,
                members,
                settings.data_dir.clone(),
            )
        }
        None if settings.state == ClusterState::Existing => cluster::joining(settings).await?,
        None => {
            let (cluster_id, members) = cluster::initial(&settings.initial_cluster, &settings.token);
            let own = members.iter().find(|(_, member)| member.name == settings.name);
            let own = own.map(|(id, _)| *id).context("--initial-cluster does not name this member")?;
            raft_store::Config::new(cluster_id, own, members, settings.data_dir.clone())
        }
    };
    config.member = Member {
        client_urls: settings::texts(&settings.advertise_client),
        peer_urls: settings::texts(&settings.advertise_peer),
        ..Member::new(&settings.name, "")
    };
    config.peer_tls = settings.peer_tls.as_ref().map(tls::peer).transpose()?;
    if let Some(interval) = settings.heartbeat_interval {
        config.heartbeat_interval = interval;
    }
    if let Some(timeout) = settings.election_timeout {
        // As in etcd: a random time between once and twice of it.
        config.election_timeout_min = timeout;
        config.election_timeout_max = 2 * timeout;
    }
    if let Some(entries) = settings.snapshot_count {
        config.checkpoint_entries = entries.max(1);
    }
    if let Some(ops) = settings.max_txn_ops {
        config.txn_ops_max = ops;
    }
    if let Some(bytes) = settings.max_request_bytes {
        config.request_bytes_max = bytes;
    }
    if let Some(bytes) = settings.snapshot_bytes_per_second {
        config.snapshot_bytes_per_second = bytes;
    }
    config.lease_reads = settings.lease_reads;
    config.compaction = settings.compaction;
    config.strict_membership = settings.strict_reconfig_check;
    config.learners_max = settings.learners_max.unwrap_or(config.learners_max);
    config.quota_bytes = settings.quota_bytes.unwrap_or(config.quota_bytes);
    config.bcrypt_cost = settings.bcrypt_cost.unwrap_or(config.bcrypt_cost);
    if let Some(token) = &settings.auth_token {
        config.auth_token = AuthToken::parse(token).context("--auth-token")?;
    }
    if let (AuthToken::Simple { ttl }, Some(given)) = (&mut config.auth_token, settings.auth_token_ttl) {
        *ttl = given;
    }
    Ok(config)
}

/// A directory of etcd is neither read nor overwritten.
fn refuse_foreign(data_dir: &Path) -> anyhow::Result<()> {
    if data_dir.join("member").is_dir() {
        bail!(
            "{} belongs to etcd. Copy the data with `etcdctl snapshot` or `etcdctl make-mirror` into a store that \
             runs on a directory of its own",
            data_dir.display()
        );
    }
    Ok(())
}
