//! `COPY`, `ADD` and the directory of `WORKDIR`: which files come where, and the layer that they make.
//!
//! Nothing is mounted for it: where a path leads in the image is looked up in its layers, and the layer is written
//! straight away. Every directory on the way is in it with the attributes that it has, so that the layer changes none.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};
use runtime::layers::{EntryAttributes, LayerLimits, LayerStack, LayerWriter, Packed, unpack_layer};

use super::BuildError;
use super::dockerfile::Copy;
use super::sources::{Item, Origin, inside};

/// Mode of a directory that is made on the way.
const DIRECTORY_MODE: u32 = 0o755;
const READ_BYTES: usize = 256 << 10;
/// tar's own mark, and where it is.
const TAR: &[u8] = b"ustar";
const TAR_AT: usize = 257;
/// What is in an archive that `ADD` unpacks, and where: gzip, zstd, tar.
const ARCHIVES: [(usize, &[u8]); 3] = [(0, &[0x1f, 0x8b]), (0, &[0x28, 0xb5, 0x2f, 0xfd]), (TAR_AT, TAR)];

/// What a layer is to hold, by path relative to the root.
#[derive(Debug, Default)]
pub(super) struct Plan {
    entries: BTreeMap<PathBuf, Entry>,
}

#[derive(Debug)]
enum Entry {
    Directory(EntryAttributes),
    File(EntryAttributes, PathBuf, u64),
    Symlink(EntryAttributes, PathBuf),
}

/// Where files come to, and whose they are there.
pub(super) struct Target<'a> {
    /// The image before the step.
    pub(super) layers: &'a LayerStack,
    /// The directory that paths are relative to.
    pub(super) workdir: &'a str,
    /// Where archives are unpacked; what is there must stay until the layer is written.
    pub(super) scratch: &'a Path,
}

impl Plan {
    /// A directory, if it is not there.
    pub(super) fn directory(target: &Target<'_>, path: &str) -> Result<Self, BuildError> {
        let mut plan = Self::default();
        let path = real(target, path)?;
        if found(target, &path)?.is_none() {
            plan.way_to(target, &path)?;
            plan.entries.insert(path, Entry::Directory(made(DIRECTORY_MODE)));
        }
        Ok(plan)
    }

    /// What a `COPY` or `ADD` brings; `text` is the step.
    pub(super) fn copy(
        target: &Target<'_>,
        copy: &Copy,
        origin: &Origin<'_>,
        text: &str,
    ) -> Result<Self, BuildError> {
        let refuse = |problem: String| BuildError::Step { text: text.to_owned(), problem };
        let owner = copy.chown.as_deref().map(|owner| owner_of(target, owner)).transpose().map_err(refuse)?;
        let mode = copy.chmod.as_deref().map(|mode| {
            u32::from_str_radix(mode, 8).ok().filter(|mode| *mode <= 0o7777).ok_or_else(|| {
                refuse(format!("--chmod={mode}: give the mode as an octal number, such as 0755"))
            })
        });
        let rules = Rules { owner: owner.unwrap_or((0, 0)), mode: mode.transpose()? };
        let mut items = Vec::new();
        for source in &copy.sources {
            if source.starts_with("http://") || source.starts_with("https://") {
                let problem =
                    "files are not fetched from elsewhere: put them into the context, or fetch them by RUN";
                return Err(refuse(problem.to_owned()));
            }
            items.extend(named(origin, source, text)?);
        }
        let path = real(target, &copy.target)?;
        let is_directory = copy.target.ends_with('/') || matches!(copy.target.as_str(), "." | "..");
        let there = found(target, &path)?;
        let into = is_directory || there.as_ref().is_some_and(|found| found.metadata.is_dir());
        if items.len() > 1 && !is_directory {
            let problem =
                "with more than one source file, the destination must be a directory and end with a /";
            return Err(refuse(problem.to_owned()));
        }
        let mut plan = Self::default();
        for item in items {
            let failed = |error: std::io::Error| refuse(format!("{}: {error}", item.path.display()));
            if item.metadata.is_dir() {
                if there.as_ref().is_some_and(|found| !found.metadata.is_dir()) {
                    return Err(refuse(format!("/{} is there and no directory", path.display())));
                }
                plan.reach(target, &path)?;
                plan.tree(origin, &item, &path, &rules).map_err(failed)?;
            } else if copy.is_add
                && let Some(dir) = unpacked(target, &item.host)?
            {
                plan.reach(target, &path)?;
                plan.archive(&dir, &path).map_err(failed)?;
            } else {
                let name = item.path.file_name().unwrap_or_default();
                let path = if into { path.join(name) } else { path.clone() };
                plan.way_to(target, &path)?;
                plan.one(&item, path, &rules).map_err(failed)?;
            }
        }
        Ok(plan)
    }

    /// Names, attributes but for times, and contents: what the layer hangs on.
    pub(super) fn digest(&self) -> Result<String, BuildError> {
        let mut digest = Context::new(&SHA256);
        for (path, entry) in &self.entries {
            let (attributes, kind) = match entry {
                Entry::Directory(attributes) => (attributes, "directory"),
                Entry::File(attributes, ..) => (attributes, "file"),
                Entry::Symlink(attributes, _) => (attributes, "link"),
            };
            let EntryAttributes { mode, uid, gid, mtime: _ } = attributes;
            digest.update(format!("{kind} {:?} {mode:o} {uid}:{gid}\n", path).as_bytes());
            match entry {
                Entry::Directory(_) => {}
                Entry::Symlink(_, to) => digest.update(format!("{to:?}\n").as_bytes()),
                Entry::File(_, host, size) => {
                    digest.update(format!("{size}\n").as_bytes());
                    let failed = |error| runtime_error("read", host, error);
                    let mut file = File::open(host).map_err(failed)?;
                    let mut buffer = vec![0; READ_BYTES];
                    loop {
                        match file.read(&mut buffer).map_err(failed)? {
                            0 => break,
                            length => digest.update(&buffer[..length]),
                        }
                    }
                }
            }
        }
        Ok(hex::encode(digest.finish()))
    }

    /// Writes the layer.
    pub(super) fn write(&self, output: impl std::io::Write) -> Result<Packed, BuildError> {
        let mut writer = LayerWriter::new(output);
        for (path, entry) in &self.entries {
            match entry {
                Entry::Directory(attributes) => writer.directory(path, attributes)?,
                Entry::Symlink(attributes, to) => writer.symlink(path, attributes, to)?,
                Entry::File(attributes, host, size) => {
                    let file = File::open(host).map_err(|error| runtime_error("open", host, error))?;
                    writer.file(path, attributes, *size, file)?;
                }
            }
        }
        Ok(writer.finish()?)
    }

    /// The directories above a path: those of the image as they are, others made.
    fn way_to(&mut self, target: &Target<'_>, path: &Path) -> Result<(), BuildError> {
        let above: Vec<&Path> = path.ancestors().skip(1).filter(|part| *part != Path::new("")).collect();
        for dir in above.into_iter().rev() {
            self.step_into(target, dir)?;
        }
        Ok(())
    }

    /// The same with the path itself, which is a directory.
    fn reach(&mut self, target: &Target<'_>, path: &Path) -> Result<(), BuildError> {
        self.way_to(target, path)?;
        if path == Path::new("") { Ok(()) } else { self.step_into(target, path) }
    }

    fn step_into(&mut self, target: &Target<'_>, dir: &Path) -> Result<(), BuildError> {
        if self.entries.contains_key(dir) {
            return Ok(());
        }
        let attributes = match found(target, dir)? {
            Some(found) if found.metadata.is_dir() => EntryAttributes::of(&found.metadata),
            Some(_) => {
                let (text, problem) =
                    (format!("/{}", dir.display()), "it is there and no directory".to_owned());
                return Err(BuildError::Step { text, problem });
            }
            None => made(DIRECTORY_MODE),
        };
        self.entries.insert(dir.to_owned(), Entry::Directory(attributes));
        Ok(())
    }

    /// What is in a directory comes into another one.
    fn tree(&mut self, origin: &Origin<'_>, dir: &Item, path: &Path, rules: &Rules) -> std::io::Result<()> {
        for item in origin.list(dir)? {
            let path = path.join(item.path.file_name().unwrap_or_default());
            if item.metadata.is_dir() {
                self.entries.insert(path.clone(), Entry::Directory(rules.attributes(&item)));
                self.tree(origin, &item, &path, rules)?;
            } else {
                self.one(&item, path, rules)?;
            }
        }
        Ok(())
    }

    fn one(&mut self, item: &Item, path: PathBuf, rules: &Rules) -> std::io::Result<()> {
        let attributes = rules.attributes(item);
        let entry = if item.metadata.is_symlink() {
            Entry::Symlink(EntryAttributes { mode: 0o777, ..attributes }, fs::read_link(&item.host)?)
        } else if item.metadata.is_file() {
            Entry::File(attributes, item.host.clone(), item.metadata.len())
        } else {
            return Err(std::io::Error::other("only files, directories and links can be copied"));
        };
        self.entries.insert(path, entry);
        Ok(())
    }

    /// What was unpacked, as it is.
    fn archive(&mut self, dir: &Path, path: &Path) -> std::io::Result<()> {
        let mut dirs = vec![(dir.to_owned(), path.to_owned())];
        while let Some((host, path)) = dirs.pop() {
            for entry in fs::read_dir(&host)? {
                let entry = entry?;
                let metadata = fs::symlink_metadata(entry.path())?;
                let (host, path) = (entry.path(), path.join(entry.file_name()));
                let attributes = EntryAttributes::of(&metadata);
                if metadata.is_dir() {
                    self.entries.insert(path.clone(), Entry::Directory(attributes));
                    dirs.push((host, path));
                } else if metadata.is_symlink() {
                    let to = fs::read_link(&host)?;
                    self.entries.insert(path, Entry::Symlink(attributes, to));
                } else if metadata.is_file() {
                    self.entries.insert(path, Entry::File(attributes, host, metadata.len()));
                }
            }
        }
        Ok(())
    }
}

/// What is done with the attributes of files.
struct Rules {
    owner: (u32, u32),
    mode: Option<u32>,
}

impl Rules {
    fn attributes(&self, item: &Item) -> EntryAttributes {
        let attributes = EntryAttributes::of(&item.metadata);
        let (uid, gid) = self.owner;
        EntryAttributes { mode: self.mode.unwrap_or(attributes.mode), uid, gid, ..attributes }
    }
}

fn made(mode: u32) -> EntryAttributes {
    // Of no particular time, so that the same step makes the same layer.
    EntryAttributes { mode, uid: 0, gid: 0, mtime: 0 }
}

fn runtime_error(operation: &'static str, path: &Path, source: std::io::Error) -> runtime::layers::Error {
    runtime::layers::Error::Io { operation, path: path.to_owned(), source }
}

/// The files that a source names.
fn named(origin: &Origin<'_>, source: &str, text: &str) -> Result<Vec<Item>, BuildError> {
    let (text, path) = (text.to_owned(), source.to_owned());
    if inside(Path::new(source)).starts_with("..") {
        return Err(BuildError::Forbidden { text, path });
    }
    match origin.matching(source) {
        Ok(items) if items.is_empty() => Err(BuildError::NoSuchFile { text, path }),
        Ok(items) => Ok(items),
        Err(error) => Err(BuildError::Step { text, problem: format!("{path}: {error}") }),
    }
}

/// Where a path leads in the image, without links, relative to the root.
fn real(target: &Target<'_>, path: &str) -> Result<PathBuf, BuildError> {
    let path = Path::new("/").join(target.workdir).join(path);
    target.layers.real(&path).map_err(|error| runtime_error("look up", &path, error).into())
}

fn found(target: &Target<'_>, path: &Path) -> Result<Option<runtime::layers::StackEntry>, BuildError> {
    target.layers.find(path).map_err(|error| runtime_error("look up", path, error).into())
}

/// `user[:group]`, numbers or names of the image's.
fn owner_of(target: &Target<'_>, text: &str) -> Result<(u32, u32), String> {
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let lookup = |file: &str, name: &str| -> Result<(u32, u32), String> {
        let unknown =
            || format!("--chown={text}: {name:?} is neither a number nor a name in the image's /etc/{file}");
        let entry = target.layers.find(&Path::new("etc").join(file)).ok().flatten().ok_or_else(unknown)?;
        let lines = fs::read_to_string(&entry.host).map_err(|error| error.to_string())?;
        let fields = lines.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let line = fields.into_iter().find(|fields| fields.first() == Some(&name)).ok_or_else(unknown)?;
        let number = |at: usize| line.get(at).and_then(|number| number.parse().ok());
        Ok((number(2).ok_or_else(unknown)?, number(3).unwrap_or(0)))
    };
    let (uid, own_group) = match user.parse() {
        Ok(uid) => (uid, uid),
        Err(_) => lookup("passwd", user)?,
    };
    let gid = match group {
        None => own_group,
        Some(group) => match group.parse() {
            Ok(gid) => gid,
            Err(_) => lookup("group", group)?.0,
        },
    };
    Ok((uid, gid))
}

/// Unpacks a file if it is a tar, perhaps compressed. `None`: it is to be copied as it is.
fn unpacked(target: &Target<'_>, path: &Path) -> Result<Option<PathBuf>, BuildError> {
    let failed = |error| runtime_error("read", path, error);
    let mut start = Vec::new();
    File::open(path).and_then(|file| file.take(512).read_to_end(&mut start)).map_err(failed)?;
    let begins = |(at, magic): &(usize, &[u8])| start.get(*at..).is_some_and(|rest| rest.starts_with(magic));
    if !ARCHIVES.iter().any(begins) {
        return Ok(None);
    }
    let dir = target.scratch.join(hex::encode(rand::random::<[u8; 8]>()));
    match unpack_layer(File::open(path).map_err(failed)?, &dir, LayerLimits::default()) {
        Ok(_) => Ok(Some(dir)),
        // Compressed, but no archive inside.
        Err(runtime::layers::Error::Archive(_)) if !begins(&(TAR_AT, TAR)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
