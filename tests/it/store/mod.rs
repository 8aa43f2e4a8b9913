//! `barque store` and the operator's commands, as processes.

mod disks;
mod members;
mod process;
mod single;
mod tls;
