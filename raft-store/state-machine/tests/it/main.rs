//! The state machine against a naive model of it, its encodings against damage, and etcd's rules one by one.

#![expect(clippy::unwrap_used, reason = "a test that meets an error is to stop there")]

mod auth;
mod auth_model;
mod churn;
mod codec;
mod hash_kv;
mod model;
mod rules;
mod strategy;
mod trim;
mod versus_model;
