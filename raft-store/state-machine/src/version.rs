//! Which commands the members understand, so that none is proposed that one of them cannot apply.
//!
//! Every member says in the log which version it supports; when all have, the leader raises the cluster's
//! version to the lowest of them. The version never goes back: what was written under it stays in the log
//! and in the state, and a member that does not know it must not start.

use std::collections::{BTreeMap, BTreeSet};

use crate::command::Command;
use crate::hash;
use crate::wire::{DecodeError, Reader, Writer};

/// The version that a group has before its members have said anything: the commands of the first release.
pub const CLUSTER_VERSION_INITIAL: u32 = 1;

/// The newest version that this code supports. 2: users and roles, authors, request ids, this gate itself.
pub const CLUSTER_VERSION_SUPPORTED: u32 = 2;

const VERSION_HASH_DOMAIN: u64 = 0x7665_7273_0000_0001;

/// Members whose statement is kept; more do not form one group.
const MEMBERS_MAX: usize = 64;

/// What members say about versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VersionCommand {
    /// A member supports all versions up to this one.
    Supports {
        /// The member.
        member_id: u64,
        /// The newest version that it supports.
        version: u32,
    },
    /// All members support this version: it may be used. Older than the cluster's: no effect.
    Raise {
        /// The version.
        version: u32,
        /// The members there are; what others said is forgotten. A statement that is missing or too low
        /// voids the command.
        members: BTreeSet<u64>,
    },
}

impl Command {
    /// The lowest cluster version at which the command may be proposed.
    pub fn cluster_version(&self) -> u32 {
        match self {
            Self::Auth(_) => 2,
            // `Version` too: without it no version is ever reached. A member of the first release stops at it
            // and says that it must be upgraded.
            _ => CLUSTER_VERSION_INITIAL,
        }
    }
}

/// The replicated side of the gate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Versions {
    pub(crate) cluster: u32,
    pub(crate) supported: BTreeMap<u64, u32>,
}

impl Default for Versions {
    fn default() -> Self {
        Self { cluster: CLUSTER_VERSION_INITIAL, supported: BTreeMap::new() }
    }
}

impl Versions {
    pub(crate) fn apply(&mut self, command: &VersionCommand) {
        match command {
            VersionCommand::Supports { member_id, version } => {
                if self.supported.len() < MEMBERS_MAX || self.supported.contains_key(member_id) {
                    self.supported.insert(*member_id, *version);
                }
            }
            VersionCommand::Raise { version, members } => {
                self.supported.retain(|member, _| members.contains(member));
                let supports = |member| self.supported.get(member).is_some_and(|known| known >= version);
                if !members.is_empty() && members.iter().all(supports) {
                    self.cluster = self.cluster.max(*version);
                }
            }
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        if *self == Self::default() {
            return 0;
        }
        let pairs = self.supported.iter().flat_map(|(member, version)| [*member, u64::from(*version)]);
        let words: Vec<u64> = std::iter::once(u64::from(self.cluster)).chain(pairs).collect();
        hash::words(VERSION_HASH_DOMAIN, &words)
    }

    pub(crate) fn write(&self, writer: &mut Writer) {
        writer.varint(u64::from(self.cluster));
        let supported: Vec<_> = self.supported.iter().collect();
        writer.list(&supported, |writer, (member, version)| {
            writer.varint(**member);
            writer.varint(u64::from(**version));
        });
    }

    pub(crate) fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let cluster = reader.u32()?;
        if cluster > CLUSTER_VERSION_SUPPORTED {
            return Err(DecodeError::ClusterVersion { cluster, supported: CLUSTER_VERSION_SUPPORTED });
        }
        let supported = reader.list(|reader| Ok((reader.varint()?, reader.u32()?)))?;
        Ok(Self { cluster, supported: supported.into_iter().collect() })
    }
}

pub(crate) fn write_version_command(writer: &mut Writer, command: &VersionCommand) {
    match command {
        VersionCommand::Supports { member_id, version } => {
            writer.u8(1);
            writer.varint(*member_id);
            writer.varint(u64::from(*version));
        }
        VersionCommand::Raise { version, members } => {
            writer.u8(2);
            writer.varint(u64::from(*version));
            let members: Vec<u64> = members.iter().copied().collect();
            writer.list(&members, |writer, member| writer.varint(*member));
        }
    }
}

/// A raise beyond what this code supports is refused here: the member must not go on.
pub(crate) fn read_version_command(reader: &mut Reader) -> Result<VersionCommand, DecodeError> {
    Ok(match reader.u8()? {
        1 => VersionCommand::Supports { member_id: reader.varint()?, version: reader.u32()? },
        2 => {
            let version = reader.u32()?;
            if version > CLUSTER_VERSION_SUPPORTED {
                let supported = CLUSTER_VERSION_SUPPORTED;
                return Err(DecodeError::ClusterVersion { cluster: version, supported });
            }
            let members = reader.list(Reader::varint)?.into_iter().collect();
            VersionCommand::Raise { version, members }
        }
        tag => return Err(DecodeError::UnknownTag { what: "version command", tag }),
    })
}
