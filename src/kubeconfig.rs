//! Kubeconfig files: writing an administrator's, and reading back what `barque status` needs.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use control::pki::Credentials;
use serde::Deserialize;

/// The text of a kubeconfig with one cluster, one user and one context, certificates embedded.
pub(crate) fn render(cluster: &str, server: &str, user: &str, credentials: &Credentials) -> String {
    let encode = |pem: &str| STANDARD.encode(pem);
    format!(
        "apiVersion: v1\n\
         kind: Config\n\
         clusters:\n\
         - name: {cluster}\n\
         \x20 cluster:\n\
         \x20   server: {server}\n\
         \x20   certificate-authority-data: {ca}\n\
         users:\n\
         - name: {cluster}-{user}\n\
         \x20 user:\n\
         \x20   client-certificate-data: {certificate}\n\
         \x20   client-key-data: {key}\n\
         contexts:\n\
         - name: {cluster}\n\
         \x20 context:\n\
         \x20   cluster: {cluster}\n\
         \x20   user: {cluster}-{user}\n\
         current-context: {cluster}\n",
        ca = encode(&credentials.ca_pem),
        certificate = encode(&credentials.certificate_pem),
        key = encode(&credentials.key_pem),
    )
}

/// What a kubeconfig written by [`render`] says.
pub(crate) struct Access {
    /// Where the API is served.
    pub(crate) server: SocketAddr,
    /// Who the user is and whom to trust.
    pub(crate) credentials: Credentials,
}

/// Reads a kubeconfig with embedded certificates: its first cluster and first user.
pub(crate) fn read(path: &Path) -> anyhow::Result<Access> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text).with_context(|| format!("cannot use the kubeconfig {}", path.display()))
}

fn parse(text: &str) -> anyhow::Result<Access> {
    let file: File = serde_saphyr::from_str(text)?;
    let cluster = file.clusters.into_iter().next().context("it names no cluster")?.cluster;
    let user = file.users.into_iter().next().context("it names no user")?.user;
    let server = cluster
        .server
        .strip_prefix("https://")
        .and_then(|rest| rest.trim_end_matches('/').parse().ok())
        .with_context(|| format!("its server {} is not https://ADDRESS:PORT", cluster.server))?;
    let decode = |data: &str| -> anyhow::Result<String> {
        Ok(String::from_utf8(STANDARD.decode(data).context("a certificate in it is not base64")?)?)
    };
    Ok(Access {
        server,
        credentials: Credentials {
            certificate_pem: decode(&user.client_certificate_data)?,
            key_pem: decode(&user.client_key_data)?,
            ca_pem: decode(&cluster.certificate_authority_data)?,
        },
    })
}

#[derive(Deserialize)]
struct File {
    clusters: Vec<NamedCluster>,
    users: Vec<NamedUser>,
}

#[derive(Deserialize)]
struct NamedCluster {
    cluster: Cluster,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority_data: String,
}

#[derive(Deserialize)]
struct NamedUser {
    user: User,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate_data: String,
    client_key_data: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let credentials = Credentials {
            certificate_pem: "certificate".to_owned(),
            key_pem: "key".to_owned(),
            ca_pem: "ca".to_owned(),
        };
        let access = parse(&render("lab", "https://127.0.0.1:6443", "admin", &credentials)).unwrap();
        assert_eq!(access.server, "127.0.0.1:6443".parse().unwrap());
        assert_eq!(access.credentials.certificate_pem, "certificate");
        assert_eq!(access.credentials.key_pem, "key");
        assert_eq!(access.credentials.ca_pem, "ca");
        assert!(parse(&render("lab", "https://example.com", "admin", &credentials)).is_err());
    }
}
