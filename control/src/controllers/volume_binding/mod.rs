//! PersistentVolumes and claims: who belongs to whom.
//!
//! Owns `claimRef` of volumes, `volumeName` of claims, both statuses, and the finalizers that keep a claim
//! while a pod uses it and a volume while a claim has it. Volumes are made by people, by whoever provisions for a class,
//! or here, on the disk of the node that a claim's first pod is bound to (see [`local`]). Each look compares all
//! claims with all volumes (see [`decide`], which is pure) and does one step per object; the writes make the next look. A
//! volume is given away in one conditional write, so two claims never get the same one.
//!
//! ```text
//! volume:  Available ──► Bound ──claim gone──► Released (Retain), or Failed (nobody here can delete its data)
//!                                              Released (Delete, a node's own disk) ──node has removed its data──► gone
//! claim:   Pending ──► Bound ──volume gone──► Lost
//! ```

mod decide;
mod facts;
mod local;

#[cfg(test)]
mod tests;

use std::time::Duration;

use api::{Status, object};
use serde_json::{Value, json};

pub(crate) use self::decide::fits;
use self::decide::{Action, NewStatus, PhaseOf};
pub(crate) use self::facts::{Claim, Volume};
use self::facts::{ClaimKey, Facts, PROTECTION_OF_CLAIM, PROTECTION_OF_VOLUME};
use super::{Context, core_kind, options, settled};
use crate::leader::Epoch;
use crate::reflector::Feed;
use crate::registry::{DeleteOptions, EventRecord, EventType, Part, Regarding, Target};

/// How long changes are gathered before the next look.
const GATHER: Duration = Duration::from_millis(20);
/// The wait after a look of which not every step could be done, and between looks while claims wait.
const AGAIN: Duration = Duration::from_secs(2);
/// Says which of both sides the binding came from.
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const COMPONENT: &str = "persistentvolume-controller";

/// Runs for one epoch; the caller cancels it.
pub(super) async fn run(context: &Context, epoch: Epoch) {
    let mut claims = Feed::new(context.claims.clone());
    let mut volumes = Feed::new(context.volumes.clone());
    let mut pods = Feed::new(context.pods.clone());
    let mut nodes = Feed::new(context.nodes.clone());
    loop {
        while nodes.try_next().is_some() {}
        while claims.try_next().is_some() {}
        while volumes.try_next().is_some() {}
        while pods.try_next().is_some() {}
        let looked = look(context, epoch).await;
        let again = async {
            match looked.is_settled {
                true => std::future::pending().await,
                false => tokio::time::sleep(AGAIN).await,
            }
        };
        tokio::select! {
            _ = claims.next() => {}
            _ = volumes.next() => {}
            // Pods matter to claims only.
            _ = pods.next(), if context.claims.any() => {}
            // And nodes to volumes that wait for their data to go.
            _ = nodes.next(), if looked.awaits_nodes => {}
            () = again => {}
        }
        tokio::time::sleep(GATHER).await;
    }
}

/// What a look came to.
struct Looked {
    /// Nothing is left to be tried again without a change.
    is_settled: bool,
    /// What nodes say of their volumes is waited for.
    awaits_nodes: bool,
}

async fn look(context: &Context, epoch: Epoch) -> Looked {
    if !context.claims.any() && !context.volumes.any() {
        return Looked { is_settled: true, awaits_nodes: false };
    }
    let facts = Facts::gather(context).await;
    let is_waiting = |volume: &Volume| {
        volume.policy == "Delete" && volume.local.is_some() && volume.status["phase"] == "Released"
    };
    let awaits_nodes = facts.volumes.iter().any(is_waiting);
    let mut is_settled = true;
    for action in decide::decide(&facts) {
        if let Err(status) = perform(context, epoch, &action).await {
            tracing::warn!(?action, %status, "a step of binding volumes was not done; it is tried again");
            is_settled = false;
        }
    }
    Looked { is_settled, awaits_nodes }
}

async fn perform(context: &Context, epoch: Epoch, action: &Action) -> Result<(), Status> {
    let steps = Steps { context, epoch };
    match action {
        Action::Give { volume, claim } => steps.give(volume, claim).await,
        Action::Take { claim, volume } => steps.take(claim, volume).await,
        Action::Provision { claim, volume } => steps.provision(claim, volume).await,
        Action::Resize { volume, storage } => steps.resize(volume, storage).await,
        Action::Remove(volume) => steps.remove(volume).await,
        Action::Phase { of, status } => steps.phase(of, status).await,
        Action::LetGo(of) => steps.let_go(of).await,
        Action::Tell { of, warning, reason, message } => {
            let record = event(of, *warning, reason, message);
            context.events.record(&record, epoch.fence()).await
        }
    }
}

struct Steps<'a> {
    context: &'a Context,
    epoch: Epoch,
}

impl Steps<'_> {
    /// The volume is the claim's, unless it became somebody else's meanwhile.
    async fn give(&self, volume: &str, claim: &ClaimKey) -> Result<(), Status> {
        let reference = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "namespace": claim.namespace, "name": claim.name, "uid": claim.uid,
        });
        let give = |object: &mut Value| {
            let known = object["spec"]["claimRef"].clone();
            let is_free = known.is_null()
                || (known["name"] == claim.name.as_str()
                    && known["namespace"] == claim.namespace.as_str()
                    && known["uid"].as_str().is_none_or(|uid| uid.is_empty() || uid == claim.uid));
            if is_free {
                if known.is_null() {
                    annotate(object, BOUND_BY_CONTROLLER);
                }
                object["spec"]["claimRef"] = reference.clone();
            }
            Ok(())
        };
        self.modify(Target::new(core_kind("PersistentVolume"), "", volume), give).await
    }

    async fn take(&self, claim: &ClaimKey, volume: &str) -> Result<(), Status> {
        let take = |object: &mut Value| {
            if object::uid(object) == claim.uid {
                if object["spec"]["volumeName"].as_str().is_none_or(str::is_empty) {
                    object["spec"]["volumeName"] = json!(volume);
                    annotate(object, BOUND_BY_CONTROLLER);
                }
                annotate(object, BIND_COMPLETED);
            }
            Ok(())
        };
        self.modify(claim_target(claim), take).await
    }

    /// Makes the volume, unless the claim is gone by now: nobody would remove it.
    async fn provision(&self, claim: &ClaimKey, volume: &Value) -> Result<(), Status> {
        let kind = core_kind("PersistentVolumeClaim");
        let found = self.context.registry.get(kind, &claim.namespace, &claim.name).await;
        if !found.is_ok_and(|found| object::uid(found.value()) == claim.uid) {
            return Ok(());
        }
        let (kind, volume) = (core_kind("PersistentVolume"), volume.clone());
        match self.context.registry.create(kind, "", volume, &options(self.epoch)).await {
            Err(status) if status.reason() == "AlreadyExists" => Ok(()),
            made => made.map(|_| ()),
        }
    }

    async fn resize(&self, volume: &str, storage: &Value) -> Result<(), Status> {
        let resize = |object: &mut Value| {
            object["spec"]["capacity"]["storage"] = storage.clone();
            Ok(())
        };
        self.modify(Target::new(core_kind("PersistentVolume"), "", volume), resize).await
    }

    async fn remove(&self, volume: &str) -> Result<(), Status> {
        let target = Target::new(core_kind("PersistentVolume"), "", volume);
        let options = DeleteOptions { fence: self.epoch.fence(), ..DeleteOptions::default() };
        settled(self.context.registry.delete(target, &options).await.map(|_| ()))
    }

    async fn phase(&self, of: &PhaseOf, status: &NewStatus) -> Result<(), Status> {
        if let Some(claim) = &status.gone_claim {
            // The copy may lag behind: only what is surely gone is given up.
            let kind = core_kind("PersistentVolumeClaim");
            let found = self.context.registry.get(kind, &claim.namespace, &claim.name).await;
            if found.is_ok_and(|found| object::uid(found.value()) == claim.uid) {
                return Ok(());
            }
        }
        let set = |object: &mut Value| {
            object["status"] = status.value.clone();
            Ok(())
        };
        self.modify(Target { part: Part::Status, ..target(of) }, set).await
    }

    async fn let_go(&self, of: &PhaseOf) -> Result<(), Status> {
        let finalizer = match of {
            PhaseOf::Volume(_) => PROTECTION_OF_VOLUME,
            PhaseOf::Claim(_) => PROTECTION_OF_CLAIM,
        };
        let let_go = |object: &mut Value| {
            if let Some(finalizers) = object["metadata"]["finalizers"].as_array_mut() {
                finalizers.retain(|own| own != finalizer);
            }
            Ok(())
        };
        self.modify(target(of), let_go).await
    }

    async fn modify(
        &self,
        target: Target<'_>,
        change: impl FnMut(&mut Value) -> Result<(), Status> + Send,
    ) -> Result<(), Status> {
        let written = self.context.registry.modify(target, &options(self.epoch), change).await;
        settled(written.map(|_| ()))
    }
}

fn claim_target(claim: &ClaimKey) -> Target<'_> {
    Target::new(core_kind("PersistentVolumeClaim"), &claim.namespace, &claim.name)
}

fn target(of: &PhaseOf) -> Target<'_> {
    match of {
        PhaseOf::Volume(name) => Target::new(core_kind("PersistentVolume"), "", name),
        PhaseOf::Claim(claim) => claim_target(claim),
    }
}

fn annotate(object: &mut Value, key: &str) {
    let annotations = &mut object["metadata"]["annotations"];
    if annotations.is_null() {
        *annotations = json!({});
    }
    annotations[key] = json!("yes");
}

fn event(of: &PhaseOf, warning: bool, reason: &str, message: &str) -> EventRecord {
    let (kind, namespace, name, uid) = match of {
        PhaseOf::Volume(name) => ("PersistentVolume", "", name.as_str(), ""),
        PhaseOf::Claim(claim) => {
            ("PersistentVolumeClaim", claim.namespace.as_str(), claim.name.as_str(), claim.uid.as_str())
        }
    };
    EventRecord::now(
        COMPONENT,
        Regarding {
            api_version: "v1".to_owned(),
            kind: kind.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
            field_path: String::new(),
        },
        if warning { EventType::Warning } else { EventType::Normal },
        reason,
        message.to_owned(),
    )
}
