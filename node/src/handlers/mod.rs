//! What probes and lifecycle hooks do to a container: one question or one act, and its failure in the words
//! that Kubernetes has for it. No thresholds, no schedules, no consequences: those are `probes` and `pods`.

mod grpc;
mod http;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::{TcpStream, lookup_host};

use crate::pods::containers::{ContainerError, ContainerRuntime};
use crate::pods::env::expand_plain;
use crate::pods::record::PodRecord;
use crate::{exec, exec::Limits, exec::Outcome};

/// What is kept of what a program says.
const OUTPUT_BYTES_MAX: usize = 10 << 10;
/// A hook's own end: its container, and with it the hook, is ended long before.
const HOOK_TIME_MAX: Duration = Duration::from_secs(24 * 3600);

/// The instance that is asked.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) runtime: Arc<dyn ContainerRuntime>,
    pub(crate) container: Container,
    /// The instance's id.
    pub(crate) id: String,
    /// The pod's address.
    pub(crate) ip: IpAddr,
}

/// How the error of a refused connection ends, in Go's words.
const REFUSED: &str = "connection refused";

/// Why a hook did not end well.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HookFailure {
    pub(crate) error: String,
    /// What it printed or answered.
    pub(crate) output: String,
}

impl HookFailure {
    /// Whether nobody listens where the request went.
    pub(crate) fn refused(&self) -> bool {
        self.error.ends_with(REFUSED)
    }
}

impl Target {
    /// The current instance of a container, if it has one and the pod an address.
    pub(crate) fn of(runtime: &Arc<dyn ContainerRuntime>, record: &PodRecord, name: &str) -> Option<Self> {
        let runtime = Arc::clone(runtime);
        let container = record.container_spec(name)?.clone();
        let id = record.container(name)?.current.as_ref()?.id.clone();
        // A pod on the host's network has the host's address, which its status tells.
        let told = || record.last_status.as_ref()?.pod_ip.as_ref()?.parse().ok();
        let ip = record.sandbox.as_ref().and_then(|s| s.ip).or_else(told)?;
        Some(Self { runtime, container, id, ip })
    }

    fn port(&self, port: &IntOrString) -> Result<u16, String> {
        let number = match port {
            IntOrString::Int(port) => Some(*port),
            IntOrString::String(name) => {
                let named = self.container.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name));
                named.map(|p| p.container_port).or_else(|| name.parse().ok())
            }
        };
        let valid = number.and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0);
        valid.ok_or_else(|| match port {
            IntOrString::Int(port) => format!("invalid port number: {port}"),
            IntOrString::String(name) => {
                format!("couldn't find port named \"{name}\" in container \"{}\"", self.container.name)
            }
        })
    }
}

/// Asks a probe's question once. The error is what the Unhealthy event says after "probe failed: ".
pub(crate) async fn probe(probe: &Probe, target: &Target, timeout: Duration) -> Result<(), String> {
    if let Some(action) = &probe.http_get {
        let code = match tokio::time::timeout(timeout, http::get(action, target)).await {
            Ok(answer) => answer?,
            Err(_) => return Err(http::late(action, target)),
        };
        return if (200..400).contains(&code) { Ok(()) } else { Err(http_failure(code)) };
    }
    if let Some(action) = &probe.tcp_socket {
        let own = action.host.as_deref().filter(|h| !h.is_empty());
        let host = own.map_or_else(|| target.ip.to_string(), str::to_owned);
        let address = resolve(&host, target.port(&action.port)?).await?;
        return match tokio::time::timeout(timeout, connect(address)).await {
            Ok(connected) => connected.map(drop),
            Err(_) => Err(format!("dial tcp {address}: i/o timeout")),
        };
    }
    if let Some(action) = &probe.exec {
        let command = action.command.clone().unwrap_or_default();
        let command = expand_plain(&command, target.container.env.as_deref().unwrap_or_default());
        let outcome = run(target, &command, timeout).await.map_err(|error| error.to_string())?;
        return match outcome.exit_code {
            _ if outcome.timed_out => Err(format!("command \"{}\" timed out", command.join(" "))),
            0 => Ok(()),
            _ => Err(String::from_utf8_lossy(&outcome.output).trim_end().to_owned()),
        };
    }
    if let Some(action) = &probe.grpc {
        return grpc::check(action, target, timeout).await;
    }
    Err("the probe has no handler that this node agent supports".into())
}

/// Runs a hook to its end. How long it may take is the caller's to say, by dropping this.
pub(crate) async fn hook(handler: &LifecycleHandler, target: &Target) -> Result<(), HookFailure> {
    let plain = |error: String| HookFailure { error, output: String::new() };
    if let Some(action) = &handler.http_get {
        // KIA-HOOK-014: that it was answered is enough, whatever the answer.
        return http::get(action, target).await.map(drop).map_err(plain);
    }
    if let Some(action) = &handler.exec {
        let command = action.command.clone().unwrap_or_default();
        let ran = run(target, &command, HOOK_TIME_MAX).await;
        let outcome = ran.map_err(|error| plain(error.to_string()))?;
        if outcome.exit_code == 0 {
            return Ok(());
        }
        // The books' words; what it said on standard error stands in the output here.
        let error = format!("command '{}' exited with {}: ", command.join(" "), outcome.exit_code);
        return Err(HookFailure { error, output: String::from_utf8_lossy(&outcome.output).into_owned() });
    }
    if let Some(action) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(action.seconds.max(0) as u64)).await;
        return Ok(());
    }
    Err(plain("the hook has no handler that this node agent supports".into()))
}

async fn run(target: &Target, command: &[String], timeout: Duration) -> Result<Outcome, ContainerError> {
    let limits = Limits { timeout, output_bytes_max: OUTPUT_BYTES_MAX };
    exec::run(&target.runtime, &target.id, command.to_vec(), limits).await
}

/// The books' words; a kubelet of today says "HTTP probe failed with statuscode: 503".
fn http_failure(code: u16) -> String {
    format!("HTTP probe failed with code {code}")
}

/// An address, or a name that the node can resolve; `localhost` is the node.
async fn resolve(host: &str, port: u16) -> Result<SocketAddr, String> {
    if let Ok(ip) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port));
    }
    if host == "localhost" {
        return Ok(SocketAddr::from(([127, 0, 0, 1], port)));
    }
    let found = lookup_host((host, port)).await.ok().and_then(|mut found| found.next());
    found.ok_or_else(|| format!("dial tcp: lookup {host}: no such host"))
}

async fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    let connected = TcpStream::connect(address).await;
    connected.map_err(|error| format!("dial tcp {address}: connect: {}", words(&error)))
}

fn words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => REFUSED.into(),
        io::ErrorKind::HostUnreachable => "no route to host".into(),
        io::ErrorKind::NetworkUnreachable => "network is unreachable".into(),
        io::ErrorKind::ConnectionReset => "connection reset by peer".into(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
