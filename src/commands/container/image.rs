//! The engine's images, in the words of `docker`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use node::engine::{Engine, EngineError};
use node::images::{
    Format, Image, ImageSummary, Keyring, LayerProgress, Progress, Puller, Reference, is_nameless, is_step,
    push,
};

use super::args::References;
use super::{EXIT_FAILED, io::Output, list, print, say};
use crate::commands::event_loop;
use crate::commands::image::{familiar, size, write_archive};
use crate::commands::words;
use crate::table::Table;

const THREADS: usize = 2;
/// Hex digits of an image's id, or of a layer's digest, that are shown.
const ID_LENGTH: usize = 12;
/// Letters of what made a layer that are shown.
const MADE_BY_LENGTH: usize = 45;
/// What has no name.
const NONE: &str = "<none>";
/// An image that is not here.
const MISSING: &str = "<missing>";

/// An image that is here, or else is fetched, which is told on standard error.
pub(super) fn get_or_pull(engine: &Engine, asked: &str) -> anyhow::Result<Image> {
    if let Some(image) = engine.image(asked)? {
        return Ok(image);
    }
    let reference = Reference::parse(asked)?;
    say(&format!("Unable to find image '{}' locally", shown(&reference)));
    fetch(engine, &reference, Output::Error)
}

/// `pull`.
pub(super) fn pull(engine: &Engine, asked: &str) -> anyhow::Result<u8> {
    let reference = Reference::parse(asked)?;
    fetch(engine, &reference, Output::Standard)?;
    print(&format!("{reference}\n"))?;
    Ok(0)
}

/// Fetches an image, and tells how it goes.
pub(super) fn fetch(engine: &Engine, reference: &Reference, told: Output) -> anyhow::Result<Image> {
    let tell = move |line: String| {
        // Whoever does not listen any more still gets the image.
        let _closed = told.write(format!("{line}\n").as_bytes());
    };
    let tag = reference.tag().unwrap_or_default();
    tell(format!("{tag}: Pulling from {}", reference.path()));
    let progress: Progress = Arc::new(move |digest, progress| {
        let layer: String = digest.trim_start_matches("sha256:").chars().take(ID_LENGTH).collect();
        match progress {
            LayerProgress::Present => tell(format!("{layer}: Already exists")),
            LayerProgress::Done => tell(format!("{layer}: Pull complete")),
            LayerProgress::Bytes(..) | LayerProgress::Unpacking => {}
        }
    });
    let config = engine.config().images.clone();
    let puller = Puller::new(Arc::clone(engine.images()), config, progress);
    let keyring = keyring(engine)?;
    let pulled = event_loop(THREADS)?
        .block_on(puller.pull(reference, &keyring))
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    engine.images().flush()?;
    let digest = pulled.image.image_id.rsplit_once('@').map_or("", |(_, digest)| digest);
    tell(format!("Digest: {digest}"));
    tell(match pulled.fetched {
        true => format!("Status: Downloaded newer image for {}", shown(reference)),
        false => format!("Status: Image is up to date for {}", shown(reference)),
    });
    Ok(pulled.image)
}

/// `push`.
pub(super) fn send(engine: &Engine, asked: &str) -> anyhow::Result<u8> {
    let reference = Reference::parse(asked)?;
    let image = engine.image(asked)?.ok_or_else(|| EngineError::NoSuchImage(asked.to_owned()))?;
    let source = Reference::parse(&image.name)?;
    print(&format!("The push refers to repository [{}]\n", reference.repository()))?;
    let progress: Progress = Arc::new(|digest, progress| {
        let layer: String = digest.trim_start_matches("sha256:").chars().take(ID_LENGTH).collect();
        let line = match progress {
            LayerProgress::Present => "Layer already exists",
            LayerProgress::Done => "Pushed",
            LayerProgress::Bytes(..) | LayerProgress::Unpacking => return,
        };
        // Whoever does not listen any more still wants it sent.
        let _closed = print(&format!("{layer}: {line}\n"));
    });
    let keyring = keyring(engine)?;
    let config = engine.config().images.clone();
    let pushed = push(engine.images(), config, (&source, &reference), &keyring, (None, progress));
    let pushed = event_loop(THREADS)?.block_on(pushed)?;
    let tag = reference.tag().unwrap_or("latest");
    print(&format!("{tag}: digest: {} size: {}\n", pushed.digest, pushed.size))?;
    Ok(0)
}

/// `images`.
pub(super) fn images(engine: &Engine, quiet: bool, of: Option<&str>) -> anyhow::Result<u8> {
    let mut table = Table::with_gap(&["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"], list::GAP);
    let mut all = engine.images().list();
    all.sort_by_key(|image| std::cmp::Reverse(image.added_at));
    let mut ids = String::new();
    for image in &all {
        let id = short(&image.id);
        let is_meant = |(repository, tag): &(String, String)| {
            of.is_none_or(|of| *repository == of || format!("{repository}:{tag}") == of)
        };
        for (repository, tag) in tags(image).into_iter().filter(is_meant) {
            ids += &format!("{id}\n");
            let created = ago(image.added_at.elapsed().unwrap_or_default());
            table.row(vec![repository, tag, id.to_owned(), created, size(image.size_bytes)]);
        }
    }
    print(&if quiet { ids } else { table.to_string() })?;
    Ok(0)
}

/// The names that users know. None: it is only a step of others.
fn tags(image: &ImageSummary) -> Vec<(String, String)> {
    let names: Vec<&String> = image.names.iter().filter(|name| !is_step(name)).collect();
    let named = names.iter().filter(|name| !name.contains('@'));
    let mut tags: Vec<_> = named
        .map(|name| name.rsplit_once(':').unwrap_or((name, NONE)))
        .map(|(repository, tag)| (familiar(repository), tag.to_owned()))
        .collect();
    if tags.is_empty()
        && let Some((repository, _)) = names.first().and_then(|name| name.split_once('@'))
    {
        let repository = if is_nameless(repository) { NONE.to_owned() } else { familiar(repository) };
        tags.push((repository, NONE.to_owned()));
    }
    tags
}

/// The beginning of an image's id, as users see it.
pub(super) fn short(id: &str) -> &str {
    let digits = id.strip_prefix("sha256:").unwrap_or(id);
    digits.get(..ID_LENGTH).unwrap_or(digits)
}

fn ago(since: Duration) -> String {
    format!("{} ago", words::duration(since.as_secs()))
}

/// `history`.
pub(super) fn history(engine: &Engine, asked: &str, whole: bool) -> anyhow::Result<u8> {
    let image = engine.image(asked)?.ok_or_else(|| EngineError::NoSuchImage(asked.to_owned()))?;
    let mut table = Table::with_gap(&["IMAGE", "CREATED", "CREATED BY", "SIZE"], list::GAP);
    for row in engine.images().history(&image)? {
        let id = row.id.as_deref().map_or(MISSING, |id| if whole { id } else { short(id) }).to_owned();
        let created = row.created.map(|at| ago(at.elapsed().unwrap_or_default()));
        let mut made_by = row.created_by;
        if !whole && let Some((end, _)) = made_by.char_indices().nth(MADE_BY_LENGTH) {
            made_by.truncate(end);
            made_by.push('…');
        }
        table.row(vec![id, created.unwrap_or_else(|| "N/A".to_owned()), made_by, size(row.size_bytes)]);
    }
    print(&table.to_string())?;
    Ok(0)
}

/// `image prune`: images without a tag, and steps that no image descends from.
pub(super) fn prune(engine: &Engine, force: bool) -> anyhow::Result<u8> {
    if !force {
        print("WARNING! This will remove all dangling images.\nAre you sure you want to continue? [y/N] ")?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).context("cannot read the answer")?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            return Ok(0);
        }
    }
    let in_use = engine.images_in_use()?;
    let images = engine.images();
    let dangling = images.dangling(&in_use);
    let names: Vec<String> = dangling.iter().flatten().cloned().collect();
    if !dangling.is_empty() {
        print("Deleted Images:\n")?;
    }
    let shown = names.iter().filter(|name| !is_step(name) && !is_nameless(name));
    for name in shown {
        print(&format!("untagged: {}\n", familiar(name)))?;
    }
    let freed = images.remove_names(names)? + forget_steps(engine)?;
    print(&format!(
        "{}Total reclaimed space: {}\n",
        if dangling.is_empty() { "" } else { "\n" },
        size(freed)
    ))?;
    Ok(0)
}

/// Removes what builds kept that no image descends from any more; the bytes.
fn forget_steps(engine: &Engine) -> anyhow::Result<u64> {
    let images = engine.images();
    images.forget_steps(&engine.images_in_use()?)?;
    Ok(images.sweep()?.unwrap_or(0))
}

/// `tag`.
pub(super) fn tag(engine: &Engine, source: &str, target: &str) -> anyhow::Result<u8> {
    engine.tag(source, &Reference::parse(target)?)?;
    engine.images().flush()?;
    Ok(0)
}

/// `rmi`.
pub(super) fn remove(engine: &Engine, images: &References) -> anyhow::Result<u8> {
    let in_use = engine.images_in_use()?;
    let mut code = 0;
    for asked in &images.containers {
        let named = || -> anyhow::Result<Reference> {
            let image = engine.image(asked)?.ok_or_else(|| EngineError::NoSuchImage(asked.clone()))?;
            Ok(Reference::parse(&image.name)?)
        };
        let removed = named().and_then(|reference| Ok(engine.images().remove(&reference, &in_use)?));
        match removed {
            Ok(removed) => {
                for name in removed.untagged.iter().filter(|name| !is_step(name)) {
                    print(&format!("Untagged: {}\n", familiar(name)))?;
                }
            }
            Err(error) => {
                say(&format!("Error: {error:#}"));
                code = EXIT_FAILED;
            }
        }
    }
    forget_steps(engine)?;
    Ok(code)
}

/// `load`.
pub(super) fn load(engine: &Engine, file: &std::path::Path) -> anyhow::Result<u8> {
    for image in node::images::import(engine.images(), file, None)? {
        print(&format!(
            "Loaded image: {}\n",
            image.names.iter().map(|name| familiar(name)).collect::<Vec<_>>().join(", ")
        ))?;
    }
    engine.images().flush()?;
    Ok(0)
}

/// `save`.
pub(super) fn save(engine: &Engine, asked: &str, file: Option<&std::path::Path>) -> anyhow::Result<u8> {
    let image = engine.image(asked)?.ok_or_else(|| EngineError::NoSuchImage(asked.to_owned()))?;
    write_archive(engine.images(), &Reference::parse(&image.name)?, Format::Docker, file)?;
    Ok(0)
}

/// Where `login` keeps what it was told.
pub(super) fn credentials_file(engine: &Engine) -> std::path::PathBuf {
    let config = engine.config();
    config.images.credentials_file.clone().unwrap_or_else(|| config.data_dir.join("auth.json"))
}

fn keyring(engine: &Engine) -> anyhow::Result<Keyring> {
    let file = credentials_file(engine);
    match std::fs::read(&file) {
        Ok(text) => Keyring::parse(&text).with_context(|| format!("{} cannot be used", file.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Keyring::default()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
    }
}

/// A name as users write it: without what every tool adds.
fn shown(reference: &Reference) -> String {
    familiar(&reference.to_string())
}
