//! The images of another runtime.

use std::sync::Arc;
use std::time::Instant;

use futures_util::future::BoxFuture;
use proto::cri::{self, AuthConfig};
use tokio::runtime::Handle;
use tonic::{Code, Status};

use super::{CALL_TIME_MAX, Inner};
use crate::images::{Image, ImageConfig, ImageSummary, Keyring, Pulled, Reference, RegistryError};
use crate::pods::containers::RuntimeImages;

/// See the module.
#[derive(Clone)]
pub(super) struct Images {
    pub(super) inner: Arc<Inner>,
    pub(super) handle: Handle,
}

impl Images {
    async fn find(&self, name: &str) -> Result<Option<Image>, Status> {
        let image = cri::ImageSpec { image: name.to_owned(), ..Default::default() };
        let request = cri::ImageStatusRequest { image: Some(image), verbose: false };
        let found = self.inner.images.clone().image_status(request).await?.into_inner().image;
        Ok(found.map(|image| view(name, image)))
    }

    async fn fetch(&self, reference: &Reference, keyring: &Keyring) -> Result<Image, RegistryError> {
        let name = reference.to_string();
        let credentials = keyring.find(reference.domain(), reference.path());
        let mut auths: Vec<Option<AuthConfig>> = credentials
            .into_iter()
            .map(|c| {
                Some(AuthConfig {
                    username: c.username,
                    password: c.password,
                    identity_token: c.identity_token.unwrap_or_default(),
                    ..Default::default()
                })
            })
            .collect();
        let with_credentials = !auths.is_empty();
        if auths.is_empty() {
            auths.push(None);
        }
        let mut failure = Status::unknown("it was not asked for");
        for auth in auths {
            let image = Some(cri::ImageSpec { image: name.clone(), ..Default::default() });
            let request = cri::PullImageRequest { image, auth, sandbox_config: None };
            match self.inner.images.clone().pull_image(request).await {
                Ok(_) => {
                    let found =
                        self.find(&name).await.map_err(|status| failed(&name, &status, with_credentials))?;
                    let lost = || RegistryError::Unavailable {
                        what: name.clone(),
                        problem: "it was removed while it was pulled".to_owned(),
                    };
                    return found.ok_or_else(lost);
                }
                Err(status) => failure = status,
            }
        }
        Err(failed(&name, &failure, with_credentials))
    }
}

impl RuntimeImages for Images {
    fn get(&self, name: &str) -> Option<Image> {
        let found = async { tokio::time::timeout(CALL_TIME_MAX, self.find(name)).await };
        match self.handle.block_on(found) {
            Ok(Ok(image)) => image,
            Ok(Err(status)) => {
                tracing::warn!(image = %name, %status, "the container runtime does not say whether it has an image");
                None
            }
            Err(_late) => None,
        }
    }

    fn listed(&self) -> Vec<ImageSummary> {
        self.inner.listed.lock().expect("no holder of the images panics").clone()
    }

    fn pull(
        &self,
        reference: &Reference,
        keyring: &Keyring,
    ) -> BoxFuture<'static, Result<Pulled, Arc<RegistryError>>> {
        let (images, reference, keyring) = (self.clone(), reference.clone(), keyring.clone());
        Box::pin(async move {
            let begun_at = Instant::now();
            let image = images.fetch(&reference, &keyring).await.map_err(Arc::new)?;
            let took = begun_at.elapsed();
            Ok(Pulled { image, fetched: true, took, took_with_waiting: took })
        })
    }
}

fn failed(name: &str, status: &Status, with_credentials: bool) -> RegistryError {
    let (what, said) = (name.to_owned(), status.message().to_owned());
    match status.code() {
        Code::NotFound => RegistryError::NotFound { what, said },
        Code::PermissionDenied | Code::Unauthenticated => {
            RegistryError::Unauthorized { what, said, with_credentials }
        }
        _ => RegistryError::Unavailable { what, problem: said },
    }
}

/// What pods need to know of an image. How it wants to be run is the runtime's to know, but for its user.
fn view(name: &str, image: cri::Image) -> Image {
    let user = image.uid.map_or(image.username, |uid| uid.value.to_string());
    Image {
        name: name.to_owned(),
        image_id: image.repo_digests.into_iter().next().unwrap_or(image.id),
        config: ImageConfig { user, ..ImageConfig::default() },
        layers: Vec::new(),
        size_bytes: image.size,
    }
}
