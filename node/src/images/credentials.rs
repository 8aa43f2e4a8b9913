//! Who one is at a registry: docker's configuration files, the pull secrets of pods, and which entry of them is for
//! which image. Secrets are never printed.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::Deserialize;

use super::Reference;

/// Entries that one configuration may have.
const ENTRIES_MAX: usize = 10_000;
const JSON_TYPE: &str = "kubernetes.io/dockerconfigjson";
const LEGACY_TYPE: &str = "kubernetes.io/dockercfg";

/// A name and a password, or a token that stands for both.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Credentials {
    pub(crate) username: String,
    pub(crate) password: String,
    /// An OAuth2 refresh token, which some registries hand out instead of passwords.
    pub(crate) identity_token: Option<String>,
}

impl Credentials {
    /// A name and a password.
    pub fn new(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self { username: username.into(), password: password.into(), identity_token: None }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({:?})", self.username)
    }
}

/// Why a configuration of credentials cannot be used. Says nothing of its content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadCredentials(String);

/// Credentials by registry.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Keyring {
    /// Host (perhaps with wildcards), port and path, and what is shown there. Longer paths first.
    entries: Vec<(Place, Credentials)>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    host: String,
    port: Option<String>,
    path: String,
}

#[derive(Deserialize)]
struct ConfigFile {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    username: String,
    password: String,
    auth: String,
    identitytoken: String,
}

impl Keyring {
    /// The text of a `config.json`, as `docker login` writes it.
    pub fn parse(text: &[u8]) -> Result<Self, BadCredentials> {
        let file: ConfigFile = serde_json::from_slice(text).map_err(|e| not_json(&e))?;
        Self::of_entries(file.auths)
    }

    /// The text of the older `.dockercfg`, which has the entries without anything around them.
    pub fn parse_legacy(text: &[u8]) -> Result<Self, BadCredentials> {
        Self::of_entries(serde_json::from_slice(text).map_err(|e| not_json(&e))?)
    }

    /// A pull secret by its type and data.
    pub fn of_secret(kind: &str, data: &BTreeMap<String, Vec<u8>>) -> Result<Self, BadCredentials> {
        let find = |key: &str| {
            data.get(key)
                .ok_or_else(|| BadCredentials(format!("a secret of type {kind} must have the key {key}")))
        };
        match kind {
            JSON_TYPE => Self::parse(find(".dockerconfigjson")?),
            LEGACY_TYPE => Self::parse_legacy(find(".dockercfg")?),
            _ => {
                let wanted = format!("{JSON_TYPE} or {LEGACY_TYPE}");
                Err(BadCredentials(format!("a secret of type {kind:?} cannot be used; use {wanted}")))
            }
        }
    }

    fn of_entries(entries: BTreeMap<String, Entry>) -> Result<Self, BadCredentials> {
        if entries.len() > ENTRIES_MAX {
            return Err(BadCredentials(format!("it has more than {ENTRIES_MAX} entries")));
        }
        let mut keyring = Self::default();
        for (key, entry) in entries {
            let (mut username, mut password) = (entry.username, entry.password);
            if !entry.auth.is_empty() {
                let decoded = STANDARD
                    .decode(entry.auth.trim())
                    .or_else(|_| STANDARD_NO_PAD.decode(entry.auth.trim()))
                    .ok()
                    .and_then(|bytes| String::from_utf8(bytes).ok());
                let Some((name, word)) = decoded.as_deref().and_then(|text| text.split_once(':')) else {
                    return Err(BadCredentials(format!("auth of {key:?} is not base64 of name:password")));
                };
                (username, password) = (name.to_owned(), word.trim_end_matches('\0').to_owned());
            }
            let identity_token = Some(entry.identitytoken).filter(|token| !token.is_empty());
            if username.is_empty() && identity_token.is_none() {
                continue;
            }
            keyring.entries.push((Place::parse(&key), Credentials { username, password, identity_token }));
        }
        keyring.entries.sort_by(|(a, _), (b, _)| b.path.len().cmp(&a.path.len()).then_with(|| b.cmp(a)));
        Ok(keyring)
    }

    /// Everything in another one too, after what is here.
    pub fn append(&mut self, mut other: Self) {
        self.entries.append(&mut other.entries);
    }

    /// What to show for a repository, at the registry of this name; the best guess first.
    pub(crate) fn find(&self, host: &str, repository: &str) -> Vec<Credentials> {
        let mut found: Vec<Credentials> = Vec::new();
        for (place, credentials) in &self.entries {
            if place.covers(host, repository) && !found.contains(credentials) {
                found.push(credentials.clone());
            }
        }
        found
    }

    /// Whether anything is in it for this image at its own registry.
    pub fn knows(&self, reference: &Reference) -> bool {
        !self.find(reference.domain(), reference.path()).is_empty()
    }
}

impl Place {
    /// `https://index.docker.io/v1/`, `registry.lab:5000/team`, `*.example.com`.
    fn parse(key: &str) -> Self {
        let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
        let (authority, path) = bare.split_once('/').unwrap_or((bare, ""));
        let path = path.trim_matches('/');
        let path = if matches!(path, "v1" | "v2") { "" } else { path };
        let (host, port) = split_port(authority);
        Self { host: canonical(host).to_owned(), port: port.map(str::to_owned), path: path.to_owned() }
    }

    fn covers(&self, host: &str, repository: &str) -> bool {
        let (host, port) = split_port(host);
        let ports_agree = self.port.as_deref() == port;
        let below = repository.strip_prefix(self.path.as_str());
        let paths_agree =
            self.path.is_empty() || below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        ports_agree && paths_agree && hosts_agree(&self.host, canonical(host))
    }
}

fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => {
            (host, Some(port))
        }
        _ => (authority, None),
    }
}

/// Docker's own registry has several names.
fn canonical(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    }
}

/// Part by part; `*` stands for anything within one part.
fn hosts_agree(pattern: &str, host: &str) -> bool {
    let (pattern, host): (Vec<&str>, Vec<&str>) = (pattern.split('.').collect(), host.split('.').collect());
    pattern.len() == host.len() && pattern.iter().zip(&host).all(|(p, h)| part_agrees(p, h))
}

fn part_agrees(pattern: &str, part: &str) -> bool {
    let mut pieces = pattern.split('*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = part.strip_prefix(first) else { return false };
    let Some(last) = pattern.rsplit_once('*').map(|(_, last)| last) else { return rest.is_empty() };
    let middle: Vec<&str> = pieces.collect();
    for piece in &middle[..middle.len() - 1] {
        match rest.find(piece) {
            Some(at) => rest = &rest[at + piece.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

fn not_json(error: &serde_json::Error) -> BadCredentials {
    // serde's message may quote a value; only the place is safe to show.
    BadCredentials(format!(
        "it is not JSON of the expected form (line {}, column {})",
        error.line(),
        error.column()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(keyring: &Keyring, host: &str, repository: &str) -> Vec<String> {
        keyring.find(host, repository).into_iter().map(|c| c.username).collect()
    }

    #[test]
    fn the_entry_for_a_registry_is_found() {
        let text = br#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOnB3"},
            "registry.lab:5000": {"username": "lab", "password": "pw"},
            "registry.lab:5000/team": {"username": "team", "password": "pw"},
            "*.example.com": {"username": "any", "password": "pw"},
            "tokens.io": {"identitytoken": "t"},
            "empty.io": {}}}"#;
        let keyring = Keyring::parse(text).unwrap();
        assert_eq!(names(&keyring, "docker.io", "library/nginx"), ["hub"]);
        assert_eq!(names(&keyring, "registry.lab:5000", "team/app"), ["team", "lab"]);
        assert_eq!(names(&keyring, "registry.lab:5000", "teamwork/app"), ["lab"]);
        assert!(names(&keyring, "registry.lab", "team/app").is_empty(), "another port is another registry");
        assert_eq!(names(&keyring, "a.example.com", "x"), ["any"]);
        assert!(names(&keyring, "a.b.example.com", "x").is_empty());
        assert!(names(&keyring, "example.com", "x").is_empty());
        assert!(names(&keyring, "empty.io", "x").is_empty());
        assert_eq!(keyring.find("tokens.io", "x")[0].identity_token.as_deref(), Some("t"));
        assert_eq!(keyring.find("docker.io", "a/b")[0].password, "pw");
    }

    #[test]
    fn secrets_are_read_and_never_shown() {
        let data = |key: &str, text: &str| BTreeMap::from([(key.to_owned(), text.as_bytes().to_vec())]);
        let legacy = data(".dockercfg", r#"{"r.io": {"username": "u", "password": "hush"}}"#);
        let keyring = Keyring::of_secret(LEGACY_TYPE, &legacy).unwrap();
        assert_eq!(names(&keyring, "r.io", "x"), ["u"]);
        assert!(!format!("{keyring:?}").contains("hush"));
        let missing = Keyring::of_secret(JSON_TYPE, &legacy).unwrap_err().to_string();
        assert!(missing.contains(".dockerconfigjson"), "{missing}");
        assert!(Keyring::of_secret("Opaque", &legacy).is_err());
        for text in [r#"{"auths": {"r.io": {"auth": "hush!"}}}"#, r#"{"auths": "hush"}"#, "hush"] {
            let error = Keyring::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(!error.contains("hush"), "{error}");
        }
    }

    #[test]
    fn wildcards_match_within_a_part() {
        for (pattern, host, agree) in [
            ("*", "a", true),
            ("a*", "abc", true),
            ("*c", "abc", true),
            ("a*c", "abc", true),
            ("a*b*c", "axxbyyc", true),
            ("a*b", "a", false),
            ("ab*ba", "aba", false),
            ("abc", "abcd", false),
        ] {
            assert_eq!(part_agrees(pattern, host), agree, "{pattern} {host}");
        }
    }
}
