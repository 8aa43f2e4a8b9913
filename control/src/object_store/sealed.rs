//! A store whose values are encrypted on the way in and decrypted on the way out, as the configuration says.
//!
//! Owns nothing but that: conditions, revisions, watches and leadership are those of the store below. Promises that
//! a value which cannot be decrypted is an error that names its key, never garbage, and that nothing is written
//! encrypted before the members agree that all can read it ([`crate::encryption::agreement`]).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::watch;

use super::{
    Consistency, Error, Leadership, ListRequest, Listing, Mutation, ObjectStore, StoredObject, Transaction,
    TransactionOutcome, WatchItem, WatchStream,
};
use crate::encryption::{Refusal, Sealing};

/// How long a write waits for the members' agreement.
const AGREEMENT_WAIT_MAX: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug, Clone)]
pub struct SealedStore<S> {
    below: S,
    sealing: Arc<Sealing>,
    agreed: watch::Receiver<bool>,
}

impl<S: ObjectStore> SealedStore<S> {
    /// Over a store; `agreed` says when the members can read what is written here.
    pub fn new(below: S, sealing: Arc<Sealing>, agreed: watch::Receiver<bool>) -> Self {
        Self { below, sealing, agreed }
    }

    async fn seal(&self, transaction: &mut Transaction) -> Result<(), Error> {
        for mutation in &mut transaction.mutations {
            let Mutation::Put { key, value } = mutation else { continue };
            if !self.sealing.encrypts(key) {
                continue;
            }
            self.wait_agreed().await?;
            let plain = std::mem::take(value);
            *value = self.sealing.seal(key, plain).map_err(|refusal| unreadable(key, &refusal))?;
        }
        Ok(())
    }

    async fn wait_agreed(&self) -> Result<(), Error> {
        if *self.agreed.borrow() {
            return Ok(());
        }
        let mut agreed = self.agreed.clone();
        match tokio::time::timeout(AGREEMENT_WAIT_MAX, agreed.wait_for(|agreed| *agreed)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Error::Unavailable {
                reason: "the members have not agreed yet that all can read what is encrypted here".to_owned(),
            }),
        }
    }

    fn open_outcome(&self, outcome: TransactionOutcome) -> Result<TransactionOutcome, Error> {
        let TransactionOutcome::ConditionFailed { mut current } = outcome else { return Ok(outcome) };
        for found in current.iter_mut().flatten() {
            open(&self.sealing, found)?;
        }
        Ok(TransactionOutcome::ConditionFailed { current })
    }
}

fn open(sealing: &Sealing, object: &mut StoredObject) -> Result<(), Error> {
    let value = std::mem::take(&mut object.value);
    object.value = sealing.open(&object.key, value).map_err(|refusal| unreadable(&object.key, &refusal))?;
    Ok(())
}

fn unreadable(key: &[u8], refusal: &Refusal) -> Error {
    Error::Sealed { key: String::from_utf8_lossy(key).into_owned(), reason: refusal.to_string() }
}

fn open_item(sealing: &Sealing, item: WatchItem) -> Result<WatchItem, Error> {
    let WatchItem::Events(mut events) = item else { return Ok(item) };
    for event in &mut events {
        open(sealing, &mut event.object)?;
        if let Some(previous) = &mut event.previous {
            open(sealing, previous)?;
        }
    }
    Ok(WatchItem::Events(events))
}

impl<S: ObjectStore> ObjectStore for SealedStore<S> {
    async fn get(&self, key: Bytes, consistency: Consistency) -> Result<(Option<StoredObject>, u64), Error> {
        let (mut found, revision) = self.below.get(key, consistency).await?;
        if let Some(found) = &mut found {
            open(&self.sealing, found)?;
        }
        Ok((found, revision))
    }

    async fn list(&self, request: ListRequest) -> Result<Listing, Error> {
        let mut listing = self.below.list(request).await?;
        for item in &mut listing.items {
            open(&self.sealing, item)?;
        }
        Ok(listing)
    }

    async fn transact(&self, mut transaction: Transaction) -> Result<TransactionOutcome, Error> {
        self.seal(&mut transaction).await?;
        self.open_outcome(self.below.transact(transaction).await?)
    }

    async fn transact_all(
        &self,
        mut transactions: Vec<Transaction>,
    ) -> Result<Vec<TransactionOutcome>, Error> {
        for transaction in &mut transactions {
            self.seal(transaction).await?;
        }
        let outcomes = self.below.transact_all(transactions).await?;
        outcomes.into_iter().map(|outcome| self.open_outcome(outcome)).collect()
    }

    async fn watch(&self, prefix: Bytes, from_revision: u64) -> Result<WatchStream, Error> {
        let sealing = self.sealing.clone();
        let stream = self.below.watch(prefix, from_revision).await?;
        Ok(stream.map(move |item| item.and_then(|item| open_item(&sealing, item))).boxed())
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.below.leadership()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::encryption::rewrite::{self, Rewritten};
    use crate::encryption::tests::{Providers, sealing};
    use crate::leader::Epoch;
    use crate::object_store::SharedStore;
    use crate::object_store::memory::MemoryStore;
    use crate::registry::{ListOptions, Registry, Target, WatchOptions, WriteOptions, bootstrap_namespaces};

    const KEY: Bytes = Bytes::from_static(b"/registry/core/secrets/default/s");

    fn over(store: &MemoryStore, sealing: Sealing) -> Registry {
        let (_, agreed) = watch::channel(true);
        let sealed = SealedStore::new(store.clone(), Arc::new(sealing), agreed);
        Registry::new(SharedStore::new(sealed), Default::default(), Default::default())
    }

    fn secrets() -> &'static api::Kind {
        api::kinds::by_kind("", "v1", "Secret").expect("a kind")
    }

    async fn raw(store: &MemoryStore) -> StoredObject {
        store.get(KEY, Consistency::Linearizable).await.expect("reads").0.expect("stored")
    }

    #[tokio::test]
    async fn objects_are_what_they_were_and_the_store_shows_nothing() {
        let store = MemoryStore::new();
        let registry = over(&store, sealing(&[("aesgcm", &[("key1", 1)]), ("identity", &[])]));
        bootstrap_namespaces(&registry).await.expect("namespaces");
        let options = WatchOptions { resource_version: Some("0".to_owned()), ..WatchOptions::default() };
        let mut watch = registry.watch(secrets(), Some("default"), &options).await.expect("watched");
        let secret = json!({"metadata": {"name": "s"}, "stringData": {"password": "correct horse"}});
        let made =
            registry.create(secrets(), "default", secret, &WriteOptions::default()).await.expect("created");
        let encoded = made.object.value()["data"]["password"].clone();
        let read = registry.get(secrets(), "default", "s").await.expect("read");
        assert_eq!(read.value()["data"]["password"], encoded);
        let listed = registry.list(secrets(), None, &ListOptions::default()).await.expect("listed");
        assert_eq!(listed.items[0].value(), read.value());
        loop {
            let notice = watch.next().await.expect("goes on").expect("no error");
            if let crate::registry::Notice::Event(event) = notice {
                assert_eq!(event.object().value()["data"]["password"], encoded);
                break;
            }
        }
        let stored = raw(&store).await.value;
        assert!(stored.starts_with(b"k8s:enc:aesgcm:v1:key1:"));
        let shown = String::from_utf8_lossy(&stored);
        assert!(!shown.contains("password") && !shown.contains(encoded.as_str().expect("text")));
        // Who writes what somebody else has changed meanwhile is refused, as ever.
        let mut stale = read.value().clone();
        let touch = |secret: &mut serde_json::Value| {
            secret["data"]["more"] = json!("eA==");
            Ok(())
        };
        let target = Target::new(secrets(), "default", "s");
        registry.modify(target, &WriteOptions::default(), touch).await.expect("changed");
        stale["data"]["more"] = json!("eQ==");
        let refused = registry.update(target, stale, &WriteOptions::default()).await.expect_err("stale");
        assert_eq!(refused.reason(), "Conflict");
    }

    #[tokio::test]
    async fn keys_are_rotated_by_rewriting_and_a_key_that_is_gone_is_told_of() {
        let store = MemoryStore::new();
        let plain = over(&store, Sealing::default());
        bootstrap_namespaces(&plain).await.expect("namespaces");
        let secret = json!({"metadata": {"name": "s"}, "data": {"k": "dg=="}});
        plain.create(secrets(), "default", secret, &WriteOptions::default()).await.expect("created");
        assert!(raw(&store).await.value.starts_with(b"{"));
        let steps: [Providers<'_>; 3] = [
            &[("aesgcm", &[("key1", 1)]), ("identity", &[])],
            &[("chacha20poly1305", &[("key2", 2)]), ("aesgcm", &[("key1", 1)])],
            &[("identity", &[]), ("chacha20poly1305", &[("key2", 2)])],
        ];
        let marks: [&[u8]; 3] = [b"k8s:enc:aesgcm:v1:key1:", b"k8s:enc:chacha20poly1305:v1:key2:", b"{"];
        for (step, mark) in steps.into_iter().zip(marks) {
            let before = raw(&store).await;
            let done = rewrite::pass(&store, &sealing(step), Epoch(1)).await.expect("rewritten");
            assert_eq!(done, Rewritten { written: 1, missed: 0, unreadable: 0 });
            let after = raw(&store).await;
            assert!(after.value.starts_with(mark) && after.mod_revision > before.mod_revision);
            let again = rewrite::pass(&store, &sealing(step), Epoch(1)).await.expect("nothing to do");
            assert_eq!(again, Rewritten::default());
            let read = over(&store, sealing(step)).get(secrets(), "default", "s").await.expect("read");
            assert_eq!(read.value()["data"]["k"], "dg==");
        }
        let first = sealing(&[("aesgcm", &[("key1", 1)]), ("identity", &[])]);
        rewrite::pass(&store, &first, Epoch(1)).await.expect("rewritten");
        let without = sealing(&[("aesgcm", &[("key2", 2)]), ("identity", &[])]);
        let done = rewrite::pass(&store, &without, Epoch(1)).await.expect("looked at");
        assert_eq!(done, Rewritten { unreadable: 1, ..Rewritten::default() });
        let lost = over(&store, without);
        for error in [
            lost.get(secrets(), "default", "s").await.map(drop).expect_err("its key is gone"),
            lost.list(secrets(), None, &ListOptions::default()).await.map(drop).expect_err("its key is gone"),
        ] {
            assert_eq!(error.code(), 500);
            let message = error.message();
            let expected = "unable to transform key \"/registry/core/secrets/default/s\": it is encrypted under the key \"key1\"";
            assert!(message.contains(expected), "{message}");
        }
    }

    #[tokio::test]
    async fn nothing_is_encrypted_before_the_members_agree() {
        let store = MemoryStore::new();
        let (agree, agreed) = watch::channel(false);
        let sealed =
            SealedStore::new(store.clone(), Arc::new(sealing(&[("aesgcm", &[("key1", 1)])])), agreed);
        let put = |key: &'static str| Transaction {
            mutations: vec![Mutation::Put { key: key.into(), value: "{}".into() }],
            ..Transaction::default()
        };
        sealed
            .transact(put("/registry/core/configmaps/default/c"))
            .await
            .expect("not encrypted, does not wait");
        let mut waiting = Box::pin(sealed.transact(put("/registry/core/secrets/default/s")));
        assert!(futures_util::poll!(waiting.as_mut()).is_pending());
        agree.send_replace(true);
        waiting.await.expect("written");
        assert!(raw(&store).await.value.starts_with(b"k8s:enc:"));
    }
}
