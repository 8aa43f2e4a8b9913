//! Where others learn how to verify service accounts' tokens: the issuer's configuration and its keys (OpenID
//! Connect Discovery; RFC 7517, RFC 8037).

use api::Status;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::Rest;
use super::path::Document;
use super::respond::{self, Body};
use crate::auth::service_account::ISSUER;

impl Rest {
    /// Answers one of the two documents.
    pub(super) async fn issuer_document(&self, document: &Document) -> Response<Body> {
        let (media_type, value) = match document {
            Document::IssuerKeys => match self.key_set().await {
                Ok(keys) => ("application/jwk-set+json", keys),
                Err(status) => return respond::failure(&status),
            },
            _ => ("application/json", self.configuration()),
        };
        respond::bytes(StatusCode::OK, media_type, value.to_string().into())
    }

    fn configuration(&self) -> Value {
        json!({
            "issuer": ISSUER,
            "jwks_uri": format!("https://{}/openid/v1/jwks", self.advertised),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["EdDSA"],
        })
    }

    async fn key_set(&self) -> Result<Value, Status> {
        let keys = self.accounts.keys().await?;
        let keys = keys.iter().map(|key| {
            json!({"use": "sig", "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "kid": key.id(),
                "x": URL_SAFE_NO_PAD.encode(key.public())})
        });
        Ok(json!({"keys": keys.collect::<Vec<_>>()}))
    }
}
