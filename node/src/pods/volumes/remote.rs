//! Volumes that lie elsewhere: NFS exports, and the kinds that need a driver which this node does not have.

use std::fs;
use std::net::{IpAddr, ToSocketAddrs as _};
use std::path::Path;

use k8s_openapi::api::core::v1::{NFSVolumeSource, Volume};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use super::{Around, VolumeDriver, kind, mounts};

/// The port of an NFS server, version 4.
const NFS_PORT: u16 = 2049;
/// Asks give up after about a minute instead of never, so that a dead server cannot hold a pod's end up.
const NFS_OPTIONS: &str = "vers=4.2,soft,timeo=100,retrans=5";

pub(super) struct Nfs;

impl VolumeDriver for Nfs {
    fn takes(&self, volume: &Volume) -> bool {
        volume.nfs.is_some()
    }

    fn set_up(&self, volume: &Volume, at: &Path, _around: Around<'_>) -> Result<(), String> {
        let Some(source) = &volume.nfs else { return Ok(()) };
        fs::create_dir_all(at).map_err(|e| format!("cannot make {}: {e}", at.display()))?;
        if mounts::is_mount_point(at).map_err(|e| format!("cannot list mounts: {e}"))? {
            return Ok(());
        }
        let address = address(&source.server)?;
        let export = format!("{}:{}", source.server, source.path);
        let read_only = if source.read_only == Some(true) { MsFlags::MS_RDONLY } else { MsFlags::empty() };
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | read_only;
        let options = format!("{NFS_OPTIONS},addr={address},clientaddr=0.0.0.0");
        mount(Some(export.as_str()), at, Some("nfs4"), flags, Some(options.as_str()))
            .map_err(|errno| refusal(source, errno))
    }
}

fn address(server: &str) -> Result<IpAddr, String> {
    let mut found = (server, NFS_PORT)
        .to_socket_addrs()
        .map_err(|e| format!("mount failed: cannot find the address of NFS server {server:?}: {e}"))?;
    found
        .next()
        .map(|address| address.ip())
        .ok_or_else(|| format!("mount failed: NFS server {server:?} has no address"))
}

fn refusal(source: &NFSVolumeSource, errno: Errno) -> String {
    let export = format!("{}:{}", source.server, source.path);
    match errno {
        Errno::ENODEV => format!(
            "mount failed: cannot mount {export}: this node's kernel has no NFS client; load its module `nfsv4` \
             or use another node"
        ),
        errno => format!("mount failed: cannot mount {export}: {errno}"),
    }
}

/// Everything else, with what to use instead.
pub(super) struct Refused;

impl VolumeDriver for Refused {
    fn takes(&self, _volume: &Volume) -> bool {
        true
    }

    fn set_up(&self, volume: &Volume, _at: &Path, _around: Around<'_>) -> Result<(), String> {
        if let Some(csi) = &volume.csi {
            return Err(format!(
                "driver name {} not found in the list of registered CSI drivers",
                csi.driver
            ));
        }
        let kind = kind(volume);
        Err(match kind.as_str() {
            "gitRepo" => {
                "volumes of type gitRepo are not supported: clone the repository in an init container \
                          into an emptyDir instead"
                    .to_owned()
            }
            _ => format!(
                "volumes of type {kind} are not supported: this node has no driver for them; use a \
                 persistentVolumeClaim over a local or hostPath volume, or nfs"
            ),
        })
    }
}
