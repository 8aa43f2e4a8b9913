//! Calls of the operator's commands to a store, over etcd's own protocol and with etcdctl's flags.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use proto::etcd::etcdserverpb as pb;
use proto::etcd::etcdserverpb::auth_client::AuthClient;
use proto::etcd::etcdserverpb::cluster_client::ClusterClient;
use proto::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Largest message of a snapshot's stream that is taken.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How answers are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Lines for people and scripts.
    Simple,
    /// A table.
    Table,
    /// One JSON object, with etcd's names.
    Json,
}

/// Where the store is, and who asks.
#[derive(Debug, Clone, Args)]
pub(crate) struct StoreFlags {
    /// Client URLs of members, separated by commas; the first that answers is used.
    #[arg(long, value_name = "URLS", default_value = "127.0.0.1:2379", value_delimiter = ',')]
    pub(crate) endpoints: Vec<String>,

    /// The authority that vouches for the members' certificates.
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,

    /// Our certificate.
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,

    /// Its private key.
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,

    /// Who asks, where users are on.
    #[arg(long, value_name = "NAME:PASSWORD")]
    user: Option<String>,

    /// How the answer is printed.
    #[arg(short, long, value_enum, default_value_t = Format::Simple)]
    pub(crate) write_out: Format,
}

/// Adds the token to each call.
#[derive(Clone)]
pub(crate) struct Token(Option<MetadataValue<Ascii>>);

impl tonic::service::Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("token", token.clone());
        }
        Ok(request)
    }
}

type Called = InterceptedService<Channel, Token>;

/// A connection to a store.
#[derive(Clone)]
pub(crate) struct StoreClient {
    channel: Channel,
    token: Token,
}

impl StoreClient {
    /// Connects to the first endpoint that answers.
    pub(crate) async fn connect(flags: &StoreFlags) -> anyhow::Result<Self> {
        let mut failures = Vec::new();
        for endpoint in &flags.endpoints {
            match Self::connect_to(flags, endpoint).await {
                Ok(client) => return Ok(client),
                Err(error) => failures.push(format!("{endpoint}: {error:#}")),
            }
        }
        bail!("no endpoint answers: {}", failures.join("; "))
    }

    /// Connects to one endpoint.
    pub(crate) async fn connect_to(flags: &StoreFlags, endpoint: &str) -> anyhow::Result<Self> {
        let tls = flags.cacert.is_some() || endpoint.starts_with("https://");
        let address = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
        let scheme = if tls { "https" } else { "http" };
        let mut to = Endpoint::from_shared(format!("{scheme}://{address}"))?.connect_timeout(CONNECT_TIMEOUT);
        if tls {
            let mut config = ClientTlsConfig::new();
            let ca = flags.cacert.as_ref().context("--cacert is needed for https")?;
            config = config.ca_certificate(Certificate::from_pem(read(ca)?));
            if let (Some(certificate), Some(key)) = (&flags.cert, &flags.key) {
                config = config.identity(Identity::from_pem(read(certificate)?, read(key)?));
            }
            to = to.tls_config(config)?;
        }
        let channel = to.connect().await.context("cannot connect")?;
        let token = match &flags.user {
            None => None,
            Some(user) => {
                let (name, password) = user.split_once(':').context("--user is NAME:PASSWORD")?;
                let request = pb::AuthenticateRequest { name: name.into(), password: password.into() };
                let answer = AuthClient::new(channel.clone()).authenticate(request).await.map_err(said)?;
                Some(answer.into_inner().token.parse().context("the store gave a strange token")?)
            }
        };
        Ok(Self { channel, token: Token(token) })
    }

    pub(crate) fn cluster(&self) -> ClusterClient<Called> {
        ClusterClient::with_interceptor(self.channel.clone(), self.token.clone())
    }

    pub(crate) fn maintenance(&self) -> MaintenanceClient<Called> {
        MaintenanceClient::with_interceptor(self.channel.clone(), self.token.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
    }
}

/// What the store said, without the wrapping of gRPC.
#[expect(clippy::needless_pass_by_value, reason = "made for map_err")]
pub(crate) fn said(status: Status) -> anyhow::Error {
    match status.message() {
        "" => anyhow::anyhow!("the answer was {:?}", status.code()),
        message => anyhow::anyhow!("{message}"),
    }
}

/// A member's id as it is printed.
pub(crate) fn parse_id(text: &str) -> Result<u64, String> {
    u64::from_str_radix(text, 16).map_err(|_| format!("{text:?} is no member id: 16 hexadecimal digits"))
}

fn read(path: &PathBuf) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
