//! The opaque token between the pages of a list.
//!
//! Holds the revision that all pages are read at and the last key given, so that a list stays consistent
//! over its pages. The same form as the Kubernetes API server's.

use api::Status;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

const VERSION: &str = "meta.k8s.io/v1";

#[derive(Serialize, Deserialize)]
struct Wire {
    v: String,
    rv: i64,
    start: String,
}

/// Where the next page begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ContinueToken {
    /// The revision that the list is read at.
    pub(super) revision: u64,
    /// The last key of the page before.
    pub(super) after: Bytes,
}

impl ContinueToken {
    /// The token's text; keys are kept relative to the list's prefix.
    pub(super) fn encode(&self, prefix: &[u8]) -> String {
        let start = self.after.strip_prefix(prefix).unwrap_or_default();
        let wire = Wire {
            v: VERSION.to_owned(),
            rv: i64::try_from(self.revision).unwrap_or(i64::MAX),
            start: format!("{}\0", String::from_utf8_lossy(start)),
        };
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&wire).expect("a struct of texts and numbers is JSON"))
    }

    /// Reads a token that a client sent back.
    pub(super) fn decode(text: &str, prefix: &[u8]) -> Result<Self, Status> {
        let refuse = |why: &str| Status::bad_request(format!("continue key is not valid: {why}"));
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|error| refuse(&error.to_string()))?;
        let wire: Wire = serde_json::from_slice(&bytes).map_err(|error| refuse(&error.to_string()))?;
        if wire.v != VERSION {
            return Err(refuse(&format!("server does not recognize this encoded version {:?}", wire.v)));
        }
        let revision = u64::try_from(wire.rv).ok().filter(|revision| *revision > 0);
        let revision = revision
            .ok_or_else(|| refuse("incorrect encoded start resourceVersion (version meta.k8s.io/v1)"))?;
        let start = wire.start.strip_suffix('\0').unwrap_or(&wire.start);
        if start.is_empty() || start.split('/').any(|part| part == "..") {
            return Err(refuse("encoded start key empty (version meta.k8s.io/v1)"));
        }
        Ok(Self { revision, after: Bytes::from([prefix, start.as_bytes()].concat()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_as_they_went_and_foreign_ones_are_refused() {
        let prefix = b"/registry/core/pods/";
        let token =
            ContinueToken { revision: 12, after: Bytes::from_static(b"/registry/core/pods/default/x") };
        assert_eq!(ContinueToken::decode(&token.encode(prefix), prefix).unwrap(), token);
        for text in ["", "###", "e30", &URL_SAFE_NO_PAD.encode("{\"v\":\"x\",\"rv\":1,\"start\":\"a\"}")] {
            assert_eq!(ContinueToken::decode(text, prefix).unwrap_err().code(), 400, "{text}");
        }
    }
}
