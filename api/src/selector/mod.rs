//! Selectors: which objects a list, a watch or an object's spec speaks of.
//!
//! Owns the label selector grammar, the typed `metav1.LabelSelector`, and field selectors with the fields
//! that each kind supports. Does not read objects from anywhere.

mod field;
mod label;

pub use field::FieldSelector;
pub use label::{LabelSelector, Operator, Requirement, Source};
