//! An image that is being made: its configuration and layers, committed to the store after each step.
//!
//! A committed step is found again by what it was made of ([`Draft::key`]): its name in the store is that, in a
//! repository that no registry has. Steps are images as any other, and cost what their own layers do.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::BuildError;
use crate::images::made::{self, Layer, STEPS};
use crate::images::{Image, ImageStore, Reference, sha256_hex};

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    /// The manifest of what is committed; `None`: nothing is, it begins from scratch.
    manifest: Option<String>,
    /// The name by which it is in the store.
    name: Option<Reference>,
    layers: Vec<Layer>,
    /// The whole configuration document; what of a base image we do not know stays in it.
    document: Value,
}

impl Draft {
    /// Without files or settings.
    pub(super) fn scratch() -> Self {
        let document = json!({
            "architecture": made::architecture(), "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": []}, "history": [],
        });
        Self { manifest: None, name: None, layers: Vec::new(), document }
    }

    /// That of an image in the store.
    pub(super) fn of(store: &ImageStore, name: &Reference) -> Result<Option<Self>, BuildError> {
        let Some((manifest, layers, mut document)) = made::parts(store, name)? else { return Ok(None) };
        for (part, empty) in [("config", json!({})), ("history", json!([]))] {
            if document[part].is_null() {
                document[part] = empty;
            }
        }
        Ok(Some(Self { manifest: Some(manifest), name: Some(name.clone()), layers, document }))
    }

    /// The image as the engine takes it.
    pub(super) fn image(&self, store: &ImageStore) -> Result<Image, BuildError> {
        let gone = || BuildError::Gone(self.name.as_ref().map(Reference::to_string).unwrap_or_default());
        match &self.name {
            Some(name) => store.get(&name.to_string())?.ok_or_else(gone),
            None => Ok(Image {
                name: "scratch".to_owned(),
                image_id: String::new(),
                config: Default::default(),
                layers: Vec::new(),
                size_bytes: 0,
            }),
        }
    }

    /// What a step's outcome hangs on: the image before it, its words, and whatever else it uses.
    pub(super) fn key(&self, words: &str, uses: &[u8]) -> String {
        let before = self.manifest.as_deref().unwrap_or("scratch");
        sha256_hex(&[before.as_bytes(), b"\n", words.as_bytes(), b"\n", sha256_hex(uses).as_bytes()].concat())
    }

    /// The settings of containers.
    pub(super) fn config(&mut self) -> &mut Map<String, Value> {
        let config = &mut self.document["config"];
        if !config.is_object() {
            *config = json!({});
        }
        config.as_object_mut().expect("made one")
    }

    /// A setting that is a text.
    pub(super) fn text(&self, key: &str) -> String {
        self.document["config"][key].as_str().unwrap_or_default().to_owned()
    }

    /// A setting that is a list of texts.
    pub(super) fn list(&self, key: &str) -> Vec<String> {
        let list = self.document["config"][key].as_array().into_iter().flatten();
        list.filter_map(|text| Some(text.as_str()?.to_owned())).collect()
    }

    /// A variable of its environment.
    pub(super) fn variable(&self, name: &str) -> Option<String> {
        let of_name = |entry: &String| Some(entry.strip_prefix(name)?.strip_prefix('=')?.to_owned());
        self.list("Env").iter().rev().find_map(of_name)
    }

    /// Sets a variable in its place, or behind the others.
    pub(super) fn set_variable(&mut self, name: &str, value: &str) {
        let mut env = self.list("Env");
        let text = format!("{name}={value}");
        match env.iter_mut().find(|entry| entry.split_once('=').is_some_and(|(known, _)| known == name)) {
            Some(entry) => *entry = text,
            None => env.push(text),
        }
        self.config().insert("Env".to_owned(), json!(env));
    }

    /// Who made it.
    pub(super) fn set_author(&mut self, author: &str) {
        self.document["author"] = json!(author);
    }

    /// The same image as it was committed after a step, if it was.
    pub(super) fn committed(store: &ImageStore, key: &str) -> Result<Option<Self>, BuildError> {
        Self::of(store, &step_name(key)?)
    }

    /// Takes the step down, with the layer that it made, and commits it.
    pub(super) fn commit(
        &mut self,
        store: &ImageStore,
        key: &str,
        created_by: &str,
        layer: Option<Layer>,
    ) -> Result<(), BuildError> {
        let now = format!("{:.0}", Timestamp::now());
        let mut line = json!({"created": now, "created_by": created_by});
        match layer {
            Some(layer) => {
                let diff_ids = self.document["rootfs"]["diff_ids"].as_array_mut();
                let diff_ids = diff_ids.ok_or_else(|| BuildError::Gone("rootfs.diff_ids".to_owned()))?;
                diff_ids.push(json!(layer.diff_id));
                self.layers.push(layer);
            }
            None => line["empty_layer"] = json!(true),
        }
        self.document["created"] = json!(now);
        if let Some(history) = self.document["history"].as_array_mut() {
            history.push(line);
        }
        let name = step_name(key)?;
        self.manifest = Some(made::commit(store, &self.document, &self.layers, std::slice::from_ref(&name))?);
        self.name = Some(name);
        Ok(())
    }

    /// Gives what is committed names. Without any it is still listed.
    pub(super) fn publish(&self, store: &ImageStore, names: &[Reference]) -> Result<String, BuildError> {
        let Some(manifest) = &self.manifest else {
            return Err(BuildError::Dockerfile("no image was made: FROM scratch needs a step".to_owned()));
        };
        made::publish(store, manifest, names)?;
        self.id(store)
    }

    /// The digest of its configuration, by which users know it; empty before the first commit.
    pub(super) fn id(&self, store: &ImageStore) -> Result<String, BuildError> {
        let Some(name) = &self.name else { return Ok(String::new()) };
        Ok(made::id(store, name)?.unwrap_or_default())
    }
}

fn step_name(key: &str) -> Result<Reference, BuildError> {
    Ok(Reference::parse(&format!("{STEPS}:{key}"))?)
}
