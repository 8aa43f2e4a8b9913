//! `barque chaos`, from outside: experiments on real processes, each family of faults once; the mutants; what is left behind.

mod experiments;
mod guests;
mod left_behind;
mod mutants;
mod pods;

use std::path::{Path, PathBuf};

use chaos_tests::cluster::faulty_disk::FaultyDisk;

use crate::support::{Ended, run, skipped, text};

/// Runs an experiment that is written here.
fn experiment(directory: &Path, yaml: &str, more: &[&str]) -> Ended {
    let file = directory.join("experiment.yaml");
    std::fs::write(&file, yaml).unwrap();
    let output = directory.join("reports");
    let words = ["chaos", "run", text(&file), "--output", text(&output), "--dir", text(directory)];
    run(&[&words[..], more].concat())
}

/// The directory of the only report.
fn report(directory: &Path) -> PathBuf {
    let mut entries = std::fs::read_dir(directory.join("reports")).unwrap();
    entries.next().unwrap().unwrap().path()
}

/// Says aloud that a machine has no FUSE.
fn lacks_disks() -> bool {
    let missing = FaultyDisk::missing();
    missing.inspect(|why| skipped(why)).is_some()
}
