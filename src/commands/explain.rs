//! `barque explain`: why a pod is where it is, or nowhere.
//!
//! Asks every master; the one that leads answers from what it remembers of its last decisions.

use std::net::SocketAddr;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use proto::control::{ExplainPodRequest, ExplainPodResponse, NodeVerdict};

use super::print;
use crate::cli::ClusterArgs;
use crate::client::Client;
use crate::commands::status;
use crate::kubeconfig;
use crate::table::Table;
use crate::up::plan::Plan;

/// What can be explained.
#[derive(Debug, Subcommand)]
pub(crate) enum ExplainCommand {
    /// Shows what the scheduler found on each node when it last decided on a pod: who said no and why, and each
    /// plugin's weighted score.
    Pod(ExplainPodArgs),
}

/// Flags of `explain pod`.
#[derive(Debug, Args)]
pub(crate) struct ExplainPodArgs {
    /// The pod.
    #[arg(value_name = "NAME")]
    pod: String,

    /// Its namespace.
    #[arg(long, short, default_value = "default")]
    namespace: String,

    #[command(flatten)]
    cluster: ClusterArgs,

    /// Ask the cluster of this kubeconfig instead of one made by `up` on this machine.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<std::path::PathBuf>,
}

/// Carries the command out.
pub(crate) fn run(command: &ExplainCommand) -> anyhow::Result<()> {
    let ExplainCommand::Pod(args) = command;
    let answer = super::event_loop(1)?.block_on(ask(args))?;
    print(&text(&args.pod, &answer))
}

async fn ask(args: &ExplainPodArgs) -> anyhow::Result<ExplainPodResponse> {
    let (file, known) = match &args.kubeconfig {
        Some(file) => (file.clone(), None),
        None => {
            let plan = Plan::load(&args.cluster)?;
            let masters: Vec<SocketAddr> = plan.masters().map(|master| master.server()).collect();
            (plan.kubeconfig_file(), Some(masters))
        }
    };
    let access = kubeconfig::read(&file)?;
    let client = Client::new(&access.credentials)?;
    let masters = match known {
        Some(masters) => masters,
        None => {
            let members = status::members(&client, access.server).await?;
            members.into_iter().map(|(_, address)| address).collect()
        }
    };
    let mut last = anyhow::anyhow!("the cluster has no masters");
    for master in masters {
        let request = ExplainPodRequest { namespace: args.namespace.clone(), name: args.pod.clone() };
        match client.explain_pod(master, request).await {
            Ok(Ok(answer)) => return Ok(answer),
            // Another one leads.
            Ok(Err(said)) if said.code() == tonic::Code::FailedPrecondition => {
                last = anyhow::anyhow!("no master leads now; try again");
            }
            Ok(Err(said)) => return Err(anyhow::anyhow!("{}", said.message())),
            Err(error) => last = error,
        }
    }
    Err(last).context("nobody answers for the scheduler")
}

fn text(pod: &str, answer: &ExplainPodResponse) -> String {
    let place = match answer.node.as_str() {
        "" => "fits nowhere".to_owned(),
        node => format!("went to {node}"),
    };
    let (feasible, nodes) = (answer.feasible, answer.nodes_total);
    let mut text = format!(
        "{pod} (resourceVersion {}) {place}: {feasible} of {nodes} nodes passed every filter.\n",
        answer.resource_version
    );
    if !answer.message.is_empty() {
        text += &format!("{}\n", answer.message);
    }
    if answer.in_hurry {
        return text + "Many pods waited then, so that nothing was kept about single nodes.\n";
    }
    let mut table = Table::new(&["NODE", "VERDICT", "SCORE", "BY"]);
    for node in &answer.nodes {
        table.row(row(node, &answer.node));
    }
    text += &format!("\n{table}");
    let shown = u32::try_from(answer.nodes.len()).unwrap_or(u32::MAX);
    if shown < nodes {
        text += &format!("and {} more nodes\n", nodes - shown);
    }
    text
}

fn row(node: &NodeVerdict, chosen: &str) -> Vec<String> {
    if !node.rejected_by.is_empty() {
        return vec![
            node.node.clone(),
            "rejected".into(),
            "-".into(),
            format!("{}: {}", node.rejected_by, node.reason),
        ];
    }
    let verdict = if node.node == chosen { "chosen" } else { "passed" };
    let scores: Vec<String> = node.scores.iter().map(|of| format!("{}={}", of.plugin, of.score)).collect();
    vec![node.node.clone(), verdict.into(), node.total.to_string(), scores.join(" ")]
}

#[cfg(test)]
mod tests {
    use proto::control::PluginScore;

    use super::*;

    #[test]
    fn verdicts_and_scores_are_a_table() {
        let fit = |score| vec![PluginScore { plugin: "NodeResourcesFit".into(), score }];
        let answer = ExplainPodResponse {
            resource_version: "7".into(),
            node: "n1".into(),
            feasible: 2,
            nodes_total: 4,
            nodes: vec![
                NodeVerdict { node: "n1".into(), scores: fit(90), total: 90, ..Default::default() },
                NodeVerdict { node: "n2".into(), scores: fit(40), total: 40, ..Default::default() },
                NodeVerdict {
                    node: "n3".into(),
                    rejected_by: "NodePorts".into(),
                    reason: "taken".into(),
                    ..Default::default()
                },
            ],
            ..Default::default()
        };
        let expected = "\
web (resourceVersion 7) went to n1: 2 of 4 nodes passed every filter.

NODE  VERDICT   SCORE  BY
n1    chosen    90     NodeResourcesFit=90
n2    passed    40     NodeResourcesFit=40
n3    rejected  -      NodePorts: taken
and 1 more nodes
";
        assert_eq!(text("web", &answer), expected);
    }
}
