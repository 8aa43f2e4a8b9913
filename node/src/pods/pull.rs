//! A container's image: what its pull policy asks for, the pull that runs beside the worker, and what is told of it.
//!
//! ```text
//! absent ──► pull ──► Pulled
//!             └────► ErrImagePull ⇄ ImagePullBackOff
//! refused without a pull: ErrImageNeverPull, InvalidImageName
//! ```
//! A pull never blocks its worker: the container is marked as pulling, and the end comes as a notice.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Container;

use super::events::{Told, tell};
use super::record::Waiting;
use super::start::Held;
use super::worker::{Notice, Worker, add};
use crate::images::{Image, Keyring, Pulled, Reference, RegistryError};
use crate::objects::Lookup;

/// The wait before a container whose image is refused without a pull is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// How long a failed pull is shown as such before it is shown as waiting.
const PULL_ERROR_SHOWN: Duration = Duration::from_secs(2);

/// A pull that has ended and that its container has not seen yet.
pub(crate) struct Ended {
    /// What was asked for; the container may want something else by now.
    image: String,
    result: Result<Pulled, Arc<RegistryError>>,
}

impl Worker {
    /// The container's image as its pull policy allows it. `Ok(None)`: it is being pulled.
    pub(super) async fn image(&mut self, container: &Container) -> Result<Option<Image>, Held> {
        let (name, image) = (container.name.clone(), container.image.clone().unwrap_or_default());
        if let Some(ended) = self.pulled.remove(&name).filter(|ended| ended.image == image) {
            return self.after_pull(&name, &image, ended.result).map(Some);
        }
        let now = Timestamp::now();
        let reference = match Reference::parse(&image) {
            Ok(reference) => reference,
            Err(error) => {
                let message = format!("Failed to apply default image tag \"{image}\": {error}");
                self.tell_of(&name, Told::warning("InspectFailed", message.clone()));
                self.tell_failed(&name, "Error: InvalidImageName".to_owned());
                return Err(Held { reason: "InvalidImageName", message, retry_at: add(now, RETRY) });
            }
        };
        let policy = pull_policy(container, &image);
        let asked = image.clone();
        let local = self
            .blocking(move |context| match context.runtime.own_images() {
                Some(images) => images.get(&asked),
                None => context.images.get(&asked).ok().flatten(),
            })
            .await;
        match (policy, local) {
            ("Always", _) | ("IfNotPresent", None) => {
                self.pull(&name, &image, reference).await?;
                Ok(None)
            }
            (_, Some(local)) => {
                let message = format!("Container image \"{image}\" already present on machine");
                self.tell_of(&name, Told::normal("Pulled", message));
                Ok(Some(local))
            }
            (_, None) => {
                let message = format!("Container image \"{image}\" is not present with pull policy of Never");
                self.tell_of(&name, Told::warning("ErrImageNeverPull", message.clone()));
                self.tell_failed(&name, "Error: ErrImageNeverPull".to_owned());
                Err(Held { reason: "ErrImageNeverPull", message, retry_at: add(now, RETRY) })
            }
        }
    }

    /// Begins a pull, unless the last failure asks for more patience.
    async fn pull(&mut self, name: &str, image: &str, reference: Reference) -> Result<(), Held> {
        let known = self.record.containers.get(name);
        let tries = known.map(|c| c.image_tries).unwrap_or_default();
        if let Some(until) = tries.over_at().filter(|until| *until > Timestamp::now()) {
            let failure = known.and_then(|c| c.waiting.as_ref()).map(last_failure).unwrap_or_default();
            let message = format!("Back-off pulling image \"{image}\"");
            self.tell_of(name, Told::normal("BackOff", message.clone()));
            self.tell_failed(name, "Error: ImagePullBackOff".to_owned());
            let message = format!("{message}: ErrImagePull: {failure}");
            return Err(Held { reason: "ImagePullBackOff", message, retry_at: Some(until) });
        }
        self.tell_of(name, Told::normal("Pulling", format!("Pulling image \"{image}\"")));
        let keyring = self.keyring();
        let puller = Arc::clone(&self.context.puller);
        let theirs = self.context.runtime.own_images();
        let (sender, name_told, image_told) = (self.sender.clone(), name.to_owned(), image.to_owned());
        let task = tokio::spawn(async move {
            let result = match theirs {
                Some(images) => images.pull(&reference, &keyring).await,
                None => puller.pull(&reference, &keyring).await,
            };
            let ended = Box::new(Ended { image: image_told, result });
            drop(sender.send(Notice::PullEnded { name: name_told, ended }).await);
        });
        if let Some(before) = self.pulls.insert(name.to_owned(), task.abort_handle()) {
            before.abort();
        }
        if let Some(known) = self.record.containers.get_mut(name) {
            known.pulling = true;
        }
        Ok(())
    }

    /// Takes the end of a pull; the container is started by the next plan.
    pub(super) fn pull_ended(&mut self, name: String, ended: Ended) {
        self.pulls.remove(&name);
        if let Some(known) = self.record.containers.get_mut(&name) {
            known.pulling = false;
            known.retry_at = None;
        }
        self.pulled.insert(name, ended);
    }

    /// Gives up what is being pulled: the pod ends.
    pub(super) fn stop_pulls(&mut self) {
        for (name, task) in self.pulls.drain() {
            task.abort();
            if let Some(known) = self.record.containers.get_mut(&name) {
                known.pulling = false;
            }
        }
    }

    fn after_pull(
        &mut self,
        name: &str,
        image: &str,
        result: Result<Pulled, Arc<RegistryError>>,
    ) -> Result<Image, Held> {
        let now = Timestamp::now();
        match result {
            Ok(pulled) => {
                if let Some(known) = self.record.containers.get_mut(name) {
                    known.image_tries = Default::default();
                }
                let message = format!(
                    "Successfully pulled image \"{image}\" in {} ({} including waiting). Image size: {} bytes.",
                    go_seconds(pulled.took),
                    go_seconds(pulled.took_with_waiting),
                    pulled.image.size_bytes
                );
                self.tell_of(name, Told::normal("Pulled", message));
                Ok(pulled.image)
            }
            Err(error) => {
                let config = self.context.config.image_backoff;
                let full_name = Reference::parse(image).map(|r| r.to_string()).unwrap_or_default();
                let message = format!("failed to pull image \"{full_name}\": {error}");
                self.tell_failed(name, format!("Failed to pull image \"{image}\": {message}"));
                self.tell_failed(name, "Error: ErrImagePull".to_owned());
                if let Some(known) = self.record.containers.get_mut(name) {
                    known.image_tries.advance(now, &config);
                }
                let retry_at = add(now, PULL_ERROR_SHOWN.min(config.initial));
                Err(Held { reason: "ErrImagePull", message, retry_at })
            }
        }
    }

    /// What the pod's pull secrets say. A pull without them may still succeed, so that nothing of this is fatal.
    fn keyring(&self) -> Keyring {
        let mut keyring = Keyring::default();
        let mut missing: Vec<&str> = Vec::new();
        let references = self.record.spec().image_pull_secrets.iter().flatten();
        for name in references.map(|r| r.name.as_str()).filter(|name| !name.is_empty()) {
            let Lookup::Found(secret) = self.context.objects.secret(self.record.namespace(), name) else {
                missing.push(name);
                continue;
            };
            let data =
                secret.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect();
            match Keyring::of_secret(secret.type_.as_deref().unwrap_or("Opaque"), &data) {
                Ok(more) => keyring.append(more),
                Err(error) => {
                    let message = format!("Unable to use the image pull secret {name}: {error}");
                    self.tell_of_pod(Told::warning("FailedToRetrieveImagePullSecret", message));
                }
            }
        }
        if !missing.is_empty() {
            let message = format!(
                "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                missing.join(", ")
            );
            self.tell_of_pod(Told::warning("FailedToRetrieveImagePullSecret", message));
        }
        keyring
    }

    fn tell_of(&self, name: &str, told: Told<'_>) {
        tell(&self.context, &self.record, Some(name), told);
    }

    fn tell_of_pod(&self, told: Told<'_>) {
        tell(&self.context, &self.record, None, told);
    }
}

/// The policy, defaulted as the API does it.
fn pull_policy<'a>(container: &'a Container, image: &str) -> &'a str {
    match container.image_pull_policy.as_deref() {
        Some(policy) if !policy.is_empty() => policy,
        _ => match Reference::parse(image) {
            Ok(reference) if reference.tag() == Some("latest") => "Always",
            _ => "IfNotPresent",
        },
    }
}

/// What a container waits for, without the words put around it.
fn last_failure(waiting: &Waiting) -> String {
    let inner = waiting.message.split_once(": ErrImagePull: ").map(|(_, inner)| inner);
    inner.unwrap_or(&waiting.message).to_owned()
}

/// `1.234s`, `512ms`, `1m2.5s`: durations as Go prints them, to the millisecond.
fn go_seconds(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let (minutes, rest) = (millis / 60_000, millis % 60_000);
    let fraction = format!("{:03}", rest % 1000);
    let fraction = fraction.trim_end_matches('0');
    let dot = if fraction.is_empty() { "" } else { "." };
    let seconds = format!("{}{dot}{fraction}s", rest / 1000);
    if minutes == 0 { seconds } else { format!("{minutes}m{seconds}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_printed_as_go_does() {
        let text = |millis| go_seconds(Duration::from_millis(millis));
        assert_eq!([text(12), text(1000), text(1230), text(62_500)], ["12ms", "1s", "1.23s", "1m2.5s"]);
    }

    #[test]
    fn the_failure_is_not_wrapped_twice() {
        let waiting = |message: &str| Waiting { reason: String::new(), message: message.to_owned() };
        assert_eq!(last_failure(&waiting("failed")), "failed");
        assert_eq!(last_failure(&waiting("Back-off pulling image \"x\": ErrImagePull: failed")), "failed");
    }
}
