//! `logs` of a container: which instance, whether it may be read, following it to its end.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, PodStatus};
use proto::node::{LogsRequest, StreamFrame, stream_frame};
use tokio::sync::mpsc;

use super::frame;
use super::log_files::{LogReader, Wanted};
use crate::pods::context::pod_log_dir;
use crate::pods::roster::Roster;

/// How often a followed log is looked at when nothing comes.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(50);
pub(super) const CONTAINER_ID_PREFIX: &str = "barque://";

/// Why a log cannot be given.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    /// In the kubelet's words.
    #[error("{0}")]
    Refused(String),
    #[error("pods \"{0}\" not found")]
    NoPod(String),
    #[error("sinceTime {text:?} is not a time: {problem}")]
    BadTime { text: String, problem: String },
    #[error("cannot read the log: {0}")]
    File(#[from] std::io::Error),
    /// Nobody listens any more.
    #[error("the reader hung up")]
    HungUp,
}

impl LogError {
    /// The Status code that the error is answered with.
    pub(crate) fn code(&self) -> i32 {
        match self {
            Self::Refused(_) | Self::BadTime { .. } => 400,
            Self::NoPod(_) => 404,
            Self::File(_) | Self::HungUp => 500,
        }
    }
}

/// Where logs are, and what the pods do.
#[derive(Clone)]
pub(crate) struct LogSource {
    pub(crate) roster: Arc<Roster>,
    pub(crate) log_dir: PathBuf,
}

impl LogSource {
    /// Sends what is asked for as stdout frames. Returns when the log's end is reached (following: when the
    /// container has ended).
    pub(crate) async fn read(
        &self,
        request: LogsRequest,
        out: &mpsc::Sender<StreamFrame>,
    ) -> Result<(), LogError> {
        let status = self.status(&request)?;
        let id = instance_id(&status, &request)?;
        let attempt = self.roster.attempt(&request.pod_uid, &id).ok_or_else(|| {
            LogError::Refused(format!(
                "container \"{}\" in pod \"{}\" is not available",
                request.container, request.pod
            ))
        })?;
        let uid = self.roster.own(&request.pod_uid).into_owned();
        let dir = pod_log_dir(&self.log_dir, &request.namespace, &request.pod, &uid);
        let path = dir.join(&request.container).join(format!("{attempt}.log"));
        let wanted = wanted(&request)?;
        let mut reader = unblock(move || LogReader::open(&path, wanted)).await?;
        loop {
            // Asked before reading: what was written before the end is read after it.
            let ended = !self.runs(&request, &id);
            let (back, chunk) = unblock(move || {
                let chunk = reader.read()?;
                Ok((reader, chunk))
            })
            .await?;
            reader = back;
            match chunk {
                None => return Ok(()),
                Some(chunk) if !chunk.is_empty() => {
                    let frame = frame(stream_frame::Frame::Stdout(chunk.into()));
                    out.send(frame).await.map_err(|_| LogError::HungUp)?;
                }
                Some(_) if !request.follow || ended => return Ok(()),
                Some(_) => tokio::time::sleep(FOLLOW_INTERVAL).await,
            }
        }
    }

    fn status(&self, request: &LogsRequest) -> Result<Arc<PodStatus>, LogError> {
        self.roster.status(&request.pod_uid).ok_or_else(|| match self.roster.get(&request.pod_uid) {
            Some(_) => LogError::Refused(format!(
                "container \"{}\" in pod \"{}\" is waiting to start: ContainerCreating",
                request.container, request.pod
            )),
            None => LogError::NoPod(request.pod.clone()),
        })
    }

    /// Whether the instance still runs.
    fn runs(&self, request: &LogsRequest, id: &str) -> bool {
        let Some(status) = self.roster.status(&request.pod_uid) else { return false };
        let Some(container) = find(&status, &request.container) else { return false };
        let same =
            container.container_id.as_deref().and_then(|c| c.strip_prefix(CONTAINER_ID_PREFIX)) == Some(id);
        same && container.state.as_ref().is_some_and(|s| s.running.is_some())
    }
}

fn wanted(request: &LogsRequest) -> Result<Wanted, LogError> {
    let since =
        match request.since_time.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|e: jiff::Error| LogError::BadTime {
                text: text.to_owned(),
                problem: e.to_string(),
            })?),
        };
    let positive = |value: Option<i64>| value.and_then(|v| u64::try_from(v).ok());
    Ok(Wanted {
        since,
        tail_lines: positive(request.tail_lines),
        limit_bytes: positive(request.limit_bytes),
        timestamps: request.timestamps,
    })
}

/// A container's status, whichever kind of container it is.
pub(super) fn find<'a>(status: &'a PodStatus, name: &str) -> Option<&'a ContainerStatus> {
    let lists =
        [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    lists.into_iter().flatten().flatten().find(|s| s.name == name)
}

fn ended_id(state: Option<&ContainerState>) -> Option<&str> {
    let id = state?.terminated.as_ref()?.container_id.as_deref()?;
    id.strip_prefix(CONTAINER_ID_PREFIX)
}

/// The instance whose log is meant, by the kubelet's rules and in its words.
fn instance_id(status: &PodStatus, request: &LogsRequest) -> Result<String, LogError> {
    let (name, pod) = (&request.container, &request.pod);
    let refuse = |message: String| Err(LogError::Refused(message));
    let Some(container) = find(status, name) else {
        return refuse(format!("container \"{name}\" in pod \"{pod}\" is not available"));
    };
    let last = ended_id(container.last_state.as_ref());
    if request.previous {
        return match last {
            Some(id) => Ok(id.to_owned()),
            None => refuse(format!("previous terminated container \"{name}\" in pod \"{pod}\" not found")),
        };
    }
    let state = container.state.as_ref();
    let running = state.is_some_and(|s| s.running.is_some());
    let own = container.container_id.as_deref().and_then(|id| id.strip_prefix(CONTAINER_ID_PREFIX));
    if let Some(id) = own.filter(|_| running).or(ended_id(state)).or(last) {
        return Ok(id.to_owned());
    }
    let waiting =
        state.and_then(|s| s.waiting.as_ref()).and_then(|w| w.reason.as_deref()).unwrap_or_default();
    let why = match waiting {
        "ErrImagePull" => "image can't be pulled",
        "ImagePullBackOff" => "trying and failing to pull image",
        reason => reason,
    };
    refuse(format!("container \"{name}\" in pod \"{pod}\" is waiting to start: {why}"))
}

async fn unblock<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, LogError> {
    Ok(tokio::task::spawn_blocking(work).await.expect("reading a log does not panic")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(container: serde_json::Value) -> PodStatus {
        serde_json::from_value(serde_json::json!({"containerStatuses": [container]})).unwrap()
    }

    fn ask(status: &PodStatus, previous: bool) -> Result<String, String> {
        let request =
            LogsRequest { container: "c".into(), pod: "p".into(), previous, ..LogsRequest::default() };
        instance_id(status, &request).map_err(|e| e.to_string())
    }

    fn container(state: serde_json::Value, last: serde_json::Value, id: &str) -> serde_json::Value {
        serde_json::json!({"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
            "state": state, "lastState": last, "containerID": id})
    }

    #[test]
    fn waiting_containers_are_refused_in_the_kubelets_words() {
        let waiting = |reason: &str| {
            status(container(serde_json::json!({"waiting": {"reason": reason}}), serde_json::json!({}), ""))
        };
        let said = |reason: &str| ask(&waiting(reason), false).unwrap_err();
        let head = "container \"c\" in pod \"p\" is waiting to start: ";
        assert_eq!(said("ContainerCreating"), format!("{head}ContainerCreating"));
        assert_eq!(said("ErrImagePull"), format!("{head}image can't be pulled"));
        assert_eq!(said("ImagePullBackOff"), format!("{head}trying and failing to pull image"));
        assert_eq!(
            ask(&waiting("ContainerCreating"), true).unwrap_err(),
            "previous terminated container \"c\" in pod \"p\" not found"
        );
    }

    #[test]
    fn the_instance_follows_state() {
        let ended = |id: &str| serde_json::json!({"terminated": {"exitCode": 1, "containerID": format!("barque://{id}")}});
        let running = status(container(serde_json::json!({"running": {}}), ended("old"), "barque://new"));
        assert_eq!(ask(&running, false).unwrap(), "new");
        assert_eq!(ask(&running, true).unwrap(), "old");
        let looping = serde_json::json!({"waiting": {"reason": "CrashLoopBackOff"}});
        assert_eq!(ask(&status(container(looping, ended("old"), "barque://old")), false).unwrap(), "old");
        assert_eq!(ask(&status(container(ended("x"), ended("old"), "barque://x")), false).unwrap(), "x");
    }
}
