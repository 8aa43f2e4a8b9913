//! The configuration of each machine's process, as an operator would write it by hand.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use super::plan::{MASTER_PORT, Machine, Plan, Role};

/// User ids of a node's pods: 65536 for each of 110, rounded up.
const USER_IDS_PER_NODE: u32 = 65536 * 128;

/// The label, and the taint, of nodes that are masters.
pub(crate) const MASTER_ROLE: &str = "node-role.kubernetes.io/master";

/// The label of nodes that take requests from outside for Ingresses.
pub(crate) const INGRESS_LABEL: &str = "node-restriction.kubernetes.io/ingress";

/// The tenth address of the masters' default range of Services.
const CLUSTER_DNS: &str = "10.96.0.10";

/// The cgroups, run directory and bridge name below belong to one node each: all nodes of a cluster share
/// this machine's mounts and cgroups, and have a network namespace of their own.
pub(crate) fn node(plan: &Plan, node: &Machine, token: &str) -> node::Config {
    let before = plan.nodes().take_while(|other| other.name != node.name).count();
    // Each node has ids for its own pods: all share this machine's users.
    let first_id = USER_IDS_PER_NODE * (before as u32 + 1);
    // Masters take no pods that do not ask for it, where others can.
    let is_reserved = node.role == Role::Master && plan.workers().next().is_some();
    let taints = is_reserved.then(|| serde_json::json!({"key": MASTER_ROLE, "effect": "NoSchedule"}));
    let text = serde_json::json!({
        "nodeName": node.name,
        "dataDir": plan.process_dir(&node.agent()).join("data"),
        "runDir": plan.run_directory.join(&node.name),
        "controlAddresses": plan.servers(),
        "joinToken": token,
        "taints": taints.as_slice(),
        "internalIp": node.address,
        "cgroupRoot": format!("{}/{}", plan.cgroup, node.name),
        "clusterName": plan.name,
        "builtinImage": true,
        // The address at which the masters show the Service of names.
        "clusterDns": [CLUSTER_DNS],
        // Whoever tries a cluster on a machine of his own may keep its swap.
        "failSwapOn": false,
        "userNamespaces": {"firstId": first_id},
    });
    serde_json::from_value(text).expect("the keys are those of the type")
}

/// A master's configuration.
pub(crate) fn control(plan: &Plan, master: &Machine) -> serde_json::Value {
    // The leader's address comes and goes while the port is open.
    let listen = match plan.virtual_address {
        Some(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, MASTER_PORT)),
        None => master.server(),
    };
    let members: BTreeMap<_, _> = plan.masters().map(|member| (&member.name, member.server())).collect();
    serde_json::json!({
        "name": master.name,
        "dataDir": plan.process_dir(&master.name).join("data"),
        "tokenFile": plan.control_token_file(),
        "listenAddress": listen,
        "virtualAddress": plan.virtual_address,
        "initialMembers": members,
        "podCIDR": plan.pod_range,
        "loadBalancer": {"addresses": plan.balancer_addresses},
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{ClusterArgs, UpArgs};

    #[test]
    fn both_configurations_are_what_the_packages_read() {
        let args = UpArgs {
            cluster: ClusterArgs { name: "lab".to_owned(), data_dir: Some("/tmp/data".into()) },
            masters: 3,
            nodes: 2,
            subnet: None,
            port: 6443,
            master_nodes: true,
            virtual_address: true,
            load_balancer_addresses: 3,
            keep_failed: false,
            master_flags: Vec::new(),
            only: None,
        };
        let (subnet, pods) = ("10.89.7.0/24".parse().unwrap(), "10.244.0.0/16".parse().unwrap());
        let plan = Plan::new(&args, subnet, pods).unwrap();
        for machine in plan.masters() {
            let text = serde_saphyr::to_string(&control(&plan, machine)).unwrap();
            let config = control::Config::parse(&text).unwrap();
            assert_eq!(config.advertised(), machine.server());
            assert_eq!(config.initial_members.len(), 3);
            assert_eq!(config.virtual_address, Some("10.89.7.10".parse().unwrap()));
            assert!(config.load_balancer.addresses[0].contains("10.89.7.232".parse().unwrap()));
        }
        assert_eq!(plan.nodes().count(), 5);
        for machine in plan.nodes() {
            let written = node(&plan, machine, "barque-node.x");
            let text = serde_saphyr::to_string(&written).unwrap();
            assert_eq!(node::Config::parse(&text).unwrap(), written);
            assert_eq!(written.taints.len(), usize::from(machine.role == Role::Master));
        }
    }
}
