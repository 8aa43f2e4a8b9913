//! How a node handles images: the `images` part of its configuration.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::duration_text;

/// The `images` key of a node's configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ImagesConfig {
    /// Images that are pulled at the same time; 1 pulls one after the other.
    pub max_parallel_pulls: usize,
    /// Layers of one image that are fetched at the same time.
    pub max_parallel_layers: usize,
    /// What a layer may come to when it is unpacked.
    pub layer_bytes_max: u64,
    /// How long a registry may be silent.
    #[serde(with = "duration_text")]
    pub request_timeout: Duration,
    /// By the registry's name in image references, with its port: `docker.io`, `registry.lab:5000`.
    pub registries: BTreeMap<String, RegistryConfig>,
    /// How registries are reached that are not reached directly.
    #[serde(skip_serializing_if = "ProxyConfig::is_nothing")]
    pub proxy: ProxyConfig,
    /// A `config.json` as `docker login` writes it, for images of pods that bring no credentials.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_file: Option<PathBuf>,
    /// Disk use, in percent, above which unused images are removed.
    pub gc_high_threshold_percent: u8,
    /// Disk use, in percent, down to which they are removed.
    pub gc_low_threshold_percent: u8,
    /// How long an image is kept at least.
    #[serde(with = "duration_text")]
    pub gc_minimum_age: Duration,
    /// How often the disk is looked at.
    #[serde(with = "duration_text")]
    pub gc_interval: Duration,
}

impl Default for ImagesConfig {
    fn default() -> Self {
        Self {
            max_parallel_pulls: 5,
            max_parallel_layers: 3,
            layer_bytes_max: 64 << 30,
            request_timeout: Duration::from_secs(30),
            registries: BTreeMap::new(),
            proxy: ProxyConfig::default(),
            credentials_file: None,
            gc_high_threshold_percent: 85,
            gc_low_threshold_percent: 80,
            gc_minimum_age: Duration::from_secs(120),
            gc_interval: Duration::from_secs(300),
        }
    }
}

/// What is special about one registry.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RegistryConfig {
    /// Registries asked before this one, in order, as `host[:port]`; how to reach them stands under their own names.
    pub mirrors: Vec<String>,
    /// Whether it is spoken to without TLS. Not said: only on this machine's own addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub insecure: Option<bool>,
    /// A PEM file with authorities to trust besides the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
}

/// Proxies, in the terms of the usual environment variables.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ProxyConfig {
    /// For registries with TLS: `http://[user:password@]host:port`. Empty: none.
    pub https_proxy: String,
    /// For registries without.
    pub http_proxy: String,
    /// Who is reached directly: names (with all below them), `.domain`s, addresses, ranges, each perhaps with a port;
    /// separated by commas; `*`: everybody. This machine always is.
    pub no_proxy: String,
}

impl ProxyConfig {
    fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    fn problem(&self) -> Option<(&'static str, String)> {
        let keys =
            [("images.proxy.httpsProxy", &self.https_proxy), ("images.proxy.httpProxy", &self.http_proxy)];
        let wrong = keys.into_iter().filter(|(_, address)| !address.is_empty()).find(|(_, address)| {
            let uri = address.parse::<http::Uri>().ok();
            uri.is_none_or(|uri| uri.scheme_str() != Some("http") || uri.host().is_none_or(str::is_empty))
        });
        // It may hold a password: it is not repeated.
        wrong.map(|(key, _)| {
            (key, "must be http://host:port, with user:password@ before the host if need be".into())
        })
    }
}

impl ImagesConfig {
    /// What is wrong with it, and under which key.
    pub(crate) fn problem(&self) -> Option<(&'static str, String)> {
        if self.max_parallel_pulls == 0 {
            return Some(("images.maxParallelPulls", "must be at least 1".into()));
        }
        if self.max_parallel_layers == 0 {
            return Some(("images.maxParallelLayers", "must be at least 1".into()));
        }
        if self.gc_high_threshold_percent > 100 {
            return Some(("images.gcHighThresholdPercent", "must be at most 100 (100: never)".into()));
        }
        if self.gc_low_threshold_percent >= self.gc_high_threshold_percent {
            let problem = "must be less than gcHighThresholdPercent".to_owned();
            return Some(("images.gcLowThresholdPercent", problem));
        }
        if self.gc_interval < Duration::from_millis(10) || self.request_timeout < Duration::from_millis(10) {
            return Some(("images", "gcInterval and requestTimeout must be at least 10ms".into()));
        }
        let hosts = self.registries.iter().flat_map(|(host, r)| std::iter::once(host).chain(&r.mirrors));
        for host in hosts {
            let authority = host.parse::<http::uri::Authority>();
            if host.contains('@') || authority.is_err() {
                let problem = format!("{host:?} is not a registry: write host or host:port, without http://");
                return Some(("images.registries", problem));
            }
        }
        self.proxy.problem()
    }
}
