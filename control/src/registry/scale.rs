//! How many of something there should be, the same for every kind that counts
//! (`autoscaling/v1` `Scale` of the Kubernetes API reference).
//!
//! Owns where the numbers stand in an object. Does not read requests: that is the REST API's.

use api::crd::ScalePaths;
use api::{Kind, LabelSelector, Status, object};
use serde_json::{Value, json};

use super::{Object, Registry, Target, WriteOptions};

/// The numbers of one object.
#[derive(Debug, Clone)]
pub struct Scale {
    /// What is counted.
    pub kind: &'static Kind,
    /// The object, as it was.
    metadata: Value,
    /// How many are wanted.
    pub replicas: i64,
    /// How many there are.
    pub present: i64,
    /// Which pods they are, as text; empty if that is not known.
    pub selector: String,
}

impl Scale {
    /// The numbers of an object.
    pub fn of(object: &Object) -> Self {
        let paths = object.custom_kind().and_then(|custom| custom.scale());
        Self::read(object.kind(), object.value(), paths)
    }

    /// The numbers that stand in a text; a custom kind says where.
    pub fn read(kind: &'static Kind, object: &Value, paths: Option<&ScalePaths>) -> Self {
        let number = |value: Option<&Value>| value.and_then(Value::as_i64).unwrap_or(0);
        let metadata = object["metadata"].clone();
        match paths {
            None => Self {
                kind,
                metadata,
                replicas: number(Some(&object["spec"]["replicas"])),
                present: number(Some(&object["status"]["replicas"])),
                selector: selector(kind, &object["spec"]["selector"]),
            },
            Some(paths) => {
                let selector = paths.selector.as_ref().and_then(|path| path.find(object)?.as_str());
                Self {
                    kind,
                    metadata,
                    replicas: number(paths.spec_replicas.find(object)),
                    present: number(paths.status_replicas.find(object)),
                    selector: selector.unwrap_or_default().to_owned(),
                }
            }
        }
    }

    /// As clients get it.
    pub fn to_value(&self) -> Value {
        let metadata = &self.metadata;
        json!({
            "apiVersion": "autoscaling/v1",
            "kind": "Scale",
            "metadata": {
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
                "resourceVersion": metadata["resourceVersion"],
                "creationTimestamp": metadata["creationTimestamp"],
            },
            "spec": {"replicas": self.replicas},
            "status": {"replicas": self.present, "selector": self.selector},
        })
    }
}

impl Registry {
    /// The numbers of an object of any kind that counts, in whichever version is preferred.
    ///
    /// # Errors
    /// When there is no such kind, it does not count, or there is no such object.
    pub async fn scale(&self, group: &str, kind: &str, namespace: &str, name: &str) -> Result<Scale, Status> {
        let kinds = self.kinds().current();
        let kind = kinds.by_group_kind(group, kind).filter(|kind| kind.subresource("scale").is_some());
        let kind = kind.ok_or_else(Status::not_found_path)?;
        Ok(Scale::of(&*self.get(kind, namespace, name).await?))
    }

    /// Changes how many are wanted, unless somebody else has changed the object since.
    ///
    /// # Errors
    /// `Conflict`, and whatever else a write may meet.
    pub async fn rescale(&self, scale: &Scale, replicas: i64, options: &WriteOptions) -> Result<(), Status> {
        let options = WriteOptions { subresource: "scale", ..options.clone() };
        let rules = self.rules(scale.kind)?;
        let paths = rules.custom().and_then(|custom| custom.scale());
        let text = |field: &str| scale.metadata[field].as_str().unwrap_or_default();
        let (namespace, name) = (text("namespace"), text("name"));
        let change = |value: &mut Value| {
            if object::resource_version(value) != text("resourceVersion") {
                return Err(Status::modified(scale.kind, name));
            }
            set_replicas(value, paths, replicas);
            Ok(())
        };
        self.modify(Target::new(scale.kind, namespace, name), &options, change).await.map(drop)
    }
}

/// Writes the number where the kind has it.
pub fn set_replicas(object: &mut Value, paths: Option<&ScalePaths>, replicas: i64) {
    match paths {
        None => object["spec"]["replicas"] = json!(replicas),
        Some(paths) => paths.spec_replicas.set(object, json!(replicas)),
    }
}

/// A ReplicationController's selector is a map of labels.
fn selector(kind: &Kind, selector: &Value) -> String {
    let selector = match kind.kind {
        "ReplicationController" => json!({"matchLabels": selector}),
        _ => selector.clone(),
    };
    let selector = serde_json::from_value(selector).ok();
    LabelSelector::from_typed(selector.as_ref()).map(|selector| selector.to_string()).unwrap_or_default()
}
