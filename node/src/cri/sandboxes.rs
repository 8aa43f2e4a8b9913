//! What becomes of sandboxes. All calls block and may be repeated after any failure.
//!
//! ```text
//! run ──► ready ──stop──► not ready ──remove──► gone
//!   └─fails─► gone          ▲ the pause process or the machine ended
//! ```

use std::fs;
use std::path::Path;

use nix::sys::signal::Signal;
use proto::cri::{self, NamespaceMode, PodSandboxConfig};
use tonic::Status;

use super::records::{SandboxRecord, failed};
use super::state::{Core, answer, internal, now};
use super::translate;
use crate::network::{NetworkError, PodNetwork as _};

/// Name servers and search domains that resolvers take.
const NAMESERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;

impl Core {
    /// Makes a sandbox; its id.
    pub(super) fn run_sandbox(&self, request: cri::RunPodSandboxRequest) -> Result<String, Status> {
        let missing = |what: &str| Status::invalid_argument(format!("{what} is missing"));
        let config = request.config.ok_or_else(|| missing("config"))?;
        let metadata = config.metadata.clone().ok_or_else(|| missing("config.metadata"))?;
        if metadata.name.is_empty() || metadata.namespace.is_empty() || metadata.uid.is_empty() {
            return Err(missing("config.metadata's name, namespace or uid"));
        }
        let same = |record: &&SandboxRecord| record.config.metadata.as_ref() == Some(&metadata);
        if let Some(other) = self.sandbox_records.all().iter().find(same) {
            // Its maker's answer may have been lost; two of one attempt must not be.
            return match self.is_ready(other)? && other.config == config {
                true => Ok(other.id.clone()),
                false => Err(Status::already_exists(format!(
                    "sandbox {} is attempt {} of pod {}/{} already: remove it or count the attempt up",
                    other.id, metadata.attempt, metadata.namespace, metadata.name
                ))),
            };
        }
        let record = SandboxRecord {
            id: crate::pods::steps::new_id(),
            created_at: now(),
            runtime_handler: request.runtime_handler,
            config,
            ip: None,
            netns: None,
            made: false,
            stopped: false,
        };
        let spec = translate::sandbox(&record, &self.config.cgroup_root)?;
        let id = record.id.clone();
        self.sandbox_records.put(record.clone())?;
        let made = self.make_sandbox(record, &spec);
        if made.is_err()
            && let Err(error) = self.remove_sandbox(&id)
        {
            tracing::warn!(sandbox = %id, %error, "half a sandbox is left; it is listed as not ready");
        }
        made.map(|()| id)
    }

    fn make_sandbox(&self, mut record: SandboxRecord, spec: &runtime::SandboxSpec) -> Result<(), Status> {
        let id = record.id.clone();
        if !host_network(&record.config) {
            record.ip = Some(self.network.address_for(&id).map_err(network_failure)?);
        }
        if !record.config.log_directory.is_empty() {
            let dir = Path::new(&record.config.log_directory);
            fs::create_dir_all(dir).map_err(|error| failed("create", dir, &error))?;
        }
        self.write_etc(&record)?;
        let sandbox = self.runtime.create_sandbox(spec).map_err(answer)?;
        if let (Some(ip), Some(netns)) = (record.ip, &sandbox.netns) {
            self.network.connect(&id, ip, netns).map_err(network_failure)?;
            let ports = translate::host_ports(&record.config)?;
            self.network.publish(&id, ip, &ports).map_err(network_failure)?;
        }
        record.netns = sandbox.netns;
        record.made = true;
        self.sandbox_records.put(record)
    }

    /// The files that containers get unless they bring their own.
    fn write_etc(&self, record: &SandboxRecord) -> Result<(), Status> {
        let dir = self.sandbox_records.dir(&record.id).join("etc");
        let host_file = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let host = host_network(&record.config);
        let hostname = match (host, record.config.hostname.as_str()) {
            (true, _) | (_, "") => host_file("/etc/hostname").trim().to_owned(),
            (false, own) => own.to_owned(),
        };
        let hosts = match (host, record.ip) {
            (false, Some(ip)) => {
                format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n{ip}\t{hostname}\n")
            }
            _ => host_file("/etc/hosts"),
        };
        let resolv_conf = match &record.config.dns_config {
            Some(dns) => resolv_conf(dns)?,
            None => host_file("/etc/resolv.conf"),
        };
        let files = [("hosts", hosts), ("hostname", format!("{hostname}\n")), ("resolv.conf", resolv_conf)];
        let write = || {
            fs::create_dir_all(&dir)?;
            files.iter().try_for_each(|(name, text)| fs::write(dir.join(name), text))
        };
        write().map_err(|error| failed("write the files in", &dir, &error))
    }

    /// Whether a sandbox holds its namespaces.
    pub(super) fn is_ready(&self, record: &SandboxRecord) -> Result<bool, Status> {
        if record.stopped || !record.made {
            return Ok(false);
        }
        let seen = self.runtime.observe_sandbox(&record.id).map_err(answer)?;
        Ok(seen.is_some_and(|seen| seen.pause.is_some()))
    }

    /// Ends everything in a sandbox. How its containers ended stays known.
    pub(super) fn stop_sandbox(&self, id: &str) -> Result<(), Status> {
        let Some(record) = self.sandbox_records.find(id)? else { return Ok(()) };
        let id = record.id.as_str();
        let containers = self.container_records.all();
        for container in containers.iter().filter(|container| container.sandbox == id) {
            if container.launched && !self.settle(&container.id)? {
                self.kill(&container.id)?;
            }
        }
        self.runtime.delete_sandbox(id).or_else(absent_is_fine)?;
        self.network.release(id).map_err(internal)?;
        self.sandbox_records.change(id, |record| record.stopped = true)
    }

    /// Kills a container and waits for its end, so that it is written down.
    fn kill(&self, id: &str) -> Result<(), Status> {
        match self.runtime.signal(id, Signal::SIGKILL as i32) {
            Ok(()) => {
                self.runtime.wait_exit(id).map_err(answer)?;
            }
            // It has just ended by itself.
            Err(runtime::Error::NotRunning { .. } | runtime::Error::NotFound { .. }) => {}
            Err(error) => return Err(answer(error)),
        }
        self.settle(id).map(drop)
    }

    /// Removes a sandbox with its containers.
    pub(super) fn remove_sandbox(&self, id: &str) -> Result<(), Status> {
        let Some(record) = self.sandbox_records.find(id)? else { return Ok(()) };
        self.stop_sandbox(&record.id)?;
        for container in self.container_records.all().iter().filter(|c| c.sandbox == record.id) {
            self.remove_container(&container.id)?;
        }
        self.sandbox_records.remove(&record.id)
    }
}

pub(super) fn host_network(config: &PodSandboxConfig) -> bool {
    let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let options = security.and_then(|security| security.namespace_options.as_ref());
    options.is_some_and(|options| options.network() == NamespaceMode::Node)
}

fn network_failure(error: NetworkError) -> Status {
    match error {
        NetworkError::NotReady => Status::failed_precondition(
            "the network is not ready: no range of addresses is known; set podCidr, or let a kubelet tell it",
        ),
        other => internal(other),
    }
}

fn resolv_conf(dns: &cri::DnsConfig) -> Result<String, Status> {
    if dns.servers.len() > NAMESERVERS_MAX || dns.searches.len() > SEARCHES_MAX {
        return Err(Status::invalid_argument(format!(
            "dns_config may have {NAMESERVERS_MAX} servers and {SEARCHES_MAX} searches"
        )));
    }
    let all = dns.servers.iter().chain(&dns.searches).chain(&dns.options);
    if let Some(bad) = all.into_iter().find(|word| word.contains(['\n', '\r'])) {
        return Err(Status::invalid_argument(format!(
            "dns_config holds {bad:?}, which has more than one line"
        )));
    }
    let mut text = String::new();
    dns.servers.iter().for_each(|server| text.push_str(&format!("nameserver {server}\n")));
    for (word, list) in [("search", &dns.searches), ("options", &dns.options)] {
        if !list.is_empty() {
            text.push_str(&format!("{word} {}\n", list.join(" ")));
        }
    }
    Ok(text)
}

/// What is gone already need not be removed.
pub(super) fn absent_is_fine(error: runtime::Error) -> Result<(), Status> {
    match error {
        runtime::Error::NotFound { .. } => Ok(()),
        other => Err(answer(other)),
    }
}
