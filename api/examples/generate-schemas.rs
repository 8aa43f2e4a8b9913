//! Writes the schemas of the served kinds, one definition a line, for `src/openapi/schemas.json`:
//! `cargo run -p api --features generate-schemas --example generate-schemas > api/src/openapi/schemas.json`.

use k8s_openapi::api::{
    apps, authentication, authorization, autoscaling, coordination, core, policy, rbac, storage,
};
use k8s_openapi::apimachinery::pkg::apis::meta;

fn main() {
    let mut generator = schemars::generate::SchemaSettings::openapi3().into_generator();
    generator.subschema_for::<core::v1::Binding>();
    generator.subschema_for::<core::v1::ConfigMap>();
    generator.subschema_for::<core::v1::Event>();
    generator.subschema_for::<core::v1::Namespace>();
    generator.subschema_for::<core::v1::Node>();
    generator.subschema_for::<core::v1::PersistentVolume>();
    generator.subschema_for::<core::v1::PersistentVolumeClaim>();
    generator.subschema_for::<core::v1::Pod>();
    generator.subschema_for::<core::v1::Secret>();
    generator.subschema_for::<core::v1::ServiceAccount>();
    generator.subschema_for::<coordination::v1::Lease>();
    generator.subschema_for::<policy::v1::Eviction>();
    generator.subschema_for::<storage::v1::StorageClass>();
    generator.subschema_for::<apps::v1::Deployment>();
    generator.subschema_for::<apps::v1::ReplicaSet>();
    generator.subschema_for::<autoscaling::v1::Scale>();
    generator.subschema_for::<authentication::v1::SelfSubjectReview>();
    generator.subschema_for::<authentication::v1::TokenRequest>();
    generator.subschema_for::<authentication::v1::TokenReview>();
    generator.subschema_for::<authorization::v1::LocalSubjectAccessReview>();
    generator.subschema_for::<authorization::v1::SelfSubjectAccessReview>();
    generator.subschema_for::<authorization::v1::SelfSubjectRulesReview>();
    generator.subschema_for::<authorization::v1::SubjectAccessReview>();
    generator.subschema_for::<rbac::v1::ClusterRole>();
    generator.subschema_for::<rbac::v1::ClusterRoleBinding>();
    generator.subschema_for::<rbac::v1::Role>();
    generator.subschema_for::<rbac::v1::RoleBinding>();
    generator.subschema_for::<meta::v1::DeleteOptions>();
    generator.subschema_for::<meta::v1::ListMeta>();
    generator.subschema_for::<meta::v1::Status>();
    let definitions = generator.take_definitions(true);
    println!("{{");
    for (index, (name, schema)) in definitions.iter().enumerate() {
        let comma = if index + 1 < definitions.len() { "," } else { "" };
        println!("\"{name}\": {schema}{comma}");
    }
    println!("}}");
}
