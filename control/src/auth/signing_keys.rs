//! Which keys sign and verify the tokens of service accounts now.
//!
//! Owns the ConfigMap `kube-system/barque-service-account-keys`: its entry `keys` lists the numbers of the keys that
//! count, as `1,2`; the last one signs, each verifies, and the API's key set shows all. Without it key 0 does both.
//! Every replica derives every key from the cluster's secret, so all that replicas must agree on is this list, which
//! is in the store. To rotate: add a number at the end, wait until the older tokens have expired, take the first
//! away.

use std::sync::Arc;

use api::Status;

use crate::pki::{Authority, ServiceAccountKey};
use crate::registry::Registry;

const NAMESPACE: &str = "kube-system";
const NAME: &str = "barque-service-account-keys";
const ENTRY: &str = "keys";
/// Keys that count at once.
const KEYS_MAX: usize = 16;

/// The keys of a cluster; clones share everything.
#[derive(Debug, Clone)]
pub(super) struct SigningKeys {
    registry: Registry,
    authority: Arc<Authority>,
}

impl SigningKeys {
    pub(super) fn new(registry: Registry, authority: Arc<Authority>) -> Self {
        Self { registry, authority }
    }

    /// The keys that count, oldest first, as this replica knows it, or as of now.
    pub(super) async fn all(&self, newest: bool) -> Result<Vec<ServiceAccountKey>, Status> {
        let kind = api::kinds::by_kind("", "v1", "ConfigMap").expect("the table of kinds has ConfigMap");
        let found = match newest {
            false => self.registry.get_local(kind, NAMESPACE, NAME).await?,
            true => match self.registry.get(kind, NAMESPACE, NAME).await {
                Err(status) if status.reason() == "NotFound" => None,
                found => Some(found?),
            },
        };
        let listed = found.map(|map| numbers(map.value()["data"][ENTRY].as_str().unwrap_or_default()));
        let listed = listed.filter(|numbers| !numbers.is_empty()).unwrap_or_else(|| vec![0]);
        Ok(listed.into_iter().map(|number| self.authority.service_account_key(number)).collect())
    }

    /// The key that signs.
    pub(super) async fn newest(&self) -> Result<ServiceAccountKey, Status> {
        let last = self.all(false).await?.pop();
        last.ok_or_else(|| Status::internal("no key signs tokens"))
    }

    /// The key of that id, if it counts. One that this replica has not heard of may have begun to sign at another
    /// just now.
    pub(super) async fn named(&self, id: &str) -> Option<ServiceAccountKey> {
        for newest in [false, true] {
            let keys = self.all(newest).await.ok()?;
            if let Some(key) = keys.into_iter().find(|key| key.id() == id) {
                return Some(key);
            }
        }
        None
    }
}

/// The numbers of a list; what is none is left out.
fn numbers(text: &str) -> Vec<u32> {
    let mut numbers = Vec::new();
    for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        match word.parse() {
            Ok(number) if !numbers.contains(&number) => numbers.push(number),
            Ok(_) => {}
            Err(_) => tracing::warn!(word, "the ConfigMap {NAMESPACE}/{NAME} names a key that is no number"),
        }
    }
    let surplus = numbers.len().saturating_sub(KEYS_MAX);
    numbers.split_off(surplus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_leniently_and_within_bounds() {
        assert_eq!(numbers("1, 2,,2,x"), [1, 2]);
        assert_eq!(numbers(""), Vec::<u32>::new());
        let many: Vec<String> = (0..40).map(|number| number.to_string()).collect();
        let kept = numbers(&many.join(","));
        assert_eq!((kept.len(), kept.last()), (KEYS_MAX, Some(&39)), "the newest");
    }
}
