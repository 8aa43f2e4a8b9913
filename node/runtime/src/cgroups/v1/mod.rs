//! cgroups version 1: a hierarchy per controller (or a few), a file here per controller family.

pub(super) mod cpu;
pub(super) mod freezer;
pub(super) mod memory;
pub(super) mod pids;
