//! Pushing: blobs that the registry lacks, then the manifest.

use ::http::header::{CONTENT_TYPE, LOCATION};
use ::http::{Method, StatusCode};
use bytes::Bytes;

use super::http::{Ask, Content, resolve};
use super::{RegistryError, Repository};
use crate::images::config::Descriptor;

impl Repository {
    /// Whether the repository has a blob.
    pub(crate) async fn has_blob(&self, digest: &str) -> Result<bool, RegistryError> {
        let what = format!("failed to look for {digest} at {}/{}", self.host, self.path);
        let ask = Ask::new(what, Method::HEAD, self.uri(&format!("/blobs/{digest}"))?);
        match self.exchange(&ask).await {
            Ok(_) => Ok(true),
            Err(RegistryError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sends a blob in one piece. What broke is sent again from the beginning.
    pub(crate) async fn push_blob(
        &self,
        blob: &Descriptor,
        content: PushContent,
    ) -> Result<(), RegistryError> {
        let what = format!("failed to push {} to {}/{}", blob.digest, self.host, self.path);
        let begin = Ask::new(&what, Method::POST, self.uri("/blobs/uploads/")?);
        let begun = self.exchange(&begin).await?;
        let location = begun.headers().get(LOCATION).and_then(|location| resolve(&begin.uri, location));
        let location = location.filter(|_| begun.status() == StatusCode::ACCEPTED);
        let Some(location) = location else { return Err(begin.broken("it named no place to upload to")) };
        // A token or password for the registry is not for whomever it names.
        if location.authority() != begin.uri.authority() {
            return Err(begin.broken("it wants the upload at another host, which is not supported"));
        }
        let joint = if location.query().is_some() { '&' } else { '?' };
        let address = format!("{location}{joint}digest={}", blob.digest);
        let address = address.parse().map_err(|_| begin.broken("it named no place to upload to"))?;
        let mut put =
            Ask::new(&what, Method::PUT, address).header(CONTENT_TYPE, "application/octet-stream")?;
        put.content = match content {
            PushContent::File(path) => Content::File { path, size: blob.size },
        };
        self.exchange(&put).await.map(drop)
    }

    /// Puts a manifest under a tag (or its digest).
    pub(crate) async fn push_manifest(
        &self,
        name: &str,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<(), RegistryError> {
        let what = format!("failed to push manifest {name} to {}/{}", self.host, self.path);
        let uri = self.uri(&format!("/manifests/{name}"))?;
        let mut ask = Ask::new(what, Method::PUT, uri).header(CONTENT_TYPE, media_type)?;
        ask.content = Content::Bytes(bytes);
        self.exchange(&ask).await.map(drop)
    }
}

/// What a blob is pushed from.
#[derive(Debug, Clone)]
pub(crate) enum PushContent {
    File(std::path::PathBuf),
}
