//! Everything about one container, as a document in the form that tools know.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::hosts::hostname;
use super::options::{NetworkMode, PidSource, PublishedPort};
use super::record::{Ended, Record};
use super::settle::Life;
use super::view::exposed;
use super::{Engine, EngineError};
use crate::network::gateway_of;

/// How a time is written that has not come.
const NEVER: &str = "0001-01-01T00:00:00Z";

impl Engine {
    /// Describes a container.
    pub fn inspect(&self, reference: &str) -> Result<Value, EngineError> {
        let id = self.records.find(reference)?.id;
        // Another command may be at work on it: then as it is at the moment.
        if let Some((_lock, mut record)) = self.records.try_lock(&id)? {
            self.settle_locked(&mut record)?;
        }
        let gone = || EngineError::NoSuchContainer(reference.to_owned());
        let record = self.records.read(&id)?.ok_or_else(gone)?;
        let asked = &record.asked;
        let (path, args) = record.image.args.split_first().map_or(("", &[][..]), |(path, args)| (path, args));
        let mounts = asked.volumes.iter().map(|volume| {
            json!({
                "Type": "bind", "Source": volume.source, "Destination": volume.target, "RW": !volume.read_only,
                "Mode": if volume.read_only { "ro" } else { "" }, "Propagation": "rprivate",
            })
        });
        let of_image = self.image_volumes(&record).into_iter().map(|volume| {
            json!({
                "Type": "volume", "Source": volume.source, "Destination": volume.target, "RW": true,
                "Mode": "", "Propagation": "",
            })
        });
        Ok(json!({
            "Id": record.id,
            "Created": time(Some(record.created_at)),
            "Path": path,
            "Args": args,
            "State": self.state(&record)?,
            "Image": record.image.id,
            "Name": format!("/{}", record.name),
            "LogPath": self.records.dir(&record.id).join("log"),
            "HostConfig": host_config(&record, &self.config.cgroup_parent),
            "Mounts": mounts.chain(of_image).collect::<Vec<_>>(),
            "Config": config(&record),
            "NetworkSettings": self.network_settings(&record),
        }))
    }

    fn state(&self, record: &Record) -> Result<Value, EngineError> {
        let nothing =
            Ended { started_at: None, finished_at: 0, exit_code: 0, oom_killed: false, error: String::new() };
        let (status, pid, ended) = match self.life(record)? {
            Life::Created => ("created", 0, nothing),
            Life::Running { process, started_at } => {
                ("running", process.pid, Ended { started_at: Some(started_at), ..nothing })
            }
            // It never ran: to tools it is as it was made.
            Life::Ended(ended) if ended.started_at.is_none() => ("created", 0, ended),
            Life::Ended(ended) => ("exited", 0, ended),
        };
        let finished = Some(ended.finished_at).filter(|at| *at != 0);
        Ok(json!({
            "Status": status,
            "Running": status == "running",
            "Paused": false,
            "Restarting": false,
            "OOMKilled": ended.oom_killed,
            "Dead": false,
            "Pid": pid,
            "ExitCode": ended.exit_code,
            "Error": ended.error,
            "StartedAt": time(ended.started_at),
            "FinishedAt": time(finished),
        }))
    }

    fn network_settings(&self, record: &Record) -> Value {
        let ip = record.ip.map(|ip| ip.to_string()).unwrap_or_default();
        let (gateway, length) = match record.ip {
            Some(_) => gateway_of(&self.config.bridge_range).unwrap_or_default(),
            None => Default::default(),
        };
        let mut ports = serde_json::Map::new();
        for port in exposed(record) {
            ports.insert(port, Value::Null);
        }
        for port in &record.ports {
            let name = format!("{}/{}", port.container_port, port.protocol);
            let entry = ports.entry(name).or_insert(Value::Null);
            let mut bindings = entry.as_array().cloned().unwrap_or_default();
            bindings.push(binding(port));
            *entry = Value::Array(bindings);
        }
        let name = match &record.asked.network {
            NetworkMode::Bridge => "bridge",
            NetworkMode::Host => "host",
            NetworkMode::None => "none",
            NetworkMode::Container(_) => "",
        };
        let mut networks = serde_json::Map::new();
        if !name.is_empty() {
            let network = json!({"IPAddress": ip, "Gateway": gateway, "IPPrefixLen": length});
            networks.insert(name.to_owned(), network);
        }
        json!({
            "IPAddress": ip, "Gateway": gateway, "IPPrefixLen": length, "Ports": ports, "Networks": networks,
            "Bridge": self.config.bridge_name,
        })
    }
}

fn binding(port: &PublishedPort) -> Value {
    let address = port.address.map_or_else(|| "0.0.0.0".to_owned(), |address| address.to_string());
    json!({"HostIp": address, "HostPort": port.host_port.to_string()})
}

fn host_config(record: &Record, cgroup_parent: &str) -> Value {
    let asked = &record.asked;
    let limits = &asked.limits;
    let binds = asked.volumes.iter().map(|volume| {
        let end = if volume.read_only { ":ro" } else { "" };
        format!("{}:{}{end}", volume.source.display(), volume.target.display())
    });
    let mut bindings = serde_json::Map::new();
    for port in &asked.ports {
        let name = format!("{}/{}", port.container_port, port.protocol);
        let entry = bindings.entry(name).or_insert_with(|| json!([]));
        if let Some(list) = entry.as_array_mut() {
            list.push(binding(port));
        }
    }
    json!({
        "Binds": binds.collect::<Vec<_>>(),
        "NetworkMode": match &asked.network {
            NetworkMode::Bridge => "bridge".to_owned(),
            NetworkMode::Host => "host".to_owned(),
            NetworkMode::None => "none".to_owned(),
            NetworkMode::Container(id) => format!("container:{id}"),
        },
        "PidMode": match &asked.pid {
            PidSource::Own => String::new(),
            PidSource::Host => "host".to_owned(),
            PidSource::Container(id) => format!("container:{id}"),
        },
        "PortBindings": bindings,
        "AutoRemove": asked.remove,
        "Privileged": asked.privileged,
        "ReadonlyRootfs": asked.read_only,
        "CapAdd": asked.cap_add,
        "CapDrop": asked.cap_drop,
        "Links": asked.links.iter().map(|link| format!("{}:{}", link.container, link.alias)).collect::<Vec<_>>(),
        "CgroupParent": cgroup_parent,
        "Memory": limits.memory.unwrap_or(0),
        "MemorySwap": limits.memory_swap.or(limits.memory.map(|m| m as i64 * 2)).unwrap_or(0),
        "MemoryReservation": limits.memory_reservation.unwrap_or(0),
        "NanoCpus": limits.nano_cpus.unwrap_or(0),
        "CpuShares": limits.cpu_shares.unwrap_or(0),
        "CpusetCpus": limits.cpuset_cpus.clone().unwrap_or_default(),
        "CpusetMems": limits.cpuset_mems.clone().unwrap_or_default(),
        "PidsLimit": limits.pids.unwrap_or(0),
    })
}

fn config(record: &Record) -> Value {
    let asked = &record.asked;
    let exposed: serde_json::Map<String, Value> =
        exposed(record).into_iter().map(|port| (port, json!({}))).collect();
    let labels: serde_json::Map<String, Value> = asked
        .labels
        .iter()
        .map(|label| label.split_once('=').unwrap_or((label, "")))
        .map(|(name, value)| (name.to_owned(), value.into()))
        .collect();
    json!({
        "Hostname": hostname(record), "User": asked.user, "Tty": asked.terminal, "OpenStdin": asked.interactive,
        "Env": asked.env, "Cmd": record.image.args, "Image": asked.image, "WorkingDir": asked.working_dir,
        "Labels": labels, "ExposedPorts": exposed,
    })
}

fn time(nanos: Option<i64>) -> String {
    let at = nanos.and_then(|nanos| Timestamp::from_nanosecond(i128::from(nanos)).ok());
    at.map_or_else(|| NEVER.to_owned(), |at| at.to_string())
}
