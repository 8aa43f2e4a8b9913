//! The handle through which an agent uses the runtime. It owns the state directory and promises that
//! every call may be repeated: after any failure, after the agent's death at any point, from a second
//! process. It keeps nothing in memory that is not in the state directory, but for what it found out
//! about the host's cgroups.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::cgroups::detect::Hierarchies;
use crate::cgroups::{Cgroup, Stats};
use crate::container::exec::{self, AttachSpec, Attachment, ExecProcess, ExecSpec, ExecStreams};
use crate::container::plan::{Bundle, ContainerPlan, SandboxPlan};
use crate::container::spec::{CgroupSpec, ContainerSpec, NamespaceMode, SandboxSpec, check_id};
use crate::container::start::{START_TIME_MAX, ShimCommand, claim, claim_new, is_claimed, run_shim};
use crate::container::state::{
    self, ContainerState, Exit, Observed, ObservedSandbox, ProcessId, Running, Sandbox, Started, Unenforced,
    read_unless_torn,
};
use crate::container::{delete, plan, reboot};
use crate::error::Error;
use crate::process::channel::wait_readable;
use crate::shim;
use crate::shim::control::{self, Request};

/// Nobody waits longer than this at a stretch; then the state is looked at anew.
const WATCH_STRETCH: Duration = Duration::from_secs(60);
/// A shim that cannot be reached though it lives is tried again after this.
const RETRY_WAIT: Duration = Duration::from_millis(5);

/// Where the runtime keeps its state and how it starts shims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeConfig {
    /// Best on a memory filesystem, for example `/run/barque/<node>`: then a restart of the machine empties
    /// it. One that survives is understood: its containers are lost.
    pub state_dir: PathBuf,
    /// The command that ends in [`crate::shim::main`], for example `["/proc/self/exe", "shim"]`.
    pub shim_command: Vec<OsString>,
    /// Below the root of each cgroup hierarchy, for example `barque/<cluster>/<node>`.
    pub cgroup_root: PathBuf,
    /// Whether groups are made in every hierarchy of version 1, those included that none of the limits asked for
    /// needs. It costs each container some milliseconds.
    pub every_hierarchy: bool,
}

/// The container runtime. Cheap to clone; all calls block.
#[derive(Clone, Debug)]
pub struct Runtime {
    config: RuntimeConfig,
    shim: ShimCommand,
    hierarchies: Hierarchies,
}

impl Runtime {
    /// Prepares the state directory and finds out what the host's cgroups can do.
    pub fn new(config: RuntimeConfig) -> Result<Runtime, Error> {
        if !config.state_dir.is_absolute() {
            return Err(Error::invalid("state_dir", "it is not an absolute path"));
        }
        let shim = ShimCommand::new(&config.shim_command)?;
        let runtime = Runtime { hierarchies: Hierarchies::detect(config.every_hierarchy)?, shim, config };
        let dirs = [runtime.containers_dir(), runtime.sandboxes_dir()];
        for dir in &dirs {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(|error| Error::io("create state directory", dir, error))?;
        }
        reboot::check(&runtime.config.state_dir, &[&dirs[0], &dirs[1]])?;
        Ok(runtime)
    }

    /// What it was made with.
    pub fn config(&self) -> &RuntimeConfig {
        &self.config
    }

    /// Makes a sandbox, or returns the living one of the same specification. [`Error::Exists`] for one
    /// that is dead or was left unfinished: delete it and try again.
    pub fn create_sandbox(&self, spec: &SandboxSpec) -> Result<Sandbox, Error> {
        spec.check()?;
        let bundle = self.sandbox_bundle(&spec.id)?;
        let netns_of = match &spec.network_of {
            Some(id) => Some(self.sandbox_bundle(id)?.netns()),
            None => None,
        };
        let Some(_claim) = claim_new(&bundle)? else { return self.existing_sandbox(spec, &bundle) };
        let plan = SandboxPlan { spec: spec.clone(), netns_of, cgroup: self.cgroup(&spec.cgroup.path) };
        match run_shim(&self.shim, shim::SANDBOX, &bundle, &plan) {
            Ok(running) => Ok(sandbox_of(spec, &bundle, running)),
            Err(error) => Err(clean_up(error, delete::sandbox(&bundle))),
        }
    }

    fn existing_sandbox(&self, spec: &SandboxSpec, bundle: &Bundle) -> Result<Sandbox, Error> {
        let exists =
            |state: &str| Error::Exists { what: "sandbox", id: spec.id.clone(), state: state.to_owned() };
        // Whoever is making it is waited for.
        let _claim = claim(bundle)?.ok_or_else(|| exists("being deleted"))?;
        let plan: Option<SandboxPlan> = state::read(&bundle.plan())?;
        let running: Option<Running> = read_unless_torn(&bundle.running())?;
        match (plan, running) {
            (Some(plan), _) if plan.spec != *spec => Err(exists("of another specification")),
            (_, Some(running)) if bundle.shim().exists() && running.process.is_alive() => {
                Ok(sandbox_of(spec, bundle, running))
            }
            (_, Some(_)) => Err(exists("dead")),
            (_, None) => Err(exists("unfinished")),
        }
    }

    /// Whether this host counts swap, so that it can be limited.
    pub fn limits_swap(&self) -> bool {
        self.hierarchies.limit_swap()
    }

    /// All sandboxes, in the order of their ids.
    pub fn sandboxes(&self) -> Result<Vec<ObservedSandbox>, Error> {
        let mut found = Vec::new();
        for id in ids_in(&self.sandboxes_dir())? {
            found.extend(self.observe_sandbox(&id)?);
        }
        Ok(found)
    }

    /// One sandbox, if it is there.
    pub fn observe_sandbox(&self, id: &str) -> Result<Option<ObservedSandbox>, Error> {
        let bundle = self.sandbox_bundle(id)?;
        let spec = match state::read::<SandboxPlan>(&bundle.plan()) {
            Ok(Some(plan)) => plan.spec,
            Ok(None) => return Ok(None),
            // What it was made for is lost; that it is there is not.
            Err(Error::State { .. }) => SandboxSpec { id: id.to_owned(), ..SandboxSpec::default() },
            Err(error) => return Err(error),
        };
        let running: Option<Running> = read_unless_torn(&bundle.running())?;
        let netns = netns_of(&spec, &bundle);
        // Its maker is noted before it, and forgotten with another boot.
        let of_this_boot = bundle.shim().exists();
        Ok(Some(ObservedSandbox {
            id: id.to_owned(),
            started_at: running.as_ref().map(|running| running.started_at),
            pause: running.map(|running| running.process).filter(|pause| of_this_boot && pause.is_alive()),
            netns,
            spec,
        }))
    }

    /// Ends a sandbox and all its containers, and removes what was made for them.
    pub fn delete_sandbox(&self, id: &str) -> Result<(), Error> {
        for container in ids_in(&self.containers_dir())? {
            let bundle = self.container_bundle(&container)?;
            let plan: Option<ContainerPlan> = read_unless_torn(&bundle.plan())?;
            if plan.is_some_and(|plan| plan.spec.sandbox == id) {
                self.delete_container(&container)?;
            }
        }
        let bundle = self.sandbox_bundle(id)?;
        match claim(&bundle)? {
            Some(_claim) => delete::sandbox(&bundle),
            None => Ok(()),
        }
    }

    /// Starts a container, or returns the running one of the same specification. [`Error::Exists`] for
    /// one that has ended or was left unfinished: delete it and try again.
    pub fn start_container(&self, spec: &ContainerSpec) -> Result<Started, Error> {
        spec.check()?;
        let sandbox_bundle = self.sandbox_bundle(&spec.sandbox)?;
        let no_sandbox = || Error::NotFound { what: "sandbox", id: spec.sandbox.clone() };
        let sandbox: SandboxPlan = state::read(&sandbox_bundle.plan())?.ok_or_else(no_sandbox)?;
        let pause: Running = state::read(&sandbox_bundle.running())?.ok_or_else(no_sandbox)?;
        let bundle = self.container_bundle(&spec.id)?;
        let shm = match sandbox.spec.ipc {
            NamespaceMode::Own => sandbox_bundle.shm(),
            NamespaceMode::Host => PathBuf::from("/dev/shm"),
        };
        let pid_of = match &spec.pid_of {
            Some(id) => Some(self.running_process(id)?),
            None => None,
        };
        let Some(_claim) = claim_new(&bundle)? else { return self.existing_container(spec, &bundle) };
        let plan = ContainerPlan {
            pid_of,
            spec: spec.clone(),
            sandbox: sandbox.spec,
            pause: pause.process,
            shm,
            cgroup: self.cgroup(&spec.cgroup.path),
        };
        match run_shim(&self.shim, shim::CONTAINER, &bundle, &plan) {
            Ok(running) => Ok(started_of(running)),
            Err(error) => Err(clean_up(error, delete::container(&bundle))),
        }
    }

    fn running_process(&self, id: &str) -> Result<ProcessId, Error> {
        let running: Option<Running> = state::read(&self.container_bundle(id)?.running())?;
        let process = running.map(|running| running.process).filter(ProcessId::is_alive);
        process.ok_or_else(|| Error::NotRunning { id: id.to_owned() })
    }

    fn existing_container(&self, spec: &ContainerSpec, bundle: &Bundle) -> Result<Started, Error> {
        let exists =
            |state: &str| Error::Exists { what: "container", id: spec.id.clone(), state: state.to_owned() };
        let _claim = claim(bundle)?.ok_or_else(|| exists("being deleted"))?;
        let observed = self.observe(&spec.id)?.ok_or_else(|| exists("unfinished"))?;
        if observed.spec != *spec {
            return Err(exists("of another specification"));
        }
        match (observed.state, state::read::<Running>(&bundle.running())?) {
            (ContainerState::Running { .. }, Some(running)) => Ok(started_of(running)),
            (state, _) => Err(exists(state.word())),
        }
    }

    /// All containers, in the order of their ids. One whose plan is damaged has an empty specification.
    pub fn list(&self) -> Result<Vec<Observed>, Error> {
        let mut found = Vec::new();
        for id in ids_in(&self.containers_dir())? {
            found.extend(self.observe(&id)?);
        }
        Ok(found)
    }

    /// One container, if it is there.
    pub fn observe(&self, id: &str) -> Result<Option<Observed>, Error> {
        let bundle = self.container_bundle(id)?;
        let spec = match state::read::<ContainerPlan>(&bundle.plan()) {
            Ok(Some(plan)) => plan.spec,
            Ok(None) => return Ok(None),
            Err(Error::State { .. }) => ContainerSpec { id: id.to_owned(), ..ContainerSpec::default() },
            Err(error) => return Err(error),
        };
        let state = observe_state(&bundle)?;
        Ok(Some(Observed { id: id.to_owned(), sandbox: spec.sandbox.clone(), state, spec }))
    }

    /// Sends a signal, by number, to a container's init.
    pub fn signal(&self, id: &str, signal: i32) -> Result<(), Error> {
        self.ask(id, Request::Signal(signal))
    }

    /// Makes the shim open its log file anew, after the caller has moved it.
    pub fn reopen_log(&self, id: &str) -> Result<(), Error> {
        self.ask(id, Request::Reopen)
    }

    /// Runs a further program in a running container. [`Error::Start`] when it cannot be executed (see
    /// [`crate::StartError::exit_code`]), [`Error::NotRunning`] when the container has ended, or its shim has
    /// no room for another.
    pub fn exec(&self, id: &str, spec: &ExecSpec) -> Result<(ExecProcess, ExecStreams), Error> {
        spec.check()?;
        let bundle = self.existing_bundle(id)?;
        match exec::start(&bundle, spec) {
            Ok(started) => Ok(started),
            Err(exec::Refused::Start(error)) => Err(Error::Start(error)),
            Err(exec::Refused::Io(error)) if is_gone(&error) => Err(Error::NotRunning { id: id.to_owned() }),
            Err(exec::Refused::Io(error)) => Err(Error::io("run a program in", &bundle.dir, error)),
        }
    }

    /// Attaches to a running container's main process. [`Error::NotRunning`] when it has ended, or its shim
    /// has no room for another.
    pub fn attach(&self, id: &str, spec: AttachSpec) -> Result<Attachment, Error> {
        let bundle = self.existing_bundle(id)?;
        exec::attach(&bundle, spec).map_err(|error| match is_gone(&error) {
            true => Error::NotRunning { id: id.to_owned() },
            false => Error::io("attach to the container in", &bundle.dir, error),
        })
    }

    fn ask(&self, id: &str, request: Request) -> Result<(), Error> {
        let bundle = self.existing_bundle(id)?;
        let answered =
            control::request(&bundle, request, &[]).and_then(|answer| control::await_answer(&answer));
        match answered {
            Ok(()) => Ok(()),
            Err(error) if is_gone(&error) => Err(Error::NotRunning { id: id.to_owned() }),
            Err(error) => Err(Error::io("ask shim in", &bundle.dir, error)),
        }
    }

    /// A descriptor that becomes readable when a container has ended, or when its shim has: then ask
    /// [`Runtime::observe`]. (Should it still be running, for the shim had too many watchers, watch again.)
    pub fn exit_watch(&self, id: &str) -> Result<OwnedFd, Error> {
        let bundle = self.existing_bundle(id)?;
        let deadline = Instant::now() + START_TIME_MAX;
        loop {
            let unreachable = match control::request(&bundle, Request::Wait, &[]) {
                Ok(connection) => return Ok(connection),
                Err(error) => Error::io("ask shim in", &bundle.dir, error),
            };
            match observe_state(&bundle)? {
                ContainerState::Exited { .. } | ContainerState::Lost { .. } => return readable(),
                // It has no socket yet, or not any more and is about to be seen as ended.
                _ if bundle.dir.exists() && Instant::now() < deadline => std::thread::sleep(RETRY_WAIT),
                _ => return Err(unreachable),
            }
        }
    }

    /// What a watch that is readable was told, if it was: how the container ended. It is true whatever has become
    /// of the container since.
    pub fn exit_told(&self, watch: &OwnedFd) -> Option<Exit> {
        let (text, _) = control::receive_answer(watch, Some(Instant::now())).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Waits until a container has ended; `None` when how it ended is lost with its shim.
    pub fn wait_exit(&self, id: &str) -> Result<Option<Exit>, Error> {
        loop {
            let watch = self.exit_watch(id)?;
            match wait_readable(&watch, Instant::now() + WATCH_STRETCH) {
                Err(error) if error.kind() != io::ErrorKind::TimedOut => {
                    return Err(Error::io("wait for", format!("container {id}"), error));
                }
                _ => {}
            }
            let observed = self.observe(id)?.ok_or_else(|| not_found(id))?;
            match observed.state {
                ContainerState::Exited { exit, .. } => return Ok(Some(exit)),
                ContainerState::Lost { .. } => return Ok(None),
                ContainerState::Creating | ContainerState::Running { .. } => std::thread::sleep(RETRY_WAIT),
            }
        }
    }

    /// What a container has used so far.
    pub fn stats(&self, id: &str) -> Result<Stats, Error> {
        let bundle = self.existing_bundle(id)?;
        let plan: Option<ContainerPlan> = state::read(&bundle.plan())?;
        Ok(plan.ok_or_else(|| not_found(id))?.cgroup.stats())
    }

    /// Changes the limits of a container; the path in them is not looked at, and what they do not name stays.
    /// Returns what this host does not enforce.
    pub fn update(&self, id: &str, limits: CgroupSpec) -> Result<Vec<Unenforced>, Error> {
        let bundle = self.existing_bundle(id)?;
        let plan: Option<ContainerPlan> = state::read(&bundle.plan())?;
        plan.ok_or_else(|| not_found(id))?.cgroup.create(&limits)
    }

    /// Ends a container and removes what was made for it, its writable layer included; its log stays.
    pub fn delete_container(&self, id: &str) -> Result<(), Error> {
        let bundle = self.container_bundle(id)?;
        match claim(&bundle)? {
            Some(_claim) => delete::container(&bundle),
            None => Ok(()),
        }
    }

    fn containers_dir(&self) -> PathBuf {
        self.config.state_dir.join("containers")
    }

    fn sandboxes_dir(&self) -> PathBuf {
        self.config.state_dir.join("sandboxes")
    }

    fn container_bundle(&self, id: &str) -> Result<Bundle, Error> {
        check_id(id)?;
        Ok(Bundle::new(self.containers_dir().join(id)))
    }

    fn sandbox_bundle(&self, id: &str) -> Result<Bundle, Error> {
        check_id(id)?;
        Ok(Bundle::new(self.sandboxes_dir().join(id)))
    }

    fn existing_bundle(&self, id: &str) -> Result<Bundle, Error> {
        let bundle = self.container_bundle(id)?;
        if bundle.dir.exists() { Ok(bundle) } else { Err(not_found(id)) }
    }

    fn cgroup(&self, path: &Path) -> Cgroup {
        Cgroup::new(&self.hierarchies, &self.config.cgroup_root, path)
    }
}

fn not_found(id: &str) -> Error {
    Error::NotFound { what: "container", id: id.to_owned() }
}

/// The first error is the one to report; a clean-up that fails as well is done again by the caller's next
/// deletion.
fn clean_up(error: Error, cleaned: Result<(), Error>) -> Error {
    match (error, cleaned) {
        (Error::Shim { id, reason, log }, Err(leftover)) => {
            Error::Shim { id, reason: format!("{reason}; and cleaning up failed: {leftover}"), log }
        }
        (error, _) => error,
    }
}

fn sandbox_of(spec: &SandboxSpec, bundle: &Bundle, running: Running) -> Sandbox {
    Sandbox {
        process: running.process,
        started_at: running.started_at,
        netns: netns_of(spec, bundle),
        unenforced: running.unenforced,
    }
}

fn netns_of(spec: &SandboxSpec, bundle: &plan::Bundle) -> Option<PathBuf> {
    (spec.network == NamespaceMode::Own).then(|| bundle.netns())
}

fn started_of(running: Running) -> Started {
    Started { process: running.process, started_at: running.started_at, unenforced: running.unenforced }
}

fn observe_state(bundle: &Bundle) -> Result<ContainerState, Error> {
    let exited = |running: &Option<Running>| -> Result<Option<ContainerState>, Error> {
        let started_at = running.as_ref().map(|running| running.started_at);
        let exit = read_unless_torn(&bundle.exit())?;
        Ok(exit.map(|exit| ContainerState::Exited { started_at, exit }))
    };
    let running: Option<Running> = read_unless_torn(&bundle.running())?;
    if let Some(state) = exited(&running)? {
        return Ok(state);
    }
    let shim: Option<ProcessId> = read_unless_torn(&bundle.shim())?;
    let alive = shim.is_some_and(|shim| shim.is_alive());
    match running {
        Some(running) if alive => {
            Ok(ContainerState::Running { process: running.process, started_at: running.started_at })
        }
        None if alive || is_claimed(bundle) => Ok(ContainerState::Creating),
        running => {
            // It may have recorded the end and ended between the two looks.
            let started_at = running.as_ref().map(|running| running.started_at);
            Ok(exited(&running)?.unwrap_or(ContainerState::Lost { started_at }))
        }
    }
}

/// Whether an error says that nobody is behind a shim's socket any more.
fn is_gone(error: &io::Error) -> bool {
    let gone = [Errno::ENOENT, Errno::ECONNREFUSED, Errno::ECONNRESET, Errno::EPIPE, Errno::ESRCH];
    error.raw_os_error().is_some_and(|code| gone.contains(&Errno::from_raw(code)))
}

/// A descriptor that is readable: the reading end of a pipe that nobody writes.
fn readable() -> Result<OwnedFd, Error> {
    let (reader, _) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
        .map_err(|error| Error::io("create", "pipe", error))?;
    Ok(reader)
}

fn ids_in(dir: &Path) -> Result<Vec<String>, Error> {
    let failed = |error: io::Error| Error::io("read", dir, error);
    let mut ids = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        ids.extend(entry.map_err(failed)?.file_name().into_string().ok());
    }
    ids.retain(|id| check_id(id).is_ok());
    ids.sort();
    Ok(ids)
}
