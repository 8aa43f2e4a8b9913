//! Volumes that images ask for: a directory of the host for each, which begins with what the image has there.
//!
//! They lie in the container's own directory, stay over its ends and starts, and go with it.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use runtime::layers::LayerStack;

use super::record::Record;
use super::{Engine, EngineError};
use crate::images::Image;

/// A volume of a container, made for what its image says.
pub(super) struct ImageVolume {
    /// Where it lies.
    pub(super) source: PathBuf,
    /// Where it is inside.
    pub(super) target: PathBuf,
}

impl Engine {
    /// Those that the user has put nothing in place of.
    pub(super) fn image_volumes(&self, record: &Record) -> Vec<ImageVolume> {
        let dir = self.records.dir(&record.id).join("volumes");
        let own = |target: &Path| record.asked.volumes.iter().any(|volume| volume.target == target);
        let volumes = record.image.volumes.iter().enumerate().map(|(number, target)| ImageVolume {
            source: dir.join(number.to_string()),
            target: Path::new("/").join(target),
        });
        volumes.filter(|volume| !own(&volume.target)).collect()
    }

    /// Makes those that are not there yet.
    pub(super) fn make_volumes(&self, record: &Record, image: &Image) -> Result<(), EngineError> {
        let first = self.sandbox_spec(record).users.map_or(0, |users| users.first);
        let layers = LayerStack::new(&image.layers);
        for ImageVolume { source, target } in self.image_volumes(record) {
            if source.exists() {
                continue;
            }
            // Whole or not at all.
            let scratch = source.with_extension("new");
            let filled = fs::create_dir_all(&scratch)
                .and_then(|()| Filler { layers: &layers, first }.fill(&target, &scratch))
                .and_then(|()| fs::rename(&scratch, &source));
            filled.map_err(EngineError::io("make the volume", &source))?;
        }
        Ok(())
    }
}

struct Filler<'a> {
    layers: &'a LayerStack,
    /// The host's number of the container's root.
    first: u32,
}

impl Filler<'_> {
    /// Copies what the image has at a path into a directory.
    fn fill(&self, path: &Path, to: &Path) -> io::Result<()> {
        match self.layers.find(path)? {
            Some(found) if found.metadata.is_dir() => {
                self.copy_attributes(&found.metadata, to)?;
                self.copy_below(&found.path, to)
            }
            _ => chown(to, Some(self.first), Some(self.first)),
        }
    }

    fn copy_below(&self, path: &Path, to: &Path) -> io::Result<()> {
        for (name, host) in self.layers.list(path)? {
            let (path, to) = (path.join(&name), to.join(&name));
            let metadata = fs::symlink_metadata(&host)?;
            if metadata.is_symlink() {
                symlink(fs::read_link(&host)?, &to)?;
                lchown(&to, Some(self.owner(metadata.uid())), Some(self.owner(metadata.gid())))?;
            } else if metadata.is_dir() {
                fs::create_dir_all(&to)?;
                self.copy_attributes(&metadata, &to)?;
                self.copy_below(&path, &to)?;
            } else if metadata.is_file() {
                fs::copy(&host, &to)?;
                self.copy_attributes(&metadata, &to)?;
            }
        }
        Ok(())
    }

    /// Owner first: changing it takes set-uid away.
    fn copy_attributes(&self, metadata: &fs::Metadata, to: &Path) -> io::Result<()> {
        chown(to, Some(self.owner(metadata.uid())), Some(self.owner(metadata.gid())))?;
        fs::set_permissions(to, fs::Permissions::from_mode(metadata.mode() & 0o7777))
    }

    fn owner(&self, inside: u32) -> u32 {
        self.first.saturating_add(inside)
    }
}
