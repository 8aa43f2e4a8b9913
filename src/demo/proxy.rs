//! `barque demo proxy`: the sidecar that takes HTTPS on one port and passes it on as HTTP to a program on the same
//! loopback.
//!
//! Its certificate is its own and made at every start. The admin interface has `/ready`, which answers 200 or, after
//! `POST /healthcheck/fail`, 503, and `POST /quitquitquit`, which ends the process well; what is asked there is logged
//! to a file. TERM ends it at once, and well.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use clap::Args;
use http::{Method, StatusCode};
use rustls::ServerConfig;
use rustls_pki_types::PrivatePkcs8KeyDer;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::http::{Answer, accept, listen, text};
use super::print_line;
use crate::signals::Signals;

/// Flags of `demo proxy`.
#[derive(Debug, Args)]
pub(crate) struct ProxyArgs {
    /// The port for HTTPS.
    #[arg(long, default_value_t = 8443)]
    port: u16,

    /// The port of the admin interface.
    #[arg(long, default_value_t = 9901)]
    admin_port: u16,

    /// Where requests go.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    backend: SocketAddr,

    /// The host name in the certificate.
    #[arg(long, default_value = "example.com")]
    host: String,

    /// The file that requests to the admin interface are logged to.
    #[arg(long, value_name = "FILE", default_value = "/var/log/envoy.admin.log")]
    admin_log: PathBuf,
}

/// The admin interface.
struct Admin {
    failing: AtomicBool,
    log: File,
    /// Cancelled when the process is asked to end.
    quit: CancellationToken,
}

/// Serves until TERM, INT or `/quitquitquit`.
pub(super) async fn serve(args: &ProxyArgs) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    let tls = TlsAcceptor::from(Arc::new(server_config(&args.host)?));
    let log = OpenOptions::new().create(true).append(true).open(&args.admin_log);
    let log = log.with_context(|| {
        format!("cannot open {}; choose another with --admin-log", args.admin_log.display())
    })?;
    let quit = CancellationToken::new();
    let admin = Arc::new(Admin { failing: AtomicBool::new(false), log, quit: quit.clone() });
    let (https, asked) = (listen(args.port).await?, listen(args.admin_port).await?);
    print_line(format_args!(
        "starting main dispatch loop: https on {}, admin on {}",
        args.port, args.admin_port
    ));
    let answers = TaskTracker::new();
    loop {
        tokio::select! {
            (stream, _) = accept(&https) => {
                tokio::spawn(pass_on(stream, tls.clone(), args.backend));
            }
            (stream, _) = accept(&asked) => {
                let admin = Arc::clone(&admin);
                answers.spawn(async move {
                    let stop = admin.quit.clone();
                    super::http::serve(stream, stop, |request| admin.answer(request.method(), request.uri().path())).await;
                });
            }
            name = signals.next() => {
                print_line(format_args!("caught SIG{name}"));
                break;
            }
            () = quit.cancelled() => {
                answers.close();
                answers.wait().await;
                break;
            }
        }
    }
    print_line(format_args!("shutting down"));
    Ok(())
}

/// Ends TLS and copies both ways until either side ends. Callers that break off are no events here.
async fn pass_on(stream: TcpStream, tls: TlsAcceptor, backend: SocketAddr) {
    let Ok(mut stream) = tls.accept(stream).await else { return };
    match TcpStream::connect(backend).await {
        Ok(mut backend) => {
            let _broken = tokio::io::copy_bidirectional(&mut stream, &mut backend).await;
        }
        Err(error) => print_line(format_args!("cannot reach {backend}: {error}")),
    }
}

impl Admin {
    fn answer(&self, method: &Method, path: &str) -> Answer {
        let answer = match (method.as_str(), path) {
            ("GET", "/") => {
                text(StatusCode::OK, "admin: /ready, /healthcheck/fail, /healthcheck/ok, /quitquitquit\n")
            }
            ("GET", "/ready") if self.failing.load(Ordering::Relaxed) => {
                text(StatusCode::SERVICE_UNAVAILABLE, "DRAINING\n")
            }
            ("GET", "/ready") => text(StatusCode::OK, "LIVE\n"),
            ("POST", "/healthcheck/fail" | "/healthcheck/ok") => {
                self.failing.store(path.ends_with("fail"), Ordering::Relaxed);
                text(StatusCode::OK, "OK\n")
            }
            ("POST", "/quitquitquit") => {
                self.quit.cancel();
                text(StatusCode::OK, "OK\n")
            }
            _ => text(StatusCode::NOT_FOUND, "not found\n"),
        };
        // A full disk ends the log, not the proxy.
        let _full = writeln!(&self.log, "\"{method} {path}\" {}", answer.status().as_u16());
        answer
    }
}

fn server_config(host: &str) -> anyhow::Result<ServerConfig> {
    let made = rcgen::generate_simple_self_signed([host.to_owned()])
        .with_context(|| format!("cannot make a certificate for {host}"))?;
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("no version of TLS can be spoken")?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .context("cannot use the certificate")
}
