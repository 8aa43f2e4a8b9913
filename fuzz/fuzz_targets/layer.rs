//! A layer with any content: it is unpacked or refused, and nothing outside its root is made or changed. Needs root.

#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use runtime::layers::{LayerLimits, unpack_layer};

fuzz_target!(|bytes: &[u8]| {
    let dir = tempfile::tempdir().expect("a directory for work");
    let outside = dir.path().join("outside");
    fs::write(&outside, "secret").expect("a file beside the layer");
    let limits = LayerLimits { bytes: 1 << 20, entries: 1000 };
    let _outcome = unpack_layer(bytes, &dir.path().join("layer"), limits);
    assert_eq!(fs::read(&outside).expect("the file is there"), b"secret");
    let names = fs::read_dir(dir.path()).expect("the directory is there").count();
    assert!(names <= 2, "something was made beside the layer");
});
