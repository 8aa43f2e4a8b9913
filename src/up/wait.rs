//! Waiting until a cluster works: masters that agree on a leader, nodes that are Ready.

use std::collections::BTreeMap;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use proto::control::StatusResponse;
use runtime::net::Prefix;

use super::plan::Plan;
use super::process;
use super::progress::Step;
use crate::client::Client;

/// How often it is asked.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How long masters may take to elect a leader.
pub(crate) const LEADER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long nodes may take to become Ready.
pub(crate) const NODES_TIMEOUT: Duration = Duration::from_secs(60);

/// A process that this command started.
pub(crate) struct Started {
    /// `master-1`, `node-1`, `endpoint`.
    pub(crate) name: String,
    /// Its handle.
    pub(crate) child: Child,
}

/// A node, as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeView {
    /// The Node object's name.
    pub(crate) name: String,
    /// Its InternalIP.
    pub(crate) address: String,
    /// Its labels.
    pub(crate) labels: BTreeMap<String, String>,
    /// Whether its condition Ready is True.
    pub(crate) ready: bool,
    /// Its pods' addresses.
    pub(crate) pod_range: Option<Prefix>,
}

/// Waits until a majority of the masters names the same leader; returns its name.
pub(crate) async fn for_leader(
    plan: &Plan,
    client: &Client,
    started: &mut [Started],
    step: &Step,
) -> anyhow::Result<String> {
    let deadline = Instant::now() + LEADER_TIMEOUT;
    loop {
        check_running(plan, started)?;
        let mut answers = Vec::new();
        let mut last_error = None;
        for server in plan.servers() {
            match client.status(server).await {
                Ok(status) => answers.push(status),
                Err(error) => last_error = Some(error),
            }
        }
        if let Some(leader) = agreed_leader(&answers, plan.masters().count()) {
            return Ok(leader);
        }
        step.waiting_for(&format!("{} of {} masters answer", answers.len(), plan.masters().count()));
        if Instant::now() >= deadline {
            let why = last_error
                .map_or_else(|| "they do not agree on one".to_owned(), |error| format!("{error:#}"));
            bail!(
                "the masters have no leader after {} s: {why}{}",
                LEADER_TIMEOUT.as_secs(),
                log_of(plan, "master-1")
            );
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// The leader's name, when a majority of `masters` names the same one in the same term and it is among those
/// that answered.
fn agreed_leader(answers: &[StatusResponse], masters: usize) -> Option<String> {
    let leader = answers.iter().find(|status| status.role == "leader")?;
    let followers = answers
        .iter()
        .filter(|status| status.term == leader.term && status.leader_id == leader.member_id)
        .count();
    (followers > masters / 2).then(|| leader.member_name.clone())
}

/// Waits until every node of the plan is Ready.
pub(crate) async fn for_nodes(
    plan: &Plan,
    client: &Client,
    started: &mut [Started],
    step: &Step,
) -> anyhow::Result<Vec<NodeView>> {
    let deadline = Instant::now() + NODES_TIMEOUT;
    let wanted = plan.nodes().count();
    loop {
        check_running(plan, started)?;
        let answer = nodes(client, plan.endpoint()).await;
        let (ready, why) = match &answer {
            Ok(views) => {
                let ready = |name: &str| views.iter().any(|view| view.name == name && view.ready);
                match plan.nodes().find(|node| !ready(&node.name)) {
                    None => return answer,
                    Some(late) => (
                        views.iter().filter(|view| view.ready).count(),
                        format!("{} is not Ready{}", late.name, log_of(plan, &late.agent())),
                    ),
                }
            }
            Err(error) => (0, format!("{error:#}")),
        };
        step.waiting_for(&format!("{ready} of {wanted} Ready"));
        if Instant::now() >= deadline {
            bail!("not every node is Ready after {} s: {why}", NODES_TIMEOUT.as_secs());
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// The nodes, as the API at `server` lists them.
pub(crate) async fn nodes(client: &Client, server: std::net::SocketAddr) -> anyhow::Result<Vec<NodeView>> {
    let (status, body) = client.get(server, "/api/v1/nodes").await?;
    if status != 200 {
        bail!("the API at {server} answered {status}: {}", String::from_utf8_lossy(&body));
    }
    let list: serde_json::Value =
        serde_json::from_slice(&body).with_context(|| format!("the API at {server} answered no JSON"))?;
    Ok(list["items"].as_array().into_iter().flatten().map(view).collect())
}

fn view(node: &serde_json::Value) -> NodeView {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let find = |list: &serde_json::Value, kind: &str| {
        list.as_array().into_iter().flatten().find(|entry| entry["type"] == kind).cloned().unwrap_or_default()
    };
    NodeView {
        name: text(&node["metadata"]["name"]),
        address: text(&find(&node["status"]["addresses"], "InternalIP")["address"]),
        labels: serde_json::from_value(node["metadata"]["labels"].clone()).unwrap_or_default(),
        ready: find(&node["status"]["conditions"], "Ready")["status"] == "True",
        pod_range: node["spec"]["podCIDR"].as_str().and_then(|range| range.parse().ok()),
    }
}

/// Sends a request again until it is taken: masters change their leader, and a disk can hold one up for longer
/// than a call may last. What a master refuses for good ends it at once.
pub(crate) async fn for_success(
    what: &str,
    timeout: Duration,
    mut send: impl AsyncFnMut() -> anyhow::Result<(u16, Bytes)>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + timeout;
    loop {
        let problem = match send().await {
            Ok((200..=299, _)) => return Ok(()),
            Ok((status, body)) => {
                let problem = anyhow::anyhow!("{what}: {status} {}", String::from_utf8_lossy(&body));
                if is_final(status) {
                    return Err(problem);
                }
                problem
            }
            Err(error) => error.context(what.to_owned()),
        };
        if Instant::now() >= deadline {
            return Err(problem.context(format!("not within {} s", timeout.as_secs())));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Whether the same request would be refused again. A conflict (409) and too many requests (429) pass.
fn is_final(status: u16) -> bool {
    (400..500).contains(&status) && !matches!(status, 409 | 429)
}

/// Fails when a process that should go on has ended.
pub(crate) fn check_running(plan: &Plan, started: &mut [Started]) -> anyhow::Result<()> {
    for process in started {
        if let Some(status) = process.child.try_wait().context("cannot ask for a process's state")? {
            bail!("{} ended with {status}{}", process.name, log_of(plan, &process.name));
        }
    }
    Ok(())
}

fn log_of(plan: &Plan, name: &str) -> String {
    let path = plan.log_file(name);
    match process::log_tail(&path) {
        tail if tail.is_empty() => String::new(),
        tail => format!("; the end of its log:{tail}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(id: u64, role: &str, term: u64, leader_id: u64) -> StatusResponse {
        StatusResponse {
            member_id: id,
            member_name: format!("master-{id}"),
            role: role.to_owned(),
            term,
            leader_id,
            ..StatusResponse::default()
        }
    }

    #[test]
    fn a_leader_counts_when_a_majority_follows_it_in_its_term() {
        let leader = answer(1, "leader", 4, 1);
        assert_eq!(agreed_leader(std::slice::from_ref(&leader), 1), Some("master-1".to_owned()));
        assert_eq!(agreed_leader(std::slice::from_ref(&leader), 3), None, "alone of three");
        let follower = answer(2, "follower", 4, 1);
        assert_eq!(agreed_leader(&[leader.clone(), follower], 3), Some("master-1".to_owned()));
        let behind = answer(2, "follower", 3, 3);
        assert_eq!(agreed_leader(&[leader, behind], 3), None, "the other is in an older term");
    }

    #[test]
    fn a_node_is_ready_when_its_condition_says_so() {
        let node = serde_json::json!({
            "metadata": {"name": "node-1", "labels": {"disk": "ssd"}},
            "spec": {"podCIDR": "10.244.1.0/24"},
            "status": {
                "addresses": [{"type": "Hostname", "address": "x"}, {"type": "InternalIP", "address": "10.89.0.21"}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        });
        let seen = view(&node);
        assert!(seen.ready && seen.name == "node-1" && seen.address == "10.89.0.21");
        assert_eq!(seen.labels["disk"], "ssd");
        assert_eq!(seen.pod_range, "10.244.1.0/24".parse().ok());
        assert!(!view(&serde_json::json!({})).ready);
    }

    #[tokio::test]
    async fn a_request_is_sent_again_until_it_is_taken_or_refused_for_good() {
        let answered = async |answers: Vec<anyhow::Result<u16>>, timeout: Duration| {
            let mut answers = answers.into_iter();
            let mut last = None;
            let outcome = for_success("PATCH /x", timeout, async || {
                let answer = answers.next().unwrap_or_else(|| Ok(last.unwrap_or(503)));
                last = answer.as_ref().ok().copied();
                answer.map(|status| (status, Bytes::from_static(b"why")))
            })
            .await;
            (outcome.map_err(|error| format!("{error:#}")), answers.len())
        };
        let patient = Duration::from_secs(60);
        let passing = vec![Ok(503), Err(anyhow::anyhow!("no answer within 2 s")), Ok(409), Ok(429), Ok(200)];
        assert_eq!(answered(passing, patient).await, (Ok(()), 0));
        let refused = answered(vec![Ok(403), Ok(200)], patient).await;
        assert_eq!(refused, (Err("PATCH /x: 403 why".to_owned()), 1));
        let (late, _) = answered(vec![Ok(503)], Duration::from_millis(1)).await;
        assert_eq!(late, Err("not within 0 s: PATCH /x: 503 why".to_owned()));
    }
}
