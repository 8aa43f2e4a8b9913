//! The image service, over the same store and puller that the node agent uses.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proto::cri::image_service_server::ImageService;
use proto::cri::{self, AuthConfig};
use tonic::{Request, Response, Status};

use super::state::{Core, internal, now};
use crate::images::{Image, ImageSummary, InUse, Keyring, Reference, RegistryError, RemoveError};

/// How the digest of an image's configuration begins.
const ID_PREFIX: &str = "sha256:";
/// The shortest beginning of an id that is taken for one.
const ID_DIGITS_MIN: usize = 12;

impl Core {
    /// The image that a name, a digest or an id stands for.
    pub(super) fn image(&self, asked: &str) -> Result<Option<(Image, ImageSummary)>, Status> {
        if asked.is_empty() {
            return Err(Status::invalid_argument("the image is missing"));
        }
        let all = self.images.list();
        let digits = asked.strip_prefix(ID_PREFIX).unwrap_or(asked);
        let is_id = digits.len() >= ID_DIGITS_MIN && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        let by_id = |summary: &&ImageSummary| {
            is_id && summary.id.strip_prefix(ID_PREFIX).is_some_and(|id| id.starts_with(digits))
        };
        if let Some(summary) = all.iter().find(by_id) {
            let name = summary.names.first().ok_or_else(|| Status::internal("an image has no name"))?;
            let image = self.images.get(name).map_err(internal)?;
            return Ok(image.map(|image| (image, summary.clone())));
        }
        let bad = |error: crate::images::InvalidReference| Status::invalid_argument(error.to_string());
        let Some(image) = self.images.get(asked).map_err(bad)? else { return Ok(None) };
        let named = |summary: &&ImageSummary| summary.names.contains(&image.name);
        let by_digest = |summary: &&ImageSummary| summary.names.contains(&image.image_id);
        let summary = all.iter().find(named).or_else(|| all.iter().find(by_digest)).cloned();
        Ok(summary.map(|summary| (image, summary)))
    }

    fn remove_image(&self, asked: &str) -> Result<(), Status> {
        let Some((_, summary)) = self.image(asked)? else { return Ok(()) };
        let containers = self.container_records.all();
        let users = containers.iter().filter(|container| container.ended.is_none());
        let in_use: InUse = users
            .map(|container| (container.image_ref.clone(), format!("container {}", container.id)))
            .collect();
        for name in &summary.names {
            let reference = Reference::parse(name).map_err(internal)?;
            match self.images.remove(&reference, &in_use) {
                Ok(_) | Err(RemoveError::Absent(_)) => {}
                Err(error @ RemoveError::InUse { .. }) => {
                    return Err(Status::failed_precondition(error.to_string()));
                }
                Err(error) => return Err(internal(error)),
            }
        }
        Ok(())
    }
}

/// The image service of a CRI server.
#[derive(Clone)]
pub(super) struct Images(pub(super) Arc<Core>);

#[tonic::async_trait]
impl ImageService for Images {
    async fn list_images(
        &self,
        request: Request<cri::ListImagesRequest>,
    ) -> Result<Response<cri::ListImagesResponse>, Status> {
        let filter = request.into_inner().filter.and_then(|filter| filter.image).unwrap_or_default().image;
        let images = self.0.blocking(move |core| {
            if !filter.is_empty() {
                return Ok(core
                    .image(&filter)?
                    .iter()
                    .map(|(image, summary)| view(image, summary))
                    .collect());
            }
            let found = core.images.list().into_iter().filter_map(|summary| {
                let image = core.images.get(summary.names.first()?).ok()??;
                Some(view(&image, &summary))
            });
            Ok(found.collect())
        });
        Ok(Response::new(cri::ListImagesResponse { images: images.await? }))
    }

    async fn image_status(
        &self,
        request: Request<cri::ImageStatusRequest>,
    ) -> Result<Response<cri::ImageStatusResponse>, Status> {
        let asked = request.into_inner().image.unwrap_or_default().image;
        let found = self.0.blocking(move |core| core.image(&asked)).await?;
        let image = found.map(|(image, summary)| view(&image, &summary));
        Ok(Response::new(cri::ImageStatusResponse { image, info: Default::default() }))
    }

    async fn pull_image(
        &self,
        request: Request<cri::PullImageRequest>,
    ) -> Result<Response<cri::PullImageResponse>, Status> {
        let request = request.into_inner();
        let asked = request.image.unwrap_or_default().image;
        let reference =
            Reference::parse(&asked).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let keyring = keyring(request.auth, &reference)?;
        self.0.puller.pull(&reference, &keyring).await.map_err(|error| refused(&error))?;
        let found = self.0.blocking(move |core| core.image(&asked)).await?;
        let lost = || Status::internal("the image was removed while it was pulled");
        let (_, summary) = found.ok_or_else(lost)?;
        Ok(Response::new(cri::PullImageResponse { image_ref: summary.id }))
    }

    async fn remove_image(
        &self,
        request: Request<cri::RemoveImageRequest>,
    ) -> Result<Response<cri::RemoveImageResponse>, Status> {
        let asked = request.into_inner().image.unwrap_or_default().image;
        self.0.blocking(move |core| core.remove_image(&asked)).await?;
        Ok(Response::new(cri::RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _request: Request<cri::ImageFsInfoRequest>,
    ) -> Result<Response<cri::ImageFsInfoResponse>, Status> {
        let usage = self.0.blocking(|core| {
            let of = |dir: &str| usage(&core.config.data_dir.join(dir));
            Ok((of("images"), of("containers")))
        });
        let (images, containers) = usage.await?;
        Ok(Response::new(cri::ImageFsInfoResponse {
            image_filesystems: vec![images],
            container_filesystems: vec![containers],
        }))
    }
}

fn refused(error: &RegistryError) -> Status {
    match error {
        RegistryError::NotFound { .. } => Status::not_found(error.to_string()),
        RegistryError::Unauthorized { .. } => Status::permission_denied(error.to_string()),
        _ => Status::unknown(error.to_string()),
    }
}

fn view(image: &Image, summary: &ImageSummary) -> cri::Image {
    let (digests, tags): (Vec<String>, Vec<String>) =
        summary.names.iter().cloned().partition(|name| name.contains('@'));
    let user = image.config.user.split(':').next().unwrap_or_default();
    let uid = match user {
        "" => Some(0),
        user => user.parse().ok(),
    };
    cri::Image {
        id: summary.id.clone(),
        repo_tags: tags,
        repo_digests: digests,
        size: summary.size_bytes,
        uid: uid.map(|value| cri::Int64Value { value }),
        username: if uid.is_none() { user.to_owned() } else { String::new() },
        spec: None,
        pinned: summary.pinned,
    }
}

/// What a request brings along for the image's registry.
fn keyring(auth: Option<AuthConfig>, reference: &Reference) -> Result<Keyring, Status> {
    let Some(auth) = auth.filter(|auth| *auth != AuthConfig::default()) else {
        return Ok(Keyring::default());
    };
    if !auth.registry_token.is_empty() {
        return Err(Status::unimplemented(
            "this runtime does not support registry tokens; give name and password",
        ));
    }
    let mut entry = serde_json::json!({
        "username": auth.username, "password": auth.password, "identitytoken": auth.identity_token,
    });
    if !auth.auth.is_empty() {
        entry["auth"] = auth.auth.into();
    } else if !auth.username.is_empty() {
        entry["auth"] = STANDARD.encode(format!("{}:{}", auth.username, auth.password)).into();
    }
    let place = match auth.server_address.as_str() {
        "" => reference.domain().to_owned(),
        address => address.to_owned(),
    };
    let file = serde_json::json!({"auths": {place: entry}}).to_string();
    Keyring::parse(file.as_bytes()).map_err(|error| Status::invalid_argument(format!("auth: {error}")))
}

/// What lies below a directory.
pub(super) fn usage(dir: &Path) -> cri::FilesystemUsage {
    let (mut bytes, mut inodes) = (0, 0);
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            // What goes away meanwhile takes nothing.
            let Ok(metadata) = entry.metadata() else { continue };
            inodes += 1;
            bytes += metadata.blocks() * 512;
            if metadata.is_dir() {
                dirs.push(entry.path());
            }
        }
    }
    cri::FilesystemUsage {
        timestamp: now(),
        fs_id: Some(cri::FilesystemIdentifier { mountpoint: dir.to_string_lossy().into_owned() }),
        used_bytes: Some(cri::UInt64Value { value: bytes }),
        inodes_used: Some(cri::UInt64Value { value: inodes }),
    }
}
