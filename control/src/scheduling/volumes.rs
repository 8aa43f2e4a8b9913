//! What a pod's claims mean for where it can run: read from the copies of claims, volumes and classes.

use std::borrow::Cow;
use std::collections::BTreeMap;

use api::{local_volume, references};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use scheduler::PodVolumes;

use crate::controllers::volume_binding::{Claim, Volume, fits};
use crate::object_store::SharedStore;
use crate::reflector::Reflector;

/// Labels of a volume that nodes must carry as well.
const ZONE_LABELS: [&str; 2] = ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];

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

/// The names of the claims that a pod uses, and which of them are made for it.
pub(super) fn claims_of(pod: &Pod) -> impl Iterator<Item = (Cow<'_, str>, bool)> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(move |volume| Some((references::claim_of(name, volume)?, volume.ephemeral.is_some())))
}

impl Storage {
    /// Where the pod's volumes let it run.
    pub(super) fn of(&self, pod: &Pod) -> PodVolumes {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let mut found = PodVolumes::default();
        for (name, is_own) in claims_of(pod) {
            let owner = is_own.then_some(pod);
            if let Err(problem) = self.add(namespace, &name, owner, &mut found) {
                found.problem = Some(problem);
                break;
            }
        }
        found
    }

    /// Takes a claim in; one that is made for a pod must be its own.
    fn add(
        &self,
        namespace: &str,
        name: &str,
        owner: Option<&Pod>,
        found: &mut PodVolumes,
    ) -> Result<(), String> {
        let missing = || match owner {
            None => format!("persistentvolumeclaim {name:?} not found"),
            Some(_) => {
                format!(
                    "waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}"
                )
            }
        };
        let object = self.claims.get(namespace, name).ok_or_else(missing)?;
        let claim: PersistentVolumeClaim = object.decode().map_err(|_| missing())?;
        if let Some(pod) = owner {
            references::check_owner(pod, &claim)?;
        }
        let claim = Claim::read(claim, object.value()).ok_or_else(missing)?;
        if claim.is_deleting {
            return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
        }
        if !claim.volume.is_empty() {
            let lost = || format!("persistentvolume {:?} not found", claim.volume);
            let object = self.volumes.get("", &claim.volume).ok_or_else(lost)?;
            let volume = object.decode().ok().and_then(|volume| Volume::read(volume, object.value()));
            found.terms.extend(volume.ok_or_else(lost)?.nodes);
            found.zones.extend(zones(&object.labels()));
            return Ok(());
        }
        let class = self.classes.get("", &claim.class);
        let class = class.filter(|class| class.value()["volumeBindingMode"] == "WaitForFirstConsumer");
        let class = class.ok_or("pod has unbound immediate PersistentVolumeClaims")?;
        if class.value()["provisioner"] == local_volume::DRIVER {
            // Where nothing fits, a volume is made.
            return Ok(());
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
}

/// The zones and regions that a volume's labels confine it to; several are joined by `__`.
fn zones(labels: &BTreeMap<String, String>) -> Vec<(String, Vec<String>)> {
    let confined = ZONE_LABELS.iter().filter_map(|key| Some((key, labels.get(*key)?)));
    confined.map(|(key, zones)| ((*key).to_owned(), zones.split("__").map(str::to_owned).collect())).collect()
}
