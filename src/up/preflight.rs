//! What this machine must have before anything is made on it.
//!
//! Every check tries the thing itself where it can (mounts an overlay, makes a bridge in a throw-away
//! namespace), so that it is right inside containers and virtual machines too, and leaves nothing behind.
//! All problems are reported together, each with what to do.

use std::fmt;
use std::fs;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use runtime::net::{Netlink, VethPair, netns};

use super::plan::Plan;
use super::{mounts, network};

/// Free space that the data directory must have.
const DISK_FREE_BYTES_MIN: u64 = 1024 * 1024 * 1024;
/// Controllers without which a pod's limits mean nothing.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// Something that is missing, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    what: String,
    remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n      {}", self.what, self.remedy)
    }
}

fn problem(what: impl Into<String>, remedy: impl Into<String>) -> Result<(), Problem> {
    Err(Problem { what: what.into(), remedy: remedy.into() })
}

/// Everything that is missing; nothing of it is left behind.
pub(crate) fn check(plan: &Plan) -> Vec<Problem> {
    // Without root every other check fails for that reason alone.
    if let Err(problem) = check_root() {
        return vec![problem];
    }
    let scratch = Scratch::new(plan);
    [
        check_port(plan),
        check_names(plan),
        check_subnet(plan),
        check_disk(&plan.directory),
        check_cgroups(),
        scratch.as_ref().map_err(Clone::clone).and_then(Scratch::check_overlay),
        scratch.as_ref().map_err(Clone::clone).and_then(Scratch::check_network),
    ]
    .into_iter()
    .filter_map(Result::err)
    .fold(Vec::new(), |mut found, problem| {
        if !found.contains(&problem) {
            found.push(problem);
        }
        found
    })
}

/// Whether this process may make namespaces, links and mounts.
pub(crate) fn check_root() -> Result<(), Problem> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    problem(
        "this needs root: network namespaces, bridges, mounts and cgroups are made",
        "run it as root, for example with sudo",
    )
}

fn check_port(plan: &Plan) -> Result<(), Problem> {
    match TcpListener::bind(plan.endpoint()) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => problem(
            format!("port {} on 127.0.0.1 is in use", plan.port),
            format!(
                "choose another with --port, for example --port {}",
                plan.port.wrapping_add(10_000).max(1024)
            ),
        ),
        Err(error) => problem(
            format!("cannot listen on 127.0.0.1:{}: {error}", plan.port),
            "choose another port with --port",
        ),
    }
}

fn check_names(plan: &Plan) -> Result<(), Problem> {
    let taken = (|| -> anyhow::Result<Vec<String>> {
        let pinned = netns::list()?;
        let links = Netlink::open()?.links()?;
        let mut taken: Vec<String> = plan
            .machines
            .iter()
            .filter(|machine| pinned.contains(&machine.netns))
            .map(|machine| format!("network namespace {}", machine.netns))
            .collect();
        let ours =
            |name: &str| name == plan.bridge || plan.machines.iter().any(|machine| machine.link == name);
        taken.extend(links.iter().filter(|link| ours(&link.name)).map(|link| format!("link {}", link.name)));
        Ok(taken)
    })();
    match taken {
        Ok(taken) if taken.is_empty() => Ok(()),
        Ok(taken) => problem(
            format!(
                "the name {} is taken: {} there already",
                plan.name,
                taken.join(", ") + if taken.len() == 1 { " is" } else { " are" }
            ),
            "no cluster of that name is registered on this machine, so they may be somebody else's; remove them with \
             `ip netns delete` and `ip link delete`, or choose another --name",
        ),
        Err(error) => problem(format!("cannot list network namespaces and links: {error:#}"), "see above"),
    }
}

fn check_subnet(plan: &Plan) -> Result<(), Problem> {
    let free = Netlink::open()
        .map_err(anyhow::Error::from)
        .and_then(|mut host| Ok(network::is_free(plan.subnet, &network::used(&mut host)?)));
    match free {
        Ok(true) => Ok(()),
        Ok(false) => problem(
            format!("the network {} is in use on this machine", plan.subnet),
            "choose another with --subnet, for example --subnet 10.213.0.0/24",
        ),
        Err(error) => problem(format!("cannot list addresses and routes: {error:#}"), "see above"),
    }
}

fn check_disk(directory: &Path) -> Result<(), Problem> {
    let existing = existing_ancestor(directory);
    match nix::sys::statvfs::statvfs(existing) {
        Ok(found) => {
            let free = found.blocks_available().saturating_mul(found.fragment_size());
            if free >= DISK_FREE_BYTES_MIN {
                return Ok(());
            }
            problem(
                format!(
                    "{} has {} MiB of free space, and {} MiB are needed",
                    existing.display(),
                    free >> 20,
                    DISK_FREE_BYTES_MIN >> 20
                ),
                "make room, or choose a directory on another disk with --data-dir",
            )
        }
        Err(errno) => problem(
            format!("cannot find out the free space of {}: {errno}", existing.display()),
            "choose another directory with --data-dir",
        ),
    }
}

fn check_cgroups() -> Result<(), Problem> {
    let remedy = "mount them (most systems do: systemd, or the package cgroupfs-mount); inside a container, \
                  start it privileged";
    let mounts = match mounts::all() {
        Ok(mounts) => mounts,
        Err(error) => return problem(format!("{error:#}"), "mount /proc"),
    };
    let mut found: Vec<String> = Vec::new();
    for mount in &mounts {
        match mount.kind.as_str() {
            "cgroup" => found.extend(mount.options.split(',').map(str::to_owned)),
            "cgroup2" => {
                let listed = fs::read_to_string(mount.point.join("cgroup.controllers")).unwrap_or_default();
                found.extend(listed.split_whitespace().map(str::to_owned));
            }
            _ => {}
        }
    }
    let missing: Vec<&str> =
        CONTROLLERS.into_iter().filter(|wanted| !found.iter().any(|own| own == wanted)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    problem(format!("the cgroup controllers {} are not there", missing.join(", ")), remedy)
}

/// A directory in the place where the cluster's files will lie, removed with everything in it.
struct Scratch {
    directory: PathBuf,
    /// Directories above it that were not there before, deepest first.
    made: Vec<PathBuf>,
}

impl Scratch {
    fn new(plan: &Plan) -> Result<Self, Problem> {
        let base = plan.directory.parent().unwrap_or(&plan.directory);
        let mut made: Vec<PathBuf> =
            base.ancestors().take_while(|path| !path.exists()).map(Path::to_owned).collect();
        let directory = base.join(format!(".preflight-{}-{}", plan.name, std::process::id()));
        made.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
        let scratch = Self { directory, made };
        match fs::create_dir_all(&scratch.directory) {
            Ok(()) => Ok(scratch),
            Err(error) => Err(Problem {
                what: format!("cannot write below {}: {error}", existing_ancestor(base).display()),
                remedy: "choose another directory with --data-dir".to_owned(),
            }),
        }
    }

    /// Mounts an overlay whose layers lie where images will lie.
    fn check_overlay(&self) -> Result<(), Problem> {
        let attempt = || -> anyhow::Result<()> {
            let [lower, upper, work, merged] =
                ["lower", "upper", "work", "merged"].map(|name| self.directory.join(name));
            for directory in [&lower, &upper, &work, &merged] {
                fs::create_dir_all(directory)?;
            }
            let options = format!(
                "lowerdir={},upperdir={},workdir={}",
                lower.display(),
                upper.display(),
                work.display()
            );
            mount(Some("overlay"), &merged, Some("overlay"), MsFlags::empty(), Some(options.as_str()))?;
            // The kernel lets some filesystems mount and refuses to write.
            let written = fs::write(merged.join("file"), b"x");
            umount2(&merged, MntFlags::MNT_DETACH)?;
            written.context("writing to it failed")?;
            Ok(())
        };
        match attempt() {
            Ok(()) => Ok(()),
            Err(error) => problem(
                format!(
                    "overlayfs cannot be mounted in {}: {error:#}",
                    self.directory.parent().unwrap_or(&self.directory).display()
                ),
                "load it (`modprobe overlay`); if this is a container, choose a directory on a real disk or a \
                 tmpfs with --data-dir: an overlay cannot lie on another one",
            ),
        }
    }

    /// Makes a bridge and a veth pair in a namespace of their own.
    fn check_network(&self) -> Result<(), Problem> {
        let pin = self.directory.join("netns");
        let attempt = || -> Result<(), (&'static str, runtime::net::Error)> {
            let namespace = netns::create_at(&pin).map_err(|error| ("network namespaces", error))?;
            let mut inside = Netlink::open_in(&namespace).map_err(|error| ("netlink sockets", error))?;
            inside.add_bridge("probe").map_err(|error| ("bridges (module bridge)", error))?;
            let pair = VethPair {
                name: "probe-a",
                peer_name: "probe-b",
                peer_netns: None,
                mtu: None,
                master: Some("probe"),
                up: true,
            };
            inside.add_veth(pair).map_err(|error| ("veth pairs (module veth)", error))
        };
        let outcome = attempt();
        // What was made goes with the namespace.
        let _deleted = netns::delete_at(&pin);
        match outcome {
            Ok(()) => Ok(()),
            Err((what, error)) => problem(
                format!("this kernel does not give {what}: {error}"),
                "load the module with modprobe, or use a kernel that has it; inside a container, start it privileged",
            ),
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing more can be done about what cannot be removed here, and the next check finds it.
        let _removed = fs::remove_dir_all(&self.directory);
        for directory in &self.made {
            let _removed = fs::remove_dir(directory);
        }
    }
}

fn existing_ancestor(path: &Path) -> &Path {
    path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"))
}
