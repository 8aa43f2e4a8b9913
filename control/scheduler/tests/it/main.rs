//! The scheduler as its shell uses it: scripts in `testdata`, and properties over random clusters.

mod build;
mod neighbours;
mod properties;
mod scripts;
