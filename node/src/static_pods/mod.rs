//! Static pods: pods that come from files of the node, with or without a control plane.
//!
//! Owns the watching and reading of `staticPodPath`; the dispatcher runs what is found, and shows it to the API
//! (`pods::mirrors`). The kernel says when something changed; every `fileCheckFrequency` it is read anyhow. A
//! file that cannot be understood is told in the log, once, and keeps the pod that it gave before: most such
//! files are half-written.

mod manifest;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::manifest::{ManifestError, Place};
use crate::Config;
use crate::pods::dispatcher::Command;

/// Bytes of a manifest at most.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;
/// Manifests at most; the rest is told and not run.
const MANIFESTS_MAX: usize = 500;

/// Reads static pods, and again whenever they change, until the agent stops.
pub(crate) async fn run(config: Config, pods: mpsc::Sender<Command>, shutdown: CancellationToken) {
    let mut reader = Reader::new(&config);
    let Some(path) = config.static_pod_path.clone() else {
        // Those of an earlier configuration end.
        drop(pods.send(Command::Static(Vec::new())).await);
        return;
    };
    let mut watcher = Watcher::new(&path);
    let mut told: Option<Vec<Pod>> = None;
    loop {
        let reading = tokio::task::spawn_blocking(move || {
            let found = reader.read();
            (reader, found)
        });
        let found;
        (reader, found) = reading.await.expect("reading manifests does not panic");
        if told.as_ref() != Some(&found) {
            if pods.send(Command::Static(found.clone())).await.is_err() {
                return;
            }
            told = Some(found);
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = watcher.changed() => {}
            () = tokio::time::sleep(config.file_check_frequency) => watcher = Watcher::new(&path),
        }
    }
}

/// What was read of each file.
struct Reader {
    path: PathBuf,
    node_name: String,
    files: BTreeMap<PathBuf, Known>,
}

/// One file's last good pod, and what was last wrong with it.
#[derive(Default)]
struct Known {
    text: String,
    pod: Option<Pod>,
    problem: Option<String>,
}

impl Reader {
    fn new(config: &Config) -> Self {
        let path = config.static_pod_path.clone().unwrap_or_default();
        Self { path, node_name: config.node_name.clone(), files: BTreeMap::new() }
    }

    /// The pods of all files; of two with one name the first file's.
    fn read(&mut self) -> Vec<Pod> {
        let mut files = match manifest::files(&self.path) {
            Ok(files) => files,
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "static pods cannot be listed; they stay as they are");
                return self.pods();
            }
        };
        if files.len() > MANIFESTS_MAX {
            tracing::warn!(path = %self.path.display(), max = MANIFESTS_MAX, "too many manifests; the last are not run");
            files.truncate(MANIFESTS_MAX);
        }
        self.files.retain(|path, _| files.contains(path));
        for file in files {
            let known = self.files.entry(file.clone()).or_default();
            let place = Place { node_name: &self.node_name, path: &file };
            let problem = match refresh(known, &place) {
                Ok(()) => None,
                Err(error) => Some(error.to_string()),
            };
            if let Some(problem) = problem.as_ref().filter(|_| problem != known.problem) {
                tracing::error!(path = %file.display(), %problem, "not a manifest of a static pod; skipped");
            }
            known.problem = problem;
        }
        self.pods()
    }

    fn pods(&self) -> Vec<Pod> {
        let mut pods: Vec<Pod> = Vec::new();
        for (path, pod) in self.files.iter().filter_map(|(path, known)| Some((path, known.pod.as_ref()?))) {
            let same = |other: &Pod| {
                let (a, b) = (&other.metadata, &pod.metadata);
                a.uid == b.uid || (a.name == b.name && a.namespace == b.namespace)
            };
            match pods.iter().any(same) {
                true => tracing::error!(path = %path.display(), "another static pod has this name; skipped"),
                false => pods.push(pod.clone()),
            }
        }
        pods
    }
}

/// Reads a file again. The same text is the same pod, first seen when it was.
fn refresh(known: &mut Known, place: &Place<'_>) -> Result<(), ManifestError> {
    let mut text = String::new();
    File::open(place.path)?.take(MANIFEST_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MANIFEST_BYTES_MAX {
        return Err(ManifestError::TooLarge { max: MANIFEST_BYTES_MAX });
    }
    if known.pod.is_none() || known.text != text {
        let pod = manifest::parse(&text, place, Timestamp::now())?;
        let is_known = known.pod.as_ref().is_some_and(|known| known.metadata.uid == pod.metadata.uid);
        if !is_known {
            known.pod = Some(pod);
        }
        known.text = text;
    }
    Ok(())
}

/// Hears of changes below a path, if the kernel can tell.
struct Watcher(Option<AsyncFd<OwnedFd>>);

impl Watcher {
    fn new(path: &Path) -> Self {
        Self(watch(path).inspect_err(|error| tell_unwatched(path, *error)).ok())
    }

    /// Resolves after a change; never if there is nothing to hear from.
    async fn changed(&self) {
        let Some(fd) = &self.0 else { return std::future::pending().await };
        let Ok(mut ready) = fd.readable().await else { return std::future::pending().await };
        // What happened does not matter: everything is read again.
        let mut events = [0; 4096];
        while nix::unistd::read(fd, &mut events).is_ok_and(|length| length > 0) {}
        ready.clear_ready();
    }
}

fn tell_unwatched(path: &Path, error: Errno) {
    tracing::debug!(path = %path.display(), %error, "static pods are not watched; they are read now and then");
}

fn watch(path: &Path) -> Result<AsyncFd<OwnedFd>, Errno> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let changes = AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_MOVED_TO;
    // A single file is often replaced by a rename: its directory sees that.
    let dir = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
    inotify.add_watch(dir, changes)?;
    #[expect(
        deprecated,
        reason = "the unsafe replacement is for types whose descriptor may change; OwnedFd's does not"
    )]
    AsyncFd::with_interest(OwnedFd::from(inotify), Interest::READABLE).map_err(|_| Errno::EIO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_file_keeps_its_pod_and_a_removed_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web.yaml");
        let manifest = |image: &str| {
            format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec: {{containers: [{{name: c, image: {image}}}]}}\n"
            )
        };
        let mut reader =
            Reader { path: dir.path().to_owned(), node_name: "n".into(), files: BTreeMap::new() };
        assert!(reader.read().is_empty());
        std::fs::write(&path, manifest("a")).unwrap();
        let first = reader.read();
        assert_eq!(
            first.len(),
            1,
            "{:?}",
            reader.files.values().next().and_then(|known| known.problem.clone())
        );
        assert_eq!(reader.read(), first, "seen once");
        std::fs::write(&path, "apiVersion: v1\nkind: P").unwrap();
        assert_eq!(reader.read(), first);
        std::fs::write(&path, manifest("b")).unwrap();
        let second = reader.read();
        assert_ne!(second[0].metadata.uid, first[0].metadata.uid);
        std::fs::write(dir.path().join("zweb.yaml"), manifest("c")).unwrap();
        assert_eq!(reader.read(), second, "a name belongs to one file");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(reader.read().len(), 1);
        std::fs::remove_file(dir.path().join("zweb.yaml")).unwrap();
        assert!(reader.read().is_empty());
    }
}
