//! Building images of a Dockerfile: `FROM`, `RUN`, `COPY`, `ENV` and the rest, step by step, as `docker build` does.
//!
//! ```text
//! Dockerfile ──► steps ──► draft (configuration, layers) ──commit──► image of the step ──► … ──publish──► tag
//!                  │ RUN: a container of the image so far; what it wrote is the layer
//!                  └ COPY, ADD: files of the context or of another stage, written as a layer
//! ```
//! Every step is an image in the store, named by what it was made of: the image before it, its words, the files and
//! arguments that it uses. A step that is there is taken as it is (`Using cache`). Promises: without success no tag is
//! set; nothing outside the context gets into an image; intermediate containers are gone when it ends, however it does.
//! Does not: fetch from elsewhere, keep health checks, know what BuildKit added (`--mount`, here-documents).

mod copy;
mod dockerfile;
mod draft;
mod error;
mod settings;
mod sources;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fs::{self, Metadata};
use std::path::{Path, PathBuf};

use runtime::layers::{LayerStack, pack_upper};
use serde_json::json;

pub use self::error::BuildError;

use self::copy::{Plan, Target};
use self::dockerfile::{Command, Copy, Dockerfile, Instruction, Step};
use self::draft::Draft;
use self::sources::{Context, Origin};
use super::hosts::ETC_FILES;
use super::record::short;
use super::{CreateOptions, Engine, EngineError};
use crate::images::made::{self, Layer};
use crate::images::{Image, ImageStore, Reference};

const FILE: &str = "Dockerfile";
const SHELL: [&str; 2] = ["/bin/sh", "-c"];
/// The image that is none.
const SCRATCH: &str = "scratch";
/// Directories that the runtime makes if an image lacks them.
const MOUNT_POINTS: [&str; 3] = ["dev", "proc", "sys"];

/// What to build.
#[derive(Debug, Clone, Default)]
pub struct BuildOptions {
    /// The directory whose files can be copied.
    pub context: PathBuf,
    /// The Dockerfile, if it is not the one in the context.
    pub file: Option<PathBuf>,
    /// Names for the image.
    pub tags: Vec<Reference>,
    /// Values for `ARG`.
    pub args: BTreeMap<String, String>,
    /// Labels, `NAME=value`.
    pub labels: Vec<String>,
    /// The stage to end with, by name or number.
    pub target: Option<String>,
    /// Do every step anew.
    pub no_cache: bool,
    /// Ask the registry for newer base images.
    pub pull: bool,
}

/// What the failure of somebody else's part is.
pub type DeskError = Box<dyn Error + Send + Sync>;

/// Who is told how it goes, and does what needs a terminal or a registry.
pub trait BuildDesk {
    /// It begins, with so many bytes of files.
    fn begins(&mut self, context_bytes: u64);
    /// A line for the user.
    fn say(&mut self, line: &str);
    /// The image of that name; fetched if it is not here, or always.
    fn image(&mut self, name: &str, always: bool) -> Result<Image, DeskError>;
    /// Starts a container, shows what it writes, waits for its end; its exit code.
    fn run(&mut self, container: &str) -> Result<i32, DeskError>;
}

impl Engine {
    /// Builds an image; the digest of its configuration, by which users know it.
    pub fn build(&self, options: &BuildOptions, desk: &mut dyn BuildDesk) -> Result<String, BuildError> {
        let unreadable = |source| BuildError::Context { path: options.context.display().to_string(), source };
        let context = Context::open(&options.context).map_err(unreadable)?;
        let file = options.file.clone().unwrap_or_else(|| options.context.join(FILE));
        let text = fs::read_to_string(&file)
            .map_err(|error| BuildError::Dockerfile(format!("cannot read {}: {error}", file.display())))?;
        let mut dockerfile = dockerfile::parse(&text)?;
        cut(&mut dockerfile.steps, options.target.as_deref())?;
        for label in &options.labels {
            let text = format!("LABEL {label}");
            dockerfile.steps.push(Step { text, instruction: Instruction::Label(label.clone()) });
        }
        desk.begins(context.size().map_err(unreadable)?);
        // What is committed on the way has no name that users gave, and what is unpacked none at all.
        let _using = self.images.using()?;
        let scratch = self.images.ingest_dir()?;
        let builder = Builder {
            engine: self,
            store: &self.images,
            options,
            desk,
            context,
            scratch: &scratch,
            escape: dockerfile.escape,
            global_args: BTreeMap::new(),
            used_args: BTreeSet::new(),
            finished: Vec::new(),
            stage: None,
        };
        builder.build(&dockerfile)
    }
}

/// Leaves out what comes behind the stage that is wanted.
fn cut(steps: &mut Vec<Step>, target: Option<&str>) -> Result<(), BuildError> {
    let Some(target) = target else { return Ok(()) };
    let is_from = |step: &Step| matches!(step.instruction, Instruction::From { .. });
    let stages: Vec<usize> = (0..steps.len()).filter(|at| is_from(&steps[*at])).collect();
    let is_it = |(number, at): &(usize, &usize)| match &steps[**at].instruction {
        Instruction::From { name: Some(name), .. } if *name == target.to_lowercase() => true,
        _ => target.parse() == Ok(*number),
    };
    let Some((number, _)) = stages.iter().enumerate().find(is_it) else {
        return Err(BuildError::Dockerfile(format!(
            "failed to reach build target {target} in the Dockerfile"
        )));
    };
    if let Some(end) = stages.get(number + 1) {
        steps.truncate(*end);
    }
    Ok(())
}

/// A stage that is being built.
struct Stage {
    name: Option<String>,
    draft: Draft,
    /// Arguments that it has declared and that have a value.
    args: BTreeMap<String, String>,
    /// Whether the command is its own, and not the base image's.
    has_command: bool,
}

struct Builder<'a> {
    engine: &'a Engine,
    store: &'a ImageStore,
    options: &'a BuildOptions,
    desk: &'a mut dyn BuildDesk,
    context: Context,
    scratch: &'a Path,
    escape: char,
    /// Arguments that stand before the first stage.
    global_args: BTreeMap<String, String>,
    used_args: BTreeSet<String>,
    finished: Vec<(Option<String>, Draft)>,
    stage: Option<Stage>,
}

impl<'a> Builder<'a> {
    fn build(mut self, dockerfile: &Dockerfile) -> Result<String, BuildError> {
        let count = dockerfile.steps.len();
        for (at, step) in dockerfile.steps.iter().enumerate() {
            self.desk.say(&format!("Step {}/{count} : {}", at + 1, step.text));
            self.step(step)?;
        }
        let unused: Vec<&str> = self
            .options
            .args
            .keys()
            .filter(|name| !self.used_args.contains(*name))
            .map(String::as_str)
            .collect();
        if !unused.is_empty() {
            let names = unused.join(" ");
            self.desk.say(&format!("[Warning] One or more build-args [{names}] were not consumed"));
        }
        let no_stage = || BuildError::Dockerfile("the Dockerfile has no FROM".to_owned());
        self.stage.take().ok_or_else(no_stage)?.draft.publish(self.store, &self.options.tags)
    }

    fn step(&mut self, step: &Step) -> Result<(), BuildError> {
        match &step.instruction {
            Instruction::From { image, platform, name } => {
                self.from(step, image, platform.as_deref(), name.clone())
            }
            Instruction::Arg(text) => self.arg(step, text),
            Instruction::Run(command) => self.run(command),
            Instruction::Copy(copy) => self.copy(step, copy),
            Instruction::Workdir(path) => self.workdir(step, path),
            Instruction::Healthcheck => {
                let line = "[Warning] HEALTHCHECK is left out: OCI images have none; see the probes of pods";
                self.desk.say(line);
                Ok(())
            }
            other => self.setting(step, other),
        }
    }

    fn stage(&mut self) -> Result<&mut Stage, BuildError> {
        self.stage.as_mut().ok_or_else(|| BuildError::Dockerfile("a step stands before FROM".to_owned()))
    }

    /// A variable as a step sees it: the image's environment, then arguments.
    fn value(&self, name: &str) -> Option<String> {
        match &self.stage {
            Some(stage) => stage.draft.variable(name).or_else(|| stage.args.get(name).cloned()),
            None => self.global_args.get(name).cloned(),
        }
    }

    fn expand(&self, step: &Step, text: &str) -> Result<String, BuildError> {
        let expanded = words::expand(text, self.escape, &|name| self.value(name));
        expanded.map_err(|problem| refused(step, problem))
    }

    fn pairs(&self, step: &Step, text: &str) -> Result<Vec<(String, String)>, BuildError> {
        let pairs = words::pairs(text, self.escape, &|name| self.value(name));
        pairs.map_err(|problem| refused(step, problem))
    }

    fn from(
        &mut self,
        step: &Step,
        image: &str,
        platform: Option<&str>,
        name: Option<String>,
    ) -> Result<(), BuildError> {
        // Only what stands before the first stage counts here.
        self.finished.extend(self.stage.take().map(|stage| (stage.name, stage.draft)));
        let image = self.expand(step, image)?;
        if let Some(platform) = platform {
            let ours = format!("linux/{}", made::architecture());
            let asked = self.expand(step, platform)?;
            if !asked.is_empty() && asked != ours {
                return Err(refused(
                    step,
                    format!("images for {asked} cannot be built here, only for {ours}"),
                ));
            }
        }
        let draft = match self.earlier(&image) {
            Some(draft) => draft,
            None if image == SCRATCH => Draft::scratch(),
            None => {
                let found = self.desk.image(&image, self.options.pull).map_err(BuildError::Desk)?;
                let gone = || BuildError::Gone(found.name.clone());
                Draft::of(self.store, &Reference::parse(&found.name)?)?.ok_or_else(gone)?
            }
        };
        self.tell(&draft)?;
        self.stage = Some(Stage { name, draft, args: BTreeMap::new(), has_command: false });
        Ok(())
    }

    /// The stage of a name or number that is finished.
    fn earlier(&self, name: &str) -> Option<Draft> {
        let by_name = self.finished.iter().find(|(known, _)| known.as_deref() == Some(&name.to_lowercase()));
        let by_number = || self.finished.get(name.parse::<usize>().ok()?);
        by_name.or_else(by_number).map(|(_, draft)| draft.clone())
    }

    /// Shows the image so far.
    fn tell(&mut self, draft: &Draft) -> Result<(), BuildError> {
        let id = draft.id(self.store)?;
        self.desk.say(&format!(" ---> {}", short_digest(&id)));
        Ok(())
    }

    fn arg(&mut self, step: &Step, text: &str) -> Result<(), BuildError> {
        for word in words::split(text, self.escape) {
            let (name, default) = match word.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(self.expand(step, value)?)),
                None => (word.to_owned(), None),
            };
            let given = self.options.args.get(&name).cloned();
            self.used_args.extend(given.is_some().then(|| name.clone()));
            let value = given.or(default).or_else(|| self.global_args.get(&name).cloned());
            let Some(value) = value else { continue };
            match &mut self.stage {
                Some(stage) => stage.args.insert(name, value),
                None => self.global_args.insert(name, value),
            };
        }
        Ok(())
    }

    /// What was made of the same before.
    fn cached(&mut self, key: &str) -> Result<bool, BuildError> {
        if self.options.no_cache {
            return Ok(false);
        }
        let Some(draft) = Draft::committed(self.store, key)? else { return Ok(false) };
        self.desk.say(" ---> Using cache");
        self.tell(&draft)?;
        self.stage()?.draft = draft;
        Ok(true)
    }

    fn commit(&mut self, key: &str, words: &str, layer: Option<Layer>) -> Result<(), BuildError> {
        let store = self.store;
        let stage = self.stage()?;
        stage.draft.commit(store, key, words, layer)?;
        let draft = stage.draft.clone();
        self.tell(&draft)
    }

    fn run(&mut self, command: &Command) -> Result<(), BuildError> {
        let (store, engine) = (self.store, self.engine);
        let stage = self.stage()?;
        let command = command.args(&shell(&stage.draft));
        let in_effect = |(name, _): &(&String, &String)| stage.draft.variable(name).is_none();
        let env: Vec<String> =
            stage.args.iter().filter(in_effect).map(|(name, value)| format!("{name}={value}")).collect();
        let text = command.join(" ");
        let words = match env.len() {
            0 => text.clone(),
            count => format!("|{count} {} {text}", env.join(" ")),
        };
        let key = stage.draft.key(&words, b"");
        let image = stage.draft.image(store)?;
        if self.cached(&key)? {
            return Ok(());
        }
        let container = self.intermediate(&image, command, env)?;
        let code = self.desk.run(&container.id).map_err(BuildError::Desk)?;
        if code != 0 {
            return Err(BuildError::Command { command: text, code });
        }
        let upper = engine.records.dir(&container.id).join("root/upper");
        let users = engine.config.users();
        let left_out = |path: &Path, metadata: &Metadata| is_mount_point(&upper, path, metadata);
        let layer = made::add_layer(store, |output| {
            Ok::<_, BuildError>(pack_upper(&upper, output, users.as_ref(), left_out)?)
        })?;
        self.removed(container)?;
        self.commit(&key, &words, layer)
    }

    /// A container of the image so far.
    fn intermediate(
        &mut self,
        image: &Image,
        command: Vec<String>,
        env: Vec<String>,
    ) -> Result<Intermediate<'a>, BuildError> {
        let options = CreateOptions {
            image: image.name.clone(),
            command,
            entrypoint: Some(String::new()),
            env,
            ..CreateOptions::default()
        };
        let engine = self.engine;
        let container = Intermediate { engine, id: engine.create(options, image)?.id };
        self.desk.say(&format!(" ---> Running in {}", short(&container.id)));
        Ok(container)
    }

    fn removed(&mut self, container: Intermediate<'_>) -> Result<(), BuildError> {
        let line = format!("Removing intermediate container {}", short(&container.id));
        container.remove()?;
        self.desk.say(&line);
        Ok(())
    }

    fn copy(&mut self, step: &Step, copy: &Copy) -> Result<(), BuildError> {
        let expand = |text: &String| self.expand(step, text);
        let copy = Copy {
            is_add: copy.is_add,
            from: copy.from.as_ref().map(expand).transpose()?,
            chown: copy.chown.as_ref().map(expand).transpose()?,
            chmod: copy.chmod.as_ref().map(expand).transpose()?,
            sources: copy.sources.iter().map(expand).collect::<Result<_, _>>()?,
            target: expand(&copy.target)?,
        };
        let store = self.store;
        let from = match &copy.from {
            None => None,
            Some(name) => {
                let image = match self.earlier(name) {
                    Some(draft) => draft.image(store)?,
                    None => self.desk.image(name, self.options.pull).map_err(BuildError::Desk)?,
                };
                Some(LayerStack::new(&image.layers))
            }
        };
        let scratch = self.scratch;
        let stage = self.stage()?;
        let (workdir, draft) = (stage.draft.text("WorkingDir"), stage.draft.clone());
        let layers = LayerStack::new(&draft.image(store)?.layers);
        let target = Target { layers: &layers, workdir: &workdir, scratch };
        let origin = from.map_or(Origin::Context(&self.context), Origin::Layers);
        let plan = Plan::copy(&target, &copy, &origin, &step.text)?;
        let words = format!(
            "{} {} {}",
            if copy.is_add { "ADD" } else { "COPY" },
            copy.sources.join(" "),
            copy.target
        );
        self.plan(&words, &plan)
    }

    fn plan(&mut self, words: &str, plan: &Plan) -> Result<(), BuildError> {
        let store = self.store;
        let key = self.stage()?.draft.key(words, plan.digest()?.as_bytes());
        if self.cached(&key)? {
            return Ok(());
        }
        let layer = made::add_layer(store, |output| plan.write(output))?;
        self.commit(&key, words, layer)
    }

    fn workdir(&mut self, step: &Step, path: &str) -> Result<(), BuildError> {
        let path = self.expand(step, path)?;
        let (store, scratch) = (self.store, self.scratch);
        let draft = &mut self.stage()?.draft;
        let path = Path::new("/").join(draft.text("WorkingDir")).join(path);
        let path = format!("/{}", sources::inside(&path).display());
        let layers = LayerStack::new(&draft.image(store)?.layers);
        let plan = Plan::directory(&Target { layers: &layers, workdir: "/", scratch }, &path)?;
        draft.config().insert("WorkingDir".to_owned(), json!(path));
        self.plan(&format!("WORKDIR {path}"), &plan)
    }
}

/// A container that goes with its handle.
struct Intermediate<'a> {
    engine: &'a Engine,
    id: String,
}

impl Intermediate<'_> {
    fn remove(self) -> Result<(), EngineError> {
        self.engine.remove(&self.id, true)
    }
}

impl Drop for Intermediate<'_> {
    fn drop(&mut self) {
        match self.engine.remove(&self.id, true) {
            Ok(()) | Err(EngineError::NoSuchContainer(_)) => {}
            Err(error) => tracing::warn!(id = %self.id, %error, "an intermediate container is left"),
        }
    }
}

fn refused(step: &Step, problem: String) -> BuildError {
    BuildError::Step { text: step.text.clone(), problem }
}

fn shell(draft: &Draft) -> Vec<String> {
    match draft.list("Shell") {
        own if own.is_empty() => SHELL.map(str::to_owned).to_vec(),
        own => own,
    }
}

/// The beginning of an image's id, as users see it.
fn short_digest(id: &str) -> &str {
    short(id.strip_prefix(super::ID_PREFIX).unwrap_or(id))
}

/// What the runtime put into a container's files so that something could be mounted there.
fn is_mount_point(upper: &Path, path: &Path, metadata: &Metadata) -> bool {
    let is_empty = || fs::read_dir(upper.join(path)).is_ok_and(|mut entries| entries.next().is_none());
    let is_etc = || ETC_FILES.iter().any(|file| path == Path::new("etc").join(file));
    match metadata.is_dir() {
        true => MOUNT_POINTS.iter().any(|name| path == Path::new(name)) && is_empty(),
        false => metadata.is_file() && metadata.len() == 0 && is_etc(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_ends_with_the_stage_that_is_wanted() {
        let file = "FROM scratch AS one\nENV A=1\nFROM one AS Two\nENV B=2\nFROM two\nENV C=3\n";
        let left = |target: Option<&str>| {
            let mut steps = dockerfile::parse(file).unwrap().steps;
            cut(&mut steps, target).map(|()| steps.len())
        };
        assert_eq!(left(None).unwrap(), 6);
        assert_eq!((left(Some("one")).unwrap(), left(Some("two")).unwrap()), (2, 4));
        assert_eq!((left(Some("0")).unwrap(), left(Some("2")).unwrap()), (2, 6));
        assert!(left(Some("three")).unwrap_err().to_string().contains("three"));
    }
}
