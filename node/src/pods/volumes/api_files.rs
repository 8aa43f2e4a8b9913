//! Volumes whose files are data of the API: `configMap` on disk; `secret`, `downwardAPI` and `projected` in
//! memory, so that no secret reaches the disk.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, ProjectedVolumeSource, Secret, Volume, VolumeProjection,
};

use super::atomic::{self, File, Payload};
use super::{Around, VolumeDriver, mounts};
use crate::pods::env;

const MODE_DEFAULT: i32 = 0o644;
/// A token that belongs to one user or group.
const TOKEN_MODE_OWNED: u32 = 0o600;
const MEMORY_OPTIONS: &str = "mode=1777";

pub(super) struct OnDisk;
pub(super) struct InMemory;

impl VolumeDriver for OnDisk {
    fn takes(&self, volume: &Volume) -> bool {
        volume.config_map.is_some()
    }

    fn set_up(&self, volume: &Volume, at: &Path, around: Around<'_>) -> Result<(), String> {
        let payload = payload(volume, around)?;
        fs::create_dir_all(at).map_err(|e| format!("cannot make {}: {e}", at.display()))?;
        write(at, &payload, around)
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn follows_changes(&self) -> bool {
        true
    }
}

impl VolumeDriver for InMemory {
    fn takes(&self, volume: &Volume) -> bool {
        volume.secret.is_some() || volume.downward_api.is_some() || volume.projected.is_some()
    }

    fn set_up(&self, volume: &Volume, at: &Path, around: Around<'_>) -> Result<(), String> {
        let payload = payload(volume, around)?;
        fs::create_dir_all(at).map_err(|e| format!("cannot make {}: {e}", at.display()))?;
        mounts::memory(at, MEMORY_OPTIONS)
            .map_err(|e| format!("cannot mount memory on {}: {e}", at.display()))?;
        write(at, &payload, around)
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn follows_changes(&self) -> bool {
        true
    }
}

fn write(at: &Path, payload: &Payload, around: Around<'_>) -> Result<(), String> {
    let written = atomic::write(at, payload, around.fs_group);
    written.map(|_| ()).map_err(|e| format!("cannot write the files of {}: {e}", at.display()))
}

/// The files that a volume consists of, or what is missing.
fn payload(volume: &Volume, around: Around<'_>) -> Result<Payload, String> {
    let mut files = Files { around, payload: Payload::new(), default_mode: MODE_DEFAULT };
    if let Some(map) = &volume.config_map {
        files.default_mode = map.default_mode.unwrap_or(MODE_DEFAULT);
        files.config_map(&map.name, map.items.as_deref(), map.optional.unwrap_or(false))?;
    } else if let Some(secret) = &volume.secret {
        files.default_mode = secret.default_mode.unwrap_or(MODE_DEFAULT);
        let name = secret.secret_name.as_deref().unwrap_or_default();
        files.secret(name, secret.items.as_deref(), secret.optional.unwrap_or(false))?;
    } else if let Some(downward) = &volume.downward_api {
        files.default_mode = downward.default_mode.unwrap_or(MODE_DEFAULT);
        files.downward(downward.items.as_deref().unwrap_or_default())?;
    } else if let Some(projected) = &volume.projected {
        files.projected(&volume.name, projected)?;
    }
    Ok(files.payload)
}

struct Files<'a> {
    around: Around<'a>,
    payload: Payload,
    default_mode: i32,
}

impl Files<'_> {
    fn add(&mut self, path: &str, content: Vec<u8>, mode: Option<i32>) -> Result<(), String> {
        let mode = mode.unwrap_or(self.default_mode) as u32 & 0o777;
        self.payload.insert(atomic::check_path(path)?, File { content, mode, owner: None });
        Ok(())
    }

    fn config_map(&mut self, name: &str, items: Option<&[KeyToPath]>, optional: bool) -> Result<(), String> {
        let found = self.around.objects.config_map(self.around.namespace, name);
        let data = found.or_optional("configmap", name, optional)?.map(|map| map_data(&map));
        self.keys(data.unwrap_or_default(), items, optional, "config")
    }

    fn secret(&mut self, name: &str, items: Option<&[KeyToPath]>, optional: bool) -> Result<(), String> {
        let found = self.around.objects.secret(self.around.namespace, name);
        let data = found.or_optional("secret", name, optional)?.map(|secret| secret_data(&secret));
        self.keys(data.unwrap_or_default(), items, optional, "secret")
    }

    /// All keys, or those that are named, each at its path.
    fn keys(
        &mut self,
        data: BTreeMap<String, Vec<u8>>,
        items: Option<&[KeyToPath]>,
        optional: bool,
        word: &str,
    ) -> Result<(), String> {
        let items = items.unwrap_or_default();
        if items.is_empty() {
            return data.into_iter().try_for_each(|(key, content)| self.add(&key, content, None));
        }
        for item in items {
            match data.get(&item.key) {
                Some(content) => self.add(&item.path, content.clone(), item.mode)?,
                None if optional => {}
                None => return Err(format!("references non-existent {word} key: {}", item.key)),
            }
        }
        Ok(())
    }

    fn downward(&mut self, items: &[DownwardAPIVolumeFile]) -> Result<(), String> {
        for item in items {
            let pod = self.around.pod;
            let text = if let Some(field) = &item.field_ref {
                env::metadata_text(pod, &field.field_path)?
            } else if let Some(field) = &item.resource_field_ref {
                env::resource_text(pod, None, field, self.around.allocatable)?
            } else {
                continue;
            };
            self.add(&item.path, text.into_bytes(), item.mode)?;
        }
        Ok(())
    }

    fn projected(&mut self, volume: &str, projected: &ProjectedVolumeSource) -> Result<(), String> {
        self.default_mode = projected.default_mode.unwrap_or(MODE_DEFAULT);
        let mut problems = Vec::new();
        for (index, source) in projected.sources.iter().flatten().enumerate() {
            // Everything that is missing is said at once.
            if let Err(problem) = self.projection(volume, index, source) {
                problems.push(problem);
            }
        }
        match problems.as_slice() {
            [] => Ok(()),
            [one] => Err(one.clone()),
            many => Err(format!("[{}]", many.join(", "))),
        }
    }

    fn projection(&mut self, volume: &str, index: usize, source: &VolumeProjection) -> Result<(), String> {
        if let Some(map) = &source.config_map {
            self.config_map(&map.name, map.items.as_deref(), map.optional.unwrap_or(false))
        } else if let Some(secret) = &source.secret {
            self.secret(&secret.name, secret.items.as_deref(), secret.optional.unwrap_or(false))
        } else if let Some(downward) = &source.downward_api {
            self.downward(downward.items.as_deref().unwrap_or_default())
        } else if let Some(token) = &source.service_account_token {
            let text = self.around.tokens.get(&(volume.to_owned(), index));
            let text = text.ok_or("failed to fetch token: the control plane has not given one yet")?;
            let owned = self.around.fs_user.is_some() || self.around.fs_group.is_some();
            let mode = if owned { TOKEN_MODE_OWNED } else { self.default_mode as u32 & 0o777 };
            let file = File { content: text.clone().into_bytes(), mode, owner: self.around.fs_user };
            self.payload.insert(atomic::check_path(&token.path)?, file);
            Ok(())
        } else if source.cluster_trust_bundle.is_some() {
            Err("clusterTrustBundle projections are not supported: use a configMap with the certificates"
                .into())
        } else {
            Ok(())
        }
    }
}

fn map_data(map: &Arc<ConfigMap>) -> BTreeMap<String, Vec<u8>> {
    let text = map.data.iter().flatten().map(|(key, value)| (key.clone(), value.clone().into_bytes()));
    let binary = map.binary_data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone()));
    text.chain(binary).collect()
}

fn secret_data(secret: &Arc<Secret>) -> BTreeMap<String, Vec<u8>> {
    secret.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect()
}
