//! A member that is lost with its data is taken out of the group, and an empty one is taken in at its place.

use proto::etcd::etcdserverpb as pb;
use proto::etcd::etcdserverpb::cluster_client::ClusterClient;
use tonic::Status;
use tonic::transport::Channel;

/// One step towards that: asks a member that is there for the list, and takes out who is `lost`, or takes in who is to be found at
/// `peer_url`. Gives the list when nothing is left to do. Steps can be repeated, whatever became of the one before.
///
/// # Errors
/// When the member does not answer, or refuses for now.
pub async fn exchange(
    channel: Channel,
    lost: u64,
    peer_url: &str,
) -> Result<Option<Vec<pb::Member>>, Status> {
    let mut cluster = ClusterClient::new(channel);
    let list = cluster.member_list(pb::MemberListRequest { linearizable: true }).await?.into_inner().members;
    if list.iter().any(|member| member.id == lost) {
        cluster.member_remove(pb::MemberRemoveRequest { id: lost }).await?;
        return Ok(None);
    }
    if list.iter().any(|member| member.peer_ur_ls.iter().any(|url| url == peer_url)) {
        return Ok(Some(list));
    }
    let peer_ur_ls = vec![peer_url.to_owned()];
    cluster.member_add(pb::MemberAddRequest { peer_ur_ls, is_learner: false }).await?;
    Ok(None)
}
