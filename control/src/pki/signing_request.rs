//! Requests for certificates (PKCS #10) and the certificates that answer them.
//!
//! Owns reading a request and writing a certificate with the subject, the key and the alternative names exactly
//! as they were asked for (a subject may hold several organisations). Promises that the requester holds the
//! private key (the request's signature is verified) and that nothing else of a request gets into the
//! certificate: usages, validity and that it is no authority are decided by the caller. Does not judge whether
//! somebody may have it.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use jiff::fmt::strtime;
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::x509::X509Name;

use super::authority::{BACKDATE, MemberIdentity};
use super::identity::{GROUP_MASTERS, GROUP_MEMBERS};
use super::token::unix_seconds;
use super::{Authority, Error};

/// No honest request is larger; a larger one is refused unread.
const REQUEST_BYTES_MAX: usize = 64 * 1024;
const SERIAL_BYTES: usize = 16;
/// Years from here on need the longer form of a time (RFC 5280, section 4.1.2.5).
const LONG_TIMES_FROM: i16 = 2050;

const SEQUENCE: u8 = 0x30;
const SET_OF_EXTENSIONS: u8 = 0xa3;
const VERSION: u8 = 0xa0;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OBJECT_ID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const TRUE: [u8; 3] = [0x01, 0x01, 0xff];
/// id-Ed25519 (RFC 8410).
const ED25519: [u8; 7] = [SEQUENCE, 5, OBJECT_ID, 3, 0x2b, 0x65, 0x70];
const SUBJECT_KEY_ID: [u8; 3] = [0x55, 0x1d, 0x0e];
const KEY_USAGE: [u8; 3] = [0x55, 0x1d, 0x0f];
const ALTERNATIVE_NAMES: [u8; 3] = [0x55, 0x1d, 0x11];
const BASIC_CONSTRAINTS: [u8; 3] = [0x55, 0x1d, 0x13];
const AUTHORITY_KEY_ID: [u8; 3] = [0x55, 0x1d, 0x23];
const EXTENDED_KEY_USAGE: [u8; 3] = [0x55, 0x1d, 0x25];
const SERVER_AUTH: [u8; 8] = [0x2b, 6, 1, 5, 5, 7, 3, 1];
const CLIENT_AUTH: [u8; 8] = [0x2b, 6, 1, 5, 5, 7, 3, 2];

/// What a key may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// Signing what is exchanged.
    DigitalSignature,
    /// Encrypting keys that are exchanged.
    KeyEncipherment,
    /// Showing who a client is.
    ClientAuth,
    /// Showing who a server is.
    ServerAuth,
}

/// How many alternative names of each sort a request has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AlternativeNames {
    /// Host names.
    pub dns: usize,
    /// IP addresses.
    pub addresses: usize,
    /// Mail addresses.
    pub emails: usize,
    /// URIs.
    pub uris: usize,
    /// Whatever else there is.
    pub others: usize,
}

/// A request whose signature was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SigningRequest {
    subject: Vec<u8>,
    public_key: Vec<u8>,
    alternative_names: Option<Vec<u8>>,
    /// The subject's common name: a user. Empty if it has none.
    pub common_name: String,
    /// The subject's organisations: groups.
    pub organizations: Vec<String>,
    /// The alternative names.
    pub names: AlternativeNames,
    /// The host names among them.
    pub hosts: Vec<String>,
}

impl SigningRequest {
    /// Reads a request in PEM form.
    pub fn parse(pem: &[u8]) -> Result<Self, Error> {
        let refuse = |reason: &str| Error::Unreadable { what: "the request", reason: reason.to_owned() };
        if pem.len() > REQUEST_BYTES_MAX {
            return Err(refuse("it is larger than any request"));
        }
        let der = CertificateSigningRequestDer::from_pem_slice(pem)
            .map_err(|_| refuse("PEM block type must be CERTIFICATE REQUEST"))?;
        let (_, request) = X509CertificationRequest::from_der(&der)
            .map_err(|error| refuse(&format!("it is no PKCS #10 request: {error}")))?;
        request
            .verify_signature()
            .map_err(|error| refuse(&format!("its signature is not valid: {error}")))?;
        let info = &request.certification_request_info;
        let mut names = AlternativeNames::default();
        let mut hosts = Vec::new();
        let mut alternative_names = None;
        let extensions = info.iter_attributes().filter_map(|attribute| match attribute.parsed_attribute() {
            ParsedCriAttribute::ExtensionRequest(asked) => Some(&asked.extensions),
            _ => None,
        });
        for extension in
            extensions.flatten().filter(|extension| extension.oid.as_bytes() == ALTERNATIVE_NAMES)
        {
            let ParsedExtension::SubjectAlternativeName(listed) = extension.parsed_extension() else {
                return Err(refuse("its alternative names cannot be read"));
            };
            if alternative_names.replace(extension.value.to_vec()).is_some() {
                return Err(refuse("it has two lists of alternative names"));
            }
            for name in &listed.general_names {
                names.count(name);
                if let GeneralName::DNSName(host) = name {
                    hosts.push((*host).to_owned());
                }
            }
        }
        Ok(Self {
            subject: info.subject.as_raw().to_vec(),
            public_key: info.subject_pki.raw.to_vec(),
            alternative_names,
            common_name: common_name(&info.subject).unwrap_or_default(),
            organizations: organizations(&info.subject).ok_or_else(|| refuse("its subject is no text"))?,
            names,
            hosts,
        })
    }
}

impl SigningRequest {
    /// Whether the request wants to be a part of the control plane: in a group that may do everything, or under
    /// a name by which clients know the API.
    pub fn wants_control(&self) -> bool {
        let groups = [GROUP_MASTERS, GROUP_MEMBERS];
        let names = MemberIdentity::certificate_names();
        self.organizations.iter().any(|group| groups.contains(&group.as_str()))
            || self.hosts.iter().any(|host| names.iter().any(|name| host.eq_ignore_ascii_case(name)))
    }
}

impl AlternativeNames {
    fn count(&mut self, name: &GeneralName<'_>) {
        let counter = match name {
            GeneralName::DNSName(_) => &mut self.dns,
            GeneralName::IPAddress(_) => &mut self.addresses,
            GeneralName::RFC822Name(_) => &mut self.emails,
            GeneralName::URI(_) => &mut self.uris,
            _ => &mut self.others,
        };
        *counter += 1;
    }
}

fn common_name(subject: &X509Name<'_>) -> Option<String> {
    subject.iter_common_name().next()?.as_str().map(str::to_owned).ok()
}

fn organizations(subject: &X509Name<'_>) -> Option<Vec<String>> {
    subject.iter_organization().map(|part| part.as_str().map(str::to_owned).ok()).collect()
}

/// When a certificate in PEM form ends, in seconds since 1970; `None` if it cannot be read.
pub fn expires_at_s(pem: &[u8]) -> Option<i64> {
    let der = CertificateDer::from_pem_slice(pem).ok()?;
    let (_, certificate) = X509Certificate::from_der(&der).ok()?;
    Some(certificate.validity().not_after.timestamp())
}

impl Authority {
    /// Answers a request with a certificate in PEM form that lasts for `life`, but not longer than the authority
    /// itself.
    pub fn sign_request(
        &self,
        request: &SigningRequest,
        usages: &[Usage],
        life: Duration,
        now: SystemTime,
    ) -> Result<String, Error> {
        let (_, own) = X509Certificate::from_der(self.certificate())
            .map_err(|error| Error::Unreadable { what: "the authority", reason: error.to_string() })?;
        let until = (now + life).min(self.not_after());
        let key_id = own.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0),
            _ => None,
        });
        let body = tlv(
            SEQUENCE,
            &[
                &tlv(VERSION, &[&tlv(INTEGER, &[&[2]])]),
                &tlv(INTEGER, &[&serial()?]),
                &ED25519,
                own.subject().as_raw(),
                &tlv(SEQUENCE, &[&time(now - BACKDATE)?, &time(until)?]),
                &request.subject,
                &request.public_key,
                &tlv(SET_OF_EXTENSIONS, &[&extensions(request, usages, key_id)]),
            ],
        );
        let mut signature = vec![0];
        signature.extend(self.sign(&body)?);
        Ok(pem("CERTIFICATE", &tlv(SEQUENCE, &[&body, &ED25519, &tlv(BIT_STRING, &[&signature])])))
    }
}

fn extensions(request: &SigningRequest, usages: &[Usage], authority_key: Option<&[u8]>) -> Vec<u8> {
    let mut out = Vec::new();
    if let Some(id) = authority_key {
        // [0], the key identifier.
        out.extend(extension(&AUTHORITY_KEY_ID, false, &tlv(SEQUENCE, &[&tlv(0x80, &[id])])));
    }
    let own = ring::digest::digest(&ring::digest::SHA256, &request.public_key);
    out.extend(extension(&SUBJECT_KEY_ID, false, &tlv(OCTET_STRING, &[&own.as_ref()[..20]])));
    let bits = usages.iter().fold(0_u8, |bits, usage| match usage {
        Usage::DigitalSignature => bits | 0x80,
        Usage::KeyEncipherment => bits | 0x20,
        Usage::ClientAuth | Usage::ServerAuth => bits,
    });
    if bits != 0 {
        let unused = bits.trailing_zeros() as u8;
        out.extend(extension(&KEY_USAGE, true, &tlv(BIT_STRING, &[&[unused, bits]])));
    }
    let purposes: Vec<u8> = usages
        .iter()
        .filter_map(|usage| match usage {
            Usage::ClientAuth => Some(tlv(OBJECT_ID, &[&CLIENT_AUTH])),
            Usage::ServerAuth => Some(tlv(OBJECT_ID, &[&SERVER_AUTH])),
            Usage::DigitalSignature | Usage::KeyEncipherment => None,
        })
        .flatten()
        .collect();
    if !purposes.is_empty() {
        out.extend(extension(&EXTENDED_KEY_USAGE, false, &tlv(SEQUENCE, &[&purposes])));
    }
    out.extend(extension(&BASIC_CONSTRAINTS, true, &tlv(SEQUENCE, &[])));
    if let Some(names) = &request.alternative_names {
        out.extend(extension(&ALTERNATIVE_NAMES, false, names));
    }
    tlv(SEQUENCE, &[&out])
}

fn extension(id: &[u8], critical: bool, content: &[u8]) -> Vec<u8> {
    let critical: &[u8] = if critical { &TRUE } else { &[] };
    tlv(SEQUENCE, &[&tlv(OBJECT_ID, &[id]), critical, &tlv(OCTET_STRING, &[content])])
}

/// A value in DER: tag, length, content.
fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = vec![tag];
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => out.push(short),
        _ => {
            let bytes = length.to_be_bytes();
            let digits = &bytes[bytes.iter().take_while(|byte| **byte == 0).count()..];
            out.push(0x80 | digits.len() as u8);
            out.extend_from_slice(digits);
        }
    }
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out
}

/// A random positive number without leading zero bytes.
fn serial() -> Result<[u8; SERIAL_BYTES], Error> {
    let mut serial = [0; SERIAL_BYTES];
    SystemRandom::new().fill(&mut serial).map_err(|_| Error::NoRandomness)?;
    serial[0] = serial[0] & 0x3f | 0x40;
    Ok(serial)
}

fn time(at: SystemTime) -> Result<Vec<u8>, Error> {
    let seconds = i64::try_from(unix_seconds(at)?).map_err(|_| Error::ClockBeforeEpoch)?;
    let at = Timestamp::from_second(seconds).map_err(|_| Error::ClockBeforeEpoch)?;
    let year = at.to_zoned(jiff::tz::TimeZone::UTC).year();
    let (tag, form) = match year < LONG_TIMES_FROM {
        true => (UTC_TIME, "%y%m%d%H%M%SZ"),
        false => (GENERALIZED_TIME, "%Y%m%d%H%M%SZ"),
    };
    let text = strtime::format(form, at).map_err(|_| Error::ClockBeforeEpoch)?;
    Ok(tlv(tag, &[text.as_bytes()]))
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        out.push_str(&String::from_utf8_lossy(line));
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;
    use crate::pki::{ControlToken, Identity};

    fn authority() -> Authority {
        Authority::from_token(&ControlToken::generate(SystemTime::now()).unwrap()).unwrap()
    }

    fn request(user: &str, group: &str, names: &[&str]) -> String {
        let mut params =
            CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, group);
        params.distinguished_name.push(DnType::CommonName, user);
        params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
    }

    #[test]
    fn a_request_becomes_a_certificate_that_says_what_was_asked() {
        let authority = authority();
        let asked =
            SigningRequest::parse(request("jane", "dev", &["a.example", "10.0.0.1"]).as_bytes()).unwrap();
        assert_eq!(
            (asked.common_name.as_str(), asked.organizations.as_slice()),
            ("jane", &["dev".to_owned()][..])
        );
        assert_eq!(asked.names, AlternativeNames { dns: 1, addresses: 1, ..AlternativeNames::default() });
        assert!(!asked.wants_control());
        for (group, name) in
            [("system:masters", "a.example"), ("barque:members", "a.example"), ("dev", "Barque-Control")]
        {
            assert!(
                SigningRequest::parse(request("jane", group, &[name]).as_bytes()).unwrap().wants_control()
            );
        }
        let now = SystemTime::now();
        let usages = [Usage::DigitalSignature, Usage::KeyEncipherment, Usage::ClientAuth];
        let pem = authority.sign_request(&asked, &usages, Duration::from_secs(900), now).unwrap();
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        super::super::tls::verify_client(authority.certificate(), &der, now).unwrap();
        let later = now + Duration::from_secs(901);
        super::super::tls::verify_client(authority.certificate(), &der, later).unwrap_err();
        let identity = Identity::from_verified(&der).unwrap();
        assert_eq!((identity.user.as_str(), identity.groups.as_slice()), ("jane", &["dev".to_owned()][..]));
        let (_, certificate) = X509Certificate::from_der(&der).unwrap();
        assert!(!certificate.is_ca());
        let usage = certificate.key_usage().unwrap().unwrap().value;
        assert!(usage.digital_signature() && usage.key_encipherment() && !usage.key_cert_sign());
        assert_eq!(certificate.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 2);
        let end = i64::try_from(unix_seconds(now).unwrap()).unwrap() + 900;
        assert_eq!(expires_at_s(pem.as_bytes()), Some(end));
        // Nobody gets a certificate that outlives its authority.
        let long = authority.sign_request(&asked, &usages, Duration::from_secs(1 << 33), now).unwrap();
        let ends = expires_at_s(long.as_bytes()).unwrap();
        assert_eq!(ends, i64::try_from(unix_seconds(authority.not_after()).unwrap()).unwrap());
    }

    #[test]
    fn what_is_no_request_or_was_tampered_with_is_refused() {
        for text in ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            let error = SigningRequest::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("PEM block type must be CERTIFICATE REQUEST"), "{error}");
        }
        let pem_text = request("jane", "dev", &[]);
        let mut der = CertificateSigningRequestDer::from_pem_slice(pem_text.as_bytes()).unwrap().to_vec();
        let at = der.windows(4).position(|word| word == b"jane").unwrap();
        der[at] = b'k';
        let error =
            SigningRequest::parse(pem("CERTIFICATE REQUEST", &der).as_bytes()).unwrap_err().to_string();
        assert!(error.contains("signature is not valid"), "{error}");
        for end in 0..der.len() {
            SigningRequest::parse(pem("CERTIFICATE REQUEST", &der[..end]).as_bytes()).unwrap_err();
        }
    }

    #[test]
    fn lengths_and_times_are_as_der_wants_them() {
        assert_eq!(tlv(4, &[&[1, 2]]), [4, 2, 1, 2]);
        assert_eq!(tlv(4, &[&[0; 128]])[..3], [4, 0x81, 128]);
        assert_eq!(tlv(4, &[&[0; 256]])[..4], [4, 0x82, 1, 0]);
        let at = |seconds| time(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
        assert_eq!(at(1_700_000_000)[2..], *b"231114221320Z");
        assert_eq!(at(2_600_000_000), [&[GENERALIZED_TIME, 15][..], b"20520522141320Z"].concat());
    }
}
