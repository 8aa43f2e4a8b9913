//! A disk whose power can be cut.
//!
//! An ext4 file system in a file, through a loop device. Cutting the power tells the kernel to shut the file
//! system down without writing anything back: what was not synced is gone, exactly as after a power cut, and
//! what the journal holds is replayed by the next mount.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

/// A mounted disk. Dropping it unmounts it and removes its file.
#[derive(Debug)]
pub struct PowerDisk {
    image: PathBuf,
    mount: PathBuf,
}

impl PowerDisk {
    /// Why this machine cannot have such a disk, if it cannot.
    pub fn missing() -> Option<&'static str> {
        let has = |program: &str| {
            ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].iter().any(|dir| Path::new(dir).join(program).exists())
        };
        if !nix::unistd::geteuid().is_root() {
            return Some("needs root");
        }
        if !has("mkfs.ext4") {
            return Some("needs mkfs.ext4 (Debian's e2fsprogs)");
        }
        if !has("mount") || !Path::new("/dev/loop-control").exists() {
            return Some("needs loop devices and mount");
        }
        None
    }

    /// Makes a disk of `bytes` in `directory` and mounts it there.
    ///
    /// # Errors
    /// With what the tools said.
    pub fn create(directory: &Path, bytes: u64) -> anyhow::Result<Self> {
        let disk = Self { image: directory.join("disk.img"), mount: directory.join("disk") };
        fs::create_dir_all(&disk.mount)?;
        File::create(&disk.image)?.set_len(bytes)?;
        run(Command::new("mkfs.ext4").arg("-q").arg("-F").arg(&disk.image))?;
        disk.power_on()?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// Cuts the power. Whoever uses the disk gets errors from now on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn cut_power(&self) -> anyhow::Result<()> {
        runtime::power::cut(&self.mount).with_context(|| format!("cannot shut down {}", self.mount.display()))
    }

    /// Takes the disk away after its power was cut and nobody uses it any more.
    ///
    /// # Errors
    /// When it is still in use.
    pub fn unplug(&self) -> anyhow::Result<()> {
        run(Command::new("umount").arg(&self.mount))
    }

    /// Mounts it (again).
    ///
    /// # Errors
    /// With what `mount` said.
    pub fn power_on(&self) -> anyhow::Result<()> {
        run(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.mount))
    }
}

impl Drop for PowerDisk {
    fn drop(&mut self) {
        // Whatever fails here shows as leftovers in the test that made the disk.
        let _ = Command::new("umount").arg("-l").arg(&self.mount).output();
        let _ = fs::remove_file(&self.image);
        let _ = fs::remove_dir(&self.mount);
    }
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
