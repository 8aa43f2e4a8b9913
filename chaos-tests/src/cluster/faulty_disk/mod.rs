//! A disk that fails on purpose: a FUSE file system of ours in memory, under a member's directory.
//!
//! Writes reach a cache; a sync makes them durable (module `tree`). [`FaultyDisk::change`] makes calls fail, wait or find no room, and
//! cutting the power loses what was not synced. It is the strictest disk that POSIX allows: names are durable only once their
//! directory was synced. It needs root and `/dev/fuse`; whoever mounts serves it, so that it is gone when the experiment is.

mod serve;
mod tree;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use fuser::{BackgroundSession, Config, MountOption, ReplyEmpty, SessionACL};

use tree::Tree;

/// What is wrong with a disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskState {
    /// So many of the next writes and syncs fail with EIO.
    pub errors: Option<u64>,
    /// Writes fail with ENOSPC.
    pub full: bool,
    /// Each sync takes longer.
    pub sync_delay: Duration,
    /// No sync returns while this is set.
    pub hang: bool,
}

#[derive(Default)]
struct Shared {
    tree: Tree,
    state: DiskState,
    without_power: bool,
    /// Syncs that do not return yet.
    hanging: Vec<(u64, ReplyEmpty)>,
    hits: u64,
}

/// A mounted disk. Dropping it unmounts it.
pub struct FaultyDisk {
    path: PathBuf,
    shared: Arc<Mutex<Shared>>,
    session: Option<BackgroundSession>,
}

impl FaultyDisk {
    /// Why this machine cannot have such a disk, if it cannot.
    pub fn missing() -> Option<&'static str> {
        if !nix::unistd::geteuid().is_root() {
            return Some("needs root");
        }
        (!Path::new("/dev/fuse").exists()).then_some("needs /dev/fuse")
    }

    /// Makes a directory and mounts an empty disk there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn mount(path: &Path) -> anyhow::Result<Self> {
        if let Some(why) = Self::missing() {
            anyhow::bail!("no disk that can fail: it {why}");
        }
        std::fs::create_dir(path).with_context(|| format!("cannot create {}", path.display()))?;
        let shared = Arc::new(Mutex::new(Shared::default()));
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("barque-chaos".to_owned())];
        config.acl = SessionACL::Owner;
        let session = fuser::spawn_mount(serve::Server::new(Arc::clone(&shared)), path, &config)
            .with_context(|| format!("cannot mount {}", path.display()))?;
        Ok(Self { path: path.to_owned(), shared, session: Some(session) })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Changes what is wrong with it. Syncs that waited return once nothing makes them wait.
    pub fn change(&self, change: impl FnOnce(&mut DiskState)) {
        let mut shared = lock(&self.shared);
        change(&mut shared.state);
        if !shared.state.hang {
            shared.release_hanging();
        }
    }

    /// Every call fails from now on, and nothing more becomes durable.
    pub fn cut_power(&self) {
        let mut shared = lock(&self.shared);
        shared.without_power = true;
        shared.release_hanging();
    }

    /// What was not synced is gone, or with `torn`, some sectors of it are there.
    pub fn power_on(&self, torn: bool) {
        let mut shared = lock(&self.shared);
        shared.without_power = false;
        shared.tree.lose_unsynced(torn, &mut rand::rng());
        // A power cut that finds nothing to lose was one all the same.
        shared.hits += 1;
    }

    /// How often it failed, was slow, or lost power.
    pub fn hits(&self) -> u64 {
        lock(&self.shared).hits
    }
}

impl Drop for FaultyDisk {
    fn drop(&mut self) {
        self.cut_power();
        if let Some(session) = self.session.take() {
            // The keeper takes away what stays.
            let _left = session.umount_and_join();
        }
    }
}

impl Shared {
    fn release_hanging(&mut self) {
        for (number, reply) in std::mem::take(&mut self.hanging) {
            if self.without_power || self.tree.sync(number).is_err() {
                reply.error(fuser::Errno::EIO);
            } else {
                reply.ok();
            }
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
