//! A further process in a running container (exec): what it does between fork and exec. The shim is its
//! parent, as it is init's, and is in the container's pid namespace as far as children are concerned.
//!
//! Promises: the same cgroup, namespaces, root, user, rights and environment as the container's own
//! process; it ends with the shim. Does not: make any of them.

use std::convert::Infallible;

use nix::unistd::Pid;

use super::channel::{InitChannel, InitMessage};
use super::failure::Failure;
use super::init::{self, Stdio};
use crate::cgroups::Birth;
use crate::container::plan::ContainerPlan;
use crate::container::spec::ProcessSpec;
use crate::error::{Stage, StartError};
use crate::{namespaces, syscall};

/// Takes the calling process into the container of `init` and executes a program there.
pub(crate) fn run(
    plan: &ContainerPlan,
    birth: Birth,
    process: &ProcessSpec,
    init: Pid,
    channel: &InitChannel,
    stdio: Stdio,
) -> ! {
    let Err(error) = set_up(plan, birth, process, init, channel, stdio);
    let code = error.exit_code();
    // Without the shim there is nobody to tell.
    let _ = channel.send(&InitMessage::Failed(error), None);
    syscall::exit_now(code)
}

fn set_up(
    plan: &ContainerPlan,
    birth: Birth,
    process: &ProcessSpec,
    init: Pid,
    channel: &InitChannel,
    stdio: Stdio,
) -> Result<Infallible, StartError> {
    let at = |stage: Stage| move |failure: Failure| failure.at(stage);
    init::prepare(plan, channel).map_err(at(Stage::Prepare))?;
    plan.cgroup.enter(birth).map_err(|error| Failure::from(error).at(Stage::Cgroup))?;
    let users = namespaces::join_process(init, plan.sandbox.users).map_err(at(Stage::Namespaces))?;
    init::become_process(process, plan.spec.privileged, users, (channel, stdio))
}
