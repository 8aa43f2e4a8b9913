//! JSON web tokens as etcd makes them: claims `username`, `revision` (of the auth store) and `exp`.
//!
//! Members that share the key take each other's tokens, and others may issue them too. A token is good until
//! it expires or the auth revision moves on: whatever it is used for is then refused as old, and clients ask
//! for another. Only the configured algorithm is taken, whatever a token's header says.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    self, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair, RsaEncoding, RsaKeyPair,
    UnparsedPublicKey, VerificationAlgorithm,
};
use ring::{error::KeyRejected, hmac};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivateKeyDer, SubjectPublicKeyInfoDer};
use serde_json::{Value, json};
use state_machine::Author;
use x509_parser::prelude::{FromDer, SubjectPublicKeyInfo};

/// etcd's default.
const TTL: Duration = Duration::from_secs(300);

/// Why options do not give a way to sign and verify.
#[derive(Debug, thiserror::Error)]
pub enum JwtError {
    /// Not `name=value`, or a name that is not known.
    #[error("jwt option {0:?} is not one of sign-method=…, pub-key=…, priv-key=…, ttl=…")]
    Option(String),
    /// The value makes no sense.
    #[error("jwt option {name}: {value:?} is not possible: {reason}")]
    Value {
        /// The option.
        name: &'static str,
        /// What was given.
        value: String,
        /// What could be.
        reason: &'static str,
    },
    /// A key file cannot be read.
    #[error("jwt: cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A key file holds no key of the algorithm.
    #[error("jwt: {path} holds no {kind} key for the sign method: {reason}")]
    Key {
        /// The file.
        path: PathBuf,
        /// Private or public.
        kind: &'static str,
        /// The cause.
        reason: String,
    },
    /// Neither key was given.
    #[error("jwt: {0} is needed")]
    Missing(&'static str),
}

#[derive(Clone, Copy)]
enum Method {
    Hmac(hmac::Algorithm),
    Rsa(&'static dyn RsaEncoding, &'static dyn VerificationAlgorithm),
    Ecdsa(&'static EcdsaSigningAlgorithm, &'static dyn VerificationAlgorithm),
    Ed25519,
}

impl Method {
    fn of(name: &str) -> Option<Self> {
        use signature as s;
        Some(match name {
            "HS256" => Self::Hmac(hmac::HMAC_SHA256),
            "HS384" => Self::Hmac(hmac::HMAC_SHA384),
            "HS512" => Self::Hmac(hmac::HMAC_SHA512),
            "RS256" => Self::Rsa(&s::RSA_PKCS1_SHA256, &s::RSA_PKCS1_2048_8192_SHA256),
            "RS384" => Self::Rsa(&s::RSA_PKCS1_SHA384, &s::RSA_PKCS1_2048_8192_SHA384),
            "RS512" => Self::Rsa(&s::RSA_PKCS1_SHA512, &s::RSA_PKCS1_2048_8192_SHA512),
            "PS256" => Self::Rsa(&s::RSA_PSS_SHA256, &s::RSA_PSS_2048_8192_SHA256),
            "PS384" => Self::Rsa(&s::RSA_PSS_SHA384, &s::RSA_PSS_2048_8192_SHA384),
            "PS512" => Self::Rsa(&s::RSA_PSS_SHA512, &s::RSA_PSS_2048_8192_SHA512),
            "ES256" => Self::Ecdsa(&s::ECDSA_P256_SHA256_FIXED_SIGNING, &s::ECDSA_P256_SHA256_FIXED),
            "ES384" => Self::Ecdsa(&s::ECDSA_P384_SHA384_FIXED_SIGNING, &s::ECDSA_P384_SHA384_FIXED),
            "EdDSA" => Self::Ed25519,
            _ => return None,
        })
    }
}

enum Signer {
    Hmac(hmac::Key),
    Rsa(RsaKeyPair, &'static dyn RsaEncoding),
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl Signer {
    fn public_key(&self) -> Option<Vec<u8>> {
        match self {
            Self::Hmac(_) => None,
            Self::Rsa(pair, _) => Some(pair.public_key().as_ref().to_vec()),
            Self::Ecdsa(pair) => Some(pair.public_key().as_ref().to_vec()),
            Self::Ed25519(pair) => Some(pair.public_key().as_ref().to_vec()),
        }
    }

    fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Hmac(key) => Some(hmac::sign(key, message).as_ref().to_vec()),
            Self::Rsa(pair, encoding) => {
                let mut signed = vec![0; pair.public().modulus_len()];
                pair.sign(*encoding, &SystemRandom::new(), message, &mut signed).ok()?;
                Some(signed)
            }
            Self::Ecdsa(pair) => {
                pair.sign(&SystemRandom::new(), message).ok().map(|signed| signed.as_ref().to_vec())
            }
            Self::Ed25519(pair) => Some(pair.sign(message).as_ref().to_vec()),
        }
    }
}

enum Verifier {
    Hmac(hmac::Key),
    Public(UnparsedPublicKey<Vec<u8>>),
}

/// How this member signs and verifies.
pub struct Jwt {
    algorithm: String,
    ttl: Duration,
    signer: Option<Signer>,
    verifier: Verifier,
}

impl Jwt {
    /// Reads `sign-method=…,pub-key=…,priv-key=…,ttl=…`. With a public key alone tokens are taken, not given.
    /// Private keys are PKCS#8 or, for RSA, PKCS#1, in PEM; of HMAC the private key is the whole file.
    pub(super) fn parse(options: &str) -> Result<Self, JwtError> {
        let (mut algorithm, mut public, mut private, mut ttl) = (None, None, None, TTL);
        for option in options.split(',').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some(("sign-method", value)) => algorithm = Some(value.to_owned()),
                Some(("pub-key", value)) => public = Some(PathBuf::from(value)),
                Some(("priv-key", value)) => private = Some(PathBuf::from(value)),
                Some(("ttl", value)) => ttl = parse_ttl(value)?,
                _ => return Err(JwtError::Option(option.to_owned())),
            }
        }
        let algorithm = algorithm.ok_or(JwtError::Missing("sign-method"))?;
        let method = Method::of(&algorithm).ok_or_else(|| JwtError::Value {
            name: "sign-method",
            value: algorithm.clone(),
            reason: "HS256, HS384, HS512, RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384 or EdDSA",
        })?;
        let signer = private.map(|path| read_signer(method, path)).transpose()?;
        let verifier = verifier(method, signer.as_ref(), public)?;
        Ok(Self { algorithm, ttl, signer, verifier })
    }

    pub(super) fn sign(&self, user: &str, revision: u64, now: u64) -> Option<String> {
        let signer = self.signer.as_ref()?;
        let header = json!({ "alg": self.algorithm, "typ": "JWT" });
        let claims = json!({ "username": user, "revision": revision, "exp": now + self.ttl.as_secs() });
        let encode = |part: &Value| BASE64_URL_SAFE_NO_PAD.encode(part.to_string());
        let message = format!("{}.{}", encode(&header), encode(&claims));
        let signature = BASE64_URL_SAFE_NO_PAD.encode(signer.sign(message.as_bytes())?);
        Some(format!("{message}.{signature}"))
    }

    pub(super) fn verify(&self, token: &str, now: u64) -> Option<Author> {
        let (message, signature) = token.rsplit_once('.')?;
        let signature = BASE64_URL_SAFE_NO_PAD.decode(signature).ok()?;
        match &self.verifier {
            Verifier::Hmac(key) => hmac::verify(key, message.as_bytes(), &signature).ok()?,
            Verifier::Public(key) => key.verify(message.as_bytes(), &signature).ok()?,
        }
        let (header, claims) = message.split_once('.')?;
        let decode = |part: &str| -> Option<Value> {
            serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(part).ok()?).ok()
        };
        let (header, claims) = (decode(header)?, decode(claims)?);
        if header.get("alg")?.as_str()? != self.algorithm {
            return None;
        }
        // Others may issue tokens without an end, as etcd allows.
        if claims.get("exp").is_some_and(|exp| exp.as_f64().is_none_or(|exp| exp <= now as f64)) {
            return None;
        }
        let user = claims.get("username")?.as_str().filter(|user| !user.is_empty())?.to_owned();
        // Some libraries write whole numbers with a fraction.
        let revision = claims.get("revision")?;
        let auth_revision =
            revision.as_u64().or_else(|| revision.as_f64().map(|revision| revision as u64))?;
        Some(Author { user, auth_revision })
    }
}

/// Go's notation, of one unit: `300s`, `5m`, `1h`.
fn parse_ttl(value: &str) -> Result<Duration, JwtError> {
    let bad = || JwtError::Value { name: "ttl", value: value.to_owned(), reason: "as in 300s, 5m or 1h" };
    let unit = value.chars().last().ok_or_else(bad)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        _ => return Err(bad()),
    };
    let count: u64 = value[..value.len() - 1].parse().map_err(|_| bad())?;
    let ttl = count.checked_mul(seconds).filter(|ttl| *ttl > 0).ok_or_else(bad)?;
    Ok(Duration::from_secs(ttl))
}

fn read(path: &PathBuf) -> Result<Vec<u8>, JwtError> {
    fs::read(path).map_err(|source| JwtError::Io { path: path.clone(), source })
}

fn read_signer(method: Method, path: PathBuf) -> Result<Signer, JwtError> {
    let bytes = read(&path)?;
    if let Method::Hmac(algorithm) = method {
        return Ok(Signer::Hmac(hmac::Key::new(algorithm, &bytes)));
    }
    let bad = |reason: String| JwtError::Key { path: path.clone(), kind: "private", reason };
    let rejected = |error: KeyRejected| bad(error.to_string());
    let der = PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| bad(error.to_string()))?;
    match (method, &der) {
        (Method::Rsa(encoding, _), PrivateKeyDer::Pkcs8(der)) => {
            RsaKeyPair::from_pkcs8(der.secret_pkcs8_der())
                .map(|pair| Signer::Rsa(pair, encoding))
                .map_err(rejected)
        }
        (Method::Rsa(encoding, _), PrivateKeyDer::Pkcs1(der)) => RsaKeyPair::from_der(der.secret_pkcs1_der())
            .map(|pair| Signer::Rsa(pair, encoding))
            .map_err(rejected),
        (Method::Ecdsa(algorithm, _), PrivateKeyDer::Pkcs8(der)) => {
            EcdsaKeyPair::from_pkcs8(algorithm, der.secret_pkcs8_der(), &SystemRandom::new())
                .map(Signer::Ecdsa)
                .map_err(rejected)
        }
        (Method::Ed25519, PrivateKeyDer::Pkcs8(der)) => {
            Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der())
                .map(Signer::Ed25519)
                .map_err(rejected)
        }
        _ => Err(bad("convert it with `openssl pkcs8 -topk8 -nocrypt`".into())),
    }
}

fn verifier(method: Method, signer: Option<&Signer>, public: Option<PathBuf>) -> Result<Verifier, JwtError> {
    let algorithm: &'static dyn VerificationAlgorithm = match method {
        Method::Hmac(_) => {
            return match signer {
                Some(Signer::Hmac(key)) => Ok(Verifier::Hmac(key.clone())),
                _ => Err(JwtError::Missing("priv-key")),
            };
        }
        Method::Rsa(_, algorithm) | Method::Ecdsa(_, algorithm) => algorithm,
        Method::Ed25519 => &signature::ED25519,
    };
    let key = match (public, signer.and_then(Signer::public_key)) {
        (Some(path), _) => read_public(path)?,
        (None, Some(key)) => key,
        (None, None) => return Err(JwtError::Missing("pub-key or priv-key")),
    };
    Ok(Verifier::Public(UnparsedPublicKey::new(algorithm, key)))
}

fn read_public(path: PathBuf) -> Result<Vec<u8>, JwtError> {
    let bytes = read(&path)?;
    let bad = |reason: String| JwtError::Key { path: path.clone(), kind: "public", reason };
    let der = SubjectPublicKeyInfoDer::from_pem_slice(&bytes).map_err(|error| bad(error.to_string()))?;
    let (_, key) = SubjectPublicKeyInfo::from_der(&der).map_err(|error| bad(error.to_string()))?;
    Ok(key.subject_public_key.data.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Keys(tempfile::TempDir);

    impl Keys {
        fn write(&self, name: &str, content: &[u8]) -> String {
            let path = self.0.path().join(name);
            fs::write(&path, content).expect("a file in a temporary directory");
            path.display().to_string()
        }
    }

    fn keys() -> Keys {
        Keys(tempfile::tempdir().expect("a temporary directory"))
    }

    fn pem(label: &str, der: &[u8]) -> Vec<u8> {
        let base64 = base64::prelude::BASE64_STANDARD.encode(der);
        let lines: Vec<_> = base64.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line)).collect();
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n")).into_bytes()
    }

    fn check_round_trip(options: &str) {
        let jwt = Jwt::parse(options).unwrap_or_else(|error| panic!("{options}: {error}"));
        let token = jwt.sign("ann", 7, 1000).expect("there is a private key");
        let author = Author { user: "ann".into(), auth_revision: 7 };
        assert_eq!(jwt.verify(&token, 1299), Some(author));
        assert_eq!(jwt.verify(&token, 1300), None, "expired");
        let claims = BASE64_URL_SAFE_NO_PAD.encode(r#"{"username":"root","revision":7}"#);
        let parts: Vec<_> = token.split('.').collect();
        assert_eq!(jwt.verify(&format!("{}.{claims}.{}", parts[0], parts[2]), 1000), None, "forged");
        assert_eq!(jwt.verify(&format!("{}.{claims}.", parts[0]), 1000), None, "unsigned");
    }

    #[test]
    fn every_kind_of_key_signs_and_verifies() {
        let keys = keys();
        let random = SystemRandom::new();
        let path = keys.write("hmac", b"a shared secret");
        check_round_trip(&format!("sign-method=HS256,priv-key={path}"));
        check_round_trip(&format!("sign-method=HS512,priv-key={path},ttl=5m"));
        for (name, algorithm) in [
            ("ES256", &signature::ECDSA_P256_SHA256_FIXED_SIGNING),
            ("ES384", &signature::ECDSA_P384_SHA384_FIXED_SIGNING),
        ] {
            let der = EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("a key");
            let path = keys.write(name, &pem("PRIVATE KEY", der.as_ref()));
            check_round_trip(&format!("sign-method={name},priv-key={path}"));
        }
        let der = Ed25519KeyPair::generate_pkcs8(&random).expect("a key");
        let path = keys.write("ed", &pem("PRIVATE KEY", der.as_ref()));
        check_round_trip(&format!("sign-method=EdDSA,priv-key={path}"));
    }

    #[test]
    fn another_algorithm_than_the_configured_is_not_taken() {
        let keys = keys();
        let path = keys.write("hmac", b"a shared secret");
        let parse = |method| Jwt::parse(&format!("sign-method={method},priv-key={path}")).expect("options");
        let token = parse("HS256").sign("ann", 7, 1000).expect("signed");
        assert_eq!(parse("HS384").verify(&token, 1000), None);
        // The header says otherwise, the signature is right.
        let mut other = parse("HS256");
        other.algorithm = "HS384".into();
        let token = other.sign("ann", 7, 1000).expect("signed");
        assert_eq!(parse("HS256").verify(&token, 1000), None);
    }

    #[test]
    fn options_that_cannot_work_are_refused_with_a_reason() {
        let keys = keys();
        let path = keys.write("junk", b"junk");
        for options in [
            "",
            "sign-method=none",
            "sign-method=HS256",
            "sign-method=RS256",
            "sign-method=RS256,colour=red",
            "sign-method=RS256,priv-key=/does/not/exist",
            &format!("sign-method=RS256,priv-key={path}"),
            &format!("sign-method=ES256,pub-key={path}"),
            &format!("sign-method=HS256,priv-key={path},ttl=5"),
            &format!("sign-method=HS256,priv-key={path},ttl=0s"),
        ] {
            assert!(Jwt::parse(options).is_err(), "{options}");
        }
    }
}
