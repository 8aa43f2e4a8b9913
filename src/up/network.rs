//! The cluster's network on this machine: a bridge, and a network namespace with a veth pair for each
//! master and node, so that each is a host that can be cut off alone.
//!
//! Every step may be repeated. What is made here is removed by `teardown`.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use runtime::net::{NetNs, Netlink, Prefix, Route, VethPair, netns};

use super::plan::{Machine, Plan};

/// The name of each machine's own end of its veth pair.
const MACHINE_LINK: &str = "eth0";
/// How long a packet between two machines may take the first time (address resolution included).
const REACH_TIMEOUT: Duration = Duration::from_secs(3);
/// How often it is sent within that time.
const REACH_INTERVAL: Duration = Duration::from_millis(50);

/// Makes the bridge and every machine's namespace, link, address and default route.
pub(crate) fn make(plan: &Plan) -> anyhow::Result<()> {
    let mut host = Netlink::open()?;
    host.add_bridge(&plan.bridge)?;
    let gateway =
        Prefix::new(plan.gateway(), plan.subnet.length()).context("the subnet is an IPv4 network")?;
    host.add_address(&plan.bridge, gateway)?;
    host.set_up(&plan.bridge)?;
    for machine in &plan.machines {
        make_machine(plan, machine, &mut host)
            .with_context(|| format!("cannot make the network of {}", machine.name))?;
    }
    check_reach(plan)
}

fn make_machine(plan: &Plan, machine: &Machine, host: &mut Netlink) -> anyhow::Result<()> {
    let namespace = netns::create(&machine.netns)?;
    let mut inside = Netlink::open_in(&namespace)?;
    if inside.link(MACHINE_LINK)?.is_none() {
        // A host's end without its peer is what a crash leaves.
        host.delete_link(&machine.link)?;
        host.add_veth(VethPair {
            name: &machine.link,
            peer_name: MACHINE_LINK,
            peer_netns: Some(&namespace),
            mtu: None,
            master: Some(&plan.bridge),
            up: true,
        })?;
    }
    let address =
        Prefix::new(machine.address.into(), plan.subnet.length()).context("the subnet is an IPv4 network")?;
    inside.add_address(MACHINE_LINK, address)?;
    inside.set_up(MACHINE_LINK)?;
    inside.replace_route(&Route::via(Prefix::DEFAULT_V4, plan.gateway()))?;
    Ok(())
}

/// Lets this machine reach pods: a route to each node's pod addresses. They go with the bridge.
pub(crate) fn route_pods(plan: &Plan, pod_ranges: &[(String, Prefix)]) -> anyhow::Result<()> {
    let mut host = Netlink::open()?;
    for (node, range) in pod_ranges {
        if let Some(machine) = plan.nodes().find(|machine| machine.name == *node) {
            let route =
                Route { device: Some(plan.bridge.clone()), ..Route::via(*range, machine.address.into()) };
            host.replace_route(&route)?;
        }
    }
    Ok(())
}

/// Sends a packet from the first machine to the last: firewalls of the host can stand between ports of a
/// bridge, and that is better said now than found out as masters that cannot elect a leader.
fn check_reach(plan: &Plan) -> anyhow::Result<()> {
    let (Some(from), Some(to)) = (plan.machines.first(), plan.machines.last()) else { return Ok(()) };
    if from == to {
        return Ok(());
    }
    let receiver = NetNs::open_named(&to.netns)?.run(|| UdpSocket::bind((to.address, 0)))??;
    let sender = NetNs::open_named(&from.netns)?.run(|| UdpSocket::bind((from.address, 0)))??;
    let target: SocketAddr = receiver.local_addr()?;
    receiver.set_read_timeout(Some(REACH_INTERVAL))?;
    let deadline = Instant::now() + REACH_TIMEOUT;
    while Instant::now() < deadline {
        sender.send_to(b"barque", target).context("cannot send a packet between two machines")?;
        match receiver.recv_from(&mut [0; 16]) {
            Ok(_) => return Ok(()),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(error) => return Err(error).context("cannot receive a packet between two machines"),
        }
    }
    bail!(
        "{} cannot reach {} over the bridge {}: a firewall of this machine drops what crosses bridges. Let it \
         pass: `sysctl -w net.bridge.bridge-nf-call-iptables=0`, or accept forwarding on {}",
        from.name,
        to.name,
        plan.bridge,
        plan.bridge
    )
}

/// Every network that this machine's addresses and routes name; the default route aside.
pub(crate) fn used(host: &mut Netlink) -> anyhow::Result<Vec<Prefix>> {
    let addresses = host.addresses()?.into_iter().map(|address| address.prefix);
    let routes = host.routes()?.into_iter().map(|route| route.destination);
    Ok(addresses.chain(routes).filter(|prefix| prefix.length() > 0).collect())
}

/// Whether a subnet overlaps none of those.
pub(crate) fn is_free(subnet: Prefix, used: &[Prefix]) -> bool {
    used.iter().all(|other| {
        !subnet.contains(other.network().address()) && !other.contains(subnet.network().address())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_overlap_when_either_holds_the_other() {
        let used: Vec<Prefix> = ["10.89.0.1/24", "192.168.0.0/16", "fe80::1/64"]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        for (subnet, free) in [
            ("10.89.0.0/24", false),
            ("10.89.0.128/25", false),
            ("10.0.0.0/8", false),
            ("192.168.7.0/24", false),
            ("10.89.1.0/24", true),
        ] {
            assert_eq!(is_free(subnet.parse().unwrap(), &used), free, "{subnet}");
        }
    }
}
