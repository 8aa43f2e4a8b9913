//! What users may set on a Node, and what stays theirs.

use proto::node::NodeStatus;

use super::*;
use crate::registry::WriteOptions;

#[tokio::test]
async fn what_users_set_on_a_node_stays_when_its_agent_comes_back() {
    let cluster = cluster().await;
    let mut agent = Agent::start(&cluster, "n1").await;
    agent.hear_of(role).await;
    cluster.until("Node", "", "n1", |_| true).await;
    let target = || Target::new(kind("Node"), "", "n1");
    let own = json!({"key": "own", "value": "x", "effect": "NoSchedule"});
    cluster
        .modify(target(), |node| {
            node["spec"]["unschedulable"] = json!(true);
            node["spec"]["taints"] = json!([own.clone()]);
            node["metadata"]["labels"]["rack"] = json!("7");
        })
        .await;
    drop(agent);
    let mut agent = Agent::start(&cluster, "n1").await;
    agent.hear_of(role).await;
    let said = node("n1", "8");
    let status_json = said["status"].to_string().into();
    agent.say(from_node::Message::NodeStatus(NodeStatus { sequence: 1, status_json })).await;
    assert_eq!(agent.ack().await, 1);
    let kept = cluster.until("Node", "", "n1", |node| node["status"]["capacity"]["cpu"] == "8").await;
    assert_eq!(kept["spec"]["unschedulable"], true);
    assert_eq!(kept["metadata"]["labels"]["rack"], "7");
    assert!(kept["spec"]["taints"].as_array().is_some_and(|taints| taints.contains(&own)), "{kept}");
    // Not everything is theirs to set.
    let range = |node: &mut Value| {
        node["spec"]["podCIDR"] = json!("10.9.0.0/24");
        node["spec"]["podCIDRs"] = json!(["10.9.0.0/24"]);
        Ok(())
    };
    let refused = cluster.registry.modify(target(), &WriteOptions::default(), range).await;
    let refused = refused.expect_err("a range is for ever");
    assert!(refused.message().contains("may not change podCIDR"), "{refused}");
}
