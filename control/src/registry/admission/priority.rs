//! A pod's priority is its PriorityClass's; a pod that names none has that of the class which is the default,
//! or 0.

use api::{Kind, Status};
use serde_json::{Map, Value};

use super::{is_pod, stored, stored_in};
use crate::object_store::Consistency;
use crate::registry::Registry;

const GROUP: &str = "scheduling.k8s.io";
/// The classes that every cluster has.
const SYSTEM: [(&str, i64); 2] =
    [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];
const PREEMPT_DEFAULT: &str = "PreemptLowerPriority";

/// What a class gives.
struct Class {
    name: String,
    value: i64,
    preemption: String,
}

impl Class {
    fn of(class: &Value) -> Self {
        Self {
            name: api::object::name(class).to_owned(),
            value: class["value"].as_i64().unwrap_or(0),
            preemption: class["preemptionPolicy"].as_str().unwrap_or(PREEMPT_DEFAULT).to_owned(),
        }
    }
}

pub(in crate::registry) async fn admit(
    registry: &Registry,
    kind: &Kind,
    object: &mut Value,
    consistency: Consistency,
) -> Result<(), Status> {
    if !is_pod(kind) {
        return Ok(());
    }
    let name = api::object::name(object).to_owned();
    let asked = object["spec"]["priorityClassName"].as_str().unwrap_or_default().to_owned();
    let class = match asked.as_str() {
        "" => default(registry, consistency).await?,
        asked => match named(registry, asked, consistency).await? {
            Some(class) => class,
            None => {
                let why = format!("no PriorityClass with name {asked} was found");
                return Err(Status::forbidden(kind, &name, &why));
            }
        },
    };
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return Ok(()) };
    set(spec, &class).map_err(|why| Status::forbidden(kind, &name, why))
}

fn set(spec: &mut Map<String, Value>, class: &Class) -> Result<(), &'static str> {
    // What defaulting wrote is nobody's word.
    let (priority, preemption) = (spec.get("priority"), spec.get("preemptionPolicy"));
    let is_other = |own: i64| own != class.value && own != 0;
    if priority.and_then(Value::as_i64).is_some_and(is_other) {
        return Err("the integer value of priority must not be provided in pod spec; \
                    priority admission controller computed it from the given PriorityClass name");
    }
    let is_other = |own: &str| own != class.preemption && own != PREEMPT_DEFAULT;
    if preemption.and_then(Value::as_str).is_some_and(is_other) {
        return Err("the string value of PreemptionPolicy must not be provided in pod spec; \
                    priority admission controller computed it from the given PriorityClass name");
    }
    if !class.name.is_empty() {
        spec.insert("priorityClassName".to_owned(), Value::from(class.name.as_str()));
    }
    spec.insert("priority".to_owned(), Value::from(class.value));
    spec.insert("preemptionPolicy".to_owned(), Value::from(class.preemption.as_str()));
    Ok(())
}

async fn named(registry: &Registry, name: &str, consistency: Consistency) -> Result<Option<Class>, Status> {
    if let Some(class) = stored(registry, GROUP, "PriorityClass", name, consistency).await? {
        return Ok(Some(Class::of(class.value())));
    }
    let system = SYSTEM.iter().find(|(own, _)| *own == name);
    Ok(system.map(|(name, value)| Class {
        name: (*name).to_owned(),
        value: *value,
        preemption: PREEMPT_DEFAULT.to_owned(),
    }))
}

/// The class of pods that name none. Of several defaults the lowest counts.
async fn default(registry: &Registry, consistency: Consistency) -> Result<Class, Status> {
    let classes = stored_in(registry, GROUP, "PriorityClass", "", consistency).await?;
    let defaults = classes.iter().filter(|class| class.value()["globalDefault"] == true);
    let lowest = defaults.map(|class| Class::of(class.value())).min_by_key(|class| class.value);
    let none = || Class { name: String::new(), value: 0, preemption: PREEMPT_DEFAULT.to_owned() };
    Ok(lowest.unwrap_or_else(none))
}
