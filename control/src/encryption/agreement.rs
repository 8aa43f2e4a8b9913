//! That every member of a cluster can read what the others write.
//!
//! Each member notes in the store what it can read and under what it writes (names and fingerprints of keys, no
//! keys), in a transaction that names the notes of the others. A member that would write what another cannot read,
//! or could not read what another writes, does not take part: it says so and stops. Until a member knows that it
//! may, it writes nothing encrypted. A member that has never run has no note and is not waited for; it checks
//! itself when it starts.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::Sealing;
use crate::object_store::{
    Condition, Consistency, Error, ListRequest, Mutation, ObjectStore, StoredObject, Transaction,
    TransactionOutcome,
};

/// How plain text is named among what a member can read.
pub(super) const PLAIN: &str = "identity";
/// Where the notes lie: outside of everything that is an object.
pub(super) const PREFIX: &str = "/barque/encryption/";
/// Pause before the store is asked again.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// What a member can read of each resource; under the first it writes. What is not named is plain text.
type Note = BTreeMap<String, Vec<String>>;

/// The members do not agree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Disagreement {
    /// Another member writes what this one cannot read.
    #[error(
        "member {member} writes {resource} under {id}, which the encryption configuration of this member cannot read; \
         give this member the same keys in `encryptionConfigFile` and start it again"
    )]
    CannotRead {
        /// The other member.
        member: String,
        /// What it writes.
        resource: String,
        /// Under which key.
        id: String,
    },
    /// This member would write what another cannot read.
    #[error(
        "this member would write {resource} under {id}, which member {member} cannot read; first name the key after \
         the one in use at every member and start each again, then make it the first"
    )]
    WouldNotBeRead {
        /// The other member.
        member: String,
        /// What would be written.
        resource: String,
        /// Under which key.
        id: String,
    },
}

impl Sealing {
    /// This member's note.
    fn note(&self) -> Note {
        let mut note = Note::new();
        let builtin = api::kinds().iter().filter(|kind| !kind.virtual_only);
        let mut resources: Vec<(String, String)> =
            builtin.map(|kind| (kind.group.to_owned(), kind.plural.to_owned())).collect();
        // Kinds that users register are compared by what the configurations say of them.
        let named = self.rules.iter().flat_map(|rule| &rule.resources);
        resources.extend(named.map(|own| {
            let part = |text: &Option<String>| text.clone().unwrap_or_else(|| "*".to_owned());
            (part(&own.group), part(&own.plural))
        }));
        for (group, plural) in resources {
            let Some(rule) =
                self.rules.iter().find(|rule| rule.resources.iter().any(|own| own.meets(&group, &plural)))
            else {
                continue;
            };
            let name = if group.is_empty() { plural } else { format!("{plural}.{group}") };
            note.insert(name, rule.providers.iter().flat_map(super::Provider::ids).collect());
        }
        note
    }
}

fn ids<'a>(note: &'a Note, resource: &str, plain: &'a [String]) -> &'a [String] {
    note.get(resource).map_or(plain, Vec::as_slice)
}

fn compare(own: &Note, member: &str, other: &Note) -> Result<(), Disagreement> {
    let plain = [PLAIN.to_owned()];
    for resource in own.keys().chain(other.keys()) {
        let (mine, theirs) = (ids(own, resource, &plain), ids(other, resource, &plain));
        let (member, resource) = (member.to_owned(), resource.clone());
        match (mine.first(), theirs.first()) {
            (_, Some(id)) if !mine.contains(id) => {
                return Err(Disagreement::CannotRead { member, resource, id: id.clone() });
            }
            (Some(id), _) if !theirs.contains(id) => {
                return Err(Disagreement::WouldNotBeRead { member, resource, id: id.clone() });
            }
            _ => {}
        }
    }
    Ok(())
}

/// The notes as they are.
pub(super) async fn notes(
    store: &impl ObjectStore,
    consistency: Consistency,
) -> Result<Vec<StoredObject>, Error> {
    let prefix = Bytes::from_static(PREFIX.as_bytes());
    let request = ListRequest { prefix, after: None, limit: None, revision: None, consistency };
    Ok(store.list(request).await?.items)
}

/// Compares this member's configuration with the notes of `members`, and leaves its own. Waits for the store as long
/// as it takes.
///
/// # Errors
/// When they cannot read each other.
pub async fn agree(
    store: &impl ObjectStore,
    sealing: &Sealing,
    member: &str,
    members: &[String],
) -> Result<(), Disagreement> {
    let own = sealing.note();
    let key = Bytes::from(format!("{PREFIX}{member}"));
    let value = Bytes::from(serde_json::to_vec(&own).unwrap_or_default());
    loop {
        match try_agree(store, (&own, &key, &value), members).await {
            Ok(Some(done)) => return done,
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(%error, "the notes on encryption cannot be read or written yet");
                tokio::time::sleep(RETRY_AFTER).await;
            }
        }
    }
}

/// One try; `None`: somebody else's note changed meanwhile.
async fn try_agree(
    store: &impl ObjectStore,
    (own, key, value): (&Note, &Bytes, &Bytes),
    members: &[String],
) -> Result<Option<Result<(), Disagreement>>, Error> {
    let mut condition = Condition::Absent { key: key.clone() };
    let mut conditions = Vec::new();
    for note in notes(store, Consistency::Linearizable).await? {
        let unchanged = Condition::Unchanged { key: note.key.clone(), mod_revision: note.mod_revision };
        if note.key == key {
            condition = unchanged;
            continue;
        }
        let name = std::str::from_utf8(&note.key[PREFIX.len()..]).unwrap_or_default();
        if !members.iter().any(|member| member == name) {
            continue;
        }
        let other: Note = serde_json::from_slice(&note.value).unwrap_or_default();
        if let Err(disagreement) = compare(own, name, &other) {
            return Ok(Some(Err(disagreement)));
        }
        conditions.push(unchanged);
    }
    conditions.push(condition);
    let mutations = vec![Mutation::Put { key: key.clone(), value: value.clone() }];
    match store.transact(Transaction { conditions, mutations, fence: None }).await? {
        TransactionOutcome::Committed { .. } => Ok(Some(Ok(()))),
        TransactionOutcome::ConditionFailed { .. } | TransactionOutcome::Fenced => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::sealing;
    use super::*;
    use crate::object_store::memory::MemoryStore;

    #[tokio::test]
    async fn members_that_cannot_read_each_other_do_not_run_together() {
        let store = MemoryStore::new();
        let members = ["m1", "m2", "m3"].map(str::to_owned);
        let plain = Sealing::default();
        let second = sealing(&[("identity", &[]), ("aesgcm", &[("key1", 1)])]);
        let first = sealing(&[("aesgcm", &[("key1", 1)]), ("identity", &[])]);
        let other_key = sealing(&[("aesgcm", &[("key1", 2)]), ("identity", &[])]);
        agree(&store, &plain, "m1", &members).await.unwrap();
        agree(&store, &plain, "m2", &members).await.unwrap();
        let why = agree(&store, &first, "m1", &members).await.unwrap_err().to_string();
        assert!(why.contains("this member would write") && why.contains("member m2 cannot read"), "{why}");
        for member in ["m1", "m2"] {
            agree(&store, &second, member, &members).await.unwrap();
        }
        agree(&store, &first, "m1", &members).await.unwrap();
        agree(&store, &first, "m1", &members).await.unwrap();
        for (wrong, member) in [(&plain, "m3"), (&plain, "m2"), (&other_key, "m3")] {
            let why = agree(&store, wrong, member, &members).await.unwrap_err();
            assert!(matches!(why, Disagreement::CannotRead { .. }), "{why}");
        }
        agree(&store, &first, "m2", &members).await.unwrap();
        // Who is no member any more has nothing to say.
        agree(&store, &other_key, "m9", &["m9".to_owned()]).await.unwrap();
        agree(&store, &first, "m3", &members).await.unwrap();
    }
}
