//! Import of image archives through the public interface, into a store on a real file system.

use std::fs;
use std::path::Path;
use std::time::Instant;

use node::images::{self, ImageStore};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("images::layouts_and_archives_are_imported", layouts_and_archives_are_imported),
    ("images::docker_archives_are_imported", docker_archives_are_imported),
    ("images::damage_is_found", damage_is_found),
];

fn layout(dir: &Path) -> std::path::PathBuf {
    let layout = dir.join("layout");
    images::build_builtin(&std::env::current_exe().unwrap(), "barque/hello:1.0", &layout).unwrap();
    layout
}

fn tar_of(dir: &Path, target: &Path) {
    let mut builder = tar::Builder::new(fs::File::create(target).unwrap());
    builder.append_dir_all(".", dir).unwrap();
    builder.finish().unwrap();
}

fn check(store: &ImageStore) {
    let image = store.get("docker.io/barque/hello:1.0").unwrap().expect("the image is there");
    assert_eq!(image.config.entrypoint, ["/barque", "hello"]);
    let binary = fs::metadata(image.layers[0].join("barque")).unwrap();
    assert_eq!(binary.len(), fs::metadata(std::env::current_exe().unwrap()).unwrap().len());
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&binary.permissions()) & 0o777, 0o755);
    assert!(store.get("barque/other").unwrap().is_none());
}

fn layouts_and_archives_are_imported() {
    let dir = tempfile::tempdir().unwrap();
    let layout = layout(dir.path());
    let archive = dir.path().join("image.tar");
    tar_of(&layout, &archive);
    for (number, source) in [layout, archive].iter().enumerate() {
        let root = dir.path().join(format!("store{number}"));
        let store = ImageStore::open(&root).unwrap();
        let imported = images::import(&store, source, None).unwrap();
        assert_eq!(imported[0].names, ["docker.io/barque/hello:1.0"]);
        check(&store);
        store.flush().unwrap();
        check(&ImageStore::open(&root).unwrap());
    }
    let store = ImageStore::open(dir.path().join("direct")).unwrap();
    let exe = std::env::current_exe().unwrap();
    let begin = Instant::now();
    assert!(images::import_builtin(&store, &exe, "barque/hello:1.0").unwrap());
    println!("built-in image of {} MB made in {:?}", exe.metadata().unwrap().len() >> 20, begin.elapsed());
    assert!(!images::import_builtin(&store, &exe, "barque/hello:1.0").unwrap(), "made once");
    check(&store);
    let other = ImageStore::open(dir.path().join("store0")).unwrap();
    let digest = |s: &ImageStore| s.get("barque/hello:1.0").unwrap().unwrap().image_id;
    assert_eq!(digest(&store), digest(&other), "the same file gives the same image");
}

fn docker_archives_are_imported() {
    let dir = tempfile::tempdir().unwrap();
    let layout = layout(dir.path());
    let read = |digest: &str| fs::read(layout.join("blobs/sha256").join(&digest["sha256:".len()..])).unwrap();
    let json = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
    let index = json(&fs::read(layout.join("index.json")).unwrap());
    let manifest = json(&read(index["manifests"][0]["digest"].as_str().unwrap()));
    let saved = dir.path().join("saved");
    fs::create_dir_all(saved.join("abc")).unwrap();
    fs::write(saved.join("config.json"), read(manifest["config"]["digest"].as_str().unwrap())).unwrap();
    fs::write(saved.join("abc/layer.tar"), read(manifest["layers"][0]["digest"].as_str().unwrap())).unwrap();
    let list = serde_json::json!([{"Config": "config.json", "RepoTags": ["barque/hello:1.0"], "Layers": ["abc/layer.tar"]}]);
    fs::write(saved.join("manifest.json"), list.to_string()).unwrap();
    let archive = dir.path().join("saved.tar");
    tar_of(&saved, &archive);
    let store = ImageStore::open(dir.path().join("store")).unwrap();
    images::import(&store, &archive, None).unwrap();
    check(&store);
}

fn damage_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let layout = layout(dir.path());
    let store = ImageStore::open(dir.path().join("store")).unwrap();
    let biggest = fs::read_dir(layout.join("blobs/sha256")).unwrap().map(|e| e.unwrap().path());
    let layer = biggest.max_by_key(|p| p.metadata().unwrap().len()).unwrap();
    let mut bytes = fs::read(&layer).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&layer, bytes).unwrap();
    let error = images::import(&store, &layout, None).unwrap_err().to_string();
    assert!(error.contains("is corrupt"), "{error}");
    assert!(store.list().is_empty(), "nothing is visible after a failed import");
    let text = dir.path().join("text.tar");
    fs::write(&text, "not a tar").unwrap();
    assert!(images::import(&store, &text, None).unwrap_err().to_string().contains("not an image archive"));
}
