//! Containers as lists show them.

use std::collections::BTreeSet;

use super::options::NetworkMode;
use super::record::{Record, short};
use super::settle::Life;
use super::{Engine, EngineError};

/// A container in a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Container {
    /// All 64 digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The image, as it was asked for.
    pub image: String,
    /// What it runs.
    pub command: Vec<String>,
    /// Nanoseconds since 1970.
    pub created_at: i64,
    /// What it does.
    pub status: Status,
    /// Its ports, published or only exposed, in words.
    pub ports: String,
    /// As they were given.
    pub labels: Vec<String>,
}

impl Container {
    /// The beginning of its id, as lists show it.
    pub fn short_id(&self) -> &str {
        short(&self.id)
    }
}

/// What a container does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It never ran.
    Created,
    /// It runs.
    Running {
        /// Nanoseconds since 1970.
        since: i64,
    },
    /// It has ended.
    Exited {
        /// Of its process; 128 and the signal for one that was killed.
        exit_code: i32,
        /// Nanoseconds since 1970.
        at: i64,
        /// Whether its program ever ran.
        ran: bool,
    },
}

impl Engine {
    /// All containers, or those that run, the newest first. What has ended is settled before.
    pub fn list(&self, all: bool) -> Result<Vec<Container>, EngineError> {
        self.settle_all()?;
        let mut found = Vec::new();
        for record in self.records.all()? {
            let status = match self.life(&record)? {
                Life::Created => Status::Created,
                Life::Running { started_at, .. } => Status::Running { since: started_at },
                Life::Ended(ended) => Status::Exited {
                    exit_code: ended.exit_code,
                    at: ended.finished_at,
                    ran: ended.started_at.is_some(),
                },
            };
            let running = matches!(status, Status::Running { .. });
            if all || running {
                found.push(Container {
                    ports: if running { ports(&record) } else { String::new() },
                    id: record.id,
                    name: record.name,
                    image: record.asked.image,
                    command: record.image.args,
                    created_at: record.created_at,
                    status,
                    labels: record.asked.labels,
                });
            }
        }
        Ok(found)
    }
}

/// Ports that a container says it listens at.
pub(super) fn exposed(record: &Record) -> BTreeSet<String> {
    let plain = |port: &String| if port.contains('/') { port.clone() } else { format!("{port}/tcp") };
    record.image.exposed.iter().chain(&record.asked.expose).map(plain).collect()
}

fn ports(record: &Record) -> String {
    if record.asked.network != NetworkMode::Bridge {
        return String::new();
    }
    let inside = |port: &super::PublishedPort| format!("{}/{}", port.container_port, port.protocol);
    let published = record.ports.iter().map(|port| {
        let address = port.address.map_or_else(|| "0.0.0.0".to_owned(), |address| address.to_string());
        format!("{address}:{}->{}", port.host_port, inside(port))
    });
    let led: BTreeSet<String> = record.ports.iter().map(inside).collect();
    let only_exposed = exposed(record).into_iter().filter(|port| !led.contains(port));
    only_exposed.chain(published).collect::<Vec<_>>().join(", ")
}
