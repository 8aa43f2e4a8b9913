//! `barque member`: who belongs to a store. Output as etcdctl's.

use clap::{Args, Subcommand};
use proto::etcd::etcdserverpb as pb;
use serde_json::{Value, json};

use super::print;
use crate::store::client::{Format, StoreClient, StoreFlags, parse_id, said};

/// What can be done with members.
#[derive(Debug, Subcommand)]
pub(crate) enum MemberCommand {
    /// Lists the members.
    List(ListArgs),
    /// Adds a member, which is then started with `--initial-cluster-state existing`.
    Add(AddArgs),
    /// Removes a member; it stops by itself, and its id never comes back.
    Remove(IdArgs),
    /// Gives a learner that has caught up a vote.
    Promote(IdArgs),
    /// Tells the members that one of them is found elsewhere.
    Update(UpdateArgs),
}

/// Flags of `list`.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    store: StoreFlags,
}

/// Flags of `add`.
#[derive(Debug, Args)]
pub(crate) struct AddArgs {
    #[command(flatten)]
    store: StoreFlags,
    /// The new member's name.
    name: String,
    /// Where the others find it, separated by commas.
    #[arg(long, value_name = "URLS", value_delimiter = ',', required = true)]
    peer_urls: Vec<String>,
    /// It gets no vote before it is promoted.
    #[arg(long)]
    learner: bool,
}

/// Flags of commands that name a member.
#[derive(Debug, Args)]
pub(crate) struct IdArgs {
    #[command(flatten)]
    store: StoreFlags,
    /// The member's id.
    #[arg(value_parser = parse_id)]
    id: u64,
}

/// Flags of `update`.
#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    #[command(flatten)]
    member: IdArgs,
    /// Where the others find it, separated by commas.
    #[arg(long, value_name = "URLS", value_delimiter = ',', required = true)]
    peer_urls: Vec<String>,
}

/// Carries the command out.
pub(crate) fn run(command: &MemberCommand) -> anyhow::Result<()> {
    super::event_loop(1)?.block_on(async {
        match command {
            MemberCommand::List(args) => list(args).await,
            MemberCommand::Add(args) => add(args).await,
            MemberCommand::Remove(args) => remove(args).await,
            MemberCommand::Promote(args) => promote(args).await,
            MemberCommand::Update(args) => update(args).await,
        }
    })
}

async fn list(args: &ListArgs) -> anyhow::Result<()> {
    let request = pb::MemberListRequest { linearizable: true };
    let answer =
        StoreClient::connect(&args.store).await?.cluster().member_list(request).await.map_err(said)?;
    let answer = answer.into_inner();
    let rows = answer.members.iter().map(row);
    print(&match args.store.write_out {
        Format::Simple => rows.map(|row| row.join(", ") + "\n").collect(),
        Format::Table => {
            let head = ["ID", "STATUS", "NAME", "PEER ADDRS", "CLIENT ADDRS", "IS LEARNER"];
            super::boxed_table(&head, &rows.collect::<Vec<_>>())
        }
        Format::Json => members_json(answer.header.as_ref(), &answer.members),
    })
}

async fn add(args: &AddArgs) -> anyhow::Result<()> {
    let request = pb::MemberAddRequest { peer_ur_ls: args.peer_urls.clone(), is_learner: args.learner };
    let answer =
        StoreClient::connect(&args.store).await?.cluster().member_add(request).await.map_err(said)?;
    let answer = answer.into_inner();
    let id = answer.member.as_ref().map_or(0, |member| member.id);
    if args.store.write_out == Format::Json {
        return print(&members_json(answer.header.as_ref(), &answer.members));
    }
    let mut cluster: Vec<String> = Vec::new();
    for member in &answer.members {
        let name = if member.id == id { &args.name } else { &member.name };
        cluster.extend(member.peer_ur_ls.iter().map(|url| format!("{name}={url}")));
    }
    print(&format!(
        "{}\nETCD_NAME=\"{}\"\nETCD_INITIAL_CLUSTER=\"{}\"\nETCD_INITIAL_ADVERTISE_PEER_URLS=\"{}\"\n\
         ETCD_INITIAL_CLUSTER_STATE=\"existing\"\n",
        sentence(id, "added to", answer.header.as_ref()),
        args.name,
        cluster.join(","),
        args.peer_urls.join(",")
    ))
}

async fn remove(args: &IdArgs) -> anyhow::Result<()> {
    let request = pb::MemberRemoveRequest { id: args.id };
    let answer = StoreClient::connect(&args.store).await?.cluster().member_remove(request).await;
    let answer = answer.map_err(said)?.into_inner();
    changed(args, "removed from", answer.header.as_ref(), &answer.members)
}

async fn promote(args: &IdArgs) -> anyhow::Result<()> {
    let request = pb::MemberPromoteRequest { id: args.id };
    let answer = StoreClient::connect(&args.store).await?.cluster().member_promote(request).await;
    let answer = answer.map_err(said)?.into_inner();
    changed(args, "promoted in", answer.header.as_ref(), &answer.members)
}

async fn update(args: &UpdateArgs) -> anyhow::Result<()> {
    let request = pb::MemberUpdateRequest { id: args.member.id, peer_ur_ls: args.peer_urls.clone() };
    let answer = StoreClient::connect(&args.member.store).await?.cluster().member_update(request).await;
    let answer = answer.map_err(said)?.into_inner();
    changed(&args.member, "updated in", answer.header.as_ref(), &answer.members)
}

fn changed(
    args: &IdArgs,
    what: &str,
    header: Option<&pb::ResponseHeader>,
    members: &[pb::Member],
) -> anyhow::Result<()> {
    print(&match args.store.write_out {
        Format::Json => members_json(header, members),
        _ => sentence(args.id, what, header),
    })
}

fn sentence(id: u64, what: &str, header: Option<&pb::ResponseHeader>) -> String {
    let cluster = header.map_or(0, |header| header.cluster_id);
    format!("Member {id:16x} {what} cluster {cluster:16x}\n")
}

fn row(member: &pb::Member) -> Vec<String> {
    let status = if member.name.is_empty() { "unstarted" } else { "started" };
    vec![
        format!("{:x}", member.id),
        status.to_owned(),
        member.name.clone(),
        member.peer_ur_ls.join(","),
        member.client_ur_ls.join(","),
        member.is_learner.to_string(),
    ]
}

fn members_json(header: Option<&pb::ResponseHeader>, members: &[pb::Member]) -> String {
    let members: Vec<Value> = members
        .iter()
        .map(|member| {
            json!({
                "ID": member.id,
                "name": member.name,
                "peerURLs": member.peer_ur_ls,
                "clientURLs": member.client_ur_ls,
                "isLearner": member.is_learner,
            })
        })
        .collect();
    let header = header.map(|header| {
        json!({ "cluster_id": header.cluster_id, "member_id": header.member_id, "raft_term": header.raft_term })
    });
    json!({ "header": header, "members": members }).to_string() + "\n"
}
