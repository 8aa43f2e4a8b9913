//! The keys that sign the tokens of service accounts.
//!
//! Keys have numbers. Every master derives the key of a number from the control token, so that keys can be rotated
//! without one ever being carried from master to master: which numbers count is said in the store (see
//! `auth::service_account`). Ed25519: the same text gets the same signature at every master.

use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};

use super::authority::{derive, hex8, sha256};

const FIRST_INFO: &[u8] = b"barque/service-account/v1";

/// One key.
pub struct ServiceAccountKey {
    pair: Ed25519KeyPair,
}

impl ServiceAccountKey {
    /// The key of a number, of the cluster with this root secret.
    pub(super) fn derive(seed: &[u8; 32], number: u32) -> Self {
        let secret = match number {
            0 => derive(seed, FIRST_INFO),
            later => derive(seed, format!("barque/service-account/v1/{later}").as_bytes()),
        };
        let pair = Ed25519KeyPair::from_seed_unchecked(&secret).expect("every 32 bytes are a seed");
        Self { pair }
    }

    /// Names the key: 16 hexadecimal digits of its hash.
    pub fn id(&self) -> String {
        hex8(&sha256(self.public()))
    }

    /// The public key.
    pub fn public(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    /// Signs a token.
    pub fn sign(&self, text: &[u8]) -> Vec<u8> {
        self.pair.sign(text).as_ref().to_vec()
    }

    /// Whether this key signed that.
    pub fn verify(&self, text: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.public()).verify(text, signature).is_ok()
    }
}

impl std::fmt::Debug for ServiceAccountKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ServiceAccountKey").field("id", &self.id()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_is_another_key_and_the_same_everywhere() {
        let key = |number| ServiceAccountKey::derive(&[7; 32], number);
        let signature = key(1).sign(b"text");
        assert!(key(1).verify(b"text", &signature));
        assert!(!key(0).verify(b"text", &signature) && !key(1).verify(b"other", &signature));
        assert_ne!(key(0).id(), key(1).id());
        assert_ne!(ServiceAccountKey::derive(&[8; 32], 1).id(), key(1).id());
        assert!(!format!("{:?}", key(0)).contains("seed"));
    }
}
