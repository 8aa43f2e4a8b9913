//! What a cluster on this machine consists of: names, addresses, files. Pure, apart from being stored.
//!
//! Owns the plan file, which is written before anything else is made and removed after everything else is
//! gone, so that `down` can remove what `up` made however far it came.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use ring::digest;
use runtime::net::Prefix;
use serde::{Deserialize, Serialize};

use crate::cli::{ClusterArgs, UpArgs};

/// The form of the plan file; another one was written by another version.
const PLAN_VERSION: u32 = 1;
/// The port of every master.
pub(crate) const MASTER_PORT: u16 = 6443;
/// Last numbers of addresses: the bridge, the masters from, the nodes from.
const GATEWAY_HOST: u8 = 1;
const MASTER_HOST: u8 = 10;
const NODE_HOST: u8 = 20;
const VIRTUAL_HOST: u8 = 10;
const BALANCER_HOST: u8 = 230;
/// What those leave room for.
const MASTERS_MAX: u8 = 9;
const NODES_MAX: u8 = 200;
const BALANCERS_MAX: u8 = 20;
/// Longest cluster name: it becomes part of directory and netns names.
const NAME_BYTES_MAX: usize = 32;
/// The subnet must leave a whole byte for hosts.
const SUBNET_LENGTH_MAX: u8 = 24;
/// Enough for 256 nodes with 254 pods each.
const POD_RANGE_LENGTH: u8 = 16;
/// Where nodes keep what need not outlive a reboot.
const RUN_DIR: &str = "/run/barque/clusters";
/// The file that holds a plan.
const PLAN_FILE: &str = "plan.json";
/// What the part of a machine in the cluster is called in names.
const CLUSTERS_DIR: &str = "clusters";

/// What a machine of the cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// Runs a control-plane replica.
    Master,
    /// Runs a node agent and pods.
    Node,
}

/// One machine: a network namespace with an address of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// `master-1`, `node-2`.
    pub(crate) name: String,
    /// What it runs.
    pub(crate) role: Role,
    /// Its address on the cluster's bridge.
    pub(crate) address: Ipv4Addr,
    /// The name of its network namespace.
    pub(crate) netns: String,
    /// The end of its veth pair that is a port of the bridge.
    pub(crate) link: String,
}

impl Machine {
    /// The name of the agent's process, if it runs one.
    pub(crate) fn agent(&self) -> String {
        match self.role {
            Role::Master => format!("{}-node", self.name),
            Role::Node => self.name.clone(),
        }
    }

    /// Where a master serves.
    pub(crate) fn server(&self) -> SocketAddr {
        SocketAddr::from((self.address, MASTER_PORT))
    }
}

/// A whole cluster on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    version: u32,
    /// The cluster's name.
    pub(crate) name: String,
    /// The directory that holds everything durable.
    pub(crate) directory: PathBuf,
    /// The directory that holds what is gone after a reboot.
    pub(crate) run_directory: PathBuf,
    /// The cgroup that holds all its containers, from the controllers' roots.
    pub(crate) cgroup: String,
    /// The cluster's network.
    pub(crate) subnet: Prefix,
    /// Pods' addresses come from this range.
    pub(crate) pod_range: Prefix,
    /// The bridge that joins the machines.
    pub(crate) bridge: String,
    /// The port on 127.0.0.1.
    pub(crate) port: u16,
    /// Addresses for Services of type `LoadBalancer`, as masters' configurations name them.
    #[serde(default)]
    pub(crate) balancer_addresses: Vec<String>,
    /// The address of the API that the leader holds.
    #[serde(default)]
    pub(crate) virtual_address: Option<Ipv4Addr>,
    /// Whether masters run a node agent too.
    #[serde(default)]
    pub(crate) master_nodes: bool,
    /// More flags for each master, before its own.
    #[serde(default)]
    pub(crate) master_flags: Vec<String>,
    /// Whether the data directory itself was made for this cluster.
    data_dir_made: bool,
    /// Masters, then nodes.
    pub(crate) machines: Vec<Machine>,
}

impl Plan {
    /// The plan that the flags ask for, on `subnet`, with pods in `pod_range`.
    pub(crate) fn new(args: &UpArgs, subnet: Prefix, pod_range: Prefix) -> anyhow::Result<Self> {
        let name = &args.cluster.name;
        check_name(name)?;
        ensure!(
            args.masters % 2 == 1 && args.masters <= MASTERS_MAX,
            "--masters {}: give 1, 3, 5, 7 or 9; an even number survives no more failures than one less",
            args.masters
        );
        ensure!(args.nodes <= NODES_MAX, "--nodes {}: at most {NODES_MAX}", args.nodes);
        let balancers = args.load_balancer_addresses;
        ensure!(balancers <= BALANCERS_MAX, "--load-balancer-addresses {balancers}: at most {BALANCERS_MAX}");
        let balancer_addresses = match balancers {
            0 => Vec::new(),
            count => {
                let (first, last) = (host(subnet, BALANCER_HOST)?, host(subnet, BALANCER_HOST + count - 1)?);
                vec![format!("{first}-{last}")]
            }
        };
        let tag = tag(name);
        let machine = |role: Role, number: u8| -> anyhow::Result<Machine> {
            let (word, letter, first) = match role {
                Role::Master => ("master", 'm', MASTER_HOST),
                Role::Node => ("node", 'n', NODE_HOST),
            };
            Ok(Machine {
                name: format!("{word}-{number}"),
                role,
                address: host(subnet, first + number)?,
                netns: format!("{name}-{word}-{number}"),
                link: format!("bq{tag}{letter}{number}"),
            })
        };
        let machines = (1..=args.masters)
            .map(|number| machine(Role::Master, number))
            .chain((1..=args.nodes).map(|number| machine(Role::Node, number)))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            version: PLAN_VERSION,
            name: name.clone(),
            directory: directory(&args.cluster)?,
            run_directory: run_directory(name),
            cgroup: format!("/barque/{name}"),
            subnet: subnet.network(),
            pod_range,
            bridge: format!("bq{tag}"),
            port: args.port,
            balancer_addresses,
            virtual_address: args.virtual_address.then(|| host(subnet, VIRTUAL_HOST)).transpose()?,
            master_nodes: args.master_nodes,
            master_flags: args.master_flags.clone(),
            data_dir_made: !args.cluster.data_dir().exists(),
            machines,
        })
    }

    /// The stored plan of a cluster; an error that says what to do when there is none.
    pub(crate) fn load(cluster: &ClusterArgs) -> anyhow::Result<Self> {
        Self::find(cluster)?.with_context(|| {
            format!("no cluster named {} is up on this machine; `barque up` makes one", cluster.name)
        })
    }

    /// The stored plan of a cluster, if there is one: in its directory, or else where the cluster that has the name
    /// on this machine is registered.
    pub(crate) fn find(cluster: &ClusterArgs) -> anyhow::Result<Option<Self>> {
        let asked = directory(cluster)?;
        if let Some(plan) = Self::read(&asked.join(PLAN_FILE))? {
            return Ok(Some(plan));
        }
        let Some(plan) = Self::read(&run_directory(&cluster.name).join(PLAN_FILE))? else { return Ok(None) };
        ensure!(
            cluster.data_dir.is_none() || plan.directory == asked || plan.is_orphan(),
            "cluster {} is up with its files in {}, not in {}; leave --data-dir out, or choose another --name",
            plan.name,
            plan.directory.display(),
            asked.display()
        );
        Ok(Some(plan))
    }

    /// Whether the cluster's files are gone: all that can be done for it is to remove the rest.
    pub(crate) fn is_orphan(&self) -> bool {
        !self.plan_file().exists()
    }

    fn read(path: &Path) -> anyhow::Result<Option<Self>> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let plan: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is damaged, or of another version of barque", path.display()))?;
        ensure!(
            plan.version == PLAN_VERSION,
            "{} was written by another version of barque; use that version's `barque down`",
            path.display()
        );
        Ok(Some(plan))
    }

    /// Writes the plan file.
    pub(crate) fn store(&self) -> anyhow::Result<()> {
        self.write(&self.plan_file())
    }

    /// Registers the cluster as the one of its name on this machine, until it is removed or the machine restarts:
    /// commands need not be told where its files are, and what is left of it can be removed when they are gone.
    pub(crate) fn register(&self) -> anyhow::Result<()> {
        super::files::create_private_dir(&self.run_directory)?;
        self.write(&self.run_directory.join(PLAN_FILE))
    }

    fn write(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self).context("a plan is plain data")?;
        Ok(control::pki::write_public(path, text.as_bytes())?)
    }

    /// Directories that hold nothing when no cluster is left, deepest first.
    pub(crate) fn shared_directories(&self) -> Vec<&Path> {
        let run = self.run_directory.ancestors().skip(1).take(2);
        let mut data = self.directory.ancestors().skip(1);
        let clusters = data.next();
        let own = |path: &&Path| self.data_dir_made || *path == Path::new(crate::cli::DATA_DIR);
        run.chain(clusters).chain(data.next().filter(own)).collect()
    }

    /// The masters.
    pub(crate) fn masters(&self) -> impl Iterator<Item = &Machine> {
        self.machines.iter().filter(|machine| machine.role == Role::Master)
    }

    /// The machines that are nodes and nothing else.
    pub(crate) fn workers(&self) -> impl Iterator<Item = &Machine> {
        self.machines.iter().filter(|machine| machine.role == Role::Node)
    }

    /// The machines that run a node agent; a node is called as its machine is.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Machine> {
        self.machines.iter().filter(|machine| machine.role == Role::Node || self.master_nodes)
    }

    /// Every process of a machine: its name, where it runs, what it is.
    pub(crate) fn processes(&self) -> impl Iterator<Item = (String, &Machine, Role)> {
        let masters = self.masters().map(|machine| (machine.name.clone(), machine, Role::Master));
        masters.chain(self.nodes().map(|machine| (machine.agent(), machine, Role::Node)))
    }

    /// Where the masters serve.
    pub(crate) fn servers(&self) -> Vec<SocketAddr> {
        self.masters().map(Machine::server).collect()
    }

    /// The bridge's own address, the machines' gateway.
    pub(crate) fn gateway(&self) -> IpAddr {
        IpAddr::V4(host(self.subnet, GATEWAY_HOST).expect("the subnet was checked when the plan was made"))
    }

    /// The address at which the cluster's API is served on this machine.
    pub(crate) fn endpoint(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// Where the plan itself is stored.
    pub(crate) fn plan_file(&self) -> PathBuf {
        self.directory.join(PLAN_FILE)
    }

    /// The administrator's kubeconfig.
    pub(crate) fn kubeconfig_file(&self) -> PathBuf {
        self.directory.join("kubeconfig")
    }

    /// The control token.
    pub(crate) fn control_token_file(&self) -> PathBuf {
        self.directory.join("control.token")
    }

    /// The authority's certificate.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.directory.join("ca.crt")
    }

    /// The configuration file of a process.
    pub(crate) fn config_file(&self, process: &str) -> PathBuf {
        self.process_dir(process).join("config.yaml")
    }

    /// What a process keeps.
    pub(crate) fn process_dir(&self, process: &str) -> PathBuf {
        self.directory.join(process)
    }

    /// The log of a process: `master-1`, `master-1-node`, `node-1`, `endpoint`.
    pub(crate) fn log_file(&self, process: &str) -> PathBuf {
        self.directory.join("logs").join(format!("{process}.log"))
    }

    /// The pid file of a process.
    pub(crate) fn pid_file(&self, process: &str) -> PathBuf {
        self.run_directory.join("pids").join(format!("{process}.json"))
    }

    /// Whether the flags ask for what the plan has. A subnet that was not asked for matches any.
    pub(crate) fn matches(&self, args: &UpArgs) -> bool {
        self.masters().count() == usize::from(args.masters)
            && self.workers().count() == usize::from(args.nodes)
            && self.master_nodes == args.master_nodes
            && self.virtual_address.is_some() == args.virtual_address
            && self.port == args.port
            && args.subnet.is_none_or(|subnet| subnet.network() == self.subnet)
    }
}

/// Where a cluster's files lie.
pub(crate) fn directory(cluster: &ClusterArgs) -> anyhow::Result<PathBuf> {
    check_name(&cluster.name)?;
    let base = std::path::absolute(cluster.data_dir())
        .with_context(|| format!("--data-dir {} is not a path", cluster.data_dir().display()))?;
    Ok(base.join(CLUSTERS_DIR).join(&cluster.name))
}

/// Where what is gone after a reboot lies; one per name.
fn run_directory(name: &str) -> PathBuf {
    Path::new(RUN_DIR).join(name)
}

/// The subnets tried when none is asked for.
pub(crate) fn default_subnets() -> impl Iterator<Item = Prefix> {
    (0..=u8::MAX).filter_map(|third| Prefix::new(IpAddr::from([10, 89, third, 0]), SUBNET_LENGTH_MAX))
}

/// The ranges of pod addresses tried, first choice first.
pub(crate) fn pod_ranges() -> impl Iterator<Item = Prefix> {
    (200..=244).rev().filter_map(|second| Prefix::new(IpAddr::from([10, second, 0, 0]), POD_RANGE_LENGTH))
}

/// Whether a subnet can hold a cluster.
pub(crate) fn check_subnet(subnet: Prefix) -> anyhow::Result<()> {
    ensure!(
        subnet.address().is_ipv4() && subnet.length() <= SUBNET_LENGTH_MAX && subnet.length() >= 8,
        "--subnet {subnet}: give an IPv4 network from /8 to /{SUBNET_LENGTH_MAX}, as in 10.89.0.0/24"
    );
    Ok(())
}

fn check_name(name: &str) -> anyhow::Result<()> {
    let letters = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    ensure!(
        letters
            && !name.is_empty()
            && name.len() <= NAME_BYTES_MAX
            && !name.starts_with('-')
            && !name.ends_with('-'),
        "--name {name:?}: a cluster's name is up to {NAME_BYTES_MAX} of a-z, 0-9 and '-', and begins and ends with a letter or digit"
    );
    Ok(())
}

/// Link names are short (15 bytes), so they carry the beginning of the cluster name's hash.
fn tag(name: &str) -> String {
    let hash = digest::digest(&digest::SHA256, name.as_bytes());
    hash.as_ref()[..3].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn host(subnet: Prefix, last: u8) -> anyhow::Result<Ipv4Addr> {
    match subnet.network().address() {
        IpAddr::V4(network) => Ok(Ipv4Addr::from_bits(network.to_bits() | u32::from(last))),
        IpAddr::V6(_) => anyhow::bail!("{subnet} is not an IPv4 network"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn args(name: &str, masters: u8, nodes: u8) -> UpArgs {
        // Between bars, because a name may hold anything here.
        let line =
            format!("barque|up|--name={name}|--data-dir|/tmp/data|--masters|{masters}|--nodes|{nodes}");
        match Cli::try_parse_from(line.split('|')).unwrap().command {
            Command::Up(args) => args,
            other => panic!("{other:?}"),
        }
    }

    fn pods() -> Prefix {
        pod_ranges().next().unwrap()
    }

    fn subnet() -> Prefix {
        "10.89.7.0/24".parse().unwrap()
    }

    #[test]
    fn every_machine_has_names_and_an_address_of_its_own() {
        let plan = Plan::new(&args("a-rather-long-name-of-a-cluster1", 9, 200), subnet(), pods()).unwrap();
        assert_eq!(plan.machines.len(), 209);
        assert_eq!(plan.servers()[0], "10.89.7.11:6443".parse().unwrap());
        assert_eq!(plan.gateway(), IpAddr::from([10, 89, 7, 1]));
        for key in [
            |m: &Machine| m.name.clone(),
            |m: &Machine| m.address.to_string(),
            |m: &Machine| m.netns.clone(),
            |m: &Machine| m.link.clone(),
        ] {
            let mut values: Vec<String> = plan.machines.iter().map(key).collect();
            values.sort();
            values.dedup();
            assert_eq!(values.len(), 209);
        }
        for machine in &plan.machines {
            assert!(machine.link.len() <= runtime::net::LINK_NAME_BYTES_MAX, "{}", machine.link);
        }
        assert!(plan.nodes().all(|node| node.address.octets()[3] < 255));
    }

    #[test]
    fn clusters_do_not_share_link_names() {
        let one = Plan::new(&args("one", 1, 1), subnet(), pods()).unwrap();
        let two = Plan::new(&args("two", 1, 1), subnet(), pods()).unwrap();
        assert_ne!(one.bridge, two.bridge);
        assert_ne!(one.machines[0].link, two.machines[0].link);
    }

    #[test]
    fn wrong_flags_are_answered_with_what_would_be_right() {
        for (name, masters, nodes, word) in [
            ("barque", 2, 1, "give 1, 3, 5"),
            ("barque", 0, 1, "give 1, 3, 5"),
            ("barque", 11, 1, "give 1, 3, 5"),
            ("barque", 1, 201, "at most 200"),
            ("../x", 1, 1, "a cluster's name"),
            ("", 1, 1, "a cluster's name"),
            ("-x", 1, 1, "a cluster's name"),
        ] {
            let error = Plan::new(&args(name, masters, nodes), subnet(), pods()).unwrap_err().to_string();
            assert!(error.contains(word), "{name} {masters} {nodes}: {error}");
        }
        for wrong in ["10.0.0.0/25", "fd00::/64", "0.0.0.0/0"] {
            assert!(check_subnet(wrong.parse().unwrap()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_plan_is_found_again_and_compared_with_flags() {
        let directory = tempfile::tempdir().unwrap();
        let mut args = args("lab", 3, 2);
        args.cluster.data_dir = Some(directory.path().to_owned());
        assert!(Plan::find(&args.cluster).unwrap().is_none());
        let error = Plan::load(&args.cluster).unwrap_err().to_string();
        assert!(error.contains("`barque up` makes one"), "{error}");

        let plan = Plan::new(&args, subnet(), pods()).unwrap();
        fs::create_dir_all(&plan.directory).unwrap();
        plan.store().unwrap();
        assert_eq!(Plan::load(&args.cluster).unwrap(), plan);
        assert!(plan.matches(&args));
        args.nodes = 3;
        assert!(!plan.matches(&args));

        fs::write(plan.plan_file(), "{").unwrap();
        let error = Plan::load(&args.cluster).unwrap_err().to_string();
        assert!(error.contains("damaged"), "{error}");
    }
}
