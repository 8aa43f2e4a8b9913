//! `up`: from nothing, or from what is left of a cluster, to one that works.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};

use anyhow::{Context as _, bail, ensure};
use runtime::net::{NetNs, Netlink, Prefix};

use super::configs::{INGRESS_LABEL, MASTER_ROLE};
use super::plan::{self, Plan, Role};
use super::preflight;
use super::process::{self, Launch};
use super::progress::{Step, line};
use super::wait::{self, NodeView, Started};
use super::{files, network, teardown};
use crate::cli::UpArgs;
use crate::client::Client;
use crate::kubeconfig;
use crate::signals::Signals;

/// The process that serves 127.0.0.1.
pub(crate) const ENDPOINT: &str = "endpoint";
/// The StorageClass of a new cluster, named as other small clusters name theirs.
const DEFAULT_CLASS: &str = "standard";

/// What `up` came to.
pub(crate) enum Outcome {
    /// A new cluster works.
    Made(Plan),
    /// The cluster was there; these processes were missing and run again.
    Completed(Plan, Vec<String>),
    /// The cluster was there, whole.
    AlreadyUp(Plan),
}

/// Makes the cluster that the flags ask for, or completes the one that is there.
pub(crate) async fn up(args: &UpArgs, log_level: &str) -> anyhow::Result<Outcome> {
    if let Err(problem) = preflight::check_root() {
        bail!("{problem}");
    }
    let _lock = lock(&args.cluster.name)?;
    let mut signals = Signals::listen()?;
    if let Some(process) = &args.only {
        return start_only(Plan::load(&args.cluster)?, process, log_level);
    }
    match Plan::find(&args.cluster)? {
        Some(plan) => {
            ensure!(
                !plan.is_orphan(),
                "the files of cluster {} are gone from {}; `barque down --name {0}` removes the rest",
                plan.name,
                plan.directory.display()
            );
            ensure!(
                plan.matches(args),
                "cluster {} is there already, with {} masters and {} nodes on {} and port {}; `barque down` \
                 removes it, another --name makes one beside it",
                plan.name,
                plan.masters().count(),
                plan.workers().count(),
                plan.subnet,
                plan.port
            );
            tokio::select! {
                outcome = complete(plan, log_level) => outcome,
                signal = signals.next() => bail!("stopped by {signal}"),
            }
        }
        None => {
            let plan = check(args)?;
            let made = tokio::select! {
                made = make(&plan, log_level) => made,
                signal = signals.next() => Err(anyhow::anyhow!("stopped by {signal}")),
            };
            match made {
                Ok(()) => Ok(Outcome::Made(plan)),
                Err(error) if args.keep_failed => Err(anyhow::anyhow!(
                    "{error:#}\n  left as it is, as asked: logs are in {}, `barque down` removes it",
                    plan.log_file(ENDPOINT).parent().unwrap_or(&plan.directory).display()
                )),
                Err(error) => Err(roll_back(&plan, error)),
            }
        }
    }
}

/// Starts one process of a cluster, whatever else of it runs or does not.
fn start_only(plan: Plan, process: &str, log_level: &str) -> anyhow::Result<Outcome> {
    let names = process_names(&plan);
    ensure!(
        names.iter().any(|name| name == process),
        "cluster {} has no process {process}; it has {}",
        plan.name,
        names.join(", ")
    );
    let is_running = teardown::processes(&plan).iter().any(|(name, _)| name == process);
    ensure!(!is_running, "{process} of cluster {} runs already", plan.name);
    launch(&plan, &[process.to_owned()], log_level)?;
    Ok(Outcome::Completed(plan, vec![process.to_owned()]))
}

/// Takes what no two commands may hold at once: changing the cluster of that name.
pub(crate) fn lock(name: &str) -> anyhow::Result<UnixListener> {
    // An abstract socket leaves no file and ends with the process that holds it.
    let address = UnixAddr::from_abstract_name(format!("barque/cluster/{name}"))?;
    match UnixListener::bind_addr(&address) {
        Ok(lock) => Ok(lock),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            bail!("another `barque up` or `barque down` of cluster {name} is running; wait for it to end")
        }
        Err(error) => Err(error).context("cannot take the lock of the cluster"),
    }
}

fn roll_back(plan: &Plan, error: anyhow::Error) -> anyhow::Error {
    match teardown::remove(plan) {
        Ok(_) => anyhow::anyhow!("{error:#}\n  what had been made was removed again"),
        Err(left) => anyhow::anyhow!("{error:#}\n  {left:#}"),
    }
}

/// Plans, and looks whether this machine can carry the plan. Leaves nothing behind.
fn check(args: &UpArgs) -> anyhow::Result<Plan> {
    let step = Step::begin("check this machine");
    let mut host = Netlink::open()?;
    let subnet = match args.subnet {
        Some(subnet) => subnet,
        None => first_free(plan::default_subnets(), &mut host)?.context(
            "every network from 10.89.0.0/24 to 10.89.255.0/24 is in use on this machine; choose one with --subnet",
        )?,
    };
    plan::check_subnet(subnet)?;
    // Routes to pods would fight over one range. Masters and nodes do not care, so the last resort is the
    // first choice again.
    let pod_range = first_free(plan::pod_ranges(), &mut host)?.or_else(|| plan::pod_ranges().next());
    let plan = Plan::new(args, subnet, pod_range.context("there is a first pod range")?)?;
    let problems = preflight::check(&plan);
    if problems.is_empty() {
        step.done();
        return Ok(plan);
    }
    step.failed();
    let listed: String = problems.iter().map(|problem| format!("\n  - {problem}")).collect();
    bail!("this machine lacks something; nothing was made:{listed}")
}

fn first_free(
    mut candidates: impl Iterator<Item = Prefix>,
    host: &mut Netlink,
) -> anyhow::Result<Option<Prefix>> {
    let used = network::used(host)?;
    Ok(candidates.find(|candidate| network::is_free(*candidate, &used)))
}

async fn make(plan: &Plan, log_level: &str) -> anyhow::Result<()> {
    files::create_private_dir(&plan.directory)?;
    plan.store()?;
    let missing: Vec<String> = process_names(plan);
    bring_up(plan, &missing, log_level).await?;
    let client = Client::new(&kubeconfig::read(&plan.kubeconfig_file())?.credentials)?;
    add_default_class(plan, &client).await
}

/// Claims that name no class get a directory of the node that their first pod runs on. Whoever wants something else changes
/// the class: a later `up` leaves it alone.
async fn add_default_class(plan: &Plan, client: &Client) -> anyhow::Result<()> {
    let path = format!("/apis/storage.k8s.io/v1/storageclasses/{DEFAULT_CLASS}?fieldManager=barque-up");
    let class = serde_json::json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": DEFAULT_CLASS,
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": api::local_volume::DRIVER,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
        "allowVolumeExpansion": true,
    });
    wait::for_success(&format!("PATCH {path}"), wait::NODES_TIMEOUT, async || {
        client.apply(plan.endpoint(), &path, &class).await
    })
    .await
}

async fn complete(plan: Plan, log_level: &str) -> anyhow::Result<Outcome> {
    let running: Vec<String> = teardown::processes(&plan).into_iter().map(|(name, _)| name).collect();
    let missing: Vec<String> =
        process_names(&plan).into_iter().filter(|name| !running.contains(name)).collect();
    if missing.is_empty() {
        return Ok(Outcome::AlreadyUp(plan));
    }
    bring_up(&plan, &missing, log_level).await?;
    Ok(Outcome::Completed(plan, missing))
}

/// The steps from a stored plan to a working cluster; `missing` are the processes to start.
async fn bring_up(plan: &Plan, missing: &[String], log_level: &str) -> anyhow::Result<()> {
    plan.register()?;
    within("network: a bridge, and a namespace for each machine", |_| network::make(plan))?;
    within("keys and configuration", |_| files::write(plan))?;
    let mut started = within("start masters and nodes", |_| launch(plan, missing, log_level))?;
    let client = Client::new(&kubeconfig::read(&plan.kubeconfig_file())?.credentials)?;

    let step = Step::begin("masters elect a leader");
    let leader = wait::for_leader(plan, &client, &mut started, &step).await;
    let leader = finish(step, leader)?;
    line(format_args!("    {leader} leads"));

    let step = Step::begin("nodes are Ready");
    let nodes = wait::for_nodes(plan, &client, &mut started, &step).await;
    let nodes = finish(step, nodes)?;
    label(plan, &client, &nodes).await?;
    network::route_pods(plan, &pod_ranges(&nodes))
}

fn within<T>(title: &str, work: impl FnOnce(&Step) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let step = Step::begin(title);
    let outcome = work(&step);
    finish(step, outcome)
}

fn finish<T>(step: Step, outcome: anyhow::Result<T>) -> anyhow::Result<T> {
    match outcome {
        Ok(value) => {
            step.done();
            Ok(value)
        }
        Err(error) => {
            step.failed();
            Err(error)
        }
    }
}

fn pod_ranges(nodes: &[NodeView]) -> Vec<(String, Prefix)> {
    nodes.iter().filter_map(|node| Some((node.name.clone(), node.pod_range?))).collect()
}

/// The processes of a whole cluster.
fn process_names(plan: &Plan) -> Vec<String> {
    plan.processes().map(|(name, ..)| name).chain([ENDPOINT.to_owned()]).collect()
}

/// Says of machines what none may say of itself: that it is a master, that it takes requests from outside.
async fn label(plan: &Plan, client: &Client, nodes: &[NodeView]) -> anyhow::Result<()> {
    let has = |machine: &str, label: &str, value: &str| {
        nodes.iter().any(|node| node.name == machine && node.labels.get(label).is_some_and(|it| it == value))
    };
    let masters = plan.masters().filter(|_| plan.master_nodes).map(|machine| (machine, MASTER_ROLE, ""));
    let has_workers = plan.workers().next().is_some();
    let entrances = plan.nodes().filter(|machine| machine.role == Role::Node || !has_workers);
    let entrances = entrances.map(|machine| (machine, INGRESS_LABEL, "true"));
    for (machine, label, value) in masters.chain(entrances) {
        if has(&machine.name, label, value) {
            continue;
        }
        let path = format!("/api/v1/nodes/{}", machine.name);
        let patch = serde_json::json!({"metadata": {"labels": {label: value}}});
        wait::for_success(&format!("PATCH {path}"), wait::NODES_TIMEOUT, async || {
            client.patch(plan.endpoint(), &path, &patch).await
        })
        .await?;
    }
    Ok(())
}

fn launch(plan: &Plan, missing: &[String], log_level: &str) -> anyhow::Result<Vec<Started>> {
    let pids = plan.pid_file(ENDPOINT);
    let pid_dir = pids.parent().context("pid files lie in a directory")?;
    std::fs::create_dir_all(pid_dir).with_context(|| format!("cannot create {}", pid_dir.display()))?;
    let mut started = Vec::new();
    for name in missing {
        let process = plan.processes().find(|(process, ..)| process == name);
        let netns = process.as_ref().map(|(_, machine, _)| NetNs::open_named(&machine.netns)).transpose()?;
        let mut args = vec!["--log-level".to_owned(), log_level.to_owned()];
        args.extend(process.map_or_else(|| endpoint_args(plan), |(_, _, role)| role_args(plan, name, role)));
        let child = process::launch(&Launch {
            args,
            netns: netns.as_ref(),
            log_file: plan.log_file(name),
            pid_file: plan.pid_file(name),
        })?;
        started.push(Started { name: name.clone(), child });
    }
    Ok(started)
}

fn role_args(plan: &Plan, process: &str, role: Role) -> Vec<String> {
    let (flags, command) = match role {
        Role::Master => (&plan.master_flags[..], "control"),
        Role::Node => (&[][..], "node"),
    };
    let config = [command.to_owned(), "--config".to_owned(), plan.config_file(process).display().to_string()];
    flags.iter().cloned().chain(config).collect()
}

fn endpoint_args(plan: &Plan) -> Vec<String> {
    let mut args = vec![
        "endpoint".to_owned(),
        "--listen".to_owned(),
        plan.endpoint().to_string(),
        "--ca".to_owned(),
        plan.ca_file().display().to_string(),
    ];
    for server in plan.servers() {
        args.extend(["--master".to_owned(), server.to_string()]);
    }
    args
}
