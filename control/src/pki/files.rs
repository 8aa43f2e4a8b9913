//! Keys, certificates and tokens as files.
//!
//! Promises that private files are created with mode 0600 (never readable by others, not even briefly), that
//! a file is replaced whole or not at all, and that a member's certificate is fresh after
//! [`load_or_issue_member`]: it is issued again when it is missing, damaged, issued by another authority,
//! lacks one of the member's addresses, or has less than a third of its life left.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::authority::{Authority, Credentials, MemberIdentity};
use super::token::unix_seconds;
use super::{Error, Identity, tls};

const CERTIFICATE_FILE: &str = "member.crt";
const KEY_FILE: &str = "member.key";
const PRIVATE_MODE: u32 = 0o600;
const PUBLIC_MODE: u32 = 0o644;
/// A certificate is issued again when less than this fraction of its life is left: 1 / 3.
const RENEW_FRACTION: u64 = 3;
/// No token or PEM file of ours is longer.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// The member's certificate from `directory`, or a new one, stored there, when it is not usable (any more).
pub fn load_or_issue_member(
    directory: &Path,
    authority: &Authority,
    member: &MemberIdentity,
    now: SystemTime,
) -> Result<Credentials, Error> {
    let certificate = directory.join(CERTIFICATE_FILE);
    let key = directory.join(KEY_FILE);
    if let Ok(stored) = read_credentials(&certificate, &key, authority.certificate_pem()) {
        match check_member(&stored, authority, member, now) {
            Ok(()) => return Ok(stored),
            Err(reason) => {
                tracing::info!(member = member.name, %reason, "issuing the member's certificate again")
            }
        }
    }
    let issued = authority.issue_member(member, now)?;
    fs::create_dir_all(directory).map_err(file_error("create directory", directory))?;
    // Key first: a crash in between leaves a pair that does not match, which the next start replaces.
    write_private(&key, issued.key_pem.as_bytes())?;
    write_public(&certificate, issued.certificate_pem.as_bytes())?;
    Ok(issued)
}

/// Reads a certificate and its key; `ca_pem` becomes the third part. Fails when they do not belong together.
pub fn read_credentials(certificate: &Path, key: &Path, ca_pem: &str) -> Result<Credentials, Error> {
    let credentials = Credentials {
        certificate_pem: read_text(certificate)?,
        key_pem: read_text(key)?,
        ca_pem: ca_pem.to_owned(),
    };
    tls::certified_key(&credentials)?;
    Ok(credentials)
}

/// Reads a token from a file.
pub fn read_token<T: FromStr<Err = Error>>(path: &Path) -> Result<T, Error> {
    read_text(path)?.parse()
}

/// Writes a file that only its owner can read, whole or not at all, and durably.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), Error> {
    write(path, content, PRIVATE_MODE)
}

/// Writes a file that everybody can read, whole or not at all, and durably.
pub fn write_public(path: &Path, content: &[u8]) -> Result<(), Error> {
    write(path, content, PUBLIC_MODE)
}

fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    // A left-over of a crash may have another mode; the mode below counts only for a file created here.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(file_error("remove", &temporary)(error));
        }
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)
        .map_err(file_error("create", &temporary))?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(file_error("write", &temporary))?;
    fs::rename(&temporary, path).map_err(file_error("replace", path))?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory).and_then(|handle| handle.sync_all()).map_err(file_error("sync", directory))
}

fn read_text(path: &Path) -> Result<String, Error> {
    let size = fs::metadata(path).map_err(file_error("read", path))?.len();
    if size > FILE_BYTES_MAX {
        let reason = format!("{} holds {size} bytes, far more than expected", path.display());
        return Err(Error::Unreadable { what: "a certificate, key or token", reason });
    }
    fs::read_to_string(path).map_err(file_error("read", path))
}

fn file_error(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::File { operation, path: path.to_owned(), source }
}

/// Why a stored certificate is issued again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Renew {
    #[error("the stored certificate cannot be read")]
    Damaged,
    #[error("the stored certificate was issued by another authority or has expired")]
    Foreign,
    #[error("the stored certificate names another member")]
    OtherMember,
    #[error("the member's addresses changed")]
    Addresses,
    #[error("less than a third of the certificate's life is left")]
    Ageing,
}

fn check_member(
    stored: &Credentials,
    authority: &Authority,
    member: &MemberIdentity,
    now: SystemTime,
) -> Result<(), Renew> {
    let der =
        CertificateDer::from_pem_slice(stored.certificate_pem.as_bytes()).map_err(|_| Renew::Damaged)?;
    tls::verify_client(authority.certificate(), &der, now).map_err(|_| Renew::Foreign)?;
    let identity = Identity::from_verified(&der).map_err(|_| Renew::Damaged)?;
    if identity.user != member.user() {
        return Err(Renew::OtherMember);
    }
    let (_, parsed) = X509Certificate::from_der(&der).map_err(|_| Renew::Damaged)?;
    if !carries_names(&parsed, member) {
        return Err(Renew::Addresses);
    }
    let begins = parsed.validity().not_before.timestamp();
    let ends = parsed.validity().not_after.timestamp();
    let now = unix_seconds(now).map_err(|_| Renew::Ageing)?;
    let left = u64::try_from(ends).unwrap_or(0).saturating_sub(now);
    let life = u64::try_from(ends.saturating_sub(begins)).unwrap_or(0);
    if left < life / RENEW_FRACTION { Err(Renew::Ageing) } else { Ok(()) }
}

fn carries_names(certificate: &X509Certificate<'_>, member: &MemberIdentity) -> bool {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return false };
    let carried = &extension.value.general_names;
    let has_address = |address: &std::net::IpAddr| {
        let octets = match address {
            std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
            std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        carried.iter().any(|name| matches!(name, GeneralName::IPAddress(own) if *own == octets.as_slice()))
    };
    let has_name =
        |dns: &&str| carried.iter().any(|name| matches!(name, GeneralName::DNSName(own) if own == dns));
    member.certificate_addresses().iter().all(has_address)
        && MemberIdentity::certificate_names().iter().all(has_name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Duration;

    use super::super::ControlToken;
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn authority() -> Authority {
        Authority::from_token(&ControlToken::generate(SystemTime::now()).unwrap()).unwrap()
    }

    fn member(last: u8) -> MemberIdentity {
        MemberIdentity { name: "master-1".to_owned(), addresses: vec![[10, 9, 0, last].into()] }
    }

    #[test]
    fn private_files_are_private_even_over_an_old_public_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        fs::write(directory.path().join("token.new"), "left over").unwrap();
        fs::write(&path, "old").unwrap();
        write_private(&path, b"secret").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read(&path).unwrap(), b"secret");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_member_keeps_its_certificate_until_there_is_a_reason_to_change_it() {
        let directory = tempfile::tempdir().unwrap();
        let ours = authority();
        let now = SystemTime::now();
        let load = |authority: &Authority, member: &MemberIdentity, now| {
            load_or_issue_member(directory.path(), authority, member, now).unwrap().certificate_pem
        };
        let first = load(&ours, &member(1), now);
        assert_eq!(load(&ours, &member(1), now), first, "kept while fresh");
        assert_eq!(load(&ours, &member(1), now + 200 * DAY), first, "kept in the first two thirds");

        let moved = load(&ours, &member(2), now);
        assert_ne!(moved, first, "an address changed");
        let renewed = load(&ours, &member(2), now + 250 * DAY);
        assert_ne!(renewed, moved, "less than a third was left");
        let other = load(&authority(), &member(2), now);
        assert_ne!(other, renewed, "another authority");

        let key = directory.path().join(KEY_FILE);
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&key, "damaged").unwrap();
        assert_ne!(load(&ours, &member(2), now), other, "a damaged key");
    }

    #[test]
    fn errors_name_the_file() {
        let error = read_token::<ControlToken>(Path::new("/nowhere/control.token")).unwrap_err().to_string();
        assert!(error.contains("cannot read /nowhere/control.token"), "{error}");
    }
}
