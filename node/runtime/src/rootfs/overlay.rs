//! The overlay mount over the layers. Option text has to fit one page, so layers with a common parent
//! directory are named relative to it.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use super::mounts::copy_mapped;
use super::resolve::Root;
use crate::container::spec::RootfsSpec;
use crate::namespaces::Users;
use crate::process::failure::Failure;

/// What the kernel takes as mount options, the final zero included.
const OPTIONS_BYTES_MAX: usize = 4096;
/// Of the place for mapped layers: directories only.
const LAYERS_OPTIONS: &str = "size=64k,mode=700";

/// Mounts the root filesystem at `spec.merged`. Changes the working directory. With a user namespace the layers'
/// files have its ids, whatever is on disk.
pub(crate) fn mount_root(spec: &RootfsSpec, flags: MsFlags, users: Option<&Users>) -> Result<(), Failure> {
    for dir in [&spec.upper, &spec.work, &spec.merged] {
        fs::create_dir_all(dir).map_err(|error| Failure::io("create directory", dir, error))?;
    }
    let Some(users) = users else { return mount_layers(spec, flags) };
    let lower_dirs = map_layers(spec, users)?;
    mount_layers(&RootfsSpec { lower_dirs, ..spec.clone() }, flags)
}

/// Copies of the layers' mounts with the ids of a user namespace, on a memory filesystem that the overlay then
/// covers. Nothing of it is on disk, and it goes with the mount namespace.
fn map_layers(spec: &RootfsSpec, users: &Users) -> Result<Vec<PathBuf>, Failure> {
    let place = &spec.merged;
    mount(Some("layers"), place, Some("tmpfs"), MsFlags::MS_NODEV, Some(LAYERS_OPTIONS))
        .map_err(|error| Failure::io("mount place for layers at", place, error))?;
    let mut mapped = Vec::with_capacity(spec.lower_dirs.len());
    for (number, layer) in spec.lower_dirs.iter().enumerate() {
        let target = place.join(number.to_string());
        fs::create_dir(&target).map_err(|error| Failure::io("create directory", &target, error))?;
        let found = Root::open(&target).map_err(|error| Failure::io("open", &target, error))?;
        copy_mapped(layer, users, &found.into())?;
        mapped.push(target);
    }
    Ok(mapped)
}

fn mount_layers(spec: &RootfsSpec, flags: MsFlags) -> Result<(), Failure> {
    let common = common_parent(&spec.lower_dirs);
    if let Some(dir) = common {
        env::set_current_dir(dir).map_err(|error| Failure::io("enter", dir, error))?;
    }
    let volatile = if spec.volatile { &[true, false][..] } else { &[false] };
    let mut refused = Errno::EINVAL;
    for volatile in volatile {
        let options = options(spec, common, *volatile);
        if options.len() >= OPTIONS_BYTES_MAX {
            let reason = io::Error::other(format!(
                "{} layers make overlay options of {} bytes; the kernel takes {OPTIONS_BYTES_MAX}",
                spec.lower_dirs.len(),
                options.len()
            ));
            return Err(Failure::io("mount overlay at", &spec.merged, reason));
        }
        match mount(Some("overlay"), &spec.merged, Some("overlay"), flags, Some(options.as_str())) {
            Ok(()) => return Ok(()),
            // Kernels before 5.10 do not know the option.
            Err(Errno::EINVAL) => {}
            Err(error) => {
                refused = error;
                break;
            }
        }
    }
    if let Some(missing) = spec.lower_dirs.iter().find(|dir| !dir.is_dir()) {
        return Err(Failure::io("find layer", missing, Errno::ENOENT));
    }
    Err(Failure::io("mount overlay at", &spec.merged, refused))
}

fn options(spec: &RootfsSpec, common: Option<&Path>, volatile: bool) -> String {
    let lower: Vec<String> = spec
        .lower_dirs
        .iter()
        .map(|dir| escape(common.and_then(|common| dir.strip_prefix(common).ok()).unwrap_or(dir)))
        .collect();
    let volatile = if volatile { ",volatile" } else { "" };
    format!(
        "lowerdir={},upperdir={},workdir={}{volatile}",
        lower.join(":"),
        escape(&spec.upper),
        escape(&spec.work)
    )
}

/// The directory that holds all of several layers, at whatever depth.
fn common_parent(layers: &[PathBuf]) -> Option<&Path> {
    let parent = layers.first()?.parent()?;
    parent
        .ancestors()
        .find(|ancestor| layers.iter().all(|layer| layer.starts_with(ancestor) && layer != ancestor))
        .filter(|ancestor| *ancestor != Path::new("/") && layers.len() > 1)
}

/// Overlayfs splits at colons and commas unless they are escaped.
fn escape(path: &Path) -> String {
    let mut text = String::new();
    for letter in path.to_string_lossy().chars() {
        if matches!(letter, ':' | ',' | '\\') {
            text.push('\\');
        }
        text.push(letter);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(layers: &[&str]) -> RootfsSpec {
        RootfsSpec {
            lower_dirs: layers.iter().map(PathBuf::from).collect(),
            upper: "/c/upper".into(),
            work: "/c/work".into(),
            ..RootfsSpec::default()
        }
    }

    #[test]
    fn layers_are_named_relative_to_their_common_parent() {
        let spec = spec(&["/images/sha256/aa/fs", "/images/sha256/bb/fs"]);
        let common = common_parent(&spec.lower_dirs);
        assert_eq!(common, Some(Path::new("/images/sha256")));
        assert_eq!(
            options(&spec, common, true),
            "lowerdir=aa/fs:bb/fs,upperdir=/c/upper,workdir=/c/work,volatile"
        );
    }

    #[test]
    fn a_single_layer_and_strangers_keep_their_full_paths() {
        assert_eq!(common_parent(&spec(&["/images/aa"]).lower_dirs), None);
        assert_eq!(common_parent(&spec(&["/images/aa", "/other/bb"]).lower_dirs), None);
        assert_eq!(common_parent(&spec(&["/a/b", "/a/b/c"]).lower_dirs), Some(Path::new("/a")));
    }

    #[test]
    fn separators_in_names_are_escaped() {
        let options = options(&spec(&["/a:b,c\\d"]), None, false);
        assert!(options.starts_with("lowerdir=/a\\:b\\,c\\\\d,upperdir="), "{options}");
    }
}
