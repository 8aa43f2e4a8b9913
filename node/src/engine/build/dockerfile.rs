//! A Dockerfile as steps. The library knows its grammar; here is what each instruction means to us, and what is refused.

use parse_dockerfile::{Command as ParsedCommand, Flag, Instruction as Parsed, JsonOrStringArray, Source};

use super::BuildError;

/// One instruction, and its text as users see it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Step {
    pub(super) text: String,
    pub(super) instruction: Instruction,
}

/// A Dockerfile.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Dockerfile {
    pub(super) steps: Vec<Step>,
    /// What takes away a character's meaning.
    pub(super) escape: char,
}

/// What a step does. Words stand as they are written, variables and quotes in them.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Instruction {
    From { image: String, platform: Option<String>, name: Option<String> },
    Arg(String),
    Env(String),
    Label(String),
    Copy(Copy),
    Run(Command),
    Cmd(Command),
    Entrypoint(Command),
    Shell(Vec<String>),
    Expose(Vec<String>),
    User(String),
    Volume(Vec<String>),
    Workdir(String),
    StopSignal(String),
    Maintainer(String),
    Healthcheck,
}

/// `COPY` and `ADD`.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Copy {
    /// Whether archives are unpacked.
    pub(super) is_add: bool,
    /// A stage or an image instead of the context.
    pub(super) from: Option<String>,
    pub(super) chown: Option<String>,
    pub(super) chmod: Option<String>,
    pub(super) sources: Vec<String>,
    pub(super) target: String,
}

/// A command in either form.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Command {
    Exec(Vec<String>),
    Shell(String),
}

impl Command {
    /// The program and its arguments.
    pub(super) fn args(&self, shell: &[String]) -> Vec<String> {
        match self {
            Self::Exec(args) => args.clone(),
            Self::Shell(text) => [shell, std::slice::from_ref(text)].concat(),
        }
    }
}

/// Reads a Dockerfile.
pub(super) fn parse(text: &str) -> Result<Dockerfile, BuildError> {
    let parsed = parse_dockerfile::parse(text).map_err(|error| BuildError::Dockerfile(error.to_string()))?;
    let escape = parsed.parser_directives.escape.as_ref().map_or('\\', |directive| directive.value.value);
    let starts: Vec<usize> = parsed.instructions.iter().map(start).collect();
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    let mut steps = Vec::with_capacity(starts.len());
    for ((parsed, start), end) in parsed.instructions.iter().zip(&starts).zip(ends) {
        let text = joined(&text[*start..end], escape);
        let refuse = |what: &str| BuildError::Step { text: text.clone(), problem: what.to_owned() };
        let instruction = instruction(parsed, escape).map_err(|problem| refuse(&problem))?;
        steps.push(Step { text, instruction });
    }
    Ok(Dockerfile { steps, escape })
}

fn start(instruction: &Parsed<'_>) -> usize {
    let keyword = match instruction {
        Parsed::Add(it) => &it.add,
        Parsed::Arg(it) => &it.arg,
        Parsed::Cmd(it) => &it.cmd,
        Parsed::Copy(it) => &it.copy,
        Parsed::Entrypoint(it) => &it.entrypoint,
        Parsed::Env(it) => &it.env,
        Parsed::Expose(it) => &it.expose,
        Parsed::From(it) => &it.from,
        Parsed::Healthcheck(it) => &it.healthcheck,
        Parsed::Label(it) => &it.label,
        Parsed::Maintainer(it) => &it.maintainer,
        Parsed::Onbuild(it) => &it.onbuild,
        Parsed::Run(it) => &it.run,
        Parsed::Shell(it) => &it.shell,
        Parsed::Stopsignal(it) => &it.stopsignal,
        Parsed::User(it) => &it.user,
        Parsed::Volume(it) => &it.volume,
        Parsed::Workdir(it) => &it.workdir,
        _ => return 0,
    };
    keyword.span.start
}

fn instruction(parsed: &Parsed<'_>, escape: char) -> Result<Instruction, String> {
    Ok(match parsed {
        Parsed::From(it) => Instruction::From {
            image: it.image.value.to_string(),
            platform: flags(&it.options, &["platform"])?.pop().flatten(),
            name: it.as_.as_ref().map(|(_, name)| name.value.to_lowercase()),
        },
        Parsed::Arg(it) => Instruction::Arg(it.arguments.value.to_string()),
        Parsed::Env(it) => Instruction::Env(it.arguments.value.to_string()),
        Parsed::Label(it) => Instruction::Label(it.arguments.value.to_string()),
        Parsed::Add(it) => copy(true, &it.options, &it.src, &it.dest.value)?,
        Parsed::Copy(it) => copy(false, &it.options, &it.src, &it.dest.value)?,
        Parsed::Run(it) => {
            flags(&it.options, &[])?;
            if !it.here_docs.is_empty() {
                return Err("here-documents are not supported: put the script into the context".to_owned());
            }
            Instruction::Run(command(&it.arguments, escape))
        }
        Parsed::Cmd(it) => Instruction::Cmd(command(&it.arguments, escape)),
        Parsed::Entrypoint(it) => Instruction::Entrypoint(command(&it.arguments, escape)),
        Parsed::Shell(it) => {
            Instruction::Shell(it.arguments.iter().map(|word| word.value.to_string()).collect())
        }
        Parsed::Expose(it) => {
            Instruction::Expose(it.arguments.iter().map(|word| word.value.to_string()).collect())
        }
        Parsed::User(it) => Instruction::User(it.arguments.value.to_string()),
        Parsed::Volume(it) => Instruction::Volume(match &it.arguments {
            JsonOrStringArray::Json(words) => words.value.iter().map(|word| word.value.to_string()).collect(),
            JsonOrStringArray::String(words) => words.iter().map(|word| word.value.to_string()).collect(),
        }),
        Parsed::Workdir(it) => Instruction::Workdir(it.arguments.value.to_string()),
        Parsed::Stopsignal(it) => Instruction::StopSignal(it.arguments.value.to_string()),
        Parsed::Maintainer(it) => Instruction::Maintainer(it.name.value.to_string()),
        Parsed::Healthcheck(_) => Instruction::Healthcheck,
        Parsed::Onbuild(_) => {
            return Err("ONBUILD is not supported: write the step where it is to happen".to_owned());
        }
        _ => return Err("this instruction is not known".to_owned()),
    })
}

fn command(parsed: &ParsedCommand<'_>, escape: char) -> Command {
    match parsed {
        ParsedCommand::Exec(words) => {
            Command::Exec(words.value.iter().map(|word| word.value.to_string()).collect())
        }
        ParsedCommand::Shell(text) => Command::Shell(joined(text.value, escape)),
        _ => Command::Exec(Vec::new()),
    }
}

fn copy(
    is_add: bool,
    options: &[Flag<'_>],
    sources: &[Source<'_>],
    target: &str,
) -> Result<Instruction, String> {
    // A layer of ours never depends on those below: `--link` is always so.
    let mut values = flags(options, &["from", "chown", "chmod", "link"])?.into_iter();
    let mut next = || values.next().flatten();
    let (from, chown, chmod) = (next(), next(), next());
    let mut paths = Vec::new();
    for source in sources {
        match source {
            Source::Path(path) => paths.push(path.value.to_string()),
            _ => return Err("here-documents are not supported: put the file into the context".to_owned()),
        }
    }
    if is_add && from.is_some() {
        return Err("ADD takes nothing from another stage: use COPY".to_owned());
    }
    Ok(Instruction::Copy(Copy { is_add, from, chown, chmod, sources: paths, target: target.to_owned() }))
}

/// The values of flags, in the order of their names; others are refused.
fn flags(given: &[Flag<'_>], known: &[&str]) -> Result<Vec<Option<String>>, String> {
    let mut values = vec![None; known.len()];
    for flag in given {
        let name = &*flag.name.value;
        let at = known.iter().position(|known| *known == name);
        let at = at.ok_or_else(|| format!("the flag --{name} is not supported here"))?;
        values[at] = Some(flag.value.as_ref().map(|value| value.value.to_string()).unwrap_or_default());
    }
    Ok(values)
}

/// One line of what is written over several: continued lines put together, comments between them left out.
fn joined(text: &str, escape: char) -> String {
    let mut line = String::new();
    let mut continues = false;
    for part in text.lines() {
        if continues && (part.trim_start().starts_with('#') || part.trim().is_empty()) {
            continue;
        }
        match part.trim_end().strip_suffix(escape) {
            Some(begun) => {
                line += begun;
                continues = true;
            }
            None => {
                line += part;
                break;
            }
        }
    }
    line.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instructions(text: &str) -> Vec<Instruction> {
        parse(text).unwrap().steps.into_iter().map(|step| step.instruction).collect()
    }

    #[test]
    fn lines_are_put_together_and_shown_so() {
        let text = "# first\nFROM alpine:3.10 AS Base\n\nRUN a && \\\n  # between\n  b && \\\n\n  c\ncmd [\"x\", \"y\"]\n";
        let file = parse(text).unwrap();
        let texts: Vec<&str> = file.steps.iter().map(|step| step.text.as_str()).collect();
        assert_eq!(texts, ["FROM alpine:3.10 AS Base", "RUN a &&   b &&   c", "cmd [\"x\", \"y\"]"]);
        let Instruction::Run(run) = &file.steps[1].instruction else { panic!("{file:?}") };
        let shell = ["/bin/sh".to_owned(), "-c".to_owned()];
        assert_eq!(run.args(&shell), ["/bin/sh", "-c", "a &&   b &&   c"]);
        let Instruction::Cmd(cmd) = &file.steps[2].instruction else { panic!("{file:?}") };
        assert_eq!(cmd.args(&shell), ["x", "y"]);
        let name = Some("base".to_owned());
        let from = Instruction::From { image: "alpine:3.10".into(), platform: None, name };
        assert_eq!(file.steps[0].instruction, from);
    }

    #[test]
    fn copies_have_flags_and_several_sources() {
        let text = "FROM scratch\nCOPY --from=build --chown=1:2 a [b] /to/\nADD [\"with space\", \"/\"]\n";
        let copy = Copy {
            from: Some("build".into()),
            chown: Some("1:2".into()),
            sources: vec!["a".into(), "[b]".into()],
            target: "/to/".into(),
            ..Copy::default()
        };
        let add =
            Copy { is_add: true, sources: vec!["with space".into()], target: "/".into(), ..Copy::default() };
        assert_eq!(instructions(text)[1..], [Instruction::Copy(copy), Instruction::Copy(add)]);
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (line, word) in [
            ("RUN --mount=type=cache,target=/x true", "--mount"),
            ("RUN <<EOF\ntrue\nEOF", "here-documents"),
            ("COPY <<EOF /x\ntext\nEOF", "here-documents"),
            ("ONBUILD RUN true", "ONBUILD"),
            ("ADD --from=x a b", "use COPY"),
        ] {
            let error = parse(&format!("FROM scratch\n{line}\n")).unwrap_err().to_string();
            assert!(error.contains(word), "{line}: {error}");
        }
        assert!(parse("RUN true").unwrap_err().to_string().contains("FROM"));
        assert!(parse("FROM scratch\nNOPE x").is_err());
    }
}
