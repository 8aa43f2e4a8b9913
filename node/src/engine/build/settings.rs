//! Steps that change an image's settings and no files: `ENV`, `CMD`, `EXPOSE` and the like.

use serde_json::{Map, Value, json};

use super::dockerfile::{Instruction, Step};
use super::draft::Draft;
use super::{BuildError, Builder, SHELL, refused, shell};
use crate::engine::create::stop_signal;

/// What a step does to the image.
type Change = Box<dyn FnOnce(&mut Draft)>;

impl Builder<'_> {
    /// A step that changes settings only.
    pub(super) fn setting(&mut self, step: &Step, instruction: &Instruction) -> Result<(), BuildError> {
        let (words, change) = self.change(step, instruction)?;
        let stage = self.stage()?;
        match instruction {
            Instruction::Cmd(_) => stage.has_command = true,
            Instruction::Entrypoint(_) if !stage.has_command => {
                // The base image's arguments mean nothing to another program.
                stage.draft.config().remove("Cmd");
            }
            _ => {}
        }
        let key = stage.draft.key(&words, b"");
        if self.cached(&key)? {
            return Ok(());
        }
        let store = self.store;
        let image = self.stage()?.draft.image(store)?;
        let command =
            SHELL.iter().map(|word| (*word).to_owned()).chain([format!("#(nop) {words}")]).collect();
        let container = self.intermediate(&image, command, Vec::new())?;
        let draft = &mut self.stage()?.draft;
        change(draft);
        self.removed(container)?;
        self.commit(&key, &words, None)
    }

    /// What a step says once its variables are put in, and what it changes.
    fn change(&self, step: &Step, instruction: &Instruction) -> Result<(String, Change), BuildError> {
        let set = |key: &'static str, value: Value| -> Change {
            Box::new(move |draft| drop(draft.config().insert(key.to_owned(), value)))
        };
        let insert = |key: &'static str, names: Vec<(String, Value)>| -> Change {
            Box::new(move |draft| {
                let map = draft.config().entry(key).or_insert_with(|| json!({}));
                if !map.is_object() {
                    *map = Value::Object(Map::new());
                }
                map.as_object_mut().into_iter().for_each(|map| map.extend(names.clone()));
            })
        };
        let each = |texts: &[String]| -> Result<Vec<String>, BuildError> {
            texts.iter().map(|text| self.expand(step, text)).collect()
        };
        let shown = |pairs: &[(String, String)]| {
            pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
        };
        Ok(match instruction {
            Instruction::Env(text) => {
                let pairs = self.pairs(step, text)?;
                let words = format!("ENV {}", shown(&pairs));
                let change = move |draft: &mut Draft| {
                    pairs.iter().for_each(|(name, value)| draft.set_variable(name, value));
                };
                (words, Box::new(change))
            }
            Instruction::Label(text) => {
                let pairs = self.pairs(step, text)?;
                let words = format!("LABEL {}", shown(&pairs));
                (
                    words,
                    insert("Labels", pairs.into_iter().map(|(name, value)| (name, json!(value))).collect()),
                )
            }
            Instruction::Cmd(command) => {
                let args = command.args(&self.shell());
                (format!("CMD {}", json!(args)), set("Cmd", json!(args)))
            }
            Instruction::Entrypoint(command) => {
                let args = command.args(&self.shell());
                (format!("ENTRYPOINT {}", json!(args)), set("Entrypoint", json!(args)))
            }
            Instruction::Shell(words) => (format!("SHELL {}", json!(words)), set("Shell", json!(words))),
            Instruction::User(name) => {
                let name = self.expand(step, name)?;
                (format!("USER {name}"), set("User", json!(name)))
            }
            Instruction::StopSignal(name) => {
                let name = self.expand(step, name)?;
                stop_signal(&name).map_err(|problem| refused(step, problem.to_string()))?;
                (format!("STOPSIGNAL {name}"), set("StopSignal", json!(name)))
            }
            Instruction::Volume(paths) => {
                let paths = each(paths)?;
                let words = format!("VOLUME {}", json!(paths));
                (words, insert("Volumes", paths.into_iter().map(|path| (path, json!({}))).collect()))
            }
            Instruction::Expose(ports) => {
                let ports = each(ports)?;
                let words = format!("EXPOSE {}", ports.join(" "));
                let mut exposed = Vec::new();
                for port in &ports {
                    exposed.extend(ports_of(port).map_err(|problem| refused(step, problem))?);
                }
                (words, insert("ExposedPorts", exposed.into_iter().map(|port| (port, json!({}))).collect()))
            }
            Instruction::Maintainer(name) => {
                let name = name.clone();
                (format!("MAINTAINER {name}"), Box::new(move |draft| draft.set_author(&name)))
            }
            _ => return Err(refused(step, "it changes no setting".to_owned())),
        })
    }

    fn shell(&self) -> Vec<String> {
        self.stage.as_ref().map(|stage| shell(&stage.draft)).unwrap_or_default()
    }
}

/// Ports as an image lists them: `80` as `80/tcp`, `7000-7002/udp` one by one.
fn ports_of(text: &str) -> Result<Vec<String>, String> {
    let (numbers, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
    let number = |text: &str| text.parse::<u16>().ok().filter(|number| *number > 0);
    match (number(first), number(last), protocol.to_lowercase()) {
        (Some(first), Some(last), protocol)
            if first <= last && matches!(protocol.as_str(), "tcp" | "udp" | "sctp") =>
        {
            Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
        }
        _ => Err(format!("{text:?} is no port: 80, 80/udp or 8000-8010/tcp")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_single_or_ranges() {
        assert_eq!(ports_of("5000").unwrap(), ["5000/tcp"]);
        assert_eq!(ports_of("53/UDP").unwrap(), ["53/udp"]);
        assert_eq!(ports_of("8000-8002").unwrap(), ["8000/tcp", "8001/tcp", "8002/tcp"]);
        for text in ["", "0", "x", "9-8", "80/http", "70000"] {
            assert!(ports_of(text).is_err(), "{text}");
        }
    }
}
