//! Role-based access: what roles allow, and to whom they are bound.
//!
//! Owns the meaning of rules ([`rule`]), the lookup from a subject to what it was granted ([`policy`]), the
//! roles that every cluster has ([`defaults`]) and the check that nobody grants more than he has
//! (`escalation`). Rules only ever allow. Does not read the store by itself: [`super::Access`] keeps the
//! policy current. The API is `rbac.authorization.k8s.io/v1` of the Kubernetes API reference.

pub mod defaults;
pub(crate) mod escalation;
pub mod policy;
pub mod rule;
