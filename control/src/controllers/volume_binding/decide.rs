//! What to do about claims and volumes: a pure function of what there is.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use api::local_volume::DRIVER;

use super::facts::{Claim, ClaimKey, Class, Facts, PROTECTION_OF_CLAIM, PROTECTION_OF_VOLUME, Place, Volume};
use super::local;

/// A volume by name, or a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PhaseOf {
    Volume(String),
    Claim(ClaimKey),
}

/// A status to be written.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct NewStatus {
    pub(super) value: Value,
    /// Only if this claim is surely gone.
    pub(super) gone_claim: Option<ClaimKey>,
}

/// One step.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Action {
    /// The volume is the claim's from now on.
    Give {
        volume: String,
        claim: ClaimKey,
    },
    /// The claim names the volume that is its own.
    Take {
        claim: ClaimKey,
        volume: String,
    },
    /// A volume is made for the claim.
    Provision {
        claim: ClaimKey,
        volume: Value,
    },
    /// A volume has so much room from now on.
    Resize {
        volume: String,
        storage: Value,
    },
    /// A volume goes: its data is gone.
    Remove(String),
    Phase {
        of: PhaseOf,
        status: NewStatus,
    },
    /// Nothing holds it any more.
    LetGo(PhaseOf),
    Tell {
        of: PhaseOf,
        warning: bool,
        reason: &'static str,
        message: String,
    },
}

/// Every step that is due.
pub(super) fn decide(facts: &Facts) -> Vec<Action> {
    let mut decision = Decision { facts, actions: Vec::new(), given: BTreeSet::new() };
    for claim in &facts.claims {
        decision.claim(claim);
    }
    let claims: BTreeMap<(&str, &str), &Claim> =
        facts.claims.iter().map(|c| ((c.key.namespace.as_str(), c.key.name.as_str()), c)).collect();
    for volume in &facts.volumes {
        let owner = volume.claim.as_ref().map(|key| {
            let found = claims.get(&(key.namespace.as_str(), key.name.as_str())).copied();
            (key, found.filter(|claim| key.uid.is_empty() || claim.key.uid == key.uid))
        });
        decision.volume(volume, owner);
    }
    decision.actions
}

struct Decision<'a> {
    facts: &'a Facts,
    actions: Vec<Action>,
    /// Volumes that this look has given away.
    given: BTreeSet<&'a str>,
}

impl<'a> Decision<'a> {
    fn claim(&mut self, claim: &'a Claim) {
        let place = (claim.key.namespace.clone(), claim.key.name.clone());
        if claim.is_deleting {
            let is_used = self.facts.used.contains(&place);
            if !is_used && claim.finalizers.iter().any(|own| own == PROTECTION_OF_CLAIM) {
                self.actions.push(Action::LetGo(PhaseOf::Claim(claim.key.clone())));
            }
            return;
        }
        if claim.volume.is_empty() {
            return self.find(claim);
        }
        let Some(volume) = self.facts.volumes.iter().find(|volume| volume.name == claim.volume) else {
            return self.without_volume(claim);
        };
        match &volume.claim {
            Some(owner) if *owner == claim.key => self.bound(claim, volume),
            Some(owner) if is_reserved_for(owner, claim) => self.give(claim, volume),
            None => self.give(claim, volume),
            Some(_) => {
                let message = format!("volume {:?} already bound to a different claim.", volume.name);
                self.wait(claim, "FailedBinding", message);
            }
        }
    }

    fn without_volume(&mut self, claim: &Claim) {
        if !claim.is_completed {
            let message = format!("volume {:?} not found", claim.volume);
            return self.wait(claim, "FailedBinding", message);
        }
        let mut status = claim.status.clone();
        if status["phase"] != "Lost" {
            status["phase"] = json!("Lost");
            self.phase(PhaseOf::Claim(claim.key.clone()), status);
            let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
            self.tell(claim, true, "ClaimLost", message.to_owned());
        }
    }

    fn bound(&mut self, claim: &Claim, volume: &Volume) {
        if !claim.is_completed {
            let take = Action::Take { claim: claim.key.clone(), volume: volume.name.clone() };
            self.actions.push(take);
        }
        if claim.bytes > volume.bytes {
            self.grow(claim, volume);
        }
        let mut status = claim.status.clone();
        status["phase"] = json!("Bound");
        status["accessModes"] = json!(volume.modes);
        status["capacity"] = volume.capacity.clone();
        if status != claim.status {
            self.phase(PhaseOf::Claim(claim.key.clone()), status);
        }
    }

    /// A directory grows by being told to.
    fn grow(&mut self, claim: &Claim, volume: &Volume) {
        if volume.local.is_none() {
            let message = "waiting for an external controller to expand this PVC".to_owned();
            return self.tell(claim, false, "ExternalExpanding", message);
        }
        if self.facts.classes.get(&claim.class).is_some_and(|class| class.expands) {
            let (volume, storage) = (volume.name.clone(), claim.asked.clone());
            self.actions.push(Action::Resize { volume, storage });
        }
    }

    fn give(&mut self, claim: &Claim, volume: &'a Volume) {
        if self.given.insert(&volume.name) {
            self.actions.push(Action::Give { volume: volume.name.clone(), claim: claim.key.clone() });
        }
    }

    /// A claim that names no volume: the one that is its own already, or the smallest that fits.
    fn find(&mut self, claim: &'a Claim) {
        let own = |volume: &&Volume| volume.claim.as_ref() == Some(&claim.key);
        if let Some(volume) = self.facts.volumes.iter().find(own) {
            let take = Action::Take { claim: claim.key.clone(), volume: volume.name.clone() };
            return self.actions.push(take);
        }
        let reserved =
            |volume: &&Volume| volume.claim.as_ref().is_some_and(|owner| is_reserved_for(owner, claim));
        if let Some(volume) = self.facts.volumes.iter().find(reserved) {
            return self.give(claim, volume);
        }
        let class = self.facts.classes.get(&claim.class);
        let place = self.facts.places.get(&(claim.key.namespace.clone(), claim.key.name.clone()));
        let waits = class.is_some_and(|class| class.waits);
        if waits && place.is_none() {
            let message = "waiting for first consumer to be created before binding".to_owned();
            return self.wait_quietly(claim, "WaitForFirstConsumer", message);
        }
        let free = self.facts.volumes.iter().filter(|volume| {
            volume.claim.is_none()
                && !volume.is_deleting
                && !self.given.contains(volume.name.as_str())
                && fits(volume, claim)
                && place.is_none_or(|place| volume.is_usable_on(place))
        });
        match free.min_by_key(|volume| (volume.bytes, volume.name.as_str())) {
            Some(volume) => self.give(claim, volume),
            None => match class.filter(|class| class.provisioner == DRIVER) {
                Some(class) => self.provision(claim, class, place),
                None => self.nothing_fits(claim),
            },
        }
    }

    /// One that waits has a place by now.
    fn provision(&mut self, claim: &Claim, class: &Class, place: Option<&Place>) {
        self.pending(claim);
        match (local::refusal(claim, class), place) {
            (None, Some(place)) => {
                let volume = local::volume(claim, class, place);
                self.actions.push(Action::Provision { claim: claim.key.clone(), volume });
                let message = format!("Successfully provisioned volume {}", local::name(claim));
                self.tell(claim, false, "ProvisioningSucceeded", message);
            }
            (Some(why), _) => self.tell(claim, true, "ProvisioningFailed", why),
            (None, None) => {}
        }
    }

    fn nothing_fits(&mut self, claim: &Claim) {
        let (reason, message, warning) = match (claim.class.as_str(), self.facts.classes.get(&claim.class)) {
            ("", _) => (
                "FailedBinding",
                "no persistent volumes available for this claim and no storage class is set".to_owned(),
                false,
            ),
            (name, None) => {
                ("ProvisioningFailed", format!("storageclass.storage.k8s.io {name:?} not found"), true)
            }
            (_, Some(class)) if class.provisioner == "kubernetes.io/no-provisioner" => (
                "FailedBinding",
                "no persistent volumes available for this claim and its storage class provisions none"
                    .to_owned(),
                false,
            ),
            (_, Some(class)) => (
                "ExternalProvisioning",
                format!(
                    "Waiting for a volume to be created either by the external provisioner '{}' or manually by the \
                     system administrator. If volume creation is delayed, please verify that the provisioner is running \
                     and correctly registered.",
                    class.provisioner
                ),
                false,
            ),
        };
        self.pending(claim);
        self.tell(claim, warning, reason, message);
    }

    fn wait(&mut self, claim: &Claim, reason: &'static str, message: String) {
        self.pending(claim);
        self.tell(claim, true, reason, message);
    }

    fn wait_quietly(&mut self, claim: &Claim, reason: &'static str, message: String) {
        self.pending(claim);
        self.tell(claim, false, reason, message);
    }

    fn pending(&mut self, claim: &Claim) {
        if claim.status["phase"] != "Pending" {
            self.phase(PhaseOf::Claim(claim.key.clone()), json!({"phase": "Pending"}));
        }
    }

    fn volume(&mut self, volume: &'a Volume, owner: Option<(&ClaimKey, Option<&Claim>)>) {
        let of = || PhaseOf::Volume(volume.name.clone());
        let (phase, message, gone_claim) = match owner {
            None => ("Available", None, None),
            // Reserved by hand for a claim that is not there yet.
            Some((key, _)) if key.uid.is_empty() => ("Available", None, None),
            Some((_, Some(_))) => ("Bound", None, None),
            Some((key, None)) if volume.policy == "Retain" || self.is_deletable(volume) => {
                ("Released", None, Some(key.clone()))
            }
            Some((key, None)) => {
                let message = format!(
                    "error getting deleter volume plugin for volume {:?}: no deletable volume plugin matched",
                    volume.name
                );
                ("Failed", Some(message), Some(key.clone()))
            }
        };
        let keeps_data = self.is_deletable(volume) && self.keeps_data(volume);
        let is_held = phase == "Bound" || self.given.contains(volume.name.as_str()) || keeps_data;
        if volume.is_deleting && !is_held && volume.finalizers.iter().any(|own| own == PROTECTION_OF_VOLUME) {
            self.actions.push(Action::LetGo(of()));
        }
        if volume.status["phase"] == phase {
            // Its node has been told by now, and has nothing of it.
            if phase == "Released" && self.is_deletable(volume) && !keeps_data && !volume.is_deleting {
                self.actions.push(Action::Remove(volume.name.clone()));
            }
            return;
        }
        let mut value = json!({"phase": phase});
        if let Some(message) = message {
            value["message"] = json!(message);
            value["reason"] = json!("VolumeFailedDelete");
            self.actions.push(Action::Tell {
                of: of(),
                warning: true,
                reason: "VolumeFailedDelete",
                message,
            });
        }
        self.actions.push(Action::Phase { of: of(), status: NewStatus { value, gone_claim } });
    }

    /// Whether its node removes its data when it is released.
    fn is_deletable(&self, volume: &Volume) -> bool {
        volume.policy == "Delete" && volume.local.is_some()
    }

    fn keeps_data(&self, volume: &Volume) -> bool {
        volume.local.as_ref().is_some_and(|(handle, _)| self.facts.kept.contains(handle))
    }

    fn phase(&mut self, of: PhaseOf, value: Value) {
        self.actions.push(Action::Phase { of, status: NewStatus { value, gone_claim: None } });
    }

    fn tell(&mut self, claim: &Claim, warning: bool, reason: &'static str, message: String) {
        self.actions.push(Action::Tell { of: PhaseOf::Claim(claim.key.clone()), warning, reason, message });
    }
}

/// A volume reserved by hand names the claim, perhaps without knowing its uid.
fn is_reserved_for(owner: &ClaimKey, claim: &Claim) -> bool {
    owner.namespace == claim.key.namespace
        && owner.name == claim.key.name
        && (owner.uid.is_empty() || owner.uid == claim.key.uid)
}

/// Whether the volume is what the claim asks for.
pub(crate) fn fits(volume: &Volume, claim: &Claim) -> bool {
    volume.class == claim.class
        && volume.mode == claim.mode
        && volume.bytes >= claim.bytes
        && claim.modes.iter().all(|mode| volume.modes.contains(mode))
        && claim.selector.as_ref().is_none_or(|selector| selector.matches(&volume.labels))
}
