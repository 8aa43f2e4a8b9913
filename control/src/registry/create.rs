//! Creation.

use std::sync::Arc;

use api::{Kind, Status, object};
use bytes::Bytes;
use rand::Rng;
use serde_json::{Value, json};

use super::admission::{self, Operation};
use super::{
    FieldValidation, Object, Registry, WRITE_ATTEMPTS_MAX, WriteOptions, Written, error, keys, strategies,
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

impl Registry {
    /// Creates an object in a namespace (empty for a kind outside namespaces).
    pub async fn create(
        &self,
        kind: &'static Kind,
        namespace: &str,
        mut object: Value,
        options: &WriteOptions,
    ) -> Result<Written, Status> {
        let warnings = check_fields(kind, &mut object, options)?;
        prepare_metadata(kind, namespace, &mut object)?;
        let generated = object::name(&object).is_empty() && !object::generate_name(&object).is_empty();
        let attempts = if generated { GENERATED_NAMES_MAX } else { 1 };
        for attempt in 1..=attempts {
            let mut object = object.clone();
            if generated {
                let name = api::name::generate(object::generate_name(&object), rand::rng().random());
                object::set_name(&mut object, &name);
            }
            match self.create_named(kind, namespace, object, options).await {
                Err(status) if status.reason() == "AlreadyExists" && attempt < attempts => {}
                Ok(object) => return Ok(Written { object, warnings, removed: false }),
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
    ) -> Result<Arc<Object>, Status> {
        object::set_uid(&mut object, &new_uid());
        object::set_creation_timestamp(&mut object, &object::timestamp(self.now()));
        if kind.has_generation {
            object::set_generation(&mut object, 1);
        }
        strategies::of(kind).prepare_create(&mut object);
        api::defaults::apply(kind, &mut object);
        strategies::of(kind).default_status(&mut object);
        let name = object::name(&object).to_owned();
        // The namespace is read locally first and named in the transaction, so that a stale read or a
        // deletion meanwhile makes the write fail and be tried again rather than slip through.
        let mut consistency = Consistency::Serializable;
        for _ in 0..WRITE_ATTEMPTS_MAX {
            let mut candidate = object.clone();
            let guard = match self.admit_create(kind, namespace, &mut candidate, consistency).await {
                Err(_) if consistency == Consistency::Serializable => {
                    consistency = Consistency::Linearizable;
                    continue;
                }
                other => other?,
            };
            if let Some(guard) = &options.guard {
                guard.check(kind, None, &candidate)?;
            }
            let causes = api::validation::create(kind, &candidate);
            if !causes.is_empty() {
                return Err(Status::invalid(kind, &name, causes));
            }
            let key = keys::object(kind, namespace, &name);
            let value = encode(&candidate);
            if options.dry_run {
                return self.dry_run_create(kind, key, value, &name).await;
            }
            let mut conditions = vec![Condition::Absent { key: key.clone() }];
            conditions.extend(guard);
            let mutations = vec![Mutation::Put { key: key.clone(), value: value.clone() }];
            let transaction = Transaction { conditions, mutations, fence: options.fence };
            match self.store().transact(transaction).await.map_err(error::from_store)? {
                TransactionOutcome::Committed { revision } => {
                    let stored =
                        StoredObject { key, value, create_revision: revision, mod_revision: revision };
                    return Ok(Arc::new(Object::new(kind, stored)));
                }
                TransactionOutcome::Fenced => return Err(error::fenced()),
                TransactionOutcome::ConditionFailed { current }
                    if current.first().is_some_and(Option::is_some) =>
                {
                    return Err(Status::already_exists(kind, &name));
                }
                TransactionOutcome::ConditionFailed { .. } => consistency = Consistency::Linearizable,
            }
        }
        Err(Status::server_timeout(kind, "create", 1))
    }

    /// Runs the admission rules; gives the condition under which they hold.
    async fn admit_create(
        &self,
        kind: &'static Kind,
        namespace: &str,
        object: &mut Value,
        consistency: Consistency,
    ) -> Result<Option<Condition>, Status> {
        let guard = admission::namespace_lifecycle::check(self, kind, namespace, object, consistency).await?;
        admission::admit(kind, Operation::Create, object)?;
        admission::service_account::mount(self, kind, namespace, object, consistency).await?;
        Ok(guard)
    }

    async fn dry_run_create(
        &self,
        kind: &'static Kind,
        key: Bytes,
        value: Bytes,
        name: &str,
    ) -> Result<Arc<Object>, Status> {
        let (existing, revision) =
            self.store().get(key.clone(), Consistency::Linearizable).await.map_err(error::from_store)?;
        if existing.is_some() {
            return Err(Status::already_exists(kind, name));
        }
        let stored = StoredObject { key, value, create_revision: revision, mod_revision: revision };
        Ok(Arc::new(Object::new(kind, stored)))
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

fn prepare_metadata(kind: &'static Kind, namespace: &str, object: &mut Value) -> Result<(), Status> {
    if !object::resource_version(object).is_empty() {
        return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
    }
    check_namespace(kind, namespace, object)?;
    for field in SERVER_METADATA {
        object::set_metadata(object, field, Value::Null);
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
fn new_uid() -> String {
    let mut bytes: [u8; 16] = rand::rng().random();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = |range: std::ops::Range<usize>| -> String {
        bytes[range].iter().map(|byte| format!("{byte:02x}")).collect()
    };
    format!("{}-{}-{}-{}-{}", hex(0..4), hex(4..6), hex(6..8), hex(8..10), hex(10..16))
}
