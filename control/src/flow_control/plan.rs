//! Which requests belong to which priority level, as FlowSchemas say. Pure.

use std::collections::BTreeMap;

use api::object;
use serde_json::Value;

use super::suggested;
use crate::auth::{Attributes, Identity};

/// Where no number says otherwise.
const PRECEDENCE_DEFAULT: i64 = 1000;
/// Shares of a level that names none, as in Kubernetes.
const SHARES_DEFAULT: u64 = 30;
/// Requests of one flow that wait at once, where nothing says otherwise.
const FLOW_WAITING_DEFAULT: u64 = 50;
/// Queues of a level that names no number.
const QUEUES_DEFAULT: u64 = 64;
/// Requests that wait at once in one level, whatever is configured.
const LEVEL_WAITING_MAX: u64 = 2_000;

/// Schemas in the order in which they are asked, and the levels that they name.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    schemas: Vec<Schema>,
    levels: BTreeMap<String, LevelConfig>,
}

/// A FlowSchema whose level is there.
#[derive(Debug, PartialEq)]
pub(crate) struct Schema {
    name: String,
    uid: String,
    precedence: i64,
    level: String,
    by: Option<Distinguisher>,
    rules: Vec<Value>,
}

/// What tells the flows of a schema apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Distinguisher {
    User,
    Namespace,
}

/// A PriorityLevelConfiguration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LevelConfig {
    uid: String,
    /// Never queued; bounded by the number of all seats.
    pub(crate) is_exempt: bool,
    /// Of the seats, in relation to the other levels.
    pub(crate) shares: u64,
    /// How many requests of one flow wait; 0: none does.
    pub(crate) flow_waiting_max: usize,
    /// And of all flows together.
    pub(crate) waiting_max: usize,
}

/// What a request is counted as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flow<'a> {
    /// Name of the level.
    pub(crate) level: &'a str,
    pub(crate) schema_uid: &'a str,
    pub(crate) level_uid: &'a str,
    /// Whose turn it is when this one's is: the schema, and what tells its flows apart.
    pub(crate) key: String,
    /// Whether there are other flows in the schema, from which this one must not take all seats.
    pub(crate) is_one_of_many: bool,
}

impl Plan {
    /// A plan of stored objects. The two schemas and levels without which requests would have no place are there
    /// in any case.
    pub(crate) fn of<'a>(
        schemas: impl Iterator<Item = &'a Value>,
        levels: impl Iterator<Item = &'a Value>,
    ) -> Self {
        let mut plan = Self::default();
        let level = |level: &Value| (object::name(level).to_owned(), LevelConfig::of(level));
        plan.levels.extend(suggested::mandatory("PriorityLevelConfiguration").iter().map(level));
        plan.levels.extend(levels.map(level));
        let schema = |schema: &Value| (object::name(schema).to_owned(), Schema::of(schema));
        let mut known: BTreeMap<String, Schema> =
            suggested::mandatory("FlowSchema").iter().map(schema).collect();
        known.extend(schemas.map(schema));
        plan.schemas = known.into_values().filter(|own| plan.levels.contains_key(&own.level)).collect();
        plan.schemas
            .sort_by(|left, right| (left.precedence, &left.name).cmp(&(right.precedence, &right.name)));
        plan
    }

    /// The plan that a cluster begins with.
    pub(crate) fn suggested() -> Self {
        let all = suggested::all();
        let of_kind = |kind: &'static str| all.iter().filter(move |object| object["kind"] == kind);
        Self::of(of_kind("FlowSchema"), of_kind("PriorityLevelConfiguration"))
    }

    /// The levels, by name.
    pub(crate) fn levels(&self) -> &BTreeMap<String, LevelConfig> {
        &self.levels
    }

    /// What a request is counted as: by the first schema that speaks of it.
    pub(crate) fn classify(&self, who: &Identity, request: &Attributes<'_>) -> Option<Flow<'_>> {
        let schema = self.schemas.iter().find(|schema| schema.is_about(who, request));
        // The last resort is for those whom not even it names.
        let schema = schema.or(self.schemas.last())?;
        let level = self.levels.get(&schema.level)?;
        let flow = match schema.by {
            None => String::new(),
            Some(Distinguisher::User) => who.user.clone(),
            Some(Distinguisher::Namespace) => request.namespace.to_owned(),
        };
        Some(Flow {
            level: &schema.level,
            schema_uid: &schema.uid,
            level_uid: &level.uid,
            key: format!("{}/{flow}", schema.name),
            is_one_of_many: schema.by.is_some(),
        })
    }

    /// The level of that schema, for whoever belongs to it by what he is and not by his name.
    pub(crate) fn of_schema(&self, name: &str) -> Option<Flow<'_>> {
        let schema = self.schemas.iter().find(|schema| schema.name == name)?;
        let level = self.levels.get(&schema.level)?;
        Some(Flow {
            level: &schema.level,
            schema_uid: &schema.uid,
            level_uid: &level.uid,
            key: format!("{name}/"),
            is_one_of_many: false,
        })
    }
}

impl LevelConfig {
    fn of(level: &Value) -> Self {
        let is_exempt = level["spec"]["type"] == "Exempt";
        let part = &level["spec"][if is_exempt { "exempt" } else { "limited" }];
        let response = &part["limitResponse"];
        let queuing = &response["queuing"];
        let number = |value: &Value, otherwise: u64| value.as_u64().unwrap_or(otherwise);
        let flow = match response["type"] == "Queue" && !is_exempt {
            true => number(&queuing["queueLengthLimit"], FLOW_WAITING_DEFAULT),
            false => 0,
        };
        let all = flow.saturating_mul(number(&queuing["queues"], QUEUES_DEFAULT)).min(LEVEL_WAITING_MAX);
        let count = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        Self {
            uid: object::uid(level).to_owned(),
            is_exempt,
            shares: number(&part["nominalConcurrencyShares"], if is_exempt { 0 } else { SHARES_DEFAULT }),
            flow_waiting_max: count(flow.min(LEVEL_WAITING_MAX)),
            waiting_max: count(all),
        }
    }
}

impl Schema {
    fn of(schema: &Value) -> Self {
        let spec = &schema["spec"];
        Self {
            name: object::name(schema).to_owned(),
            uid: object::uid(schema).to_owned(),
            precedence: spec["matchingPrecedence"].as_i64().unwrap_or(PRECEDENCE_DEFAULT),
            level: spec["priorityLevelConfiguration"]["name"].as_str().unwrap_or_default().to_owned(),
            by: match spec["distinguisherMethod"]["type"].as_str() {
                Some("ByUser") => Some(Distinguisher::User),
                Some("ByNamespace") => Some(Distinguisher::Namespace),
                _ => None,
            },
            rules: spec["rules"].as_array().cloned().unwrap_or_default(),
        }
    }

    fn is_about(&self, who: &Identity, request: &Attributes<'_>) -> bool {
        self.rules.iter().any(|rule| {
            let list = |name: &str| rule[name].as_array().into_iter().flatten();
            list("subjects").any(|subject| is_subject(subject, who))
                && match request.resource {
                    Some(_) => list("resourceRules").any(|rule| covers_resource(rule, request)),
                    None => list("nonResourceRules").any(|rule| covers_path(rule, request)),
                }
        })
    }
}

fn is_subject(subject: &Value, who: &Identity) -> bool {
    let text = |value: &'_ Value| value.as_str().unwrap_or_default().to_owned();
    match subject["kind"].as_str().unwrap_or_default() {
        "User" => subject["user"]["name"] == "*" || subject["user"]["name"] == who.user.as_str(),
        "Group" => subject["group"]["name"] == "*" || who.in_group(&text(&subject["group"]["name"])),
        "ServiceAccount" => {
            let account = &subject["serviceAccount"];
            let (namespace, name) = (text(&account["namespace"]), text(&account["name"]));
            let own = who.user.strip_prefix("system:serviceaccount:").and_then(|user| user.split_once(':'));
            own.is_some_and(|(inside, user)| inside == namespace && (name == "*" || name == user))
        }
        _ => false,
    }
}

fn has(list: &Value, word: &str) -> bool {
    list.as_array().into_iter().flatten().any(|own| own == "*" || own == word)
}

fn covers_resource(rule: &Value, request: &Attributes<'_>) -> bool {
    let Some(resource) = request.resource else { return false };
    let is_named = match request.subresource {
        "" => has(&rule["resources"], resource.plural),
        sub => has(&rule["resources"], &format!("{}/{sub}", resource.plural)),
    };
    let is_inside = match request.namespace {
        "" => rule["clusterScope"] == true,
        namespace => has(&rule["namespaces"], namespace),
    };
    is_named && is_inside && has(&rule["verbs"], request.verb) && has(&rule["apiGroups"], resource.group)
}

fn covers_path(rule: &Value, request: &Attributes<'_>) -> bool {
    let mut urls = rule["nonResourceURLs"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let is_path = |url: &str| match url.strip_suffix('*') {
        Some(prefix) => request.path.starts_with(prefix),
        None => url == request.path,
    };
    has(&rule["verbs"], request.verb) && urls.any(is_path)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::auth::{ResourceName, SYSTEM_AUTHENTICATED, SYSTEM_MASTERS, SYSTEM_NODES};

    fn who(user: &str, groups: &[&str]) -> Identity {
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        Identity { user: user.to_owned(), groups, ..Identity::default() }
    }

    fn of(verb: &'static str, group: &'static str, plural: &'static str) -> Attributes<'static> {
        Attributes {
            verb,
            resource: Some(ResourceName { group, plural }),
            namespace: "a",
            ..Attributes::default()
        }
    }

    #[test]
    fn everybody_has_a_level_in_the_suggested_plan() {
        let plan = Plan::suggested();
        let (list, lease) = (of("list", "", "pods"), of("update", "coordination.k8s.io", "leases"));
        let beat = Attributes { namespace: "", ..of("patch", "", "nodes") };
        let node = who("system:node:n1", &[SYSTEM_NODES, SYSTEM_AUTHENTICATED]);
        let accounts = "system:serviceaccounts";
        let dns = who(
            "system:serviceaccount:kube-system:dns",
            &[accounts, "system:serviceaccounts:kube-system", SYSTEM_AUTHENTICATED],
        );
        let robot = who("system:serviceaccount:a:b", &[accounts, SYSTEM_AUTHENTICATED]);
        for (identity, request, level, key) in [
            (&who("admin", &[SYSTEM_MASTERS, SYSTEM_AUTHENTICATED]), list, "exempt", "exempt/"),
            (&node, beat, "node-high", "system-node-high/system:node:n1"),
            (&node, lease, "node-high", "system-node-high/system:node:n1"),
            (&node, list, "system", "system-nodes/system:node:n1"),
            (
                &who("system:kube-scheduler", &[SYSTEM_AUTHENTICATED]),
                lease,
                "leader-election",
                "system-leader-election/system:kube-scheduler",
            ),
            (&dns, list, "workload-high", "kube-system-service-accounts/a"),
            (&robot, lease, "workload-low", "service-accounts/system:serviceaccount:a:b"),
            (&who("jane", &[SYSTEM_AUTHENTICATED]), list, "global-default", "global-default/jane"),
            (&who("odd", &[]), list, "catch-all", "catch-all/odd"),
        ] {
            let flow = plan.classify(identity, &request).unwrap();
            assert_eq!((flow.level, flow.key.as_str()), (level, key), "{}", identity.user);
        }
        let probe = Attributes { verb: "get", path: "/healthz", ..Attributes::default() };
        assert_eq!(plan.classify(&who("jane", &[SYSTEM_AUTHENTICATED]), &probe).unwrap().level, "exempt");
    }

    #[test]
    fn the_first_schema_by_precedence_and_name_counts_and_dangling_ones_do_not() {
        let schema = |name: &str, precedence: i64, level: &str| {
            json!({"metadata": {"name": name, "uid": name}, "spec": {"matchingPrecedence": precedence,
                "priorityLevelConfiguration": {"name": level}, "distinguisherMethod": {"type": "ByNamespace"},
                "rules": [{"subjects": [{"kind": "User", "user": {"name": "jane"}}], "resourceRules": [
                    {"verbs": ["list"], "apiGroups": [""], "resources": ["pods", "pods/log"], "namespaces": ["a"]}]}]}})
        };
        let level = json!({"metadata": {"name": "own", "uid": "l"}, "spec": {"type": "Limited", "limited": {
            "nominalConcurrencyShares": 7, "limitResponse": {"type": "Queue",
                "queuing": {"queues": 2, "handSize": 1, "queueLengthLimit": 3}}}}});
        let schemas = [schema("z", 10, "own"), schema("b", 20, "own"), schema("a", 5, "nowhere")];
        let plan = Plan::of(schemas.iter(), std::iter::once(&level));
        let (jane, list) = (who("jane", &[SYSTEM_AUTHENTICATED]), of("list", "", "pods"));
        let flow = plan.classify(&jane, &list).unwrap();
        let expected = Flow {
            level: "own",
            schema_uid: "z",
            level_uid: "l",
            key: "z/a".to_owned(),
            is_one_of_many: true,
        };
        assert_eq!(flow, expected);
        let log = Attributes { subresource: "log", ..list };
        assert_eq!(plan.classify(&jane, &log).unwrap().level, "own");
        for other in [
            Attributes { subresource: "exec", ..list },
            Attributes { namespace: "b", ..list },
            Attributes { namespace: "", ..list },
            Attributes { verb: "get", ..list },
            of("list", "apps", "pods"),
        ] {
            assert_eq!(plan.classify(&jane, &other).unwrap().level, "catch-all", "{other:?}");
        }
        let own = &plan.levels()["own"];
        assert_eq!((own.shares, own.flow_waiting_max, own.waiting_max), (7, 3, 6));
        assert!(plan.levels()["exempt"].is_exempt && plan.levels()["catch-all"].flow_waiting_max == 0);
    }
}
