//! Single containers on one machine, run by hand: the words of `docker run` over the node's runtime, image store and
//! network. There is no daemon. Every command opens the engine's directories, does its work and ends; each container is
//! held by its shim.
//!
//! ```text
//! command ──► engine ──► records, locks          <dataDir>/containers/<id>/record.json
//!               │  ├───► images, addresses       <dataDir>/images, <dataDir>/network
//!               │  └───► runtime ──► shim ──► container
//!               └◄── settle ◄── shim, at the container's end
//! created ──start──► standing (sandbox, address, ports; runs) ──settle──► ended ──start──► …      ──remove──► gone
//! ```
//! Owns everything below its data and run directories, the bridge, and the control groups below its parent. Promises:
//! what a command that died left half made is told truthfully and removed by `remove` or the next command; names,
//! addresses and ports have one owner, whoever asks at the same time; when a removal returns, all of these are free.
//! Does not: restart containers, or run anything while no command runs but shims.

mod build;
mod config;
mod create;
mod error;
mod hosts;
mod inspect;
mod locks;
mod logs;
mod names;
mod network;
mod options;
mod record;
mod remove;
mod settle;
mod spec;
mod start;
mod view;
mod volumes;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use runtime::{Runtime, RuntimeConfig};

pub use build::{BuildDesk, BuildError, BuildOptions, DeskError};
pub use config::EngineConfig;
pub use create::Created;
pub use error::EngineError;
pub use logs::{LogOptions, LogPiece, Logs};
pub use options::{
    BadOption, CreateOptions, Limits, Link, NetworkMode, PidSource, PublishedPort, VolumeBind, parse_bytes,
};
pub use start::Started;
pub use view::{Container, Status};

use self::record::Records;
use crate::images::{Image, ImageStore, ImageSummary, InUse, Reference};

/// How the digest of an image's configuration begins.
const ID_PREFIX: &str = "sha256:";
/// The fewest digits of an image's id that are taken for one.
const ID_DIGITS_MIN: usize = 4;

/// The engine. All calls block, but for those that say otherwise.
pub struct Engine {
    config: EngineConfig,
    runtime: Runtime,
    images: Arc<ImageStore>,
    records: Records,
}

impl Engine {
    /// Opens the engine's directories, making them if needed. Changes nothing else.
    pub fn open(config: EngineConfig) -> Result<Self, EngineError> {
        config.validate()?;
        for dir in [&config.data_dir, &config.run_dir] {
            fs::create_dir_all(dir).map_err(EngineError::io("create", dir))?;
            fs::set_permissions(dir, fs::Permissions::from_mode(0o711))
                .map_err(EngineError::io("protect", dir))?;
        }
        let runtime = Runtime::new(RuntimeConfig {
            state_dir: config.run_dir.join("runtime"),
            shim_command: config.shim_command().into_iter().map(Into::into).collect(),
            cgroup_root: PathBuf::new(),
            // Where users look for their containers' groups, whatever these are limited in.
            every_hierarchy: true,
        })?;
        let images = Arc::new(ImageStore::open(config.data_dir.join("images"))?);
        let records = Records::open(config.data_dir.join("containers"))?;
        Ok(Self { config, runtime, images, records })
    }

    /// What it was opened with.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// The images.
    pub fn images(&self) -> &Arc<ImageStore> {
        &self.images
    }

    /// The runtime, for the streams of containers that run.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// The image that a name, a digest or the beginning of an id stands for.
    pub fn image(&self, asked: &str) -> Result<Option<Image>, EngineError> {
        if let Some(image) = self.images.get(asked)? {
            return Ok(Some(image));
        }
        let digits = asked.strip_prefix(ID_PREFIX).unwrap_or(asked);
        if digits.len() < ID_DIGITS_MIN || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Ok(None);
        }
        let is_it =
            |image: &ImageSummary| image.id.strip_prefix(ID_PREFIX).is_some_and(|id| id.starts_with(digits));
        let all = self.images.list();
        let mut found = all.iter().filter(|image| is_it(image));
        match (found.next().and_then(|image| image.names.first()), found.next()) {
            (Some(name), None) => Ok(self.images.get(name)?),
            _ => Ok(None),
        }
    }

    /// The digest of an image's configuration, by which users know it.
    pub fn image_id(&self, image: &Image) -> String {
        let all = self.images.list();
        let named = all.iter().find(|summary| summary.names.contains(&image.name));
        named
            .or_else(|| all.iter().find(|summary| summary.names.contains(&image.image_id)))
            .map(|summary| summary.id.clone())
            .unwrap_or_default()
    }

    /// Which images containers were made of, running or not.
    pub fn images_in_use(&self) -> Result<InUse, EngineError> {
        let records = self.records.all()?.into_iter();
        Ok(records.map(|record| (record.image.reference, format!("container {}", record.id))).collect())
    }

    /// Gives an image another name.
    pub fn tag(&self, source: &str, target: &Reference) -> Result<(), EngineError> {
        let image = self.image(source)?.ok_or_else(|| EngineError::NoSuchImage(source.to_owned()))?;
        Ok(self.images.tag(&Reference::parse(&image.name)?, target)?)
    }

    /// Whether this host counts swap, so that it can be limited.
    pub fn limits_swap(&self) -> bool {
        self.runtime.limits_swap()
    }
}
