//! The kinds that a replica serves at one moment: the built-in ones and those that definitions register.

use std::sync::{Arc, LazyLock, OnceLock};

use serde_json::Value;

use super::CustomKind;
use crate::kinds::{self, Kind};

/// A set of served kinds; it does not change.
#[derive(Debug, Clone)]
pub struct KindSet {
    all: Vec<&'static Kind>,
    custom: Vec<Arc<CustomKind>>,
    openapi_index: OnceLock<Value>,
    openapi_v2: OnceLock<Value>,
}

impl Default for KindSet {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl KindSet {
    /// The built-in kinds and these.
    pub fn new(mut custom: Vec<Arc<CustomKind>>) -> Self {
        custom.sort_by_key(|own| {
            (own.kind().group, kinds::version_preference(own.kind().version), own.kind().plural)
        });
        let all = kinds::kinds()
            .iter()
            .chain(custom.iter().filter(|own| own.is_served()).map(|own| own.kind()))
            .collect();
        Self { all, custom, openapi_index: OnceLock::new(), openapi_v2: OnceLock::new() }
    }

    /// The built-in kinds alone.
    pub fn builtin() -> &'static Self {
        static BUILTIN: LazyLock<KindSet> = LazyLock::new(KindSet::default);
        &BUILTIN
    }

    /// Where the OpenAPI v3 documents of these kinds are. It holds their hashes, so it is made once and kept.
    pub fn openapi_index(&self, server_version: &str) -> &Value {
        self.openapi_index.get_or_init(|| crate::openapi::index(self, server_version))
    }

    /// The OpenAPI v2 document of these kinds, which is large; made when first asked for, and kept.
    pub fn openapi_v2(&self, server_version: &str) -> &Value {
        self.openapi_v2.get_or_init(|| crate::openapi::document_v2(self, server_version))
    }

    /// Every kind, in discovery order.
    pub fn kinds(&self) -> &[&'static Kind] {
        &self.all
    }

    /// The kind that a path names.
    pub fn by_resource(&self, group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
        kinds::by_resource(group, version, plural).or_else(|| {
            let mut rows = self.custom.iter().filter(|own| own.is_served()).map(|own| own.kind());
            rows.find(|kind| kind.plural == plural && kind.version == version && kind.group == group)
        })
    }

    /// A kind of that name, in whichever version is preferred.
    pub fn by_group_kind(&self, group: &str, kind: &str) -> Option<&'static Kind> {
        self.all.iter().copied().find(|own| own.kind == kind && own.group == group && !own.virtual_only)
    }

    /// The other served versions of a kind, preferred ones first.
    pub fn other_versions(&self, kind: &Kind) -> Vec<&'static Kind> {
        let Some(custom) = self.custom(kind) else { return crate::versions::others(kind).collect() };
        let same = |own: &&Arc<CustomKind>| {
            own.is_served() && own.definition() == custom.definition() && own.kind().version != kind.version
        };
        self.custom.iter().filter(same).map(|own| own.kind()).collect()
    }

    /// The kinds that definitions register, one for each version served or stored.
    pub fn custom_kinds(&self) -> &[Arc<CustomKind>] {
        &self.custom
    }

    /// The rules of a custom kind; `None`: it is not one, or is served no more.
    pub fn custom(&self, kind: &Kind) -> Option<&Arc<CustomKind>> {
        let is_it = |own: &&Arc<CustomKind>| {
            let row = own.kind();
            row.plural == kind.plural && row.version == kind.version && row.group == kind.group
        };
        self.custom.iter().find(is_it).filter(|_| kind.is_custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stable_versions_are_preferred() {
        let mut versions =
            ["foo1", "v1alpha1", "v10beta3", "v2", "v11alpha2", "v1", "v3beta1", "v12alpha1", "foo10"];
        versions.sort_by_key(|version| kinds::version_preference(version));
        assert_eq!(
            versions,
            ["v2", "v1", "v10beta3", "v3beta1", "v12alpha1", "v11alpha2", "v1alpha1", "foo1", "foo10"]
        );
    }
}
