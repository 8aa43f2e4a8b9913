//! What a runtime behind CRI leaves to its user: logs that grow are rotated, and the images are looked at for the
//! node's status.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Weak;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use proto::cri::{self, ContainerState};
use tonic::Status;

use super::Inner;
use crate::images::ImageSummary;

/// How often it is looked.
const KEEP_INTERVAL: Duration = Duration::from_secs(10);

/// Looks after both for as long as the runtime is in use.
pub(super) async fn run(inner: Weak<Inner>) {
    loop {
        let Some(inner) = inner.upgrade() else { return };
        if let Err(status) = inner.note_images().await {
            tracing::debug!(%status, "the container runtime does not list its images");
        }
        if let Err(status) = inner.rotate_logs(runtime::LOG_FILE_BYTES_DEFAULT).await {
            tracing::debug!(%status, "logs are not rotated");
        }
        drop(inner);
        tokio::time::sleep(KEEP_INTERVAL).await;
    }
}

impl Inner {
    async fn note_images(&self) -> Result<(), Status> {
        let request = cri::ListImagesRequest { filter: None };
        let images = self.images.clone().list_images(request).await?.into_inner().images;
        let mut summaries: Vec<ImageSummary> = images.into_iter().map(summary).collect();
        summaries.sort_by_key(|image| std::cmp::Reverse(image.size_bytes));
        *self.listed.lock().expect("no holder of the images panics") = summaries;
        Ok(())
    }

    async fn rotate_logs(&self, file_bytes_max: u64) -> Result<(), Status> {
        for container in self.containers(&[]).await? {
            if container.state() != ContainerState::ContainerRunning {
                continue;
            }
            let request = cri::ContainerStatusRequest { container_id: container.id.clone(), verbose: false };
            let Ok(status) = self.runtime.clone().container_status(request).await else { continue };
            let path = PathBuf::from(status.into_inner().status.unwrap_or_default().log_path);
            let is_full = fs::metadata(&path).is_ok_and(|log| log.len() > file_bytes_max);
            if is_full && let Err(problem) = self.rotate(&container.id, &path).await {
                tracing::warn!(log = %path.display(), %problem, "cannot rotate a log; it is tried again");
            }
        }
        Ok(())
    }

    /// The writer goes on in a new file; one that cannot be told so keeps the old one under its name.
    async fn rotate(&self, container_id: &str, path: &Path) -> Result<(), String> {
        let old =
            PathBuf::from(format!("{}.{}", path.display(), Timestamp::now().strftime("%Y%m%d-%H%M%S.%9f")));
        fs::rename(path, &old).map_err(|error| format!("cannot rename it: {error}"))?;
        let request = cri::ReopenContainerLogRequest { container_id: container_id.to_owned() };
        if let Err(status) = self.runtime.clone().reopen_container_log(request).await {
            return match fs::rename(&old, path) {
                Ok(()) => Err(status.to_string()),
                Err(error) => Err(format!("{status}; and cannot give it its name back: {error}")),
            };
        }
        remove_oldest(path, runtime::LOG_FILES_DEFAULT)
            .map_err(|error| format!("cannot remove old ones: {error}"))
    }
}

/// Removes what was rotated away from a log first, until so many files are left, the current one included.
fn remove_oldest(path: &Path, files_max: u32) -> io::Result<()> {
    let Some((dir, name)) = path.parent().zip(path.file_name().and_then(|name| name.to_str())) else {
        return Ok(());
    };
    let prefix = format!("{name}.");
    let is_old = |file: &PathBuf| {
        file.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(&prefix))
    };
    let files = fs::read_dir(dir)?.filter_map(Result::ok).map(|entry| entry.path());
    let mut old: Vec<PathBuf> = files.filter(is_old).collect();
    old.sort();
    let keep = (files_max as usize).saturating_sub(1);
    old.iter().take(old.len().saturating_sub(keep)).try_for_each(fs::remove_file)
}

fn summary(image: cri::Image) -> ImageSummary {
    ImageSummary {
        names: image.repo_digests.into_iter().chain(image.repo_tags).collect(),
        size_bytes: image.size,
        id: image.id,
        added_at: SystemTime::UNIX_EPOCH,
        used_at: SystemTime::UNIX_EPOCH,
        pinned: image.pinned,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_first() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        for name in [
            "0.log",
            "0.log.20260101-000000.1",
            "0.log.20260102-000000.1",
            "0.log.20260103-000000.1",
            "1.log",
        ] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        remove_oldest(&log, 3).unwrap();
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["0.log", "0.log.20260102-000000.1", "0.log.20260103-000000.1", "1.log"]);
    }
}
