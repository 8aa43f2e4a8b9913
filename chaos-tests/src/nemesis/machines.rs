//! Faults of the machines of a cluster, and what an operator does to its nodes.

use std::time::Duration;

use anyhow::{Context as _, bail};
use http::{Method, StatusCode};
use serde_json::json;
use tokio::task::block_in_place;
use tokio::time::Instant;

use super::Fault;
use crate::client::Client;
use crate::cluster::machines::Machines;

/// Longest wait until a node is empty, and for the cluster to take a word about a node.
const DRAIN_PATIENCE: Duration = Duration::from_secs(30);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(200);

pub(super) async fn inflict(machines: &mut Machines, fault: Fault, targets: &[usize]) -> anyhow::Result<()> {
    for target in targets {
        match fault {
            Fault::PowerOff => block_in_place(|| machines.power_off(*target))?,
            Fault::Drain => drain(machines, *target).await?,
            _ => machines.isolate(*target)?,
        }
    }
    Ok(())
}

pub(super) async fn undo(machines: &mut Machines, fault: Fault, targets: &[usize]) -> anyhow::Result<()> {
    for target in targets {
        match fault {
            Fault::PowerOff => block_in_place(|| machines.power_on(*target))?,
            Fault::Drain => cordon(machines, *target, false).await?,
            _ => machines.mend(*target)?,
        }
    }
    Ok(())
}

/// Marks a node, by whichever master takes the word.
pub(crate) async fn cordon(machines: &Machines, node: usize, unschedulable: bool) -> anyhow::Result<()> {
    let path = format!("/api/v1/nodes/{}", machines.name(node));
    let patch = json!({"spec": {"unschedulable": unschedulable}});
    let deadline = Instant::now() + DRAIN_PATIENCE;
    loop {
        for server in machines.servers() {
            let mut client = Client::from_kubeconfig(&machines.kubeconfig())?.at(server);
            let asked = client.request(Method::PATCH, &path, Some(&patch));
            if let Ok(Ok((status, _))) = tokio::time::timeout(PAUSE * 5, asked).await
                && status.is_success()
            {
                return Ok(());
            }
        }
        if Instant::now() >= deadline {
            bail!("no master takes a change of {}", machines.name(node));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Evicts again what a budget of disruptions kept, until nothing that can leave is there.
async fn drain(machines: &Machines, node: usize) -> anyhow::Result<()> {
    cordon(machines, node, true).await?;
    let name = machines.name(node);
    let list = format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{name}");
    let deadline = Instant::now() + DRAIN_PATIENCE;
    let servers = machines.servers();
    for attempt in 0_usize.. {
        let server = servers.get(attempt % servers.len()).context("a cluster has masters")?;
        let mut client = Client::from_kubeconfig(&machines.kubeconfig())?.at(*server);
        match tokio::time::timeout(PAUSE * 10, evict_all(&mut client, &list)).await {
            Ok(Ok(0)) => return Ok(()),
            _ if Instant::now() >= deadline => bail!("{name} is not empty after {DRAIN_PATIENCE:?}"),
            _ => tokio::time::sleep(PAUSE).await,
        }
    }
    Ok(())
}

/// Asks once for the eviction of all; says how many pods are there yet.
async fn evict_all(client: &mut Client, list: &str) -> anyhow::Result<usize> {
    let pods = client.get(list).await?;
    let pods = pods["items"].as_array().context("a list has items")?;
    for pod in pods {
        let (namespace, name) = (&pod["metadata"]["namespace"], &pod["metadata"]["name"]);
        let (namespace, name) = (namespace.as_str().unwrap_or_default(), name.as_str().unwrap_or_default());
        let eviction = json!({
            "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"namespace": namespace, "name": name},
        });
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/eviction");
        let (status, answer) = client.request(Method::POST, &path, Some(&eviction)).await?;
        let is_kept = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::NOT_FOUND);
        if !status.is_success() && !is_kept {
            bail!("eviction of {name}: {status}: {}", answer["message"].as_str().unwrap_or_default());
        }
    }
    Ok(pods.len())
}
