//! What runs against a cluster while it is broken, and remembers what it was told.

pub mod creates;
