//! The configuration in the shape of `KubeSchedulerConfiguration` (`kubescheduler.config.k8s.io/v1`).
//!
//! Owns which plugins there are, the default profile, and how `enabled` and `disabled` change it. Promises
//! that what is not known is refused with its name: a misspelt field does not silently mean its default.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::{Framework, Plugin, Point, WeightedPlugins};
use crate::plugins;
use crate::queue::QueueLimits;

const API_VERSION: &str = "kubescheduler.config.k8s.io/v1";
const KIND: &str = "KubeSchedulerConfiguration";
/// The profile that there is without any configuration.
const DEFAULT_NAME: &str = "default-scheduler";
/// Fields of Kubernetes' form that are about a process of its own.
const NOT_HERE: [&str; 8] = [
    "leaderElection",
    "clientConnection",
    "healthzBindAddress",
    "metricsBindAddress",
    "enableProfiling",
    "enableContentionProfiling",
    "extenders",
    "delayCacheUntilActive",
];
/// Kubernetes' plugins that are not here; a configuration may still disable them.
const ABSENT: [&str; 4] =
    ["VolumeRestrictions", "NodeVolumeLimits", "DynamicResources", "DeferredPodScheduling"];
/// The default profile: plugins in order, with the weights of those that rank.
const DEFAULT_PLUGINS: [(&str, i64); 17] = [
    ("SchedulingGates", 0),
    ("PrioritySort", 0),
    ("NodeUnschedulable", 0),
    ("NodeName", 0),
    ("TaintToleration", 3),
    ("NodeAffinity", 2),
    ("NodePorts", 0),
    ("NodeResourcesFit", 1),
    ("VolumeBinding", 0),
    ("VolumeZone", 0),
    ("PodTopologySpread", 2),
    ("InterPodAffinity", 2),
    ("Coscheduling", 0),
    ("DefaultPreemption", 0),
    ("NodeResourcesBalancedAllocation", 1),
    ("ImageLocality", 1),
    ("DefaultBinder", 0),
];

/// Why a configuration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// It is not of the form.
    #[error("{0}")]
    Form(String),
    /// A field that is about something else.
    #[error("{field} has no meaning here: the scheduler is a part of the replica that leads; remove it")]
    NotHere {
        /// The field.
        field: String,
    },
    /// No plugin of this name.
    #[error("profile {profile}: there is no plugin {plugin:?}")]
    UnknownPlugin {
        /// The profile.
        profile: String,
        /// What it names.
        plugin: String,
    },
    /// A plugin does not take part where it is enabled.
    #[error("profile {profile}: plugin {plugin} does not take part in {point}")]
    WrongPoint {
        /// The profile.
        profile: String,
        /// The plugin.
        plugin: String,
        /// The point.
        point: &'static str,
    },
    /// A plugin's arguments.
    #[error("arguments of {plugin}: {reason}")]
    Args {
        /// The plugin.
        plugin: String,
        /// What is wrong.
        reason: String,
    },
    /// Something that every profile needs exactly once.
    #[error("profile {profile}: {point} needs {needs}")]
    Point {
        /// The profile.
        profile: String,
        /// The point.
        point: &'static str,
        /// What it needs.
        needs: &'static str,
    },
    /// Two profiles of one name.
    #[error("two profiles have the schedulerName {name:?}")]
    Twice {
        /// The name.
        name: String,
    },
    /// More than a bit set holds.
    #[error("profile {profile}: more than {} plugins", super::PLUGINS_MAX)]
    TooManyPlugins {
        /// The profile.
        profile: String,
    },
}

/// Makes a plugin from its arguments.
type Factory = fn(Option<&Value>) -> Result<Arc<dyn Plugin>, String>;

/// The plugins that configurations may name.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    factories: BTreeMap<&'static str, Factory>,
}

impl Registry {
    /// Adds a plugin of one's own.
    pub fn add(&mut self, name: &'static str, factory: Factory) {
        self.factories.insert(name, factory);
    }
}

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Configuration {
    api_version: String,
    kind: String,
    /// Accepted, without effect: cycles are not spread over threads, and every node is always judged.
    #[serde(default)]
    parallelism: Option<i64>,
    #[serde(default)]
    percentage_of_nodes_to_score: Option<i64>,
    #[serde(default = "one_second")]
    pod_initial_backoff_seconds: u64,
    #[serde(default = "ten_seconds")]
    pod_max_backoff_seconds: u64,
    #[serde(default)]
    profiles: Vec<ProfileConfig>,
}

fn one_second() -> u64 {
    1
}

fn ten_seconds() -> u64 {
    10
}

impl Default for Configuration {
    fn default() -> Self {
        Self {
            api_version: API_VERSION.to_owned(),
            kind: KIND.to_owned(),
            parallelism: None,
            percentage_of_nodes_to_score: None,
            pod_initial_backoff_seconds: one_second(),
            pod_max_backoff_seconds: ten_seconds(),
            profiles: Vec::new(),
        }
    }
}

/// One profile.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProfileConfig {
    #[serde(default = "default_name")]
    scheduler_name: String,
    #[serde(default)]
    percentage_of_nodes_to_score: Option<i64>,
    #[serde(default)]
    plugins: PluginSets,
    #[serde(default)]
    plugin_config: Vec<PluginConfig>,
}

fn default_name() -> String {
    DEFAULT_NAME.to_owned()
}

impl Default for ProfileConfig {
    fn default() -> Self {
        Self {
            scheduler_name: default_name(),
            percentage_of_nodes_to_score: None,
            plugins: PluginSets::default(),
            plugin_config: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct PluginSets {
    multi_point: PluginSet,
    pre_enqueue: PluginSet,
    queue_sort: PluginSet,
    pre_filter: PluginSet,
    filter: PluginSet,
    post_filter: PluginSet,
    pre_score: PluginSet,
    score: PluginSet,
    reserve: PluginSet,
    permit: PluginSet,
    pre_bind: PluginSet,
    bind: PluginSet,
    post_bind: PluginSet,
}

impl PluginSets {
    fn at(&self, point: Point) -> &PluginSet {
        match point {
            Point::PreEnqueue => &self.pre_enqueue,
            Point::QueueSort => &self.queue_sort,
            Point::PreFilter => &self.pre_filter,
            Point::Filter => &self.filter,
            Point::PostFilter => &self.post_filter,
            Point::PreScore => &self.pre_score,
            Point::Score => &self.score,
            Point::Reserve => &self.reserve,
            Point::Permit => &self.permit,
            Point::PreBind => &self.pre_bind,
            Point::Bind => &self.bind,
            Point::PostBind => &self.post_bind,
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct PluginSet {
    enabled: Vec<PluginRef>,
    disabled: Vec<PluginRef>,
}

impl PluginSet {
    fn disables(&self, name: &str) -> bool {
        self.disabled.iter().any(|plugin| plugin.name == name || plugin.name == "*")
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PluginRef {
    name: String,
    #[serde(default)]
    weight: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PluginConfig {
    name: String,
    #[serde(default)]
    args: Option<Value>,
}

impl Configuration {
    /// Reads a configuration that was parsed from YAML or JSON.
    pub fn from_value(value: Value) -> Result<Self, ConfigError> {
        let field = NOT_HERE.into_iter().find(|field| value.get(field).is_some());
        if let Some(field) = field {
            return Err(ConfigError::NotHere { field: field.to_owned() });
        }
        let config: Self =
            serde_json::from_value(value).map_err(|error| ConfigError::Form(error.to_string()))?;
        if config.api_version != API_VERSION || config.kind != KIND {
            let is = format!("{} {}", config.api_version, config.kind);
            return Err(ConfigError::Form(format!("this is a {is}; expected {API_VERSION} {KIND}")));
        }
        if config.pod_initial_backoff_seconds == 0
            || config.pod_max_backoff_seconds < config.pod_initial_backoff_seconds
        {
            let reason =
                "podInitialBackoffSeconds must be at least 1 and podMaxBackoffSeconds no less than it";
            return Err(ConfigError::Form(reason.to_owned()));
        }
        let profiles = config.profiles.iter().map(|profile| profile.percentage_of_nodes_to_score);
        for percentage in profiles.chain([config.percentage_of_nodes_to_score]).flatten() {
            if !(0..=100).contains(&percentage) {
                let reason = format!("percentageOfNodesToScore: {percentage} is not in 0 to 100");
                return Err(ConfigError::Form(reason));
            }
        }
        config.frameworks(&Self::registry())?;
        Ok(config)
    }

    /// Every plugin that there is here.
    pub fn registry() -> Registry {
        let mut registry = Registry::default();
        for (name, factory) in plugins::FACTORIES {
            registry.add(name, factory);
        }
        registry
    }

    /// The profiles.
    pub fn frameworks(&self, registry: &Registry) -> Result<Vec<Framework>, ConfigError> {
        let default = [ProfileConfig::default()];
        let profiles = if self.profiles.is_empty() { &default[..] } else { &self.profiles };
        let mut frameworks: Vec<Framework> = Vec::new();
        for profile in profiles {
            if frameworks.iter().any(|known| known.name() == profile.scheduler_name) {
                return Err(ConfigError::Twice { name: profile.scheduler_name.clone() });
            }
            frameworks.push(profile.framework(registry)?);
        }
        Ok(frameworks)
    }

    /// The waits of the queue.
    pub fn limits(&self) -> QueueLimits {
        QueueLimits {
            backoff_initial: Duration::from_secs(self.pod_initial_backoff_seconds),
            backoff_max: Duration::from_secs(self.pod_max_backoff_seconds),
            ..QueueLimits::default()
        }
    }
}

impl ProfileConfig {
    /// The profile's plugins at their points.
    pub fn framework(&self, registry: &Registry) -> Result<Framework, ConfigError> {
        let built = self.build(registry)?;
        let points = Point::ALL.map(|point| (point, self.plugins_at(point, &built)));
        let mut named = Vec::new();
        for (point, plugins) in points {
            named.push((point, plugins?));
        }
        for (point, needs) in [(Point::QueueSort, "exactly one plugin"), (Point::Bind, "a plugin")] {
            let count = named.iter().find(|(at, _)| *at == point).map_or(0, |(_, plugins)| plugins.len());
            if count == 0 || (point == Point::QueueSort && count > 1) {
                let profile = self.scheduler_name.clone();
                return Err(ConfigError::Point { profile, point: point.name(), needs });
            }
        }
        Framework::new(&self.scheduler_name, named)
    }

    /// Every plugin that the profile names, made with its arguments.
    fn build(&self, registry: &Registry) -> Result<BTreeMap<String, Arc<dyn Plugin>>, ConfigError> {
        let sets = Point::ALL.iter().map(|point| self.plugins.at(*point)).chain([&self.plugins.multi_point]);
        let refs = sets.flat_map(|set| set.enabled.iter().map(|plugin| plugin.name.as_str()));
        let configured = self.plugin_config.iter().map(|config| config.name.as_str());
        let names = DEFAULT_PLUGINS.iter().map(|(name, _)| *name).chain(refs).chain(configured);
        let mut built = BTreeMap::new();
        for name in names {
            let Some(factory) = registry.factories.get(name) else {
                let plugin = name.to_owned();
                return Err(ConfigError::UnknownPlugin { profile: self.scheduler_name.clone(), plugin });
            };
            let args = self.plugin_config.iter().find(|config| config.name == name);
            let plugin = factory(args.and_then(|config| config.args.as_ref()))
                .map_err(|reason| ConfigError::Args { plugin: name.to_owned(), reason })?;
            built.insert(name.to_owned(), plugin);
        }
        let sets = Point::ALL.iter().map(|point| self.plugins.at(*point)).chain([&self.plugins.multi_point]);
        for plugin in sets.flat_map(|set| &set.disabled) {
            let name = plugin.name.as_str();
            if name != "*" && !registry.factories.contains_key(name) && !ABSENT.contains(&name) {
                let profile = self.scheduler_name.clone();
                return Err(ConfigError::UnknownPlugin { profile, plugin: name.to_owned() });
            }
        }
        Ok(built)
    }

    /// Who stands at a point: what the point itself enables replaces what `multiPoint` and the defaults
    /// would give.
    fn plugins_at(
        &self,
        point: Point,
        built: &BTreeMap<String, Arc<dyn Plugin>>,
    ) -> Result<WeightedPlugins, ConfigError> {
        let (own, multi) = (self.plugins.at(point), &self.plugins.multi_point);
        let weight = |plugin: &PluginRef| plugin.weight.filter(|weight| *weight > 0);
        let mut chosen: Vec<(&str, i64)> = Vec::new();
        let defaults = DEFAULT_PLUGINS.iter().filter(|(name, _)| !multi.disables(name));
        for (name, default_weight) in defaults {
            let again = multi.enabled.iter().find(|plugin| plugin.name == *name);
            chosen.push((*name, again.and_then(weight).unwrap_or((*default_weight).max(1))));
        }
        for plugin in &multi.enabled {
            if !chosen.iter().any(|(name, _)| *name == plugin.name) {
                chosen.push((&plugin.name, weight(plugin).unwrap_or(1)));
            }
        }
        chosen.retain(|(name, _)| {
            built.get(*name).is_some_and(|plugin| point.is_of(plugin.as_ref())) && !own.disables(name)
        });
        for plugin in &own.enabled {
            if !built.get(&plugin.name).is_some_and(|built| point.is_of(built.as_ref())) {
                let (profile, plugin) = (self.scheduler_name.clone(), plugin.name.clone());
                return Err(ConfigError::WrongPoint { profile, plugin, point: point.name() });
            }
            match chosen.iter_mut().find(|(name, _)| *name == plugin.name) {
                Some(known) => known.1 = weight(plugin).unwrap_or(known.1),
                None => chosen.push((&plugin.name, weight(plugin).unwrap_or(1))),
            }
        }
        Ok(chosen.into_iter().filter_map(|(name, weight)| Some((built.get(name)?.clone(), weight))).collect())
    }
}
