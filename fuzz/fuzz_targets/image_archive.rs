//! An image archive with any content: it is imported whole, or refused and nothing of it is visible. Needs root. Its
//! manifests, configurations and credentials files are parsed by the same code as those of registries.

#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use node::images::{self, ImageStore, Keyring};

fuzz_target!(|bytes: &[u8]| {
    let _keyring = (Keyring::parse(bytes), Keyring::parse_legacy(bytes));
    let dir = tempfile::tempdir().expect("a directory for work");
    let archive = dir.path().join("archive");
    fs::write(&archive, bytes).expect("a file for the archive");
    let store = ImageStore::open(dir.path().join("store")).expect("an empty store");
    match images::import(&store, &archive, Some("fuzz/fuzz:1")) {
        Ok(imported) => assert_eq!(store.list().is_empty(), imported.is_empty()),
        Err(_) => assert!(store.list().is_empty(), "half an image is visible"),
    }
    let names = fs::read_dir(dir.path()).expect("the directory is there").count();
    assert_eq!(names, 2, "something was made beside the store");
});
