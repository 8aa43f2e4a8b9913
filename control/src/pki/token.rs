//! The two secrets that operators carry from machine to machine.
//!
//! Owns their text forms. A [`ControlToken`] is the root secret of a cluster and belongs on masters only. A
//! [`NodeToken`] lets one or more machines ask for a node certificate until it expires; it names the
//! cluster's authority by hash, so that a joining machine can check whom it talks to. Does not check a node
//! token's signature (that is `Authority`).

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom as _, SystemRandom};

use super::Error;

const CONTROL_PREFIX: &str = "barque-control.";
const NODE_PREFIX: &str = "barque-node.";
const SEED_BYTES: usize = 32;
const SECONDS_PER_DAY: u64 = 24 * 60 * 60;
/// Days since 1970 that a token may name: 2020 to 2200, so that certificate dates stay representable.
const CREATED_DAYS: std::ops::Range<u32> = 18_262..84_006;
/// Random bytes in a node token's id (hex in its text).
const TOKEN_ID_BYTES: usize = 8;
/// No honest token is longer; longer text is refused unread.
const TOKEN_TEXT_BYTES_MAX: usize = 512;

/// The root secret of a cluster: whoever holds it can be a master and can issue any certificate.
#[derive(Clone, PartialEq, Eq)]
pub struct ControlToken {
    seed: [u8; SEED_BYTES],
    created_day: u32,
}

impl ControlToken {
    /// Makes a new token. The day of `now` becomes the first day of the authority's life.
    pub fn generate(now: SystemTime) -> Result<Self, Error> {
        let mut seed = [0; SEED_BYTES];
        SystemRandom::new().fill(&mut seed).map_err(|_| Error::NoRandomness)?;
        let created_day =
            u32::try_from(unix_seconds(now)? / SECONDS_PER_DAY).map_err(|_| Error::ClockBeforeEpoch)?;
        Ok(Self { seed, created_day })
    }

    /// The secret text. Write it only where masters alone can read it.
    pub fn to_secret_text(&self) -> String {
        let mut bytes = self.seed.to_vec();
        bytes.extend_from_slice(&self.created_day.to_be_bytes());
        format!("{CONTROL_PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    pub(super) fn seed(&self) -> &[u8; SEED_BYTES] {
        &self.seed
    }

    /// The first second of the day the token was made.
    pub(super) fn created(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(u64::from(self.created_day) * SECONDS_PER_DAY)
    }
}

impl FromStr for ControlToken {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let malformed = |reason| Error::ControlTokenMalformed { reason };
        let text = text.trim();
        if text.starts_with(NODE_PREFIX) {
            return Err(malformed("it is a node token"));
        }
        let encoded = text
            .strip_prefix(CONTROL_PREFIX)
            .ok_or_else(|| malformed("it does not begin with \"barque-control.\""))?;
        if encoded.len() > TOKEN_TEXT_BYTES_MAX {
            return Err(malformed("it is too long"));
        }
        let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| malformed("it is not base64url"))?;
        let (seed, day) = bytes.split_at_checked(SEED_BYTES).ok_or_else(|| malformed("it is cut off"))?;
        let created_day = u32::from_be_bytes(day.try_into().map_err(|_| malformed("its length is wrong"))?);
        if !CREATED_DAYS.contains(&created_day) {
            return Err(malformed("its day is out of range"));
        }
        Ok(Self { seed: seed.try_into().map_err(|_| malformed("it is cut off"))?, created_day })
    }
}

impl fmt::Debug for ControlToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlToken").field("created_day", &self.created_day).finish_non_exhaustive()
    }
}

/// A machine's permission to ask for a node certificate, valid until it expires.
#[derive(Clone, PartialEq, Eq)]
pub struct NodeToken {
    ca_sha256: [u8; 32],
    id: String,
    expires_unix: u64,
    mac: [u8; 32],
}

impl NodeToken {
    pub(super) fn new(ca_sha256: [u8; 32], id: String, expires_unix: u64, mac: [u8; 32]) -> Self {
        Self { ca_sha256, id, expires_unix, mac }
    }

    /// A fresh random id for a token.
    pub(super) fn random_id() -> Result<String, Error> {
        let mut bytes = [0; TOKEN_ID_BYTES];
        SystemRandom::new().fill(&mut bytes).map_err(|_| Error::NoRandomness)?;
        Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// What the signature covers.
    pub(super) fn signed_text(id: &str, expires_unix: u64) -> String {
        format!("{id}.{expires_unix}")
    }

    /// The token's id, fit for logs.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// SHA-256 of the DER form of the authority's certificate.
    pub fn ca_sha256(&self) -> &[u8; 32] {
        &self.ca_sha256
    }

    /// When it expires, in seconds since 1970.
    pub fn expires_unix(&self) -> u64 {
        self.expires_unix
    }

    pub(super) fn mac(&self) -> &[u8; 32] {
        &self.mac
    }

    /// The secret text.
    pub fn to_secret_text(&self) -> String {
        format!(
            "{NODE_PREFIX}{}.{}.{}.{}",
            URL_SAFE_NO_PAD.encode(self.ca_sha256),
            self.id,
            self.expires_unix,
            URL_SAFE_NO_PAD.encode(self.mac)
        )
    }
}

impl FromStr for NodeToken {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let malformed = |reason| Error::NodeTokenMalformed { reason };
        let text = text.trim();
        if text.starts_with(CONTROL_PREFIX) {
            return Err(malformed("it is a control token, which must never leave the masters"));
        }
        if text.len() > TOKEN_TEXT_BYTES_MAX {
            return Err(malformed("it is too long"));
        }
        let rest = text
            .strip_prefix(NODE_PREFIX)
            .ok_or_else(|| malformed("it does not begin with \"barque-node.\""))?;
        let parts: Vec<&str> = rest.split('.').collect();
        let [ca, id, expires, mac] = parts[..] else {
            return Err(malformed("it does not have five parts"));
        };
        if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(malformed("its id is not hexadecimal"));
        }
        let hash = |part: &str| -> Result<[u8; 32], Error> {
            let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| malformed("it is not base64url"))?;
            bytes.try_into().map_err(|_| malformed("it is cut off"))
        };
        Ok(Self {
            ca_sha256: hash(ca)?,
            id: id.to_owned(),
            expires_unix: expires.parse().map_err(|_| malformed("its expiry is not a number"))?,
            mac: hash(mac)?,
        })
    }
}

impl fmt::Debug for NodeToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeToken")
            .field("id", &self.id)
            .field("expires_unix", &self.expires_unix)
            .finish_non_exhaustive()
    }
}

/// Seconds since 1970.
pub(super) fn unix_seconds(time: SystemTime) -> Result<u64, Error> {
    Ok(time.duration_since(SystemTime::UNIX_EPOCH).map_err(|_| Error::ClockBeforeEpoch)?.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_token_survives_its_text_form() {
        let token = ControlToken::generate(SystemTime::now()).unwrap();
        let text = token.to_secret_text();
        assert!(text.starts_with("barque-control."));
        assert_eq!(format!("  {text}\n").parse::<ControlToken>().unwrap(), token);
    }

    #[test]
    fn damaged_or_confused_tokens_are_refused_with_the_reason() {
        let text = ControlToken::generate(SystemTime::now()).unwrap().to_secret_text();
        for (text, reason) in [
            ("", "does not begin"),
            (&text[..text.len() - 4], "length is wrong"),
            (&text[..39], "cut off"),
            ("barque-control.!!!", "base64url"),
            ("barque-node.a.b.1.c", "it is a node token"),
        ] {
            let error = text.parse::<ControlToken>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
        for (text, reason) in [
            ("barque-control.abc", "it is a control token"),
            ("barque-node.x.ab.1", "five parts"),
            ("barque-node.AA.ab.1.AA", "cut off"),
            ("barque-node.AA.a/b.1.AA", "hexadecimal"),
        ] {
            let error = text.parse::<NodeToken>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn secrets_do_not_appear_in_debug_output() {
        let token = ControlToken::generate(SystemTime::now()).unwrap();
        let seed = format!("{:?}", token.seed());
        assert!(!format!("{token:?}").contains(&seed));
    }
}
