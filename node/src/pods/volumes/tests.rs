//! Volumes on a real file system. Those in memory need root.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use api::references::{Reference, ReferenceKind};
use k8s_openapi::api::core::v1::HostPathVolumeSource;
use serde_json::{Value, json};

use super::*;

struct Given {
    dir: tempfile::TempDir,
    objects: Objects,
    local_volumes: LocalVolumes,
    tokens: Tokens,
    pod: Pod,
}

impl Given {
    fn new(volumes: Value) -> Self {
        let pod = json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u",
                "labels": {"b": "2", "a": "say \"hi\"\n"}},
            "spec": {"volumes": volumes, "containers": [{"name": "c",
                "resources": {"limits": {"memory": "64Mi"}}}]},
        });
        let objects = Objects::default();
        objects.keep_only(&[]);
        let dir = tempfile::tempdir().unwrap();
        Self {
            local_volumes: LocalVolumes::open(dir.path().join("kept"), "here").unwrap(),
            dir,
            objects,
            tokens: Tokens::new(),
            pod: serde_json::from_value(pod).unwrap(),
        }
    }

    fn put(&self, kind: ReferenceKind, name: &str, version: &str, data: Value) {
        let object = json!({"metadata": {"name": name, "resourceVersion": version}, "data": data});
        self.objects.put(Reference::new(kind, "ns", name), object.to_string().as_bytes());
    }

    fn around(&self) -> Around<'_> {
        Around {
            pod: &self.pod,
            namespace: "ns",
            objects: &self.objects,
            local_volumes: &self.local_volumes,
            tokens: &self.tokens,
            fs_group: None,
            fs_user: None,
            allocatable: (4000, 8 << 30),
        }
    }

    fn prepare(&self) -> Result<(), String> {
        prepare(self.around(), self.dir.path()).map_err(|e| e.to_string())
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.dir.path().join(path)).unwrap()
    }

    fn mode(&self, path: &str) -> u32 {
        fs::metadata(self.dir.path().join(path)).unwrap().permissions().mode() & 0o7777
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        release(self.dir.path()).unwrap();
    }
}

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("skipped: mounting memory needs root");
    }
    root
}

#[test]
fn empty_dirs_are_made_for_everybody() {
    let given = Given::new(json!([{"name": "a", "emptyDir": {}}, {"name": "b"}]));
    given.prepare().unwrap();
    given.prepare().unwrap();
    assert_eq!(given.mode("a"), 0o777);
    assert!(source_path(&given.around().volumes()[1], given.dir.path()).is_dir());
    release(&given.dir.path().join("never-made")).unwrap();
}

#[test]
fn host_paths_are_checked_by_type() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let check =
        |path: String, kind: &str| host_path::check(&HostPathVolumeSource { path, type_: Some(kind.into()) });
    check(at("d"), "DirectoryOrCreate").unwrap();
    check(at("f"), "FileOrCreate").unwrap();
    assert_eq!(fs::metadata(at("d")).unwrap().permissions().mode() & 0o777, 0o755);
    assert_eq!(fs::metadata(at("f")).unwrap().permissions().mode() & 0o777, 0o644);
    check(at("d"), "Directory").unwrap();
    check(at("f"), "File").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("s")).unwrap();
    check(at("s"), "Socket").unwrap();
    for (path, kind, what) in [
        (at("f"), "Directory", "directory"),
        (at("f"), "DirectoryOrCreate", "directory"),
        (at("d"), "File", "file"),
        (at("d"), "FileOrCreate", "file"),
        (at("none"), "Socket", "socket"),
        (at("f"), "CharDevice", "character device"),
        ("/dev/null".to_owned(), "BlockDevice", "block device"),
    ] {
        let error = check(path.clone(), kind).unwrap_err();
        assert_eq!(error, format!("hostPath type check failed: {path} is not a {what}"));
    }
    assert!(check("/dev/null".into(), "CharDevice").is_ok());
}

#[test]
fn kinds_without_a_driver_say_what_to_use() {
    for (source, words) in [
        (json!({"gitRepo": {"repository": "https://x"}}), "in an init container into an emptyDir"),
        (
            json!({"gcePersistentDisk": {"pdName": "d"}}),
            "volumes of type gcePersistentDisk are not supported",
        ),
        (
            json!({"csi": {"driver": "d.io"}}),
            "driver name d.io not found in the list of registered CSI drivers",
        ),
        (json!({"nfs": {"server": "127.0.0.1", "path": "/x"}}), "mount failed: cannot mount 127.0.0.1:/x"),
    ] {
        let mut volume = source;
        volume["name"] = json!("v");
        let error = Given::new(json!([volume])).prepare().unwrap_err();
        assert!(error.starts_with("MountVolume.SetUp failed for volume \"v\" : "), "{error}");
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn config_maps_become_files_that_follow_the_object() {
    let given = Given::new(json!([
        {"name": "all", "configMap": {"name": "m", "defaultMode": 0o600}},
        {"name": "some", "configMap": {"name": "m", "items": [{"key": "b", "path": "x/y", "mode": 0o400}]}},
        {"name": "none", "configMap": {"name": "z", "optional": true}},
    ]));
    let error = given.prepare().unwrap_err();
    assert_eq!(error, "MountVolume.SetUp failed for volume \"all\" : configmap \"m\" not found");
    given.put(ReferenceKind::ConfigMap, "m", "1", json!({"a": "1"}));
    let error = given.prepare().unwrap_err();
    assert_eq!(error, "MountVolume.SetUp failed for volume \"some\" : references non-existent config key: b");
    given.put(ReferenceKind::ConfigMap, "m", "2", json!({"a": "1", "b": "2"}));
    given.prepare().unwrap();
    assert_eq!((given.read("all/a"), given.read("some/x/y")), ("1".into(), "2".into()));
    assert_eq!((given.mode("all/a"), given.mode("some/x/y")), (0o600, 0o400));
    assert_eq!(fs::read_dir(given.dir.path().join("none")).unwrap().count(), 2, "only the writer's own");
    given.put(ReferenceKind::ConfigMap, "m", "3", json!({"b": "3", "c": "4"}));
    refresh(given.around(), given.dir.path()).unwrap();
    assert_eq!(
        (given.read("all/b"), given.read("all/c"), given.read("some/x/y")),
        ("3".into(), "4".into(), "3".into())
    );
    assert!(!given.dir.path().join("all/a").exists());
}

#[test]
fn secrets_and_projections_lie_in_memory() {
    if !is_root() {
        return;
    }
    let mut given = Given::new(json!([
        {"name": "s", "secret": {"secretName": "s", "defaultMode": 0o400}},
        {"name": "p", "projected": {"sources": [
            {"secret": {"name": "s", "items": [{"key": "user", "path": "in/user"}]}},
            {"configMap": {"name": "m"}},
            {"serviceAccountToken": {"path": "token"}},
            {"downwardAPI": {"items": [
                {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
                {"path": "name", "fieldRef": {"fieldPath": "metadata.name"}},
                {"path": "memory", "resourceFieldRef":
                    {"containerName": "c", "resource": "limits.memory", "divisor": "1Mi"}},
            ]}},
        ]}},
    ]));
    given.put(ReferenceKind::Secret, "s", "1", json!({"user": "cm9vdA=="}));
    let error = given.prepare().unwrap_err();
    assert_eq!(
        error,
        "MountVolume.SetUp failed for volume \"p\" : [configmap \"m\" not found, failed to fetch token: \
         the control plane has not given one yet]"
    );
    given.put(ReferenceKind::ConfigMap, "m", "1", json!({"a": "1"}));
    given.tokens.insert(("p".into(), 2), "a.b.c".into());
    given.prepare().unwrap();
    given.prepare().unwrap();
    assert_eq!((given.read("s/user"), given.mode("s/user")), ("root".into(), 0o400));
    let device = |name: &str| fs::metadata(given.dir.path().join(name)).unwrap().dev();
    assert!(device("s") != device("") && device("p") != device("") && device("s") != device("p"));
    assert_eq!(
        (given.read("p/in/user"), given.read("p/a"), given.read("p/token")),
        ("root".into(), "1".into(), "a.b.c".into())
    );
    assert_eq!(given.read("p/labels"), "a=\"say \\\"hi\\\"\\n\"\nb=\"2\"");
    assert_eq!((given.read("p/name"), given.read("p/memory")), ("p".into(), "64".into()));
    // With a group, files are the group's to read; a token is nobody else's.
    let around = Around { fs_group: Some(2000), fs_user: Some(1000), ..given.around() };
    prepare(around, given.dir.path()).unwrap();
    let token = fs::metadata(given.dir.path().join("p/token")).unwrap();
    assert_eq!((token.uid(), token.gid(), given.mode("p/token")), (1000, 2000, 0o640));
    assert_eq!(given.mode("s/user"), 0o440);
    release(given.dir.path()).unwrap();
    assert!(fs::read_dir(given.dir.path().join("s")).unwrap().next().is_none(), "gone with its memory");
}
