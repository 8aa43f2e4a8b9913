//! ResourceQuotas: what is made, or comes to count for more, is charged to them in the transaction that does it.
//!
//! The transaction holds only if every quota is still the version that was read, so that writers at several
//! replicas cannot exceed one together; who loses reads anew. The leader's controller counts afresh when
//! objects change or go.

use api::{Kind, Status, object};
use serde_json::Value;
use tokio::sync::{Mutex, MutexGuard};

use super::stored_in;
use crate::object_store::{Condition, Consistency, Mutation};
use crate::registry::Registry;
use crate::registry::create::encode;

/// What the transaction does beside writing the object.
#[derive(Debug, Default)]
pub(in crate::registry) struct Charges {
    pub(in crate::registry) conditions: Vec<Condition>,
    pub(in crate::registry) mutations: Vec<Mutation>,
}

/// How many namespaces can be charged at once by one replica.
const TURNS: usize = 64;

/// Whose turn it is to be charged, by namespace.
#[derive(Debug)]
pub(in crate::registry) struct Turns([Mutex<()>; TURNS]);

impl Default for Turns {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Mutex::new(())))
    }
}

impl Turns {
    pub(in crate::registry) async fn wait(&self, namespace: &str) -> MutexGuard<'_, ()> {
        let hash = namespace
            .bytes()
            .fold(0_usize, |hash, byte| hash.wrapping_mul(31).wrapping_add(usize::from(byte)));
        self.0[hash % TURNS].lock().await
    }
}

impl Registry {
    /// Waits for the writer's turn to be charged; nobody waits where there are no quotas.
    pub(in crate::registry) async fn quota_turn(
        &self,
        kind: &Kind,
        namespace: &str,
    ) -> Option<MutexGuard<'_, ()>> {
        let quotas = stored_in(self, "", "ResourceQuota", namespace, Consistency::Serializable);
        if !kind.namespaced || !quotas.await.is_ok_and(|quotas| !quotas.is_empty()) {
            return None;
        }
        Some(self.quota_turns().wait(namespace).await)
    }
}

/// Charges an object to the quotas of its namespace, for what it counts beyond its predecessor `old`.
pub(in crate::registry) async fn charge(
    registry: &Registry,
    kind: &Kind,
    namespace: &str,
    (old, object): (Option<&Value>, &Value),
    consistency: Consistency,
) -> Result<Charges, Status> {
    let mut charges = Charges::default();
    if !kind.namespaced {
        return Ok(charges);
    }
    for quota in stored_in(registry, "", "ResourceQuota", namespace, consistency).await? {
        let charged = api::quota::charge(quota.value(), kind, old, object)
            .map_err(|why| Status::forbidden(kind, object::name(object), &why))?;
        let Some(mut charged) = charged else { continue };
        object::set_metadata(&mut charged, "resourceVersion", Value::Null);
        let key = quota.key().clone();
        charges.conditions.push(Condition::Unchanged { key: key.clone(), mod_revision: quota.revision() });
        charges.mutations.push(Mutation::Put { key, value: encode(&charged) });
    }
    Ok(charges)
}
