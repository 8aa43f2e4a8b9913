//! A profile: which plugins stand at which point, with which weight.

use std::sync::Arc;

use super::{
    Bind, Binder, ConfigError, Configuration, Filter, PLUGINS_MAX, Permission, Plugin, PostFilter, PreFilter,
    PreScore, ProfileConfig, Reason, Score,
};
use crate::cluster_event::{Change, ClusterEvent};
use crate::pod_info::PodInfo;

/// A point at which plugins take part, by its name in configurations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Point {
    /// `preEnqueue`
    PreEnqueue,
    /// `queueSort`
    QueueSort,
    /// `preFilter`
    PreFilter,
    /// `filter`
    Filter,
    /// `postFilter`
    PostFilter,
    /// `preScore`
    PreScore,
    /// `score`
    Score,
    /// `reserve`
    Reserve,
    /// `permit`
    Permit,
    /// `preBind`
    PreBind,
    /// `bind`
    Bind,
    /// `postBind`
    PostBind,
}

impl Point {
    /// Every point, in the order in which a pod passes them.
    pub const ALL: [Self; 12] = [
        Self::PreEnqueue,
        Self::QueueSort,
        Self::PreFilter,
        Self::Filter,
        Self::PostFilter,
        Self::PreScore,
        Self::Score,
        Self::Reserve,
        Self::Permit,
        Self::PreBind,
        Self::Bind,
        Self::PostBind,
    ];

    /// Its name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::PreEnqueue => "preEnqueue",
            Self::QueueSort => "queueSort",
            Self::PreFilter => "preFilter",
            Self::Filter => "filter",
            Self::PostFilter => "postFilter",
            Self::PreScore => "preScore",
            Self::Score => "score",
            Self::Reserve => "reserve",
            Self::Permit => "permit",
            Self::PreBind => "preBind",
            Self::Bind => "bind",
            Self::PostBind => "postBind",
        }
    }

    /// Whether the plugin takes part here.
    pub fn is_of(self, plugin: &dyn Plugin) -> bool {
        match self {
            Self::PreEnqueue => plugin.pre_enqueue().is_some(),
            Self::QueueSort => plugin.queue_sort().is_some(),
            Self::PreFilter => plugin.pre_filter().is_some(),
            Self::Filter => plugin.filter().is_some() || plugin.pre_filter().is_some(),
            Self::PostFilter => plugin.post_filter().is_some(),
            Self::PreScore => plugin.pre_score().is_some(),
            Self::Score => plugin.score().is_some() || plugin.pre_score().is_some(),
            Self::Reserve => plugin.reserve().is_some(),
            Self::Permit => plugin.permit().is_some(),
            Self::PreBind => plugin.pre_bind().is_some(),
            Self::Bind => plugin.bind().is_some(),
            Self::PostBind => plugin.post_bind().is_some(),
        }
    }
}

/// Plugins in order, each with its weight.
pub type WeightedPlugins = Vec<(Arc<dyn Plugin>, i64)>;

/// One plugin of a profile.
#[derive(Debug)]
struct Member {
    plugin: Arc<dyn Plugin>,
    /// Bit set over [`Point::ALL`].
    points: u16,
}

/// The rules of one profile.
#[derive(Debug)]
pub struct Framework {
    name: String,
    members: Vec<Member>,
    /// By point: the members that stand there, in order, each with its weight.
    at: [Vec<(usize, i64)>; Point::ALL.len()],
    /// By change: the members whose rejections it can lift, as a bit set.
    helped_by: [u64; Change::ALL.len()],
}

impl Framework {
    /// A profile of these plugins: for each point, who stands there in which order, with a weight (which
    /// counts at `score` only).
    pub fn new(name: &str, points: Vec<(Point, WeightedPlugins)>) -> Result<Self, ConfigError> {
        let mut framework = Self {
            name: name.to_owned(),
            members: Vec::new(),
            at: Default::default(),
            helped_by: [0; Change::ALL.len()],
        };
        for (point, plugins) in points {
            for (plugin, weight) in plugins {
                let member = framework.member(plugin)?;
                framework.members[member].points |= 1 << point as u16;
                framework.at[point as usize].push((member, weight));
            }
        }
        framework.helped_by[Change::NodeAdded.index()] = u64::MAX;
        for (at, member) in framework.members.iter().enumerate() {
            for change in member.plugin.helped_by() {
                framework.helped_by[change.index()] |= 1 << at;
            }
        }
        Ok(framework)
    }

    fn member(&mut self, plugin: Arc<dyn Plugin>) -> Result<usize, ConfigError> {
        if let Some(at) = self.members.iter().position(|member| member.plugin.name() == plugin.name()) {
            return Ok(at);
        }
        if self.members.len() >= PLUGINS_MAX {
            return Err(ConfigError::TooManyPlugins { profile: self.name.clone() });
        }
        self.members.push(Member { plugin, points: 0 });
        Ok(self.members.len() - 1)
    }

    /// The default profile: Kubernetes' plugins, order and weights.
    pub fn default_profile() -> Self {
        let config = ProfileConfig::default();
        config.framework(&Configuration::registry()).expect("the defaults are tested")
    }

    /// `schedulerName` of the pods that it is for.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The names of the plugins at a point, in order.
    pub fn names_at(&self, point: Point) -> impl Iterator<Item = &'static str> + '_ {
        self.at[point as usize].iter().map(|(member, _)| self.members[*member].plugin.name())
    }

    /// The name of a plugin, by the number that verdicts carry.
    pub fn plugin_name(&self, member: usize) -> &'static str {
        self.members.get(member).map_or("", |member| member.plugin.name())
    }

    fn plugins_at(&self, point: Point) -> impl Iterator<Item = (usize, &dyn Plugin, i64)> + '_ {
        let members = self.at[point as usize].iter();
        members.map(|(member, weight)| (*member, self.members[*member].plugin.as_ref(), *weight))
    }

    fn stands_at(&self, member: usize, point: Point) -> bool {
        self.members[member].points & (1 << point as u16) != 0
    }

    /// Why the pod is held back, and by whom.
    pub(crate) fn pre_enqueue(&self, pod: &PodInfo) -> Result<(), String> {
        let rules = self.plugins_at(Point::PreEnqueue).filter_map(|(_, plugin, _)| plugin.pre_enqueue());
        rules.into_iter().try_for_each(|rule| rule.pre_enqueue(pod))
    }

    /// The plugin that orders the queue.
    pub(crate) fn sorter(&self) -> Option<Arc<dyn Plugin>> {
        let (member, _) = self.at[Point::QueueSort as usize].first()?;
        Some(self.members[*member].plugin.clone())
    }

    /// Whether a plugin of this name stands at the point.
    pub(crate) fn has(&self, point: Point, name: &str) -> bool {
        self.names_at(point).any(|known| known == name)
    }

    pub(crate) fn pre_filters(&self) -> impl Iterator<Item = (usize, &dyn PreFilter)> + '_ {
        let rules = self.plugins_at(Point::PreFilter);
        let rules = rules.filter(|(member, ..)| self.stands_at(*member, Point::Filter));
        rules.filter_map(|(member, plugin, _)| Some((member, plugin.pre_filter()?)))
    }

    /// The filters of one node that say anything about this pod.
    pub(crate) fn filters_for(&self, pod: &PodInfo) -> Vec<(usize, Arc<dyn Plugin>)> {
        let members = self.at[Point::Filter as usize].iter().map(|(member, _)| *member);
        let applying = members.filter(|member| {
            self.members[*member].plugin.filter().is_some_and(|rule: &dyn Filter| rule.applies(pod))
        });
        applying.map(|member| (member, self.members[member].plugin.clone())).collect()
    }

    pub(crate) fn post_filter(&self) -> Option<&dyn PostFilter> {
        self.plugins_at(Point::PostFilter).find_map(|(_, plugin, _)| plugin.post_filter())
    }

    pub(crate) fn pre_scores(&self) -> impl Iterator<Item = (usize, &dyn PreScore, i64)> + '_ {
        let rules = self.plugins_at(Point::Score);
        let rules = rules.filter(|(member, ..)| self.stands_at(*member, Point::PreScore));
        rules.filter_map(|(member, plugin, weight)| Some((member, plugin.pre_score()?, weight)))
    }

    /// The rankings of one node that say anything about this pod.
    pub(crate) fn scores_for(&self, pod: &PodInfo) -> Vec<(i64, Arc<dyn Plugin>)> {
        let members = self.at[Point::Score as usize].iter();
        let applying = members.filter(|(member, _)| {
            self.members[*member].plugin.score().is_some_and(|rule: &dyn Score| rule.applies(pod))
        });
        applying.map(|(member, weight)| (*weight, self.members[*member].plugin.clone())).collect()
    }

    /// Reserves the node for the pod with every plugin, or with none.
    pub(crate) fn reserve(&self, pod: &PodInfo, node: &str) -> Result<(), (usize, Reason)> {
        for (member, plugin, _) in self.plugins_at(Point::Reserve) {
            let Some(rule) = plugin.reserve() else { continue };
            if let Err(reason) = rule.reserve(pod, node) {
                self.unreserve(pod, node);
                return Err((member, reason));
            }
        }
        Ok(())
    }

    pub(crate) fn unreserve(&self, pod: &PodInfo, node: &str) {
        let plugins: Vec<_> = self.plugins_at(Point::Reserve).collect();
        for rule in plugins.iter().rev().filter_map(|(_, plugin, _)| plugin.reserve()) {
            rule.unreserve(pod, node);
        }
    }

    /// What all plugins together say: the first no, else the shortest wait.
    pub(crate) fn permit(&self, pod: &PodInfo, node: &str) -> (usize, Permission) {
        let mut answer = (0, Permission::Allow);
        for (member, plugin, _) in self.plugins_at(Point::Permit) {
            let Some(rule) = plugin.permit() else { continue };
            match (rule.permit(pod, node), &answer.1) {
                (Permission::Allow, _) => {}
                (Permission::Reject(reason), _) => return (member, Permission::Reject(reason)),
                (Permission::Wait(new), Permission::Wait(known)) if new >= *known => {}
                (Permission::Wait(wait), _) => answer = (member, Permission::Wait(wait)),
            }
        }
        answer
    }

    pub(crate) fn pre_bind(&self, pod: &PodInfo, node: &str) -> Result<(), (usize, Reason)> {
        for (member, plugin, _) in self.plugins_at(Point::PreBind) {
            let Some(rule) = plugin.pre_bind() else { continue };
            rule.pre_bind(pod, node).map_err(|reason| (member, reason))?;
        }
        let mut binders = self.plugins_at(Point::Bind).filter_map(|(_, plugin, _)| plugin.bind());
        match binders.any(|rule: &dyn Bind| rule.bind(pod, node) == Binder::Store) {
            true => Ok(()),
            false => Err((0, Reason::Text("no plugin of the profile binds this pod"))),
        }
    }

    pub(crate) fn post_bind(&self, pod: &PodInfo, node: &str) {
        for rule in self.plugins_at(Point::PostBind).filter_map(|(_, plugin, _)| plugin.post_bind()) {
            rule.post_bind(pod, node);
        }
    }

    /// The plugins whose rejections a change can lift, as a bit set.
    pub(crate) fn helped_by(&self, change: Change) -> u64 {
        self.helped_by[change.index()]
    }

    /// Whether one of the plugins that rejected the pod thinks that the event can help it.
    pub(crate) fn hint(&self, rejected_by: u64, pod: &PodInfo, event: &ClusterEvent<'_>) -> bool {
        let helped = rejected_by & self.helped_by(event.change);
        if event.change == Change::NodeAdded && helped != 0 {
            return true;
        }
        (0..self.members.len())
            .filter(|at| helped & (1 << at) != 0)
            .any(|at| self.members[at].plugin.hint(pod, event))
    }
}
