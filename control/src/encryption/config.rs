//! Reading an `EncryptionConfiguration`.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{AES_128_GCM, AES_256_GCM, CHACHA20_POLY1305, LessSafeKey, UnboundKey};
use ring::digest;
use serde::Deserialize;
use serde_json::Value;

use super::{Algorithm, Key, Pattern, Provider, Rule, Sealing};

/// Largest configuration file.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
const FINGERPRINT_BYTES: usize = 8;

/// Why an encryption configuration is refused. Never holds a key.
#[derive(Debug, thiserror::Error)]
pub enum EncryptionError {
    /// The file cannot be read.
    #[error("cannot read the encryption configuration {path}: {source}; `encryptionConfigFile` names it")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is no such configuration.
    #[error("the encryption configuration {path} cannot be used: {reason}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    resources: Vec<Resources>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resources {
    resources: Vec<String>,
    providers: Vec<serde_json::Map<String, Value>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    keys: Vec<NamedSecret>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedSecret {
    name: String,
    secret: String,
}

impl Sealing {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, EncryptionError> {
        let failed = |source| EncryptionError::Read { path: path.to_owned(), source };
        if std::fs::metadata(path).map_err(failed)?.len() > FILE_BYTES_MAX {
            return Err(failed(std::io::Error::other("it is larger than any such configuration")));
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        Self::parse(&text).map_err(|reason| EncryptionError::Content { path: path.to_owned(), reason })
    }

    /// Reads a configuration; says what is wrong with it, and nothing of its keys.
    pub fn parse(text: &str) -> Result<Self, String> {
        // The parser's own words could quote a key.
        let file: File = serde_saphyr::from_str(text).map_err(|error| match error.location() {
            Some(at) => format!(
                "line {}, column {}: a field is unknown, missing or of the wrong type",
                at.line(),
                at.column()
            ),
            None => "a field is unknown, missing or of the wrong type".to_owned(),
        })?;
        if file.api_version != "apiserver.config.k8s.io/v1" || file.kind != "EncryptionConfiguration" {
            return Err(format!(
                "it is a {} of {:?}, not an EncryptionConfiguration of \"apiserver.config.k8s.io/v1\"",
                file.kind, file.api_version
            ));
        }
        let rules = file
            .resources
            .into_iter()
            .enumerate()
            .map(|(index, own)| rule(own).map_err(|reason| format!("resources[{index}]: {reason}")));
        Ok(Self { rules: rules.collect::<Result<_, _>>()? })
    }
}

fn rule(own: Resources) -> Result<Rule, String> {
    if own.resources.is_empty() || own.providers.is_empty() {
        return Err("resources and providers must both be named".to_owned());
    }
    let resources = own.resources.iter().map(|text| pattern(text)).collect::<Result<_, _>>()?;
    let mut providers = Vec::new();
    for members in own.providers {
        let mut members = members.into_iter();
        let (Some((name, value)), None) = (members.next(), members.next()) else {
            return Err("each provider has exactly one name".to_owned());
        };
        providers.push(provider(&name, value)?);
    }
    Ok(Rule { resources, providers })
}

fn pattern(text: &str) -> Result<Pattern, String> {
    let part = |text: &str| (text != "*").then(|| text.to_owned());
    let (plural, group) = text.split_once('.').unwrap_or((text, ""));
    if plural.is_empty() || plural == "*" && !text.contains('.') {
        return Err(format!(
            "{text:?} names no resource; write secrets, deployments.apps, *.apps, *. or *.*"
        ));
    }
    Ok(Pattern { plural: part(plural), group: part(group) })
}

fn provider(name: &str, value: Value) -> Result<Provider, String> {
    let algorithm = match name {
        "identity" => return Ok(Provider::Identity),
        "aesgcm" => Algorithm::AesGcm,
        "chacha20poly1305" => Algorithm::ChaCha20Poly1305,
        other => {
            return Err(format!(
                "the provider {other:?} is not offered; there are aesgcm, chacha20poly1305 and identity"
            ));
        }
    };
    let listed: Keys = serde_json::from_value(value)
        .map_err(|_| format!("{name} needs `keys`, each with `name` and `secret`"))?;
    if listed.keys.is_empty() {
        return Err(format!("{name} has no keys"));
    }
    let mut keys: Vec<Key> = Vec::new();
    for NamedSecret { name: own, secret } in listed.keys {
        if own.is_empty() || own.contains(':') {
            return Err(format!("the name {own:?} of a key is empty or has a colon"));
        }
        if keys.iter().any(|key| key.name == own) {
            return Err(format!("two keys of {name} are called {own:?}"));
        }
        keys.push(key(algorithm, own, &secret)?);
    }
    Ok(Provider::Keyed { algorithm, keys })
}

fn key(algorithm: Algorithm, name: String, secret: &str) -> Result<Key, String> {
    let bytes =
        STANDARD.decode(secret.trim()).map_err(|_| format!("the secret of the key {name:?} is no base64"))?;
    let cipher = match (algorithm, bytes.len()) {
        (Algorithm::AesGcm, 16) => &AES_128_GCM,
        (Algorithm::AesGcm, 32) => &AES_256_GCM,
        (Algorithm::ChaCha20Poly1305, 32) => &CHACHA20_POLY1305,
        (Algorithm::AesGcm, length) => {
            return Err(format!("the secret of the key {name:?} has {length} bytes; 16 or 32 are needed"));
        }
        (Algorithm::ChaCha20Poly1305, length) => {
            return Err(format!("the secret of the key {name:?} has {length} bytes; 32 are needed"));
        }
    };
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(b"barque/encryption/fingerprint/v1");
    context.update(&bytes);
    let hash = context.finish();
    let fingerprint = hash.as_ref()[..FINGERPRINT_BYTES].iter().map(|byte| format!("{byte:02x}")).collect();
    let unbound = UnboundKey::new(cipher, &bytes).map_err(|_| format!("the key {name:?} cannot be used"))?;
    Ok(Key { name, fingerprint, key: LessSafeKey::new(unbound) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_refused_without_showing_keys() {
        let good = STANDARD.encode([7; 32]);
        let head = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\n";
        let of = |providers: &str| {
            format!("{head}resources: [{{resources: [secrets], providers: [{providers}]}}]")
        };
        for (text, words) in [
            (
                "kind: EncryptionConfiguration\napiVersion: v1\nresources: []\n".to_owned(),
                "not an EncryptionConfiguration",
            ),
            (of("{secretbox: {keys: []}}"), "\"secretbox\" is not offered"),
            (of("{aesgcm: {keys: []}}"), "no keys"),
            (of("{aesgcm: {keys: [{name: a, secret: c2hvcnQ=}]}}"), "has 5 bytes; 16 or 32"),
            (of("{aesgcm: {keys: [{name: a, secret: \"!!\"}]}}"), "no base64"),
            (
                of(&format!(
                    "{{aesgcm: {{keys: [{{name: a, secret: {good}}}, {{name: a, secret: {good}}}]}}}}"
                )),
                "two keys",
            ),
            (of(&format!("{{aesgcm: {{keys: [{{name: a, secret: [{good}]}}]}}}}")), "needs `keys`"),
            (of("{aesgcm: {}, identity: {}}"), "exactly one name"),
            (
                format!("{head}resources: [{{resources: [\"*\"], providers: [{{identity: {{}}}}]}}]"),
                "names no resource",
            ),
        ] {
            let why = Sealing::parse(&text).unwrap_err();
            assert!(why.contains(words) && !why.contains(&good), "{text}: {why}");
        }
        let fine = Sealing::parse(&of(&format!(
            "{{aesgcm: {{keys: [{{name: a, secret: {good}}}]}}}}, {{identity: {{}}}}"
        )));
        let shown = format!("{:?}", fine.unwrap());
        assert!(shown.contains("aesgcm:a:") && !shown.contains(&good), "{shown}");
    }
}
