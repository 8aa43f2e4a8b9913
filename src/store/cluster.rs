//! Which cluster a member belongs to: one that its flags describe, one that it joins, one that is made anew
//! from what is left of another.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use raft_store::offline::NewCluster;
use raft_store::{Member, MemberId};

use super::settings::{self, Settings};
use super::url::Url;
use super::{ids, tls};

/// How long a member that is to join looks for the cluster.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);
const JOIN_PAUSE: Duration = Duration::from_millis(200);

/// Ids of a cluster and of its members, by name and peer URLs.
pub(super) fn initial(
    cluster: &BTreeMap<String, Vec<Url>>,
    token: &str,
) -> ([u8; 16], BTreeMap<MemberId, Member>) {
    let members: BTreeMap<MemberId, Member> = cluster
        .iter()
        .map(|(name, urls)| {
            let peer_urls = settings::texts(urls);
            let address = urls.first().map(Url::authority).unwrap_or_default();
            (ids::member_id(&peer_urls, token), Member { peer_urls, ..Member::new(name, address) })
        })
        .collect();
    (ids::cluster_id(members.keys().copied().collect()), members)
}

/// Finds the cluster that has this member on its list, and the id that it has there.
pub(super) async fn joining(settings: &Settings) -> anyhow::Result<raft_store::Config> {
    let own = sorted(settings::texts(&settings.advertise_peer));
    let peer_tls = settings.peer_tls.as_ref().map(tls::peer).transpose()?;
    let others = settings.initial_cluster.iter().filter(|(name, _)| **name != settings.name);
    let addresses: Vec<String> = others.flat_map(|(_, urls)| urls.iter().map(Url::authority)).collect();
    ensure!(!addresses.is_empty(), "--initial-cluster names nobody who could be joined");
    let deadline = tokio::time::Instant::now() + JOIN_TIMEOUT;
    loop {
        let mut failures = Vec::new();
        for address in &addresses {
            let description = match raft_store::describe_cluster(peer_tls.clone(), address).await {
                Ok(description) => description,
                Err(error) => {
                    failures.push(error);
                    continue;
                }
            };
            let mut members = description.members.iter();
            let Some((id, _)) = members.find(|(_, member)| sorted(member.peer_urls.clone()) == own) else {
                failures.push(format!("{address} does not have {} on its list", own.join(",")));
                continue;
            };
            let id = *id;
            let (cluster_id, members) = (description.cluster_id, description.members);
            let mut config = raft_store::Config::new(cluster_id, id, members, settings.data_dir.clone());
            config.join = true;
            return Ok(config);
        }
        if tokio::time::Instant::now() >= deadline {
            bail!(
                "cannot join: {}. Run `barque member add` first, with the URLs of --initial-advertise-peer-urls",
                failures.join("; ")
            );
        }
        tokio::time::sleep(JOIN_PAUSE).await;
    }
}

fn sorted(mut urls: Vec<String>) -> Vec<String> {
    urls.sort();
    urls
}

/// Flags that describe a cluster to be made, and the member whose directory is made. As etcdutl's.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct NewMember {
    /// The member's name.
    #[arg(long, default_value = settings::NAME)]
    name: String,
    /// The directory to make; default: the name and `.etcd`.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// name=url,… of every member of the new cluster; default: this one alone.
    #[arg(long, value_name = "MEMBERS")]
    initial_cluster: Option<String>,
    /// What makes the new cluster's ids its own.
    #[arg(long, value_name = "TOKEN", default_value = settings::TOKEN)]
    initial_cluster_token: String,
    /// Where the other members find this one.
    #[arg(long, value_name = "URLS", default_value = settings::PEER_URL)]
    initial_advertise_peer_urls: String,
}

impl NewMember {
    /// The cluster of a restored snapshot: the same for each of its members, and never the one that was saved.
    pub(crate) fn restored(&self, bump_revision: u64) -> anyhow::Result<NewCluster> {
        self.cluster(bump_revision, &format!("{} restored", self.initial_cluster_token))
    }

    /// The cluster of a recovered member: another one each time.
    pub(super) fn recovered(&self, bump_revision: u64) -> anyhow::Result<NewCluster> {
        ensure!(
            self.initial_cluster.is_none(),
            "a recovered cluster begins with one member; add the others with `barque member add`"
        );
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        self.cluster(bump_revision, &format!("{} recovered {}", self.initial_cluster_token, now.as_nanos()))
    }

    fn cluster(&self, bump_revision: u64, token: &str) -> anyhow::Result<NewCluster> {
        let own = Url::parse_list(&self.initial_advertise_peer_urls)?;
        let cluster = match &self.initial_cluster {
            Some(list) => settings::parse_initial_cluster(list).context("--initial-cluster")?,
            None => BTreeMap::from([(self.name.clone(), own)]),
        };
        let (cluster_id, members) = initial(&cluster, token);
        let member_id = members.iter().find(|(_, member)| member.name == self.name).map(|(id, _)| *id);
        Ok(NewCluster {
            cluster_id,
            member_id: member_id
                .with_context(|| format!("--initial-cluster does not name {:?}", self.name))?,
            members,
            data_dir: self.data_dir.clone().unwrap_or_else(|| PathBuf::from(format!("{}.etcd", self.name))),
            bump_revision,
        })
    }
}
