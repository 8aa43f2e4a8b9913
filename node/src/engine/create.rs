//! Making a container: what was asked is checked and written down. Nothing of it runs yet.

use std::str::FromStr as _;

use nix::sys::signal::Signal;

use super::options::{BadOption, CreateOptions, NetworkMode, PidSource};
use super::record::{Record, UsedImage, now};
use super::{Engine, EngineError, names};
use crate::images::Image;

/// A container that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
}

impl Engine {
    /// Makes a container of an image.
    pub fn create(&self, options: CreateOptions, image: &Image) -> Result<Created, EngineError> {
        options.check()?;
        if !options.name.is_empty() && !names::is_valid(&options.name) {
            let message =
                format!("{:?} is no container name: two or more of a-z A-Z 0-9 _ . -", options.name);
            return Err(BadOption::Refused(message).into());
        }
        stop_signal(&options.stop_signal)?;
        let asked = self.resolved(options)?;
        let args = args(&asked, image);
        if args.first().is_none_or(String::is_empty) {
            let message = "no command specified: neither the options nor the image name one".to_owned();
            return Err(BadOption::Refused(message).into());
        }
        let all = self.records.lock_all()?;
        let name = self.records.free_name(&asked.name)?;
        let record = Record {
            id: crate::pods::steps::new_id(),
            name,
            created_at: now(),
            image: UsedImage {
                id: self.image_id(image),
                reference: image.image_id.clone(),
                exposed: image.config.exposed_ports.keys().cloned().collect(),
                volumes: image.config.volumes.keys().cloned().collect(),
                args,
            },
            asked,
            standing: false,
            launched_at: None,
            ip: None,
            ports: Vec::new(),
            ended: None,
        };
        let _own = self.records.make(&record.id)?;
        self.records.write(&record)?;
        drop(all);
        Ok(Created { id: record.id, name: record.name })
    }

    /// Other containers by their ids; those that must run do.
    fn resolved(&self, mut options: CreateOptions) -> Result<CreateOptions, EngineError> {
        if let NetworkMode::Container(reference) = &mut options.network {
            *reference = self.to_join("network", reference)?;
        }
        if let PidSource::Container(reference) = &mut options.pid {
            *reference = self.to_join("PID namespace", reference)?;
        }
        for link in &mut options.links {
            let record = self.records.find(&link.container)?;
            self.linkable(&record)?;
            link.container = record.id;
        }
        Ok(options)
    }

    fn to_join(&self, what: &str, reference: &str) -> Result<String, EngineError> {
        let record = self.records.find(reference)?;
        self.joinable(what, &record)?;
        if what == "network" && matches!(record.asked.network, NetworkMode::Host | NetworkMode::Container(_))
        {
            let message = format!(
                "container {reference} has no network of its own to be joined: name the one that has, or use host"
            );
            return Err(BadOption::Refused(message).into());
        }
        Ok(record.id)
    }

    /// Refuses a container whose namespaces cannot be joined.
    pub(super) fn joinable(&self, what: &str, record: &Record) -> Result<(), EngineError> {
        match self.is_running(record)? {
            true => Ok(()),
            false => Err(BadOption::Refused(format!(
                "cannot join {what} of a non running container: {}",
                record.id
            ))
            .into()),
        }
    }

    /// Refuses a container that cannot be linked to.
    pub(super) fn linkable(&self, record: &Record) -> Result<(), EngineError> {
        match self.is_running(record)? {
            true => Ok(()),
            false => {
                Err(BadOption::Refused(format!("Cannot link to a non running container: /{}", record.name))
                    .into())
            }
        }
    }
}

/// What a container runs.
fn args(asked: &CreateOptions, image: &Image) -> Vec<String> {
    let config = &image.config;
    match &asked.entrypoint {
        Some(own) if own.is_empty() => asked.command.clone(),
        Some(own) => [vec![own.clone()], asked.command.clone()].concat(),
        None if asked.command.is_empty() => [config.entrypoint.clone(), config.cmd.clone()].concat(),
        None => [config.entrypoint.clone(), asked.command.clone()].concat(),
    }
}

/// A signal by number or name, with or without SIG; `None`: nothing said.
pub(super) fn stop_signal(text: &str) -> Result<Option<i32>, BadOption> {
    if text.is_empty() {
        return Ok(None);
    }
    let upper = text.to_ascii_uppercase();
    let named = Signal::from_str(&upper).or_else(|_| Signal::from_str(&format!("SIG{upper}")));
    let number = text.parse::<i32>().ok().filter(|number| (1..=64).contains(number));
    match number.or_else(|| named.ok().map(|signal| signal as i32)) {
        Some(number) => Ok(Some(number)),
        None => Err(BadOption::Refused(format!("Invalid signal: {text}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::ImageConfig;

    #[test]
    fn the_users_words_replace_the_images() {
        let image = |entrypoint: &[&str], cmd: &[&str]| Image {
            name: String::new(),
            image_id: String::new(),
            config: ImageConfig {
                entrypoint: entrypoint.iter().map(|&word| word.to_owned()).collect(),
                cmd: cmd.iter().map(|&word| word.to_owned()).collect(),
                ..ImageConfig::default()
            },
            layers: Vec::new(),
            size_bytes: 0,
        };
        let asked = |entrypoint: Option<&str>, command: &[&str]| CreateOptions {
            entrypoint: entrypoint.map(str::to_owned),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            ..CreateOptions::default()
        };
        let plain = image(&[], &["/server"]);
        assert_eq!(args(&asked(None, &[]), &plain), ["/server"]);
        assert_eq!(args(&asked(None, &["bash"]), &plain), ["bash"]);
        let both = image(&["/entry"], &["default"]);
        assert_eq!(args(&asked(None, &[]), &both), ["/entry", "default"]);
        assert_eq!(args(&asked(None, &["own"]), &both), ["/entry", "own"]);
        assert_eq!(args(&asked(Some("sh"), &["-c"]), &both), ["sh", "-c"]);
        assert_eq!(args(&asked(Some("sh"), &[]), &both), ["sh"]);
        assert_eq!(args(&asked(Some(""), &["own"]), &both), ["own"]);
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for text in ["9", "KILL", "sigkill"] {
            assert_eq!(stop_signal(text).unwrap(), Some(9), "{text}");
        }
        assert!(stop_signal("NOPE").is_err() && stop_signal("0").is_err());
    }
}
