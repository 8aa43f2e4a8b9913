//! Groups for containers that somebody else runs: made with their limits before, removed after.
//!
//! Does not: put anything into them.

use std::path::{Path, PathBuf};

use super::Cgroup;
use super::detect::Hierarchies;
use crate::container::spec::CgroupSpec;
use crate::container::state::Unenforced;
use crate::error::Error;

/// Makes and removes groups below one root.
#[derive(Clone, Debug)]
pub struct OutsideGroups {
    hierarchies: Hierarchies,
    root: PathBuf,
}

impl OutsideGroups {
    /// Those below `root` in each hierarchy of this host.
    pub fn detect(root: &Path) -> Result<Self, Error> {
        Ok(Self { hierarchies: Hierarchies::detect(false)?, root: root.to_owned() })
    }

    /// Makes a group and sets its limits; gives back those that the host cannot enforce. May be repeated.
    pub fn create(&self, spec: &CgroupSpec) -> Result<Vec<Unenforced>, Error> {
        spec.check()?;
        Cgroup::new(&self.hierarchies, &self.root, &spec.path).create(spec)
    }

    /// Removes a group and those below it, in the hierarchies that it was made in. May be repeated.
    pub fn remove(&self, path: &Path) -> Result<(), Error> {
        CgroupSpec { path: path.to_owned(), ..CgroupSpec::default() }.check()?;
        Cgroup::new(&self.hierarchies, &self.root, path).remove()
    }
}
