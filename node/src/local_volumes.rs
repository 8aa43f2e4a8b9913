//! The data of volumes that lie on this node's own disk: one directory each, below the agent's data.
//!
//! Owns those directories. One is made when a pod first needs its volume, and removed when the control plane says that the volume is
//! released and its policy is to delete. Promises that nothing is removed for any other reason (a volume that nobody tells
//! of keeps its data), that what is removed disappears at once and is never seen half-removed, and that the node's status names
//! what is kept ([`LocalVolumes::kept`]), so that a volume's object goes only after its data. See [`api::local_volume`].

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::local_volume;
use k8s_openapi::api::core::v1::PersistentVolume;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::objects::Objects;

/// What is on its way out: no handle begins so.
const REMOVED: &str = ".removed-";
/// Pods of every user may write, as they may to a disk of their own.
pub(crate) const MODE: u32 = 0o777;

/// See the module.
#[derive(Debug)]
pub(crate) struct LocalVolumes {
    directory: PathBuf,
    node: String,
    changes: watch::Sender<u64>,
}

impl LocalVolumes {
    /// Those of a node, in a directory that is made if it is not there. What an agent before this one did not finish removing
    /// goes.
    pub(crate) fn open(directory: PathBuf, node: &str) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o711).create(&directory)?;
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(REMOVED) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(Self { directory, node: node.to_owned(), changes: watch::Sender::new(0) })
    }

    /// The volume's directory, made if it is not there.
    ///
    /// # Errors
    /// With the sentence for the pod's events.
    pub(crate) fn directory(&self, volume: &PersistentVolume) -> Result<PathBuf, String> {
        let source = local_volume::source(volume).ok_or("the volume is none of this node's own")?;
        let attributes = source.volume_attributes.as_ref();
        let keeper = attributes.and_then(|all| all.get(local_volume::NODE_ATTRIBUTE));
        match keeper {
            Some(keeper) if *keeper == self.node => {}
            Some(keeper) => {
                return Err(format!("the volume's data is on node {keeper}, and this is {}", self.node));
            }
            None => return Err("the volume does not say on which node its data is".to_owned()),
        }
        let handle = source.volume_handle.as_str();
        if !local_volume::is_handle(handle) {
            return Err(format!("volumeHandle {handle:?} is no name: use a to z, 0 to 9 and -"));
        }
        let path = self.directory.join(handle);
        match self.make(&path) {
            Ok(()) => Ok(path),
            Err(error) => Err(format!("cannot make {}: {error}", path.display())),
        }
    }

    fn make(&self, path: &Path) -> io::Result<()> {
        match fs::create_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            made => made?,
        }
        // What is asked for when it is made is cut by the process's mask.
        fs::set_permissions(path, fs::Permissions::from_mode(MODE))?;
        fs::File::open(&self.directory)?.sync_all()?;
        self.changes.send_modify(|number| *number += 1);
        Ok(())
    }

    /// The handles of the volumes whose data is here.
    pub(crate) fn kept(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut kept: Vec<String> = names.filter(|name| local_volume::is_handle(name)).collect();
        kept.sort();
        kept
    }

    /// Completes when a volume came or went after this call.
    pub(crate) fn changed(&self) -> impl Future<Output = ()> + use<> {
        let mut changes = self.changes.subscribe();
        async move {
            // The sender lives as long as the agent.
            let _closed = changes.changed().await;
        }
    }

    fn remove(&self, handle: &str) -> io::Result<()> {
        let hidden = self.directory.join(format!("{REMOVED}{handle}"));
        match fs::rename(self.directory.join(handle), &hidden) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            renamed => renamed?,
        }
        fs::remove_dir_all(&hidden)?;
        self.changes.send_modify(|number| *number += 1);
        Ok(())
    }

    /// Removes the data of every volume of this node that the control plane says is released and to be deleted.
    fn remove_released(&self, objects: &Objects) {
        let kept = self.kept();
        if kept.is_empty() {
            return;
        }
        for volume in objects.volumes().iter().filter(|volume| is_to_go(volume, &self.node)) {
            let Some(source) = local_volume::source(volume) else { continue };
            let handle = &source.volume_handle;
            if !kept.contains(handle) {
                continue;
            }
            match self.remove(handle) {
                Ok(()) => tracing::info!(handle, "the data of a released volume is removed"),
                Err(error) => {
                    tracing::warn!(handle, %error, "the data of a released volume cannot be removed; it is tried again with the next change");
                }
            }
        }
    }

    /// Follows what the control plane says of volumes, until cancelled.
    pub(crate) async fn follow(self: Arc<Self>, objects: Arc<Objects>, shutdown: CancellationToken) {
        let mut changes = objects.subscribe();
        loop {
            let (volumes, objects) = (Arc::clone(&self), Arc::clone(&objects));
            let work = tokio::task::spawn_blocking(move || volumes.remove_released(&objects));
            work.await.expect("removing volumes does not panic");
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = changes.changed() => changed.expect("the objects live as long as the agent"),
            }
        }
    }
}

fn is_to_go(volume: &PersistentVolume, node: &str) -> bool {
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    let policy = volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    let attributes = local_volume::source(volume).and_then(|source| source.volume_attributes.as_ref());
    let keeper = attributes.and_then(|all| all.get(local_volume::NODE_ATTRIBUTE));
    phase == Some("Released") && policy == Some("Delete") && keeper.is_some_and(|keeper| keeper == node)
}

#[cfg(test)]
mod tests {
    use api::references::{Reference, ReferenceKind};
    use serde_json::json;

    use super::*;

    fn volume(name: &str, node: &str, phase: &str, policy: &str) -> serde_json::Value {
        json!({
            "metadata": {"name": name, "resourceVersion": format!("{phase}{policy}")},
            "spec": {"persistentVolumeReclaimPolicy": policy, "csi": {
                "driver": local_volume::DRIVER, "volumeHandle": name, "volumeAttributes": {"node": node}}},
            "status": {"phase": phase},
        })
    }

    fn tell(objects: &Objects, volume: &serde_json::Value) {
        let name = volume["metadata"]["name"].as_str().unwrap();
        let reference = Reference::new(ReferenceKind::PersistentVolume, "", name);
        objects.put(reference, volume.to_string().as_bytes());
    }

    #[test]
    fn only_what_is_released_and_to_be_deleted_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let volumes = LocalVolumes::open(directory.path().join("volumes"), "here").unwrap();
        let objects = Objects::default();
        for (name, phase, policy) in [
            ("bound", "Bound", "Delete"),
            ("retained", "Released", "Retain"),
            ("released", "Released", "Delete"),
        ] {
            let told = volume(name, "here", phase, policy);
            let path = volumes.directory(&serde_json::from_value(told.clone()).unwrap()).unwrap();
            fs::write(path.join("data"), name).unwrap();
            tell(&objects, &told);
        }
        // One of which nobody has told, and one of another node under a name that is here too.
        let unknown = serde_json::from_value(volume("unknown", "here", "Bound", "Delete")).unwrap();
        volumes.directory(&unknown).unwrap();
        tell(&objects, &volume("bound", "elsewhere", "Released", "Delete"));
        let changed = volumes.changed();
        volumes.remove_released(&objects);
        assert_eq!(volumes.kept(), ["bound", "retained", "unknown"]);
        futures_util::FutureExt::now_or_never(changed).expect("the status is to be told anew");
        assert_eq!(fs::read_to_string(directory.path().join("volumes/bound/data")).unwrap(), "bound");
    }

    #[test]
    fn what_an_agent_did_not_finish_removing_goes_with_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let half = directory.path().join(format!("{REMOVED}pvc-1"));
        fs::create_dir_all(half.join("deep")).unwrap();
        let volumes = LocalVolumes::open(directory.path().to_owned(), "here").unwrap();
        assert!(!half.exists());
        assert!(volumes.kept().is_empty());
    }

    #[test]
    fn a_volume_of_another_node_or_without_a_name_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let volumes = LocalVolumes::open(directory.path().to_owned(), "here").unwrap();
        let elsewhere = serde_json::from_value(volume("pvc-1", "elsewhere", "Bound", "Delete")).unwrap();
        let why = volumes.directory(&elsewhere).unwrap_err();
        assert_eq!(why, "the volume's data is on node elsewhere, and this is here");
        for handle in ["..", "a/b", ""] {
            let mut told = volume("pvc-1", "here", "Bound", "Delete");
            told["spec"]["csi"]["volumeHandle"] = json!(handle);
            let why = volumes.directory(&serde_json::from_value(told).unwrap()).unwrap_err();
            assert!(why.contains("is no name"), "{why}");
        }
        assert!(volumes.kept().is_empty());
    }
}
