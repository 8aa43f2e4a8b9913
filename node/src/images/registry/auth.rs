//! Answers to a registry's question who one is: Basic, and tokens of the service that the registry names.
//!
//! Credentials go only to where the registry's own scheme allows: never without TLS for a registry with it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use http::uri::{Scheme, Uri};
use http::{Method, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use super::super::credentials::Credentials;
use super::RegistryError;
use super::http::{Ask, Content, Http};

/// Tokens are some kilobytes.
const TOKEN_BYTES_MAX: u64 = 256 << 10;
const CHALLENGE_BYTES_MAX: usize = 16 << 10;
const CLIENT_ID: &str = "barque";

/// What a registry asks for.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

/// What the headers of an answer ask for; a token if there is a choice.
pub(super) fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let mut basic = None;
    for header in headers.get_all(WWW_AUTHENTICATE) {
        let Some(text) = header.to_str().ok().filter(|text| text.len() <= CHALLENGE_BYTES_MAX) else {
            continue;
        };
        for challenge in http_auth::ChallengeParser::new(text).map_while(Result::ok) {
            let param = |name: &str| {
                let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.to_unescaped())
            };
            if challenge.scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            } else if challenge.scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = param("realm")
            {
                return Some(Challenge::Bearer { realm, service: param("service"), scope: param("scope") });
            }
        }
    }
    basic
}

/// The header that answers a challenge; `None`: there is nothing to say.
pub(super) async fn answer(
    http: &Http,
    registry: &Uri,
    challenge: Challenge,
    scope: &str,
    credentials: Option<&Credentials>,
) -> Result<Option<HeaderValue>, RegistryError> {
    match challenge {
        Challenge::Basic => Ok(credentials.map(basic)),
        Challenge::Bearer { realm, service, scope: asked } => {
            // What the registry names is what it wants for this very request; ours is broader (pull and push).
            let scope =
                asked.filter(|asked| !scope.contains(asked.as_str())).unwrap_or_else(|| scope.to_owned());
            token(http, registry, &realm, service.as_deref(), &scope, credentials).await.map(Some)
        }
    }
}

async fn token(
    http: &Http,
    registry: &Uri,
    realm: &str,
    service: Option<&str>,
    scope: &str,
    credentials: Option<&Credentials>,
) -> Result<HeaderValue, RegistryError> {
    let what = format!("failed to get a token from {realm}");
    let broken = |problem: &str| RegistryError::Protocol { what: what.clone(), problem: problem.to_owned() };
    let uri: Uri = realm.parse().map_err(|_| broken("it is not an address"))?;
    if uri.scheme() != Some(&Scheme::HTTPS) && registry.scheme() == Some(&Scheme::HTTPS) {
        return Err(broken(
            "the registry uses TLS, this token service does not; credentials are not sent there",
        ));
    }
    if uri.authority().is_none() {
        return Err(broken("it is not an address"));
    }
    let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let mut query = vec![("scope", scope)];
    query.extend(service.map(|service| ("service", service)));
    let refresh = credentials.and_then(|c| c.identity_token.as_deref());
    if let Some(token) = refresh {
        query.extend([("grant_type", "refresh_token"), ("refresh_token", token), ("client_id", CLIENT_ID)]);
    }
    let query: Vec<String> = query.iter().map(|(key, value)| format!("{key}={}", encode(value))).collect();
    let query = query.join("&");
    let ask = if refresh.is_some() {
        let mut ask =
            Ask::new(&what, Method::POST, uri).header(CONTENT_TYPE, "application/x-www-form-urlencoded")?;
        ask.content = Content::Bytes(Bytes::from(query));
        ask
    } else {
        let joint = if uri.query().is_some() { '&' } else { '?' };
        let uri = format!("{uri}{joint}{query}").parse().map_err(|_| broken("it is not an address"))?;
        Ask::new(&what, Method::GET, uri)
    };
    let shown = credentials.filter(|_| refresh.is_none()).map(basic);
    let response = http.send(&ask, shown.as_ref()).await?;
    if response.status() != StatusCode::OK {
        return Err(http.refusal(&ask, response, credentials.is_some()).await);
    }
    let bytes = http.read(&what, response.into_body(), TOKEN_BYTES_MAX).await?;
    let answer: TokenAnswer =
        serde_json::from_slice(&bytes).map_err(|_| broken("it answered with no token"))?;
    let token = if answer.token.is_empty() { answer.access_token } else { answer.token };
    let header = HeaderValue::from_str(&format!("Bearer {token}")).ok().filter(|_| !token.is_empty());
    let mut header = header.ok_or_else(|| broken("it answered with no token"))?;
    header.set_sensitive(true);
    Ok(header)
}

fn basic(credentials: &Credentials) -> HeaderValue {
    let text = STANDARD.encode(format!("{}:{}", credentials.username, credentials.password));
    let mut header = HeaderValue::from_str(&format!("Basic {text}")).expect("base64 is plain text");
    header.set_sensitive(true);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(texts: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for text in texts {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_str(text).unwrap());
        }
        challenge(&headers)
    }

    #[test]
    fn challenges_are_read() {
        assert_eq!(of(&["Basic realm=\"r\""]), Some(Challenge::Basic));
        let bearer = of(&["Bearer realm=\"https://a.io/t\",service=\"s, x\",scope=\"repository:a/b:pull\""]);
        let Some(Challenge::Bearer { realm, service, scope }) = bearer else { panic!("{bearer:?}") };
        assert_eq!((realm.as_str(), service.as_deref()), ("https://a.io/t", Some("s, x")));
        assert_eq!(scope.as_deref(), Some("repository:a/b:pull"));
        assert!(matches!(of(&["Basic realm=\"r\"", "bearer realm=x"]), Some(Challenge::Bearer { .. })));
        assert_eq!(of(&["Negotiate"]), None);
        assert_eq!(of(&["Bearer service=\"no realm\""]), None);
        assert_eq!(of(&["\"", "=,=", ""]), None);
    }
}
