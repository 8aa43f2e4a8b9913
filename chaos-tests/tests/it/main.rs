//! The judges, tried: on histories whose verdict is known, and on histories made by models.

#![expect(clippy::unwrap_used, reason = "in a test, a failed unwrap is the report")]

mod forms;
mod known;
mod models;
mod speed;
