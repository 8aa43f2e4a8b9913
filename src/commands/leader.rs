//! `barque leader`: hands the leadership of a store over.

use anyhow::Context as _;
use clap::{Args, Subcommand};
use proto::etcd::etcdserverpb as pb;

use super::print;
use crate::store::client::{StoreClient, StoreFlags, parse_id, said};

/// What can be done about the leader.
#[derive(Debug, Subcommand)]
pub(crate) enum LeaderCommand {
    /// Hands the leadership to another member.
    Transfer(TransferArgs),
}

/// Flags of `transfer`.
#[derive(Debug, Args)]
pub(crate) struct TransferArgs {
    #[command(flatten)]
    store: StoreFlags,
    /// The id of the member that is to lead.
    #[arg(value_parser = parse_id)]
    id: u64,
}

/// Carries the command out.
pub(crate) fn run(command: &LeaderCommand) -> anyhow::Result<()> {
    let LeaderCommand::Transfer(args) = command;
    super::event_loop(1)?.block_on(async {
        // Only the leader takes the request, so it is looked for.
        let any = StoreClient::connect(&args.store).await?;
        let status = any.maintenance().status(pb::StatusRequest {}).await.map_err(said)?.into_inner();
        let own = status.header.as_ref().map_or(0, |header| header.member_id);
        let leader = match status.leader == own {
            true => any,
            false => at_member(args, &any, status.leader).await?,
        };
        let request = pb::MoveLeaderRequest { target_id: args.id };
        leader.maintenance().move_leader(request).await.map_err(said)?;
        print(&format!("Leadership transferred from {:x} to {:x}\n", status.leader, args.id))
    })
}

async fn at_member(args: &TransferArgs, any: &StoreClient, id: u64) -> anyhow::Result<StoreClient> {
    let request = pb::MemberListRequest { linearizable: false };
    let members = any.cluster().member_list(request).await.map_err(said)?.into_inner().members;
    let leader = members.into_iter().find(|member| member.id == id).context("the store has no leader now")?;
    let url = leader.client_ur_ls.first().context("the leader does not say where clients find it")?;
    StoreClient::connect_to(&args.store, url).await.with_context(|| format!("the leader at {url}"))
}
