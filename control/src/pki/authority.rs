//! The cluster's certificate authority.
//!
//! Owns the authority's key, derived from the control token and held in memory only. Promises that the same
//! token gives the same authority, byte for byte, on every master and at every start: the key comes from the
//! token's seed, the serial number from the key, the validity from the token's day, and Ed25519 signatures
//! are deterministic. Issues certificates and node tokens; keeps no record of them. Keys for service accounts'
//! tokens come from the same seed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519, PublicKeyData, SanType,
    SerialNumber, SigningKey as _,
};
use ring::{digest, hkdf, hmac};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use super::Error;
use super::identity::{
    GROUP_MASTERS, GROUP_MEMBERS, GROUP_NODES, SERVER_NAME, USER_MEMBER_PREFIX, USER_NODE_PREFIX,
};
use super::service_account_key::ServiceAccountKey;
use super::token::{ControlToken, NodeToken, unix_seconds};

const CA_INFO: &[u8] = b"barque/ca/v1";
const NODE_TOKEN_INFO: &[u8] = b"barque/node-token/v1";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
const LEAF_LIFE: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// Certificates begin this much before now, so that masters' clocks need not agree exactly.
pub(super) const BACKDATE: Duration = Duration::from_secs(5 * 60);
/// RFC 5280 allows 20; the first bit must be 0.
const SERIAL_BYTES: usize = 16;
/// Longest node or member name (a DNS label or subdomain in practice).
const NAME_BYTES_MAX: usize = 253;
/// The fixed part of an Ed25519 private key in PKCS #8 (RFC 8410, section 7), before the 32 secret bytes.
const ED25519_PKCS8_HEAD: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
/// Names by which clients inside and outside a cluster call its API, beside its addresses.
const SERVER_NAMES: [&str; 6] = [
    SERVER_NAME,
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];

/// The certificate authority that every master derives from the control token.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    sha256: [u8; 32],
    node_token_key: hmac::Key,
    seed: [u8; 32],
    not_after: SystemTime,
}

/// A certificate with its private key and the authority's certificate, all in PEM form.
#[derive(Clone)]
pub struct Credentials {
    /// The certificate.
    pub certificate_pem: String,
    /// Its private key (PKCS #8). Secret.
    pub key_pem: String,
    /// The authority's certificate.
    pub ca_pem: String,
}

/// Who a master is and where it can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberIdentity {
    /// The member's name.
    pub name: String,
    /// Every address that clients and peers may use; loopback is added.
    pub addresses: Vec<IpAddr>,
}

impl MemberIdentity {
    /// The addresses that the certificate must carry, sorted, each once.
    pub(super) fn certificate_addresses(&self) -> Vec<IpAddr> {
        let mut addresses = self.addresses.clone();
        addresses.extend([IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]);
        addresses.retain(|address| !address.is_unspecified());
        addresses.sort();
        addresses.dedup();
        addresses
    }

    /// The names that the certificate must carry.
    pub(super) fn certificate_names() -> &'static [&'static str] {
        &SERVER_NAMES
    }

    /// The user name in the certificate.
    pub(super) fn user(&self) -> String {
        format!("{USER_MEMBER_PREFIX}{}", self.name)
    }
}

impl Authority {
    /// Derives the authority. Costs one signature; does no input or output.
    pub fn from_token(token: &ControlToken) -> Result<Self, Error> {
        let secret = derive(token.seed(), CA_INFO);
        let mut pkcs8 = ED25519_PKCS8_HEAD.to_vec();
        pkcs8.extend_from_slice(&secret);
        let key = KeyPair::from_pkcs8_der_and_sign_algo(
            &PrivatePkcs8KeyDer::from(pkcs8.as_slice()),
            &PKCS_ED25519,
        )?;
        let public_sha256 = sha256(key.der_bytes());

        let created = token.created();
        let not_after = created + CA_LIFE;
        let mut params = CertificateParams::default();
        params.distinguished_name = name(&format!("barque-ca-{}", hex8(&public_sha256)), None);
        params.serial_number = Some(serial(&public_sha256));
        // A day early: the token's day is a UTC day, and clocks may be behind it.
        set_validity(&mut params, created - DAY, not_after)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];

        let certificate = params.self_signed(&key)?;
        Ok(Self {
            certificate_pem: certificate.pem(),
            sha256: sha256(certificate.der()),
            certificate: certificate.der().clone(),
            issuer: Issuer::new(params, key),
            node_token_key: hmac::Key::new(hmac::HMAC_SHA256, &derive(token.seed(), NODE_TOKEN_INFO)),
            seed: *token.seed(),
            not_after,
        })
    }

    /// The authority's certificate, DER.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The authority's certificate, PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// SHA-256 of the certificate's DER form.
    pub fn sha256(&self) -> &[u8; 32] {
        &self.sha256
    }

    /// A name for the cluster that all its masters agree on: 16 hexadecimal digits of the certificate's hash.
    pub fn cluster_id(&self) -> String {
        hex8(&self.sha256)
    }

    /// A new key and certificate for a master: server and client.
    pub fn issue_member(&self, member: &MemberIdentity, now: SystemTime) -> Result<Credentials, Error> {
        check_name("master", &member.name)?;
        let mut params = self.leaf(&member.user(), GROUP_MEMBERS, now)?;
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        for dns in MemberIdentity::certificate_names() {
            params.subject_alt_names.push(SanType::DnsName((*dns).try_into()?));
        }
        params.subject_alt_names.extend(member.certificate_addresses().into_iter().map(SanType::IpAddress));
        self.issue(&params)
    }

    /// A new key and client certificate for an operator named `user`, who may do everything.
    pub fn issue_admin(&self, user: &str, now: SystemTime) -> Result<Credentials, Error> {
        check_name("user", user)?;
        self.issue(&self.leaf(user, GROUP_MASTERS, now)?)
    }

    /// Signs a node's request. Only the public key is taken from it: what the certificate says is decided
    /// here. Returns the certificate in PEM form. Check the node's token first.
    pub fn sign_node_csr(&self, node_name: &str, csr_pem: &str, now: SystemTime) -> Result<String, Error> {
        check_name("node", node_name)?;
        let request = CertificateSigningRequestParams::from_pem(csr_pem)
            .map_err(|source| Error::RequestInvalid { source })?;
        let params = self.leaf(&format!("{USER_NODE_PREFIX}{node_name}"), GROUP_NODES, now)?;
        Ok(params.signed_by(&request.public_key, &self.issuer)?.pem())
    }

    /// A token that lets machines join as nodes until `ttl` has passed.
    pub fn issue_node_token(&self, ttl: Duration, now: SystemTime) -> Result<NodeToken, Error> {
        let id = NodeToken::random_id()?;
        let expires_unix = unix_seconds(now)?.saturating_add(ttl.as_secs());
        let tag = hmac::sign(&self.node_token_key, NodeToken::signed_text(&id, expires_unix).as_bytes());
        let mac = tag.as_ref().try_into().expect("HMAC-SHA256 is 32 bytes long");
        Ok(NodeToken::new(self.sha256, id, expires_unix, mac))
    }

    /// Whether `token` was issued by this authority and has not expired. Needs no memory of issued tokens.
    pub fn verify_node_token(&self, token: &NodeToken, now: SystemTime) -> Result<(), Error> {
        let signed = NodeToken::signed_text(token.id(), token.expires_unix());
        hmac::verify(&self.node_token_key, signed.as_bytes(), token.mac())
            .map_err(|_| Error::NodeTokenForeign)?;
        if token.ca_sha256() != &self.sha256 {
            return Err(Error::NodeTokenForeign);
        }
        if unix_seconds(now)? >= token.expires_unix() {
            return Err(Error::NodeTokenExpired { expired_at: token.expires_unix() });
        }
        Ok(())
    }

    /// The key of a number that signs the tokens of service accounts.
    pub fn service_account_key(&self, number: u32) -> ServiceAccountKey {
        ServiceAccountKey::derive(&self.seed, number)
    }

    /// When the authority itself ends.
    pub(super) fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// The authority's own signature.
    pub(super) fn sign(&self, text: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(self.issuer.key().sign(text)?)
    }

    fn leaf(&self, user: &str, group: &str, now: SystemTime) -> Result<CertificateParams, Error> {
        let mut random = [0; SERIAL_BYTES];
        ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut random)
            .map_err(|_| Error::NoRandomness)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name(user, Some(group));
        params.serial_number = Some(serial(&random));
        set_validity(&mut params, now - BACKDATE, (now + LEAF_LIFE).min(self.not_after))?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }

    fn issue(&self, params: &CertificateParams) -> Result<Credentials, Error> {
        let key = KeyPair::generate()?;
        Ok(Credentials {
            certificate_pem: params.signed_by(&key, &self.issuer)?.pem(),
            key_pem: key.serialize_pem(),
            ca_pem: self.certificate_pem.clone(),
        })
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("cluster_id", &self.cluster_id()).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("certificate_pem", &self.certificate_pem).finish_non_exhaustive()
    }
}

pub(super) fn derive(seed: &[u8; 32], info: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    hkdf::Salt::new(hkdf::HKDF_SHA256, &[])
        .extract(seed)
        .expand(&[info], hkdf::HKDF_SHA256)
        .and_then(|material| material.fill(&mut out))
        .expect("32 bytes is within what HKDF-SHA256 can give");
    out
}

pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest::digest(&digest::SHA256, bytes).as_ref().try_into().expect("SHA-256 is 32 bytes long")
}

pub(super) fn hex8(bytes: &[u8; 32]) -> String {
    bytes[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn serial(bytes: &[u8]) -> SerialNumber {
    let mut serial = bytes[..SERIAL_BYTES].to_vec();
    // A positive integer without leading zero bytes.
    serial[0] = serial[0] & 0x3f | 0x40;
    SerialNumber::from(serial)
}

fn name(user: &str, group: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if let Some(group) = group {
        name.push(DnType::OrganizationName, group);
    }
    name.push(DnType::CommonName, user);
    name
}

fn set_validity(params: &mut CertificateParams, from: SystemTime, until: SystemTime) -> Result<(), Error> {
    // rcgen's date type belongs to a crate of its own, so it is reached through rcgen's constructor.
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(unix_seconds(from)?);
    params.not_after = epoch + Duration::from_secs(unix_seconds(until)?);
    Ok(())
}

fn check_name(what: &'static str, name: &str) -> Result<(), Error> {
    let invalid = |reason| Err(Error::NameInvalid { what, name: name.to_owned(), reason });
    if name.is_empty() {
        return invalid("it is empty");
    }
    if name.len() > NAME_BYTES_MAX {
        return invalid("it is longer than 253 bytes");
    }
    if !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte)) {
        return invalid("only a-z, 0-9, '-' and '.' are allowed");
    }
    Ok(())
}
