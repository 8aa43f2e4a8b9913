//! What a pod needs from the control plane beside itself: ConfigMaps, Secrets, tokens of its service account.
//!
//! Owns the worker's view of them. A pod that could not be started for want of an object is tried again the
//! moment that the object changes; the files of a running pod follow objects, labels and annotations; tokens
//! are replaced when four fifths of their life are over.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use api::references::{self, Reference, ReferenceKind};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ServiceAccountTokenProjection;
use tokio::sync::watch;

use super::context::Context;
use super::events::{Told, tell};
use super::record::PodRecord;
use super::volumes::{self, Around, VolumeError};
use super::worker::{Worker, add};
use crate::objects::Lookup;
use crate::tokens::{Token, Wanted};

/// The reason of a container that waits for a valid configuration.
pub(super) const CONFIG_ERROR: &str = "CreateContainerConfigError";
/// The wait before files that could not be brought up to date are tried again, unless something changes.
const REFRESH_RETRY: Duration = Duration::from_secs(10);
/// How long a token is waited for before the pod can start.
pub(super) const TOKEN_PATIENCE: Duration = Duration::from_secs(5);
/// How long claims are waited for that are bound when their first pod has a node, which is what has just happened.
const CLAIM_PATIENCE: Duration = Duration::from_secs(1);
/// How long for a new one while an old one lives: the pod's worker has other things to do.
const RENEWAL_PATIENCE: Duration = Duration::from_millis(500);
/// The life of a token whose projection does not say: an hour.
const TOKEN_SECONDS_DEFAULT: i64 = 3600;
/// A token is replaced when this part of its life is over: 4 / 5.
const TOKEN_LIFE_PART: (i64, i64) = (4, 5);

/// The reasons of a container whose image cannot be pulled.
const PULL_ERRORS: [&str; 2] = ["ErrImagePull", "ImagePullBackOff"];

/// One worker's view.
pub(super) struct Needs {
    changes: watch::Receiver<u64>,
    /// Of the referenced objects when they were last looked at.
    fingerprint: Option<u64>,
    tokens: BTreeMap<(String, usize), Token>,
    /// When the files have to be brought up to date.
    refresh_at: Option<Timestamp>,
    /// What of the pod's metadata files may show, as it was last written.
    shown: Option<Shown>,
}

type Map = Option<BTreeMap<String, String>>;
type Shown = (Map, Map);

impl Needs {
    pub(super) fn new(context: &Context) -> Self {
        Self {
            changes: context.objects.subscribe(),
            fingerprint: None,
            tokens: BTreeMap::new(),
            refresh_at: None,
            shown: None,
        }
    }

    /// Resolves when some object of the node changed since the last look, or files are due.
    pub(super) async fn changed(&mut self) {
        let due = async {
            match self.refresh_at {
                Some(at) => {
                    let left = at.duration_since(Timestamp::now());
                    tokio::time::sleep(Duration::try_from(left).unwrap_or_default()).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // An error cannot be: the objects live in the context that the worker holds.
            changed = self.changes.changed() => if changed.is_err() { std::future::pending().await },
            () = due => {}
        }
    }
}

fn shown(record: &PodRecord) -> Shown {
    let metadata = &record.pod.metadata;
    (metadata.labels.clone(), metadata.annotations.clone())
}

/// Everything that the pod refers to, and the volumes that its claims are bound to.
fn references(context: &Context, record: &PodRecord) -> BTreeSet<Reference> {
    let mut found = references::of_pod(record.namespace(), record.name(), record.spec());
    let claims = found.iter().filter(|reference| reference.kind == ReferenceKind::PersistentVolumeClaim);
    let volumes: Vec<Reference> = claims
        .filter_map(|claim| match context.objects.claim(&claim.namespace, &claim.name) {
            Lookup::Found(claim) => claim.spec.as_ref()?.volume_name.clone(),
            _ => None,
        })
        .map(|name| Reference::new(ReferenceKind::PersistentVolume, "", &name))
        .collect();
    found.extend(volumes);
    found
}

/// Whether a claim of the pod has no volume yet, or one that this node has not heard of.
fn has_unbound_claim(context: &Context, record: &PodRecord) -> bool {
    let found = references::of_pod(record.namespace(), record.name(), record.spec());
    let mut claims = found.iter().filter(|reference| reference.kind == ReferenceKind::PersistentVolumeClaim);
    claims.any(|claim| match context.objects.claim(&claim.namespace, &claim.name) {
        Lookup::Found(claim) => {
            let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
            let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref());
            let is_there = |name: &str| matches!(context.objects.volume(name), Lookup::Found(_));
            phase == Some("Pending") || volume.is_some_and(|name| !is_there(name))
        }
        Lookup::Missing | Lookup::Unknown => false,
    })
}

impl Worker {
    /// Waits a moment for claims that are about to be bound: nobody needs to be told of that.
    pub(super) async fn await_claims(&self) {
        let mut changes = self.context.objects.subscribe();
        let bound = async {
            while has_unbound_claim(&self.context, &self.record) {
                // An error cannot be: the objects live in the context that the worker holds.
                let _changed = changes.changed().await;
            }
        };
        let _late = tokio::time::timeout(CLAIM_PATIENCE, bound).await;
    }

    /// Looks whether anything changed that the pod needs: what waited for it is tried again, and the files of
    /// a pod that runs are brought up to date.
    pub(super) async fn look_at_needs(&mut self) {
        let fingerprint = self.context.objects.fingerprint(&references(&self.context, &self.record));
        let before = self.needs.fingerprint.replace(fingerprint);
        if before != Some(fingerprint) {
            self.try_again();
        }
        let follows = volumes::follow_changes(&self.record.pod);
        let is_made = self.record.sandbox.as_ref().is_some_and(|sandbox| sandbox.ready);
        if !follows || !is_made || self.record.terminating() {
            self.needs.refresh_at = None;
            return;
        }
        if !self.context.objects.is_told() {
            // What runs goes on with what it has.
            return;
        }
        let now = Timestamp::now();
        let is_due = self.needs.refresh_at.is_some_and(|at| at <= now);
        // After a start of the agent the first look writes once more: nobody knows what it missed.
        let is_stale = self.needs.shown.as_ref() != Some(&shown(&self.record));
        if before != Some(fingerprint) || is_due || is_stale {
            self.refresh_volumes().await;
        }
    }

    /// What waited for objects does not wait any longer.
    fn try_again(&mut self) {
        self.record.sandbox_retry_at = None;
        // Credentials may have come; other changes do not make a registry any readier.
        let with_credentials = self.record.spec().image_pull_secrets.as_ref().is_some_and(|s| !s.is_empty());
        for container in self.record.containers.values_mut() {
            let reason = container.waiting.as_ref().map(|waiting| waiting.reason.as_str());
            if with_credentials && reason.is_some_and(|reason| PULL_ERRORS.contains(&reason)) {
                container.image_tries = Default::default();
                container.retry_at = None;
            } else if reason == Some(CONFIG_ERROR) {
                container.retry_at = None;
            }
        }
    }

    async fn refresh_volumes(&mut self) {
        let refreshed = match self.tokens(RENEWAL_PATIENCE).await {
            Ok(tokens) => {
                let record = self.record.clone();
                self.blocking(move |context| {
                    let dir = context.pod_dir(record.uid()).join("volumes");
                    volumes::refresh(Around::new(context, &record, &tokens), &dir)
                })
                .await
            }
            Err(error) => Err(error),
        };
        match refreshed {
            Ok(()) => self.volumes_made(),
            Err(error) => {
                let message = error.to_string();
                tracing::warn!(pod = %self.record.full_name(), %message, "files of volumes stay as they are");
                tell(&self.context, &self.record, None, Told::warning("FailedMount", message));
                self.needs.shown = Some(shown(&self.record));
                self.needs.refresh_at = add(Timestamp::now(), REFRESH_RETRY);
            }
        }
    }

    /// The volumes hold what there is now; the next look is due when the first token ages.
    pub(super) fn volumes_made(&mut self) {
        self.needs.shown = Some(shown(&self.record));
        let now = Timestamp::now();
        let due = self.needs.tokens.values().map(renew_at).min();
        // One that could not be renewed is old already: not again at once.
        self.needs.refresh_at = due.and_then(|at| if at > now { Some(at) } else { add(now, REFRESH_RETRY) });
    }

    /// A fresh token for each projection of one. A token that still lives is kept if there is no other.
    pub(super) async fn tokens(&mut self, patience: Duration) -> Result<volumes::Tokens, VolumeError> {
        let now = Timestamp::now();
        let wanted = token_projections(&self.record);
        self.needs.tokens.retain(|key, _| wanted.iter().any(|(wanted, _)| wanted == key));
        for (key, projection) in wanted {
            let known = self.needs.tokens.get(&key);
            if known.is_some_and(|token| renew_at(token) > now) {
                continue;
            }
            match self.context.tokens.request(question(&self.record, &projection), patience).await {
                Ok(token) => drop(self.needs.tokens.insert(key, token)),
                Err(error) if known.is_some_and(|token| token.expires_at > now) => {
                    tracing::warn!(pod = %self.record.full_name(), %error, "a token is not renewed yet");
                }
                Err(error) => {
                    let message = format!("failed to fetch token: {error}");
                    return Err(VolumeError { volume: key.0, message });
                }
            }
        }
        Ok(self.needs.tokens.iter().map(|(key, token)| (key.clone(), token.text.clone())).collect())
    }
}

fn renew_at(token: &Token) -> Timestamp {
    let life = token.expires_at.as_second() - token.issued_at.as_second();
    let part = life * TOKEN_LIFE_PART.0 / TOKEN_LIFE_PART.1;
    token.issued_at.checked_add(SignedDuration::from_secs(part)).unwrap_or(token.expires_at)
}

type Projections = Vec<((String, usize), ServiceAccountTokenProjection)>;

fn token_projections(record: &PodRecord) -> Projections {
    let volumes = record.spec().volumes.iter().flatten();
    let sources = volumes.flat_map(|volume| {
        let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        sources.enumerate().map(|(index, source)| ((volume.name.clone(), index), source))
    });
    sources.filter_map(|(key, source)| Some((key, source.service_account_token.clone()?))).collect()
}

fn question(record: &PodRecord, projection: &ServiceAccountTokenProjection) -> Wanted {
    let account = record.spec().service_account_name.as_deref().filter(|name| !name.is_empty());
    Wanted {
        namespace: record.namespace().to_owned(),
        service_account: account.unwrap_or("default").to_owned(),
        pod: record.name().to_owned(),
        pod_uid: record.uid().to_owned(),
        audience: projection.audience.clone().unwrap_or_default(),
        expiration_seconds: projection.expiration_seconds.unwrap_or(TOKEN_SECONDS_DEFAULT),
    }
}
