//! Creation.

use std::sync::Arc;

use api::{Kind, Status, object};
use bytes::Bytes;
use raft_store::chance;
use rand::Rng;
use serde_json::{Value, json};

use super::admission::quota::Charges;
use super::admission::{self, Operation};
use super::conversion::Encoded;
use super::policies::Asked;
use super::{
    FieldManager, FieldValidation, Object, Registry, Rules, Target, WRITE_ATTEMPTS_MAX, WriteOptions,
    Written, apply, error, keys, reservations, strategies,
};
use crate::object_store::{
    Condition, Consistency, Mutation, ObjectStore, StoredObject, Transaction, TransactionOutcome,
};

/// How many generated names are tried before giving up.
const GENERATED_NAMES_MAX: usize = 8;

/// The namespaces that every cluster has.
const SYSTEM_NAMESPACES: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];

/// Metadata that only the server writes.
const SERVER_METADATA: [&str; 6] = [
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "generation",
    "managedFields",
    "selfLink",
];

/// What admission has to say beside the object.
#[derive(Default)]
struct Admitted {
    /// Under which it holds.
    conditions: Vec<Condition>,
    /// For whoever asked.
    warnings: Vec<String>,
}

/// An object on its way into the store.
struct Candidate {
    rules: Rules,
    object: Value,
    /// Under which it may be stored.
    conditions: Vec<Condition>,
    /// For whoever asked.
    warnings: Vec<String>,
}

impl Candidate {
    /// What stores it: only where nothing is yet, and only if everything is as it was found.
    fn transaction(&self, key: &Bytes, value: &Bytes, charges: Charges, fence: Option<u64>) -> Transaction {
        let reserved = reservations::change(self.rules.kind(), None, Some(&self.object));
        let mut conditions = vec![Condition::Absent { key: key.clone() }];
        conditions.extend(self.conditions.iter().cloned());
        conditions.extend(charges.conditions);
        conditions.extend(reserved.conditions);
        let mut mutations = vec![Mutation::Put { key: key.clone(), value: value.clone() }];
        mutations.extend(charges.mutations);
        mutations.extend(reserved.mutations);
        Transaction { conditions, mutations, fence }
    }
}

/// Why there is no candidate.
enum Refusal {
    /// Because of something that this replica may not have as it now is.
    Local(Status),
    /// Whatever else there is.
    Final(Status),
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self::Final(status)
    }
}

impl Registry {
    /// Creates an object in a namespace (empty for a kind outside namespaces).
    pub async fn create(
        &self,
        kind: &'static Kind,
        namespace: &str,
        mut object: Value,
        options: &WriteOptions,
    ) -> Result<Written, Status> {
        let warnings = self.rules(kind)?.check_fields(&mut object, options)?;
        prepare_metadata(kind, namespace, &mut object, &options.manager)?;
        let generated = object::name(&object).is_empty() && !object::generate_name(&object).is_empty();
        let attempts = if generated { GENERATED_NAMES_MAX } else { 1 };
        for attempt in 1..=attempts {
            let mut object = object.clone();
            if generated {
                let name = api::name::generate(object::generate_name(&object), chance::rng().random());
                object::set_name(&mut object, &name);
            }
            match self.create_named(kind, namespace, object, options).await {
                Err(status) if status.reason() == "AlreadyExists" && attempt < attempts => {}
                Ok((object, more)) => {
                    let warnings = warnings.into_iter().chain(more).collect();
                    return Ok(Written { object, warnings, removed: false });
                }
                Err(status) => return Err(status),
            }
        }
        unreachable!("the last attempt returns")
    }

    async fn create_named(
        &self,
        kind: &'static Kind,
        namespace: &str,
        mut object: Value,
        options: &WriteOptions,
    ) -> Result<(Arc<Object>, Vec<String>), Status> {
        self.begin(kind, namespace, &mut object, options)?;
        let name = object::name(&object).to_owned();
        // What the object depends on is read locally first and named in the transaction, so that a stale read
        // or a change meanwhile makes the write fail and be tried again rather than slip through.
        let mut consistency = Consistency::Serializable;
        let mut refused: Option<Bytes> = None;
        for _ in 0..WRITE_ATTEMPTS_MAX {
            let candidate = match self.candidate(kind, namespace, object.clone(), options, consistency).await
            {
                Err(Refusal::Local(_)) if consistency == Consistency::Serializable => {
                    consistency = Consistency::Linearizable;
                    continue;
                }
                Err(Refusal::Local(status) | Refusal::Final(status)) => return Err(status),
                Ok(candidate) => candidate,
            };
            // Writers of one replica that are charged to the same quotas do not race each other.
            let _turn = self.quota_turn(kind, namespace).await;
            let change = (None, &candidate.object);
            let charges = match admission::quota::charge(self, kind, namespace, change, consistency).await {
                Err(_) if consistency == Consistency::Serializable => {
                    consistency = Consistency::Linearizable;
                    continue;
                }
                other => other?,
            };
            let key = keys::object(kind, namespace, &name);
            let encoded = self.converter().encode(&candidate.rules, &candidate.object).await?;
            let value = encoded.value.clone();
            if options.dry_run {
                let object = self.dry_run_create(&candidate.rules, key, encoded, &name).await?;
                return Ok((object, candidate.warnings));
            }
            let transaction = candidate.transaction(&key, &value, charges, options.fence);
            let asked = transaction.conditions.clone();
            match self.store().transact(transaction).await.map_err(error::from_store)? {
                TransactionOutcome::Committed { revision } => {
                    let stored =
                        StoredObject { key, value, create_revision: revision, mod_revision: revision };
                    let object = candidate.rules.written(stored, encoded.shown);
                    return Ok((Arc::new(object), candidate.warnings));
                }
                TransactionOutcome::Fenced => return Err(error::fenced()),
                TransactionOutcome::ConditionFailed { current }
                    if current.first().is_some_and(Option::is_some) =>
                {
                    return Err(Status::already_exists(kind, &name));
                }
                TransactionOutcome::ConditionFailed { current } => {
                    consistency = Consistency::Linearizable;
                    let taken = reservations::refused(&asked, &current);
                    // Drawn at random it would be another one now.
                    if let Some(key) = taken.as_ref().filter(|key| refused.as_ref() == Some(key)) {
                        return Err(reservations::taken(kind, &name, key));
                    }
                    refused = taken;
                }
            }
        }
        Err(Status::server_timeout(kind, "create", 1))
    }

    /// Gives a new object its identity and what it leaves out.
    fn begin(
        &self,
        kind: &'static Kind,
        namespace: &str,
        object: &mut Value,
        options: &WriteOptions,
    ) -> Result<(), Status> {
        object::set_uid(object, &new_uid());
        object::set_creation_timestamp(object, &object::timestamp(self.now()));
        if kind.has_generation {
            object::set_generation(object, 1);
        }
        strategies::of(kind).prepare_create(object);
        if kind.kind == "CertificateSigningRequest" {
            strategies::certificate::set_requester(object, options.asker.as_deref());
        }
        if kind.kind == "Node" && options.asker.is_some() && self.taints_new_nodes() {
            admission::taint_nodes::admit(object);
        }
        let rules = self.rules(kind)?;
        rules.default(object);
        if let FieldManager::Updates(_) = options.manager {
            let name = object::name(object).to_owned();
            let target = Target::new(kind, namespace, &name);
            apply::set_managers(rules.typed(), target, options, (&Value::Null, object), Value::Null);
        }
        strategies::of(kind).default_status(object);
        Ok(())
    }

    /// The object as it is to be stored: admitted, changed by who may, validated.
    async fn candidate(
        &self,
        kind: &'static Kind,
        namespace: &str,
        mut object: Value,
        options: &WriteOptions,
        consistency: Consistency,
    ) -> Result<Candidate, Refusal> {
        if kind.is_custom && consistency == Consistency::Linearizable {
            self.kinds().refresh().await.map_err(error::from_store)?;
        }
        let rules = self.rules(kind)?;
        let mut free = self.free_for(kind, &object).await?;
        self.reserve(kind, None, &mut object, &mut free)?;
        let guard = rules.creation_guard().map_err(Refusal::Local)?;
        let admitted = self.admit_create(kind, namespace, &mut object, consistency).await;
        let Admitted { mut conditions, mut warnings } = admitted.map_err(Refusal::Local)?;
        conditions.extend(guard);
        let name = object::name(&object).to_owned();
        let asked = Asked {
            target: Target::new(kind, namespace, &name),
            operation: "CREATE",
            dry_run: options.dry_run,
            asker: options.asker.as_deref(),
        };
        if self.has_policies() {
            let mutating = self.mutate(asked, &rules, &Value::Null, &mut object);
            warnings.extend(Box::pin(mutating).await?);
        }
        if let Some(guard) = &options.guard {
            guard.check(kind, None, &object)?;
        }
        let causes = rules.check_create(&object);
        if !causes.is_empty() {
            return Err(Refusal::Final(Status::invalid(kind, &name, causes)));
        }
        if self.has_policies() {
            warnings.extend(Box::pin(self.consult(asked, &Value::Null, &object)).await?);
        }
        Ok(Candidate { rules, object, conditions, warnings })
    }

    /// Runs the admission rules; gives the conditions under which they hold.
    async fn admit_create(
        &self,
        kind: &'static Kind,
        namespace: &str,
        object: &mut Value,
        consistency: Consistency,
    ) -> Result<Admitted, Status> {
        let found = admission::namespace_lifecycle::check(self, kind, namespace, object, consistency).await?;
        admission::admit(kind, Operation::Create, object)?;
        admission::priority::admit(self, kind, object, consistency).await?;
        admission::default_class::admit(self, kind, object, consistency).await?;
        admission::limit_ranger::admit(self, kind, namespace, object, consistency).await?;
        admission::service_account::mount(self, kind, namespace, object, consistency).await?;
        let Some(found) = found else { return Ok(Admitted::default()) };
        let warnings = admission::pod_security::check(kind, found.value(), object)?;
        let unchanged = Condition::Unchanged { key: found.key().clone(), mod_revision: found.revision() };
        Ok(Admitted { conditions: vec![unchanged], warnings })
    }

    async fn dry_run_create(
        &self,
        rules: &Rules,
        key: Bytes,
        Encoded { value, shown }: Encoded,
        name: &str,
    ) -> Result<Arc<Object>, Status> {
        let (existing, revision) =
            self.store().get(key.clone(), Consistency::Linearizable).await.map_err(error::from_store)?;
        if existing.is_some() {
            return Err(Status::already_exists(rules.kind(), name));
        }
        let stored = StoredObject { key, value, create_revision: revision, mod_revision: revision };
        Ok(Arc::new(rules.written(stored, shown)))
    }
}

/// Makes the namespaces that every cluster has, where they are missing. May run at every replica at once.
pub async fn bootstrap_namespaces(registry: &Registry) -> Result<(), Status> {
    let kind = api::kinds::by_kind("", "v1", "Namespace").expect("the table of kinds has Namespace");
    for name in SYSTEM_NAMESPACES {
        if registry.get_local(kind, "", name).await?.is_some() {
            continue;
        }
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        match registry.create(kind, "", namespace, &WriteOptions::default()).await {
            Err(status) if status.reason() != "AlreadyExists" => return Err(status),
            _ => {}
        }
    }
    Ok(())
}

/// Checks types, drops unknown fields; gives the warnings that the client should see.
pub(crate) fn check_fields(
    kind: &'static Kind,
    object: &mut Value,
    options: &WriteOptions,
) -> Result<Vec<String>, Status> {
    let unknown = api::decode::normalize(kind, object)?;
    let mut problems = options.duplicate_fields.clone();
    problems.extend(unknown);
    match options.field_validation {
        FieldValidation::Ignore => Ok(Vec::new()),
        FieldValidation::Strict if !problems.is_empty() => Err(api::decode::strict_error(kind, &problems)),
        FieldValidation::Warn | FieldValidation::Strict => Ok(problems),
    }
}

fn prepare_metadata(
    kind: &'static Kind,
    namespace: &str,
    object: &mut Value,
    manager: &FieldManager,
) -> Result<(), Status> {
    if !object::resource_version(object).is_empty() {
        return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
    }
    check_namespace(kind, namespace, object)?;
    for field in SERVER_METADATA {
        // The registry's own apply brings the entries that the object begins with.
        if field != "managedFields" || !matches!(manager, FieldManager::Applies(_)) {
            object::set_metadata(object, field, Value::Null);
        }
    }
    Ok(())
}

/// The body's namespace must be the request's; it is filled in where the body has none.
pub(super) fn check_namespace(
    kind: &'static Kind,
    namespace: &str,
    object: &mut Value,
) -> Result<(), Status> {
    let own = object::namespace(object);
    if !kind.namespaced {
        if !own.is_empty() {
            return Err(Status::bad_request("namespace is not allowed for cluster-scoped objects"));
        }
        object::set_metadata(object, "namespace", Value::Null);
        return Ok(());
    }
    if !own.is_empty() && own != namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    object::set_namespace(object, namespace);
    Ok(())
}

pub(super) fn set_type(kind: &'static Kind, object: &mut Value) {
    if let Some(members) = object.as_object_mut() {
        members.insert("apiVersion".to_owned(), Value::from(kind.api_version()));
        members.insert("kind".to_owned(), Value::from(kind.kind));
    }
}

/// The bytes that are stored: compact JSON with sorted keys, without the resource version.
pub(super) fn encode(object: &Value) -> Bytes {
    debug_assert!(object::resource_version(object).is_empty(), "the store keeps the version itself");
    Bytes::from(serde_json::to_vec(object).expect("a JSON value can be written as JSON"))
}

/// A random UUID (version 4, RFC 9562).
pub(super) fn new_uid() -> String {
    let mut bytes: [u8; 16] = chance::rng().random();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = |range: std::ops::Range<usize>| -> String {
        bytes[range].iter().map(|byte| format!("{byte:02x}")).collect()
    };
    format!("{}-{}-{}-{}-{}", hex(0..4), hex(4..6), hex(6..8), hex(8..10), hex(10..16))
}
