//! Kinds that users register: CustomResourceDefinitions and the rules that follow from them.
//!
//! Owns a definition's own rules ([`definition`]), what its schema says about objects (pruning, defaults,
//! validation, CEL rules), its printed columns and OpenAPI schema, and the set of kinds that a replica serves
//! at one moment ([`KindSet`]). Promises that a custom kind is a row like a built-in one ([`Kind`]), so that
//! everything that works on rows works on it, and that no schema, pattern or rule can take more than a bounded
//! time for one object. Does not call conversion webhooks itself, and says what they are told ([`conversion`]).

mod columns;
pub mod conversion;
pub mod definition;
mod fields;
mod formats;
mod kind_set;
mod names;
mod openapi;
mod rows;
mod rules;
mod schema;
mod structural;
mod validate;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use self::columns::Column;
pub use self::columns::JsonPath;
pub use self::kind_set::KindSet;
pub use self::names::{Names, accept};
pub use self::rows::{ROWS_MAX, Rows};
pub(crate) use self::schema::{ListType, Schema, Type};
use crate::decode;
use crate::kinds::Kind;
use crate::object;
use crate::status::{Cause, Status, quoted};
use crate::table::IncludeObject;
use crate::validation;

/// Where the numbers of the subresource `scale` stand in an object.
#[derive(Debug, Clone, PartialEq)]
pub struct ScalePaths {
    /// How many there should be.
    pub spec_replicas: JsonPath,
    /// How many there are.
    pub status_replicas: JsonPath,
    /// Which are counted, as text.
    pub selector: Option<JsonPath>,
}

/// One served version of a custom kind, with its rules.
#[derive(Debug)]
pub struct CustomKind {
    kind: &'static Kind,
    definition: String,
    revision: u64,
    is_deleting: bool,
    is_served: bool,
    storage_api_version: String,
    conversion: Option<Value>,
    schema: Schema,
    source: Arc<Value>,
    columns: Vec<Column>,
    scale: Option<ScalePaths>,
    selectable: Vec<(String, JsonPath)>,
    warning: Option<String>,
}

impl CustomKind {
    /// The versions that an established definition serves, and the one that it stores; `revision` is that of
    /// the definition. Rows come from `rows`; when those are used up, the definition is not served.
    pub fn of(definition: &Value, revision: u64, rows: &Rows) -> Vec<Arc<Self>> {
        if !self::definition::is_true(definition, "Established") {
            return Vec::new();
        }
        let versions = definition["spec"]["versions"].as_array().into_iter().flatten();
        let served = versions.filter(|version| version["served"] == true || version["storage"] == true);
        served
            .filter_map(|version| Self::version(definition, version, revision, rows).map(Arc::new))
            .collect()
    }

    fn version(definition: &Value, version: &Value, revision: u64, rows: &Rows) -> Option<Self> {
        let kind = rows.row(definition, version)?;
        let source = &version["schema"]["openAPIV3Schema"];
        let columns = match version["additionalPrinterColumns"].as_array() {
            Some(columns) if !columns.is_empty() => columns.iter().map(Column::parse).collect(),
            _ => vec![Column::age()],
        };
        let scale = &version["subresources"]["scale"];
        let path = |field: &str| JsonPath::parse(scale[field].as_str()?).ok();
        let scale = path("specReplicasPath").zip(path("statusReplicasPath")).map(|(spec, status)| {
            ScalePaths { spec_replicas: spec, status_replicas: status, selector: path("labelSelectorPath") }
        });
        let selectable = version["selectableFields"].as_array().into_iter().flatten().filter_map(|field| {
            let path = field["jsonPath"].as_str()?;
            Some((path.trim_start_matches('.').to_owned(), JsonPath::parse(path).ok()?))
        });
        let warning = (version["deprecated"] == true).then(|| {
            let own = version["deprecationWarning"].as_str().map(str::to_owned);
            own.unwrap_or_else(|| format!("{} {} is deprecated", kind.api_version(), kind.kind))
        });
        Some(Self {
            kind,
            definition: object::name(definition).to_owned(),
            revision,
            is_deleting: object::deletion_timestamp(definition).is_some(),
            is_served: version["served"] == true,
            storage_api_version: format!("{}/{}", kind.group, self::definition::storage_version(definition)),
            conversion: self::definition::conversion_webhook(definition).cloned(),
            schema: Schema::parse(source),
            source: Arc::new(source.clone()),
            columns,
            scale,
            selectable: selectable.collect(),
            warning,
        })
    }

    /// The row.
    pub fn kind(&self) -> &'static Kind {
        self.kind
    }

    /// The name of its CustomResourceDefinition.
    pub fn definition(&self) -> &str {
        &self.definition
    }

    /// The revision of the definition that this was made from.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether the definition is being deleted, so that no object may be made any more.
    pub fn is_deleting(&self) -> bool {
        self.is_deleting
    }

    /// Whether paths name this version; the stored one is known even if they do not.
    pub fn is_served(&self) -> bool {
        self.is_served
    }

    /// The `apiVersion` that objects are stored in.
    pub fn storage_api_version(&self) -> &str {
        &self.storage_api_version
    }

    /// How the webhook is reached that converts objects between versions; `None`: they differ in their name only.
    pub fn conversion_client(&self) -> Option<&Value> {
        self.conversion.as_ref()
    }

    /// What whoever uses this version should be told.
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// Where the subresource `scale` finds its numbers.
    pub fn scale(&self) -> Option<&ScalePaths> {
        self.scale.as_ref()
    }

    /// The fields beyond name and namespace by which objects can be selected.
    pub fn selectable(&self) -> &[(String, JsonPath)] {
        &self.selectable
    }

    /// Checks an object's type and metadata and drops what the schema does not name; gives the texts for it.
    pub fn normalize(&self, value: &mut Value) -> Result<Vec<String>, Status> {
        decode::check_type(self.kind, value)?;
        let mut texts = decode::normalize_metadata(self.kind, value)?;
        let unknown = fields::prune(&self.schema, value);
        texts.extend(unknown.iter().map(|path| format!("unknown field {}", quoted(path))));
        if let Some(object) = value.as_object_mut() {
            object.insert("apiVersion".to_owned(), Value::from(self.kind.api_version()));
            object.insert("kind".to_owned(), Value::from(self.kind.kind));
        }
        Ok(texts)
    }

    /// Fills in the schema's defaults.
    pub fn default(&self, value: &mut Value) {
        fields::default(&self.schema, value);
    }

    /// Why the object may not be created.
    pub fn check_create(&self, object: &Value) -> Vec<Cause> {
        let mut causes = validation::create(self.kind, object);
        self.check(object, None, &mut causes);
        causes
    }

    /// Why the object may not replace its predecessor.
    pub fn check_update(&self, old: &Value, new: &Value) -> Vec<Cause> {
        let mut causes = validation::update(self.kind, old, new);
        self.check(new, Some(old), &mut causes);
        causes
    }

    fn check(&self, object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
        let before = causes.len();
        validate::check(&self.schema, object, old, &mut String::new(), causes);
        // Rules may rely on what the schema says.
        if causes.len() == before {
            rules::check(&self.schema, object, old, causes);
        }
    }

    /// A stored object as this version shows it: its own `apiVersion`, what the schema names, with defaults.
    pub fn show(&self, stored: &mut Value) {
        fields::prune(&self.schema, stored);
        self.default(stored);
        self.set_api_version(stored, &self.kind.api_version());
    }

    /// Brings an object into the version that is stored.
    pub fn store(&self, value: &mut Value) {
        self.set_api_version(value, &self.storage_api_version);
    }

    fn set_api_version(&self, value: &mut Value, api_version: &str) {
        if let Some(members) = value.as_object_mut() {
            members.insert("apiVersion".to_owned(), Value::from(api_version));
        }
    }

    /// A `meta.k8s.io/v1` `Table` of the objects.
    pub fn table(
        &self,
        objects: &[Value],
        now: Timestamp,
        include: IncludeObject,
        list_meta: Value,
    ) -> Value {
        let name = json!({"name": "Name", "type": "string", "format": "name", "priority": 0,
            "description": "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically."});
        let columns: Vec<Value> =
            std::iter::once(name).chain(self.columns.iter().map(Column::definition)).collect();
        let rows: Vec<Value> = objects
            .iter()
            .map(|object| {
                let name = Value::from(object::name(object));
                let others = self.columns.iter().map(|column| column.cell(object, now));
                let cells: Vec<Value> = std::iter::once(name).chain(others).collect();
                let mut row = json!({"cells": cells});
                match include {
                    IncludeObject::None => {}
                    IncludeObject::Metadata => row["object"] = crate::table::partial_metadata(object),
                    IncludeObject::Object => row["object"] = object.clone(),
                }
                row
            })
            .collect();
        json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": list_meta,
            "columnDefinitions": columns, "rows": rows})
    }

    /// What objects are held against.
    pub(crate) fn schema(&self) -> &Schema {
        &self.schema
    }

    /// The kind's schema as OpenAPI documents carry it.
    pub fn openapi_schema(&self) -> Value {
        openapi::schema(self.kind, &self.source)
    }
}
