//! The kinds that the API serves, and their rules.
//!
//! Owns the table of served kinds over the `k8s-openapi` types ([`mod@kinds`]) and everything about an object
//! that can be said without a clock, a network or a disk: names, quantities, selectors, the typed check,
//! defaults, validation, patches, printed columns, discovery and schema documents. Promises that every
//! function here is pure (time and randomness are passed in) and that texts, reasons and codes are those
//! that the Kubernetes API server gives. Does not store, authenticate or talk to anybody.
//!
//! Objects are [`serde_json::Value`] in the generic rules and typed `k8s_openapi` structs where a rule is
//! about one kind's fields.

pub mod admission;
pub mod cel;
pub mod crd;
pub mod cron;
pub mod decode;
pub mod defaults;
pub mod discovery;
pub mod duration;
pub mod ingress;
pub mod kinds;
pub mod limits;
pub mod local_volume;
pub mod metrics;
pub mod name;
pub mod object;
pub mod openapi;
pub mod patch;
pub mod pod_security;
pub mod protobuf;
pub mod qos;
pub mod quantity;
pub mod quota;
pub mod references;
pub mod selector;
pub mod status;
pub mod table;
pub mod validation;
pub mod versions;

pub use k8s_openapi;
pub use kinds::{Kind, kinds};
pub use quantity::Quantity;
pub use selector::{FieldSelector, LabelSelector};
pub use status::{Cause, CauseKind, Status};
