//! What happens in a container's process between fork and exec. One thread, a copy of the shim; it may
//! allocate. Each step names its [`Stage`], so that a failure can be told as the user's tools do. What comes
//! after the root is in place ([`become_process`]) is the same for a further process (see `enter`).
//!
//! Order matters: cgroups before namespaces (so that the cgroup namespace's root is the container's own
//! group), mounts before the pivot, the pod's user namespace after all that takes the host's rights, everything
//! that needs privilege before the user changes.

use std::convert::Infallible;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{
    Gid, Uid, dup2_stderr, dup2_stdin, dup2_stdout, fchown, setgroups, setresgid, setresuid, setsid,
};

use super::channel::{InitChannel, InitMessage};
use super::exec;
use super::failure::Failure;
use super::users::{self, Resolved};
use crate::capabilities::Set;
use crate::cgroups::Birth;
use crate::container::plan::ContainerPlan;
use crate::container::spec::{ProcessSpec, TerminalSize};
use crate::container::state::Unenforced;
use crate::error::{Stage, StartError};
use crate::namespaces::Users;
use crate::rootfs::{devices, mounts, overlay, pivot, resolve::Root};
use crate::{namespaces, rlimits, syscall};

const DIRECTORY_MODE_MASK: Mode = Mode::from_bits_truncate(0o022);

/// The ends of standard input and output that the program will have. A terminal is made inside the
/// container instead.
#[derive(Debug)]
pub(crate) enum Stdio {
    Pipes {
        stdin: OwnedFd,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    Terminal {
        size: Option<TerminalSize>,
        /// Whether it is the container's `/dev/console` as well.
        console: bool,
    },
}

/// Sets the calling process up as the container's init and executes its program.
pub(crate) fn run(plan: &ContainerPlan, birth: Birth, channel: &InitChannel, stdio: Stdio) -> ! {
    let Err(error) = set_up(plan, birth, channel, stdio);
    let code = error.exit_code();
    // Without the shim there is nobody to tell.
    let _ = channel.send(&InitMessage::Failed(error), None);
    syscall::exit_now(code)
}

fn set_up(
    plan: &ContainerPlan,
    birth: Birth,
    channel: &InitChannel,
    stdio: Stdio,
) -> Result<Infallible, StartError> {
    let at = |stage: Stage| move |failure: Failure| failure.at(stage);
    prepare(plan, channel).map_err(at(Stage::Prepare))?;
    plan.cgroup.enter(birth).map_err(|error| Failure::from(error).at(Stage::Cgroup))?;
    namespaces::join_sandbox(plan).map_err(at(Stage::Namespaces))?;
    let users = Users::of_sandbox(plan).map_err(at(Stage::Namespaces))?;
    let own_cgroup_view = namespaces::make_own().map_err(at(Stage::Namespaces))?;
    make_root(plan, own_cgroup_view, users.as_ref())?;
    become_process(&plan.spec.process, plan.spec.privileged, users, (channel, stdio))
}

/// Becomes the program of a process inside the container's root, with its user, limits and rights.
pub(super) fn become_process(
    process: &ProcessSpec,
    privileged: bool,
    namespace: Option<Users>,
    (channel, stdio): (&InitChannel, Stdio),
) -> Result<Infallible, StartError> {
    let at = |stage: Stage| move |failure: Failure| failure.at(stage);
    let user = users::resolve(&process.user).map_err(at(Stage::User))?;
    let owner = match &namespace {
        Some(namespace) => namespace.user_on_host(&user).map_err(at(Stage::User))?,
        None => Uid::from_raw(user.uid),
    };
    if let Stdio::Pipes { stdout, stderr, .. } = &stdio {
        hand_over(&[stdout, stderr], owner).map_err(at(Stage::Stdio))?;
    }
    let limit = || rlimits::apply(&process.rlimits).map_err(|error| Failure::from(error).at(Stage::Rlimits));
    let limited = namespace.is_some();
    if let Some(namespace) = namespace {
        // Raising a limit is the host's right.
        limit()?;
        namespace.enter().map_err(at(Stage::Namespaces))?;
    }
    connect_stdio(channel, stdio, &user).map_err(at(Stage::Stdio))?;
    enter_working_directory(&process.cwd).map_err(at(Stage::Cwd))?;
    if !limited {
        limit()?;
    }
    let capabilities =
        process.capabilities.set(privileged).map_err(|error| Failure::from(error).at(Stage::Capabilities))?;
    let filters = process
        .system_call_filters(privileged, capabilities)
        .map_err(|error| Failure::from(error).at(Stage::Seccomp))?;
    // Installing a filter takes a privilege, or the promise never to gain one. With the promise it comes last, so
    // that it need not allow what sets the process up.
    if !process.no_new_privileges {
        filters.install().map_err(at(Stage::Seccomp))?;
    }
    drop_bounding(capabilities).map_err(at(Stage::Capabilities))?;
    become_user(&user).map_err(at(Stage::User))?;
    give_up_privileges(capabilities, process.no_new_privileges).map_err(at(Stage::Capabilities))?;
    if process.no_new_privileges {
        filters.install().map_err(at(Stage::Seccomp))?;
    }
    let env = exec::environment(&process.env, &user.home, process.terminal);
    let program = exec::find(&process.args[0], &env).map_err(at(Stage::Exec))?;
    syscall::close_on_exec_from(3)
        .map_err(|error| Failure::io("close", "inherited files", error).at(Stage::Exec))?;
    channel
        .send(&InitMessage::Executing, None)
        .map_err(|error| Failure::io("reach", "the shim", error).at(Stage::Exec))?;
    exec::become_program(&program, &process.args, &env).map_err(at(Stage::Exec))
}

/// Makes the process independent of the shim's settings, and dependent on its life.
pub(super) fn prepare(plan: &ContainerPlan, channel: &InitChannel) -> Result<(), Failure> {
    let failed = |what: &'static str| move |error: nix::Error| Failure::io("set", what, error);
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(failed("parent death signal"))?;
    // Other processes of a shared pid namespace have no business with this one before it executes.
    prctl::set_dumpable(false).map_err(failed("dumpable"))?;
    syscall::reset_signals().map_err(|error| Failure::io("reset", "signals", error))?;
    umask(DIRECTORY_MODE_MASK);
    setsid().map_err(failed("session"))?;
    if let Some(adjustment) = plan.spec.oom_score_adj
        && let Err(reason) = set_oom_score_adj(adjustment)
    {
        let message = InitMessage::Unenforced(reason);
        channel.send(&message, None).map_err(|error| Failure::io("reach", "the shim", error))?;
    }
    Ok(())
}

/// Sets the calling process's OOM score adjustment. Lowering it needs a privilege that hosts inside
/// containers or virtual machines may lack: that is reported, not an error.
pub(crate) fn set_oom_score_adj(adjustment: i32) -> Result<(), Unenforced> {
    fs::write("/proc/self/oom_score_adj", adjustment.to_string()).map_err(|error| Unenforced {
        limit: "oom_score_adj".to_owned(),
        reason: format!("cannot set it to {adjustment}: {error}"),
    })
}

fn make_root(plan: &ContainerPlan, own_cgroup_view: bool, users: Option<&Users>) -> Result<(), StartError> {
    let at = |stage: Stage| move |failure: Failure| failure.at(stage);
    let spec = &plan.spec;
    let nodes = if spec.privileged { MsFlags::empty() } else { MsFlags::MS_NODEV };
    let shared = mounts::copy_shared(spec, users).map_err(at(Stage::Mount))?;
    mounts::detach_from_host().map_err(at(Stage::Rootfs))?;
    users.map_or(Ok(()), Users::own_files).map_err(at(Stage::User))?;
    overlay::mount_root(&spec.rootfs, nodes, users).map_err(at(Stage::Rootfs))?;
    let root = Root::open(&spec.rootfs.merged)
        .map_err(|error| Failure::io("open", &spec.rootfs.merged, error).at(Stage::Rootfs))?;
    // Without a cgroup namespace the mounts would show all of the host's groups.
    let views = if own_cgroup_view { plan.cgroup.views() } else { Vec::new() };
    mounts::mount_standard(&root, spec, (&plan.shm, &views), users).map_err(at(Stage::Mount))?;
    // Nodes stay the host's: root of a user namespace is nobody to them.
    let nodes_made = || devices::make(&root, spec.privileged);
    users.map_or_else(nodes_made, |users| users.as_host(nodes_made)).map_err(at(Stage::Devices))?;
    mounts::mount_all(&root, spec, shared, users).map_err(at(Stage::Mount))?;
    mounts::guard_paths(&root, spec).map_err(at(Stage::Mount))?;
    drop(root);
    pivot::enter(&spec.rootfs.merged).map_err(at(Stage::Pivot))?;
    if spec.rootfs.read_only {
        pivot::make_read_only(nodes).map_err(at(Stage::Pivot))?;
    }
    Ok(())
}

fn connect_stdio(channel: &InitChannel, stdio: Stdio, user: &Resolved) -> Result<(), Failure> {
    let (stdin, stdout, stderr) = match stdio {
        Stdio::Pipes { stdin, stdout, stderr } => (stdin, stdout, stderr),
        Stdio::Terminal { size, console } => {
            let end = open_terminal(channel, size, console)?;
            hand_over(&[&end], Uid::from_raw(user.uid))?;
            let copy = || syscall::duplicate(&end).map_err(|error| Failure::io("copy", "terminal", error));
            (copy()?, copy()?, end)
        }
    };
    dup2_stdin(&stdin).map_err(|error| Failure::io("connect", "standard input", error))?;
    dup2_stdout(&stdout).map_err(|error| Failure::io("connect", "standard output", error))?;
    dup2_stderr(&stderr).map_err(|error| Failure::io("connect", "standard error", error))
}

/// Gives output to a user, so that /dev/stdout can be opened anew by a program that is not root.
fn hand_over(outputs: &[&OwnedFd], owner: Uid) -> Result<(), Failure> {
    let given = outputs.iter().try_for_each(|fd| fchown(fd, Some(owner), None));
    given.map_err(|error| Failure::io("hand over", "standard output", error))
}

/// Opens a terminal of the container's own `/dev/pts`, sends its controlling side to the shim, makes the
/// other the session's terminal (and `/dev/console`), and returns it.
fn open_terminal(
    channel: &InitChannel,
    size: Option<TerminalSize>,
    console: bool,
) -> Result<OwnedFd, Failure> {
    use nix::fcntl::OFlag;
    let failed = |error: std::io::Error| Failure::io("open", "/dev/ptmx", error);
    let near = nix::pty::posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)
        .map_err(|error| failed(error.into()))?;
    nix::pty::unlockpt(&near).map_err(|error| failed(error.into()))?;
    let name = nix::pty::ptsname_r(&near).map_err(|error| failed(error.into()))?;
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let far = nix::fcntl::open(Path::new(&name), flags, Mode::empty())
        .map_err(|error| Failure::io("open", &name, error))?;
    let near = syscall::duplicate(&near).map_err(failed)?;
    if let Some(size) = size {
        syscall::set_terminal_size(near.as_fd(), size).map_err(failed)?;
    }
    channel.send(&InitMessage::Terminal, Some(&near)).map_err(failed)?;
    if console {
        let console = "/dev/console";
        fs::write(console, "").map_err(|error| Failure::io("create", console, error))?;
        mount(Some(name.as_str()), console, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(|error| Failure::io("bind mount", console, error))?;
    }
    syscall::set_controlling_terminal(far.as_fd()).map_err(failed)?;
    Ok(far)
}

fn enter_working_directory(cwd: &str) -> Result<(), Failure> {
    let cwd = Path::new(if cwd.is_empty() { "/" } else { cwd });
    if !cwd.is_absolute() {
        return Err(Failure::rule(format!("cwd must be an absolute path: {}", cwd.display())));
    }
    fs::create_dir_all(cwd).map_err(|error| Failure::io("mkdir", cwd, error))?;
    nix::unistd::chdir(cwd).map_err(|error| Failure::io("chdir to cwd", cwd, error))
}

fn drop_bounding(keep: Set) -> Result<(), Failure> {
    for number in 0..u64::BITS {
        if keep.contains(number) {
            continue;
        }
        let known = syscall::drop_bounding_capability(number)
            .map_err(|error| Failure::io("drop", format!("capability {number}"), error))?;
        if !known {
            break;
        }
    }
    Ok(())
}

fn become_user(user: &Resolved) -> Result<(), Failure> {
    let failed = |what: &'static str| move |error: nix::Error| Failure::io("set", what, error);
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    prctl::set_keepcaps(true).map_err(failed("kept capabilities"))?;
    setgroups(&user.groups).map_err(failed("supplementary groups"))?;
    setresgid(gid, gid, gid).map_err(failed("group"))?;
    setresuid(uid, uid, uid).map_err(failed("user"))?;
    prctl::set_keepcaps(false).map_err(failed("kept capabilities"))?;
    // The change of user cleared it.
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(failed("parent death signal"))
}

fn give_up_privileges(capabilities: Set, no_new_privileges: bool) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::io("set", "capabilities", error);
    let permitted = syscall::permitted_capabilities().map_err(failed)?;
    syscall::set_capabilities(capabilities.and(permitted)).map_err(failed)?;
    syscall::clear_ambient_capabilities().map_err(failed)?;
    if no_new_privileges {
        prctl::set_no_new_privs().map_err(|error| Failure::io("set", "no_new_privs", error))?;
    }
    Ok(())
}
