//! Which resources lie encrypted in the store, and under which keys.
//!
//! Owns the `EncryptionConfiguration` of `apiserver.config.k8s.io/v1` ([`Sealing`]), the form of what is stored
//! (`k8s:enc:<provider>:v1:<key>:` and then nonce and ciphertext, as Kubernetes writes it), that the members of a
//! cluster can read what each other writes ([`agreement`]), and the rewriting of what lies under an older key
//! ([`rewrite`]). A value is bound to its place: moved to another key of the store, it cannot be read. Where values
//! pass through is `object_store::sealed`'s.
//!
//! Providers: `identity` (plain text), `aesgcm` (keys of 16 or 32 bytes) and `chacha20poly1305` (32 bytes).

pub mod agreement;
mod config;
pub mod rewrite;

use std::fmt;

use bytes::Bytes;
use ring::aead::{self, Aad, LessSafeKey, Nonce};
use ring::rand::{SecureRandom as _, SystemRandom};

pub use self::config::EncryptionError;

/// What every encrypted value begins with.
const MARK: &[u8] = b"k8s:enc:";

/// Which resources are encrypted how. The default encrypts nothing.
#[derive(Debug, Default)]
pub struct Sealing {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    resources: Vec<Pattern>,
    providers: Vec<Provider>,
}

/// `secrets`, `deployments.apps`, `*.apps`, `*.*`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    plural: Option<String>,
    group: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    AesGcm,
    ChaCha20Poly1305,
}

enum Provider {
    Identity,
    Keyed { algorithm: Algorithm, keys: Vec<Key> },
}

struct Key {
    name: String,
    /// Tells the key from others of its name, at other members, without telling the key.
    fingerprint: String,
    key: LessSafeKey,
}

/// Why a stored value cannot be read, or a new one not be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is encrypted under a key that is not configured.
    #[error(
        "it is encrypted under the key {name:?} of {provider}, which the encryption configuration does not have; \
         add that key to `encryptionConfigFile`"
    )]
    NoKey {
        /// The provider.
        provider: String,
        /// The key.
        name: String,
    },
    /// The key is there, and does not fit.
    #[error(
        "it cannot be decrypted with the key {name:?}: that is another key of this name, or the value was altered"
    )]
    Wrong {
        /// The key.
        name: String,
    },
    /// It is plain text although the configuration allows none.
    #[error(
        "it is not encrypted, and the encryption configuration of its resource has no `identity` provider"
    )]
    Plain,
    /// The system gave no random bytes.
    #[error("the system gave no random bytes")]
    NoRandomness,
}

impl Algorithm {
    fn name(self) -> &'static str {
        match self {
            Self::AesGcm => "aesgcm",
            Self::ChaCha20Poly1305 => "chacha20poly1305",
        }
    }
}

impl fmt::Debug for Provider {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.ids().join(" "))
    }
}

impl Provider {
    /// What it can read, named so that members can compare; what it writes under comes first.
    fn ids(&self) -> Vec<String> {
        match self {
            Self::Identity => vec![agreement::PLAIN.to_owned()],
            Self::Keyed { algorithm, keys } => keys
                .iter()
                .map(|key| format!("{}:{}:{}", algorithm.name(), key.name, key.fingerprint))
                .collect(),
        }
    }
}

impl Pattern {
    fn meets(&self, group: &str, plural: &str) -> bool {
        self.group.as_deref().is_none_or(|own| own == group)
            && self.plural.as_deref().is_none_or(|own| own == plural)
    }
}

impl Sealing {
    /// Whether anything is encrypted, or was.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    fn rule(&self, key: &[u8]) -> Option<&Rule> {
        if self.rules.is_empty() {
            return None;
        }
        let (group, plural) = resource(key)?;
        self.rules.iter().find(|rule| rule.resources.iter().any(|own| own.meets(group, plural)))
    }

    /// Whether a value for that key is written encrypted.
    pub fn encrypts(&self, key: &[u8]) -> bool {
        let first = self.rule(key).and_then(|rule| rule.providers.first());
        matches!(first, Some(Provider::Keyed { .. }))
    }

    /// A value as it is stored.
    pub fn seal(&self, key: &[u8], value: Bytes) -> Result<Bytes, Refusal> {
        let first = self.rule(key).and_then(|rule| rule.providers.first());
        let Some(Provider::Keyed { algorithm, keys }) = first else { return Ok(value) };
        let Some(own) = keys.first() else { return Ok(value) };
        let mut nonce = [0; aead::NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(|_| Refusal::NoRandomness)?;
        let mut out = mark(*algorithm, &own.name);
        out.extend_from_slice(&nonce);
        let mut text = value.to_vec();
        let sealed =
            own.key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(key), &mut text);
        sealed.map_err(|_| Refusal::Wrong { name: own.name.clone() })?;
        out.extend_from_slice(&text);
        Ok(out.into())
    }

    /// A stored value as it was given.
    pub fn open(&self, key: &[u8], stored: Bytes) -> Result<Bytes, Refusal> {
        let rule = self.rule(key);
        if !stored.starts_with(MARK) {
            let plain = |provider: &Provider| matches!(provider, Provider::Identity);
            return match rule.is_none_or(|rule| rule.providers.iter().any(plain)) {
                true => Ok(stored),
                false => Err(Refusal::Plain),
            };
        }
        let (provider, name, rest) = split(&stored).unwrap_or(("?", "?", &[]));
        let missing = || Refusal::NoKey { provider: provider.to_owned(), name: name.to_owned() };
        let own = rule.into_iter().flat_map(|rule| &rule.providers).find_map(|own| match own {
            Provider::Keyed { algorithm, keys } if algorithm.name() == provider => {
                keys.iter().find(|key| key.name == name)
            }
            _ => None,
        });
        let own = own.ok_or_else(missing)?;
        let wrong = || Refusal::Wrong { name: name.to_owned() };
        let (nonce, text) = rest.split_at_checked(aead::NONCE_LEN).ok_or_else(wrong)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| wrong())?;
        let mut text = text.to_vec();
        let length = own.key.open_in_place(nonce, Aad::from(key), &mut text).map_err(|_| wrong())?.len();
        text.truncate(length);
        Ok(text.into())
    }

    /// Whether a stored value is plain text.
    fn is_plain(&self, stored: &[u8]) -> bool {
        !stored.starts_with(MARK)
    }

    /// Whether a stored value lies as a new one would be written.
    fn is_current(&self, key: &[u8], stored: &[u8]) -> bool {
        match self.rule(key).and_then(|rule| rule.providers.first()) {
            Some(Provider::Keyed { algorithm, keys }) => {
                keys.first().is_some_and(|own| stored.starts_with(&mark(*algorithm, &own.name)))
            }
            Some(Provider::Identity) => !stored.starts_with(MARK),
            None => true,
        }
    }
}

fn mark(algorithm: Algorithm, name: &str) -> Vec<u8> {
    format!("k8s:enc:{}:v1:{name}:", algorithm.name()).into_bytes()
}

/// Provider and key that a stored value names, and what follows.
fn split(stored: &[u8]) -> Option<(&str, &str, &[u8])> {
    let mut parts = stored.get(MARK.len()..)?.splitn(4, |byte| *byte == b':');
    let provider = std::str::from_utf8(parts.next()?).ok()?;
    let _version = parts.next()?;
    let name = std::str::from_utf8(parts.next()?).ok()?;
    Some((provider, name, parts.next()?))
}

/// Group and plural of an object's key (see `registry::keys`).
fn resource(key: &[u8]) -> Option<(&str, &str)> {
    let mut parts = std::str::from_utf8(key).ok()?.strip_prefix("/registry/")?.split('/');
    let (group, plural) = (parts.next()?, parts.next()?);
    parts.next()?;
    Some((if group == "core" { "" } else { group }, plural))
}

#[cfg(test)]
pub(crate) mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    const SECRET: &[u8] = b"/registry/core/secrets/default/x";

    /// Names of providers, each with its keys: a name, and the byte that the secret is made of.
    pub(crate) type Providers<'a> = &'a [(&'a str, &'a [(&'a str, u8)])];

    /// A configuration for Secrets with these keys of a provider, and `identity` before or after them.
    pub(crate) fn sealing(providers: Providers<'_>) -> Sealing {
        let mut text = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n\
            - resources: [secrets, \"*.apps\"]\n  providers:\n"
            .to_owned();
        for (provider, keys) in providers {
            if *provider == "identity" {
                text.push_str("  - identity: {}\n");
                continue;
            }
            let keys: Vec<String> = keys
                .iter()
                .map(|(name, byte)| format!("{{name: {name}, secret: \"{}\"}}", STANDARD.encode([*byte; 32])))
                .collect();
            text.push_str(&format!("  - {provider}: {{keys: [{}]}}\n", keys.join(", ")));
        }
        Sealing::parse(&text).unwrap()
    }

    #[test]
    fn what_is_sealed_opens_at_its_own_place_only() {
        for provider in ["aesgcm", "chacha20poly1305"] {
            let sealing = sealing(&[(provider, &[("key1", 1)]), ("identity", &[])]);
            let stored = sealing.seal(SECRET, Bytes::from_static(b"{\"data\":\"s3cret\"}")).unwrap();
            assert!(stored.starts_with(format!("k8s:enc:{provider}:v1:key1:").as_bytes()));
            assert!(!stored.windows(6).any(|word| word == b"s3cret"));
            assert_eq!(sealing.open(SECRET, stored.clone()).unwrap(), "{\"data\":\"s3cret\"}");
            let moved = sealing.open(b"/registry/core/secrets/default/y", stored.clone());
            assert_eq!(moved, Err(Refusal::Wrong { name: "key1".to_owned() }));
            let mut altered = stored.to_vec();
            *altered.last_mut().unwrap() ^= 1;
            assert!(sealing.open(SECRET, altered.into()).is_err());
            for end in 0..stored.len() {
                let cut = sealing.open(SECRET, stored.slice(..end));
                assert!(end < MARK.len() || cut.is_err(), "{end}");
            }
            assert_ne!(stored, sealing.seal(SECRET, Bytes::from_static(b"{\"data\":\"s3cret\"}")).unwrap());
        }
    }

    #[test]
    fn other_resources_are_left_alone() {
        let sealing = sealing(&[("aesgcm", &[("key1", 1)])]);
        for (key, encrypts) in [
            (&b"/registry/core/configmaps/default/x"[..], false),
            (b"/registry/apps/deployments/default/x", true),
            (b"/registry/core/secrets", false),
            (b"/barque/encryption/m1", false),
            (b"/registry/lab.example/secrets/default/x", false),
        ] {
            assert_eq!(sealing.encrypts(key), encrypts, "{}", String::from_utf8_lossy(key));
        }
        let plain = Bytes::from_static(b"{}");
        assert_eq!(sealing.open(b"/registry/core/configmaps/a/x", plain.clone()).unwrap(), plain);
        assert_eq!(sealing.open(SECRET, plain), Err(Refusal::Plain));
    }

    #[test]
    fn keys_come_and_go_in_order() {
        let value = Bytes::from_static(b"{}");
        let first = sealing(&[("aesgcm", &[("key1", 1)]), ("identity", &[])]);
        let stored = first.seal(SECRET, value.clone()).unwrap();
        let both = sealing(&[("aesgcm", &[("key2", 2), ("key1", 1)])]);
        assert_eq!(both.open(SECRET, stored.clone()).unwrap(), value);
        assert!(!both.is_current(SECRET, &stored) && first.is_current(SECRET, &stored));
        let newer = both.seal(SECRET, value.clone()).unwrap();
        assert!(both.is_current(SECRET, &newer));
        let last = sealing(&[("aesgcm", &[("key2", 2)])]);
        assert_eq!(last.open(SECRET, newer).unwrap(), value);
        let why = last.open(SECRET, stored.clone()).unwrap_err().to_string();
        assert!(why.contains("under the key \"key1\" of aesgcm"), "{why}");
        let other = sealing(&[("aesgcm", &[("key1", 9)])]);
        assert_eq!(other.open(SECRET, stored.clone()), Err(Refusal::Wrong { name: "key1".to_owned() }));
        assert!(Sealing::default().open(SECRET, stored).is_err(), "nothing is configured any more");
        let off = sealing(&[("identity", &[]), ("aesgcm", &[("key2", 2)])]);
        assert!(!off.encrypts(SECRET) && off.is_current(SECRET, &value));
    }
}
