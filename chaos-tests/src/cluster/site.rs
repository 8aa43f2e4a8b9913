//! What an experiment breaks: a store's members, or the machines of a whole cluster.
//!
//! Both are numbered machines with one process each, which can be killed, held, ended and started. A store's links and disks can
//! fail besides ([`Site::group`]); a cluster's machines can be cut off and lose their power ([`Site::machines`]).

use std::net::SocketAddr;
use std::ops::Range;

use anyhow::Context as _;
use nix::sys::signal::Signal;

use super::group::Group;
use super::machines::Machines;

/// See the module.
pub enum Site {
    /// A store without anything above it.
    Store(Box<Group>),
    /// Masters and nodes.
    Cluster(Box<Machines>),
}

impl Site {
    /// The store, whose links and disks can fail.
    ///
    /// # Errors
    /// When this is a whole cluster.
    pub fn group(&mut self) -> anyhow::Result<&mut Group> {
        match self {
            Self::Store(group) => Ok(group),
            Self::Cluster(_) => anyhow::bail!("only members of a store alone have links and disks that fail"),
        }
    }

    /// The machines, which can lose their power.
    ///
    /// # Errors
    /// When this is a store.
    pub fn machines(&mut self) -> anyhow::Result<&mut Machines> {
        match self {
            Self::Cluster(machines) => Ok(machines),
            Self::Store(_) => anyhow::bail!("there are no machines: give the cluster nodes"),
        }
    }

    /// The store, if this is one.
    pub fn as_group(&self) -> Option<&Group> {
        match self {
            Self::Store(group) => Some(group),
            Self::Cluster(_) => None,
        }
    }

    /// The cluster, if this is one.
    pub fn as_machines(&self) -> Option<&Machines> {
        match self {
            Self::Cluster(machines) => Some(machines),
            Self::Store(_) => None,
        }
    }

    /// How many members agree on what is stored; theirs are the first numbers.
    pub fn members(&self) -> usize {
        match self {
            Self::Store(group) => group.size(),
            Self::Cluster(machines) => machines.masters(),
        }
    }

    /// The numbers of nodes.
    pub fn nodes(&self) -> Range<usize> {
        match self {
            Self::Store(group) => group.size()..group.size(),
            Self::Cluster(machines) => machines.masters()..machines.size(),
        }
    }

    /// A machine's name.
    pub fn name(&self, number: usize) -> &str {
        match self {
            Self::Store(group) => group.name(number),
            Self::Cluster(machines) => machines.name(number),
        }
    }

    /// Machines whose processes run.
    pub fn running(&self) -> Vec<usize> {
        match self {
            Self::Store(group) => group.running(),
            Self::Cluster(machines) => machines.running(),
        }
    }

    /// Where clients reach each member.
    pub fn clients(&self) -> Vec<SocketAddr> {
        match self {
            Self::Store(group) => group.clients(),
            Self::Cluster(machines) => machines.servers(),
        }
    }

    /// The member that leads.
    pub async fn leader(&self) -> Option<usize> {
        match self {
            Self::Store(group) => group.leader().await,
            Self::Cluster(machines) => machines.leader().await,
        }
    }

    /// What the links have held back so far.
    pub fn held(&self) -> u64 {
        self.as_group().map_or(0, |group| group.links.held())
    }

    /// How often disks have failed so far.
    pub fn disk_hits(&self) -> u64 {
        self.as_group().map_or(0, Group::disk_hits)
    }

    /// Starts what does not run.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn launch(&mut self, number: usize) -> anyhow::Result<()> {
        match self {
            Self::Store(group) => group.launch(number),
            Self::Cluster(machines) => tokio::task::block_in_place(|| machines.launch(number)),
        }
    }

    /// Ends a process as a crash does. Returns whether it ran.
    pub fn kill(&mut self, number: usize) -> bool {
        match self {
            Self::Store(group) => group.kill(number),
            Self::Cluster(machines) => tokio::task::block_in_place(|| machines.kill(number)),
        }
    }

    /// Sends a process a signal.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, number: usize, signal: Signal) -> anyhow::Result<()> {
        match self {
            Self::Store(group) => group.signal(number, signal),
            Self::Cluster(machines) => machines.signal(number, signal),
        }
    }

    /// Ends a process in an orderly way.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn terminate(&mut self, number: usize) -> anyhow::Result<()> {
        match self {
            Self::Store(group) => group.terminate(number).await,
            Self::Cluster(machines) => machines.terminate(number).await,
        }
    }

    /// Waits until every member is well.
    ///
    /// # Errors
    /// When that takes too long.
    pub async fn wait_healthy(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Store(group) => group.wait_healthy().await,
            Self::Cluster(machines) => tokio::task::block_in_place(|| machines.wait_healthy()),
        }
    }

    /// Machines whose process ended though nobody ended it, with the end of their logs.
    pub fn unexpected_ends(&mut self) -> Vec<(usize, String)> {
        match self {
            Self::Store(group) => group.unexpected_ends(),
            Self::Cluster(machines) => machines.unexpected_ends(),
        }
    }

    /// The end of a log, ready to stand after a message.
    pub fn log_tail(&self, number: usize) -> String {
        match self {
            Self::Store(group) => group.log_tail(number),
            Self::Cluster(machines) => machines.log_tail(number),
        }
    }

    /// Makes every link and disk whole and starts everything that does not run.
    ///
    /// # Errors
    /// When a machine cannot be had back.
    pub fn heal(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Store(group) => {
                group.links.heal();
                group.heal_disks();
                group.start_all().context("a member cannot be started again")
            }
            Self::Cluster(machines) => tokio::task::block_in_place(|| machines.heal()),
        }
    }
}
