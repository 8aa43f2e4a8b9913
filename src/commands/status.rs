//! `barque status`: every master's own view, the nodes, and with `-v` every process and its memory.
//!
//! Works with any number of masters dead: what cannot be reached is shown as such.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;

use anyhow::Context as _;
use proto::control::StatusResponse;

use crate::cli::StatusArgs;
use crate::client::Client;
use crate::kubeconfig;
use crate::memory::{self, Memory};
use crate::table::Table;
use crate::up::plan::{Plan, Role};
use crate::up::wait::{self, NodeView};
use crate::up::{ENDPOINT, process, teardown};

/// What a process may use, as the project promises: RSS of masters and agents, a shim's own memory.
const MASTER_RSS_MAX: u64 = 40 << 20;
const AGENT_RSS_MAX: u64 = 25 << 20;
const SHIM_PRIVATE_MAX: u64 = 1 << 20;

/// How much of a container's id is shown, as elsewhere.
const SHORT_ID_CHARS: usize = 12;

/// What one master answered.
struct MasterView {
    name: String,
    address: SocketAddr,
    answer: anyhow::Result<StatusResponse>,
}

/// Prints the cluster's state. Fails when no master can be reached.
pub(crate) fn run(args: &StatusArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    let (text, reached) = runtime.block_on(show(args))?;
    std::io::stdout().write_all(text.as_bytes())?;
    anyhow::ensure!(reached, "no master answers; the table says why");
    Ok(())
}

async fn show(args: &StatusArgs) -> anyhow::Result<(String, bool)> {
    let (plan, file) = match &args.kubeconfig {
        Some(file) => (None, file.clone()),
        None => {
            let plan = Plan::load(&args.cluster)?;
            let file = plan.kubeconfig_file();
            (Some(plan), file)
        }
    };
    let access = kubeconfig::read(&file)?;
    let client = Client::new(&access.credentials)?;
    let members = match &plan {
        Some(plan) => plan.masters().map(|master| (master.name.clone(), master.server())).collect(),
        None => members(&client, access.server).await?,
    };
    let masters = ask(&client, members).await;
    let reached = masters.iter().any(|master| master.answer.is_ok());
    let mut text = headline(args, &masters);
    text.push_str(&master_table(&masters).to_string());
    if reached {
        text.push('\n');
        match wait::nodes(&client, access.server).await {
            Ok(nodes) => text.push_str(&node_table(&nodes, &masters).to_string()),
            Err(error) => text.push_str(&format!("nodes: not known: {error:#}\n")),
        }
    }
    if let (true, Some(plan)) = (args.verbose, &plan) {
        text.push('\n');
        text.push_str(&process_table(plan)?.to_string());
    }
    Ok((text, reached))
}

/// The members, as the master behind `server` knows them.
pub(super) async fn members(
    client: &Client,
    server: SocketAddr,
) -> anyhow::Result<Vec<(String, SocketAddr)>> {
    let status = client.status(server).await?;
    status
        .members
        .into_iter()
        .map(|member| {
            let address =
                member.address.parse().with_context(|| format!("the address of {}", member.name))?;
            Ok((member.name, address))
        })
        .collect()
}

async fn ask(client: &Client, members: Vec<(String, SocketAddr)>) -> Vec<MasterView> {
    let asked: Vec<_> = members
        .into_iter()
        .map(|(name, address)| {
            let client = client.clone();
            let answer = tokio::spawn(async move { client.status(address).await });
            (name, address, answer)
        })
        .collect();
    let mut views = Vec::new();
    for (name, address, answer) in asked {
        let answer = answer.await.unwrap_or_else(|error| Err(error.into()));
        views.push(MasterView { name, address, answer });
    }
    views
}

fn headline(args: &StatusArgs, masters: &[MasterView]) -> String {
    let answers = || masters.iter().filter_map(|master| master.answer.as_ref().ok());
    let leader = answers().filter(|status| status.role == "leader").max_by_key(|status| status.term);
    let cluster = answers().next().map_or(String::new(), |status| format!(" ({})", status.cluster_id));
    let leads = match leader {
        Some(leader) => format!("leader {}, term {}", leader.member_name, leader.term),
        None => "no leader".to_owned(),
    };
    let name = args.kubeconfig.as_ref().map_or(args.cluster.name.clone(), |file| file.display().to_string());
    format!("cluster {name}{cluster}: {} of {} masters answer, {leads}\n\n", answers().count(), masters.len())
}

fn master_table(masters: &[MasterView]) -> Table {
    let mut table = Table::new(&[
        "MASTER",
        "ADDRESS",
        "ROLE",
        "TERM",
        "LAST LOG",
        "COMMITTED",
        "APPLIED",
        "REVISION",
        "STATE HASH",
    ]);
    for master in masters {
        let mut row = vec![master.name.clone(), master.address.to_string()];
        match &master.answer {
            Ok(status) => row.extend([
                status.role.clone(),
                status.term.to_string(),
                status.last_log_index.to_string(),
                status.committed_index.to_string(),
                status.applied_index.to_string(),
                status.revision.to_string(),
                format!("{:016x}", status.state_hash),
            ]),
            Err(error) => row.push(format!("down: {}", error.root_cause())),
        }
        table.row(row);
    }
    table
}

fn node_table(nodes: &[NodeView], masters: &[MasterView]) -> Table {
    let heartbeats: BTreeMap<&str, String> = masters
        .iter()
        .filter_map(|master| master.answer.as_ref().ok())
        .filter(|status| status.role == "leader")
        .flat_map(|status| &status.nodes)
        .map(|node| {
            let age = format!("{} ms ago", node.milliseconds_since_heartbeat);
            (node.node_name.as_str(), if node.connected { age } else { format!("{age}, not connected") })
        })
        .collect();
    let mut table = Table::new(&["NODE", "ADDRESS", "STATUS", "PODS", "HEARTBEAT"]);
    for node in nodes {
        table.row(vec![
            node.name.clone(),
            node.address.clone(),
            if node.ready { "Ready" } else { "NotReady" }.to_owned(),
            node.pod_range.map_or_else(|| "-".to_owned(), |range| range.to_string()),
            heartbeats.get(node.name.as_str()).cloned().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    table
}

fn process_table(plan: &Plan) -> anyhow::Result<Table> {
    let mut table = Table::new(&["PROCESS", "PID", "RSS", "PRIVATE", "LIMIT"]);
    let of_machines = plan.processes().map(|(name, _, role)| (name, Some(role)));
    for (name, role) in of_machines.chain([(ENDPOINT.to_owned(), None)]) {
        let name = name.as_str();
        let limit = match role {
            Some(Role::Master) => limit_text("RSS", MASTER_RSS_MAX),
            Some(Role::Node) => limit_text("RSS", AGENT_RSS_MAX),
            None => "-".to_owned(),
        };
        let id = process::ProcessId::read(&plan.pid_file(name)).filter(process::ProcessId::is_alive);
        match id.and_then(|id| Some((id.pid, memory::of(id.pid)?))) {
            Some((pid, used)) => table.row(process_row(name, pid, used, limit)),
            None => table.row(vec![name.to_owned(), "-".to_owned(), "does not run".to_owned()]),
        }
    }
    for resident in teardown::residents(plan)? {
        let command = memory::command_line(resident.pid);
        let (Some(name), Some(used)) = (shim_name(&command), memory::of(resident.pid)) else { continue };
        table.row(process_row(&name, resident.pid, used, limit_text("private", SHIM_PRIVATE_MAX)));
    }
    Ok(table)
}

/// `shim container 27e3a0ad6b38`, out of the arguments that a shim was started with: what it watches over and
/// the directory named after its id.
fn shim_name(command: &[String]) -> Option<String> {
    let [_, shim, kind, directory, ..] = command else { return None };
    let id = directory.rsplit('/').next().unwrap_or_default();
    let short: String = id.chars().take(SHORT_ID_CHARS).collect();
    (shim == "shim").then(|| format!("shim {kind} {short}"))
}

fn limit_text(what: &str, bytes: u64) -> String {
    format!("{what} {} MiB", bytes >> 20)
}

fn process_row(name: &str, pid: i32, used: Memory, limit: String) -> Vec<String> {
    vec![name.to_owned(), pid.to_string(), mebibytes(used.resident), mebibytes(used.private), limit]
}

fn mebibytes(bytes: u64) -> String {
    // Tenths, rounded up: a limit is not kept by rounding down.
    let tenths = (bytes * 10).div_ceil(1 << 20);
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_up() {
        assert_eq!(mebibytes(0), "0.0 MiB");
        assert_eq!(mebibytes((1 << 20) + 1), "1.1 MiB");
        assert_eq!(mebibytes(40 << 20), "40.0 MiB");
    }

    #[test]
    fn shims_are_named_by_what_they_watch() {
        let command = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let shim = command("/proc/self/exe shim sandbox /run/x/sandboxes/5c160eadd0a48ba518f48c0f9c8d6072");
        assert_eq!(shim_name(&shim).unwrap(), "shim sandbox 5c160eadd0a4");
        assert_eq!(shim_name(&command("/bin/sleep 1 2 3 4")), None);
        assert_eq!(shim_name(&[]), None);
    }

    #[test]
    fn masters_that_do_not_answer_are_shown_with_the_reason() {
        let masters = [
            MasterView {
                name: "master-1".to_owned(),
                address: "10.0.0.1:6443".parse().unwrap(),
                answer: Ok(StatusResponse {
                    role: "leader".to_owned(),
                    member_name: "master-1".to_owned(),
                    term: 7,
                    ..StatusResponse::default()
                }),
            },
            MasterView {
                name: "master-2".to_owned(),
                address: "10.0.0.2:6443".parse().unwrap(),
                answer: Err(anyhow::anyhow!("connection refused").context("cannot connect")),
            },
        ];
        let text = master_table(&masters).to_string();
        assert!(text.lines().nth(1).unwrap().starts_with("master-1  10.0.0.1:6443  leader"), "{text}");
        assert!(text.lines().nth(2).unwrap().ends_with("down: connection refused"), "{text}");
    }
}
