//! Records on disk: one small file per pod, replaced by rename.
//!
//! A file is whole or not there as long as the machine is up, which is as long as its containers live; it is
//! not flushed to the device. After a power cut a damaged file is dropped: no container outlived it.

use std::fs;
use std::io;
use std::path::Path;

use super::record::PodRecord;

const FILE: &str = "checkpoint.json";

/// Writes a pod's record below its directory, which must exist.
pub(crate) fn save(pod_dir: &Path, record: &PodRecord) -> io::Result<()> {
    let temporary = pod_dir.join("checkpoint.tmp");
    fs::write(&temporary, serde_json::to_vec(record)?)?;
    fs::rename(temporary, pod_dir.join(FILE))
}

/// Whether an agent before this one had still to end a pod. Files without a record are what it was just removing after all
/// else of the pod was gone: they are removed.
pub(crate) fn is_left(pod_dir: &Path) -> io::Result<bool> {
    if pod_dir.join(FILE).exists() {
        return Ok(true);
    }
    match fs::remove_dir_all(pod_dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(false),
    }
}

/// Reads every record; directories without a readable one are named for removal.
pub(crate) fn load_all(pods_dir: &Path) -> io::Result<(Vec<PodRecord>, Vec<String>)> {
    let (mut records, mut orphans) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(pods_dir)? {
        let entry = entry?;
        let uid = entry.file_name().to_string_lossy().into_owned();
        match read(&entry.path().join(FILE)) {
            Ok(record) if record.uid() == uid => records.push(record),
            Ok(_) => orphans.push(uid),
            Err(error) => {
                tracing::warn!(pod_uid = %uid, %error, "pod directory without a usable checkpoint");
                orphans.push(uid);
            }
        }
    }
    Ok((records, orphans))
}

fn read(path: &Path) -> io::Result<PodRecord> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::Timestamp;

    use super::*;

    #[test]
    fn records_survive_and_damaged_ones_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let pod: k8s_openapi::api::core::v1::Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "uid": "good"}, "spec": {"containers": [{"name": "c"}]}}))
        .unwrap();
        let mut record = PodRecord::new(Arc::new(pod), Timestamp::UNIX_EPOCH);
        record.containers.get_mut("c").unwrap().restart_count = 3;
        for uid in ["good", "bad", "empty"] {
            fs::create_dir(dir.path().join(uid)).unwrap();
        }
        save(&dir.path().join("good"), &record).unwrap();
        fs::write(dir.path().join("bad").join(FILE), "{").unwrap();
        assert!(is_left(&dir.path().join("good")).unwrap() && !is_left(&dir.path().join("none")).unwrap());
        let (records, mut orphans) = load_all(dir.path()).unwrap();
        orphans.sort();
        assert_eq!(orphans, ["bad", "empty"]);
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].containers["c"].restart_count, 3);
        assert_eq!(records[0].name(), "p");
        assert!(!is_left(&dir.path().join("empty")).unwrap() && !dir.path().join("empty").exists());
    }
}
