//! Rules that look at several nodes, against a model that scans everything anew each time; and the kept
//! index against one built from nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use scheduler::{Cache, Cycle, Framework, Outcome, PodInfo, Scheduler, SchedulerConfig};

use crate::build;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Rule {
    Spread { skew: i64, by_host: bool },
    Far { by_host: bool },
    Near { by_host: bool },
    Shun,
    Like,
    Prefer,
}

#[derive(Debug, Clone)]
struct App {
    app: u8,
    of: u8,
    cpu: u32,
    rule: Option<Rule>,
}

#[derive(Debug, Clone)]
enum Step {
    Add(App),
    Remove(u8),
    Zone(u8, Option<u8>),
    Drop(u8),
}

fn rule() -> impl Strategy<Value = Rule> {
    prop_oneof![
        (1..3i64, any::<bool>()).prop_map(|(skew, by_host)| Rule::Spread { skew, by_host }),
        any::<bool>().prop_map(|by_host| Rule::Far { by_host }),
        any::<bool>().prop_map(|by_host| Rule::Near { by_host }),
        Just(Rule::Shun),
        Just(Rule::Like),
        Just(Rule::Prefer),
    ]
}

fn app() -> impl Strategy<Value = App> {
    (0..3u8, 0..3u8, 0..2u32, prop::option::weighted(0.8, rule())).prop_map(|(app, of, cpu, rule)| App {
        app,
        of,
        cpu,
        rule,
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => app().prop_map(Step::Add),
        2 => any::<u8>().prop_map(Step::Remove),
        1 => (0..6u8, prop::option::weighted(0.8, 0..3u8)).prop_map(|(node, zone)| Step::Zone(node, zone)),
        1 => (0..6u8).prop_map(Step::Drop),
    ]
}

fn key(by_host: bool) -> &'static str {
    if by_host { "host" } else { "zone" }
}

fn pod(uid: &str, app: &App, on: Option<&str>) -> k8s_openapi::api::core::v1::Pod {
    let of = app.of;
    let mut words = vec![format!("label:app=a{}", app.app), "never-displaces".to_owned()];
    words.extend((app.cpu > 0).then(|| format!("cpu={}", app.cpu)));
    words.extend(app.rule.map(|rule| match rule {
        Rule::Spread { skew, by_host } => format!("spread:{skew}:{}:hard:app=a{of}", key(by_host)),
        Rule::Far { by_host } => format!("far:{}:app=a{of}", key(by_host)),
        Rule::Near { by_host } => format!("near:{}:app=a{of}", key(by_host)),
        Rule::Shun => format!("shun:7:host:app=a{of}"),
        Rule::Like => format!("like:9:zone:app=a{of}"),
        Rule::Prefer => format!("spread:2:zone:soft:app=a{of}"),
    }));
    words.extend(on.map(|node| format!("on={node}")));
    build::pod(uid, &words.iter().map(String::as_str).collect::<Vec<_>>())
}

fn node(name: &str, zone: Option<u8>) -> k8s_openapi::api::core::v1::Node {
    let mut words = vec!["cpu=4".to_owned(), "memory=8Gi".to_owned(), "pods=5".to_owned()];
    words.push(format!("label:host={name}"));
    words.extend(zone.map(|zone| format!("label:zone=z{zone}")));
    build::node(name, &words.iter().map(String::as_str).collect::<Vec<_>>())
}

#[derive(Default)]
struct Model {
    zones: BTreeMap<String, Option<u8>>,
    pods: BTreeMap<String, (App, String)>,
}

impl Model {
    fn domain(&self, node: &str, by_host: bool) -> Option<String> {
        let zone = self.zones.get(node)?;
        if by_host { Some(node.to_owned()) } else { zone.map(|zone| format!("z{zone}")) }
    }

    /// Pods of an app in a domain.
    fn count(&self, app: u8, by_host: bool, domain: &str) -> i64 {
        let there = self.pods.values().filter(|(other, node)| {
            other.app == app && self.domain(node, by_host).as_deref() == Some(domain)
        });
        there.count() as i64
    }

    fn fits(&self, app: &App, node: &str) -> bool {
        let there: Vec<&App> =
            self.pods.values().filter(|(_, on)| on == node).map(|(other, _)| other).collect();
        let cpu: u32 = there.iter().map(|other| other.cpu).sum();
        there.len() < 5 && cpu + app.cpu <= 4 && self.own_rule(app, node) && self.their_rules(app, node)
    }

    fn own_rule(&self, app: &App, node: &str) -> bool {
        match app.rule {
            Some(Rule::Spread { skew, by_host }) => {
                let Some(domain) = self.domain(node, by_host) else { return false };
                let domains = self.zones.keys().filter_map(|node| self.domain(node, by_host));
                let min = domains.map(|domain| self.count(app.of, by_host, &domain)).min().unwrap_or(0);
                let own = i64::from(app.app == app.of);
                self.count(app.of, by_host, &domain) + own - min <= skew
            }
            Some(Rule::Far { by_host }) => {
                let domain = self.domain(node, by_host);
                domain.is_none_or(|domain| self.count(app.of, by_host, &domain) == 0)
            }
            Some(Rule::Near { by_host }) => {
                let Some(domain) = self.domain(node, by_host) else { return false };
                let is_first = app.app == app.of
                    && self
                        .zones
                        .keys()
                        .filter_map(|node| self.domain(node, by_host))
                        .all(|domain| self.count(app.of, by_host, &domain) == 0);
                is_first || self.count(app.of, by_host, &domain) > 0
            }
            _ => true,
        }
    }

    fn their_rules(&self, app: &App, node: &str) -> bool {
        self.pods.values().all(|(other, on)| match other.rule {
            Some(Rule::Far { by_host }) if other.of == app.app && self.zones.contains_key(on) => {
                let (here, there) = (self.domain(node, by_host), self.domain(on, by_host));
                here.is_none() || here != there
            }
            _ => true,
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Whatever comes and goes: each decision is one that the plain scan allows, and "fits nowhere" is true.
    #[test]
    fn rules_of_many_nodes_agree_with_a_plain_scan(steps in prop::collection::vec(step(), 1..80)) {
        let mut scheduler = Scheduler::new(SchedulerConfig::default());
        let mut model = Model::default();
        let now = Duration::ZERO;
        for at in 0..4_u8 {
            let name = format!("n{at}");
            scheduler.node_changed(&node(&name, Some(at % 2)), now).expect("valid node");
            model.zones.insert(name, Some(at % 2));
        }
        for (at, step) in steps.into_iter().enumerate() {
            match step {
                Step::Add(app) => {
                    let uid = format!("p{at}");
                    scheduler.pod_changed(&pod(&uid, &app, None), now).expect("valid pod");
                    match scheduler.schedule_next(now).expect("one is ready") {
                        Outcome::Bind { node, .. } => {
                            prop_assert!(model.fits(&app, &node), "{app:?} does not fit {node}");
                            scheduler.bound(&uid, &node);
                            scheduler.pod_changed(&pod(&uid, &app, Some(&node)), now).expect("valid pod");
                            model.pods.insert(uid, (app, node.to_string()));
                        }
                        Outcome::Unschedulable { error, .. } => {
                            for node in model.zones.keys() {
                                prop_assert!(!model.fits(&app, node), "{app:?} fits {node}, yet: {error}");
                            }
                            scheduler.pod_removed(&uid, now);
                        }
                        other => panic!("{other:?}"),
                    }
                }
                Step::Remove(which) => {
                    let uids: Vec<String> = model.pods.keys().cloned().collect();
                    if let Some(uid) = uids.get(usize::from(which) % uids.len().max(1)) {
                        scheduler.pod_removed(uid, now);
                        model.pods.remove(uid);
                    }
                }
                Step::Zone(which, zone) => {
                    let name = format!("n{which}");
                    scheduler.node_changed(&node(&name, zone), now).expect("valid node");
                    model.zones.insert(name, zone);
                }
                Step::Drop(which) => {
                    let name = format!("n{which}");
                    scheduler.node_removed(&name, now);
                    model.zones.remove(&name);
                }
            }
        }
    }

    /// An index that followed every change knows what one built from nothing finds: the same nodes, and
    /// the same best score.
    #[test]
    fn a_kept_index_knows_what_a_new_one_finds(steps in prop::collection::vec(step(), 1..80)) {
        let framework = Framework::default_profile();
        let mut cache = Cache::default();
        let mut kept = Cycle::new(1);
        for at in 0..4_u8 {
            cache.upsert_node(&node(&format!("n{at}"), Some(at % 2))).expect("valid node");
        }
        for (at, step) in steps.into_iter().enumerate() {
            match step {
                Step::Add(app) => {
                    let uid = format!("p{at}");
                    let info = cache.intern(PodInfo::new(&pod(&uid, &app, None)).expect("valid pod"));
                    let old = kept.schedule_one(&framework, &cache, &info);
                    let new = Cycle::new(1).schedule_one(&framework, &cache, &info);
                    match (old, new) {
                        (Ok(old), Ok(new)) => {
                            prop_assert_eq!((old.score, old.feasible), (new.score, new.feasible));
                            cache.assume(info, &old.node).expect("it fits");
                        }
                        (old, new) => prop_assert_eq!(old, new),
                    }
                }
                Step::Remove(which) => {
                    let uid = format!("p{}", usize::from(which) % (at + 1));
                    cache.remove_pod(&uid);
                }
                Step::Zone(which, zone) => {
                    cache.upsert_node(&node(&format!("n{which}"), zone)).expect("valid node");
                }
                Step::Drop(which) => {
                    cache.remove_node(&format!("n{which}"));
                }
            }
        }
    }
}
