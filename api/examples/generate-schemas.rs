//! Writes the schemas of the served kinds, one definition a line, for `src/openapi/schemas.json`:
//! `cargo run -p api --features generate-schemas --example generate-schemas > api/src/openapi/schemas.json`.

use k8s_openapi::api::{
    admissionregistration, apps, authentication, authorization, autoscaling, batch, certificates,
    coordination, core, discovery, events, flowcontrol, networking, node, policy, rbac, scheduling, storage,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions;
use k8s_openapi::apimachinery::pkg::apis::meta;

macro_rules! add {
    ($generator:ident, $($group:ident::$version:ident::{$($name:ident),* $(,)?}),* $(,)?) => {
        $($($generator.subschema_for::<$group::$version::$name>();)*)*
    };
}

fn main() {
    let mut generator = schemars::generate::SchemaSettings::openapi3().into_generator();
    add! { generator,
        core::v1::{
            Binding, ConfigMap, Endpoints, Event, LimitRange, Namespace, Node, PersistentVolume,
            PersistentVolumeClaim, Pod, PodTemplate, ReplicationController, ResourceQuota, Secret, Service,
            ServiceAccount,
        },
        admissionregistration::v1::{
            MutatingWebhookConfiguration, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
            ValidatingWebhookConfiguration,
        },
        apiextensions::v1::{CustomResourceDefinition},
        apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet},
        authentication::v1::{SelfSubjectReview, TokenRequest, TokenReview},
        authorization::v1::{
            LocalSubjectAccessReview, SelfSubjectAccessReview, SelfSubjectRulesReview, SubjectAccessReview,
        },
        autoscaling::v1::{HorizontalPodAutoscaler, Scale},
        autoscaling::v2::{HorizontalPodAutoscaler},
        batch::v1::{CronJob, Job},
        certificates::v1::{CertificateSigningRequest},
        coordination::v1::{Lease},
        discovery::v1::{EndpointSlice},
        events::v1::{Event},
        flowcontrol::v1::{FlowSchema, PriorityLevelConfiguration},
        networking::v1::{Ingress, IngressClass, NetworkPolicy},
        node::v1::{RuntimeClass},
        policy::v1::{Eviction, PodDisruptionBudget},
        rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
        scheduling::v1::{PriorityClass},
        storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment},
        meta::v1::{DeleteOptions, ListMeta, Status},
    }
    let definitions = generator.take_definitions(true);
    println!("{{");
    for (index, (name, schema)) in definitions.iter().enumerate() {
        let comma = if index + 1 < definitions.len() { "," } else { "" };
        println!("\"{name}\": {schema}{comma}");
    }
    println!("}}");
}
