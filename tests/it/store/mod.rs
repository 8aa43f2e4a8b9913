//! `barque store` and the operator's commands, as processes.

mod members;
mod process;
mod single;
mod tls;
