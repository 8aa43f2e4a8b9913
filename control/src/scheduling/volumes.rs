//! What a pod's claims mean for where it can run: read from the copies of claims, volumes and classes.

use k8s_openapi::api::core::v1::Pod;
use scheduler::PodVolumes;

use crate::controllers::volume_binding::{Claim, Volume, fits};
use crate::object_store::SharedStore;
use crate::reflector::Reflector;

/// Claims, volumes and classes.
#[derive(Debug, Clone)]
pub struct Storage {
    /// Every PersistentVolumeClaim.
    pub claims: Reflector<SharedStore>,
    /// Every PersistentVolume.
    pub volumes: Reflector<SharedStore>,
    /// Every StorageClass.
    pub classes: Reflector<SharedStore>,
}

/// The names of the claims that a pod uses.
pub(super) fn claims_of(pod: &Pod) -> impl Iterator<Item = &str> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| Some(volume.persistent_volume_claim.as_ref()?.claim_name.as_str()))
}

impl Storage {
    /// Where the pod's volumes let it run.
    pub(super) fn of(&self, pod: &Pod) -> PodVolumes {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let mut found = PodVolumes::default();
        for name in claims_of(pod) {
            if let Err(problem) = self.add(namespace, name, &mut found) {
                found.problem = Some(problem);
                break;
            }
        }
        found
    }

    fn add(&self, namespace: &str, name: &str, found: &mut PodVolumes) -> Result<(), String> {
        let missing = || format!("persistentvolumeclaim {name:?} not found");
        let object = self.claims.get(namespace, name).ok_or_else(missing)?;
        let claim = object.decode().ok().and_then(|claim| Claim::read(claim, object.value()));
        let claim = claim.ok_or_else(missing)?;
        if claim.is_deleting {
            return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
        }
        if !claim.volume.is_empty() {
            let volume = self.volume(&claim.volume);
            let volume = volume.ok_or_else(|| format!("persistentvolume {:?} not found", claim.volume))?;
            found.terms.extend(volume.nodes);
            return Ok(());
        }
        let class = self.classes.get("", &claim.class);
        if !class.is_some_and(|class| class.value()["volumeBindingMode"] == "WaitForFirstConsumer") {
            return Err("pod has unbound immediate PersistentVolumeClaims".to_owned());
        }
        let free: Vec<Volume> = self
            .volumes
            .list()
            .iter()
            .filter_map(|object| Volume::read(object.decode().ok()?, object.value()))
            .filter(|volume| volume.claim.is_none() && !volume.is_deleting && fits(volume, &claim))
            .collect();
        if free.is_empty() {
            return Err("node(s) didn't find available persistent volumes to bind".to_owned());
        }
        // One that can be used everywhere leaves every node open.
        if free.iter().all(|volume| volume.nodes.is_some()) {
            found.terms.push(free.into_iter().filter_map(|volume| volume.nodes).flatten().collect());
        }
        Ok(())
    }

    fn volume(&self, name: &str) -> Option<Volume> {
        let object = self.volumes.get("", name)?;
        Volume::read(object.decode().ok()?, object.value())
    }
}
