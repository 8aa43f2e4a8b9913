//! `attach`: the input and output of a container's main process, from now on. Going away ends nothing there.

use std::sync::Arc;

use proto::node::AttachRequest;
use proto::node::stream_frame::Frame;
use runtime::AttachSpec;
use tokio::net::unix::pipe;
use tokio_util::sync::CancellationToken;

use super::pump::{Ends, Terminal};
use super::target::{self, StreamError};
use super::{Link, Sources};
use crate::pods::containers::{ContainerError, ContainerRuntime};

pub(super) async fn serve(
    sources: &Sources,
    request: AttachRequest,
    link: &mut Link,
) -> Result<(), StreamError> {
    let target = request.target.clone().unwrap_or_default();
    let id = target::running(&sources.logs.roster, &target)?;
    attach_to(&sources.runtime, id, request, link).await
}

/// The same to the container of this id.
pub(super) async fn attach_to(
    runtime: &Arc<dyn ContainerRuntime>,
    id: String,
    request: AttachRequest,
    link: &mut Link,
) -> Result<(), StreamError> {
    let name = request.target.unwrap_or_default().container;
    let spec = AttachSpec { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr };
    let runtime = Arc::clone(runtime);
    let attaching = tokio::task::spawn_blocking(move || runtime.attach(&id, spec));
    let attachment = match attaching.await.expect("attaching does not panic") {
        Err(ContainerError::Gone(_)) => return Err(StreamError::NoContainer(name)),
        attached => attached?,
    };
    let reader = |fd| pipe::Receiver::from_owned_fd(fd).map(|pipe| Box::new(pipe) as _);
    let ends = Ends {
        input: match attachment.stdin {
            Some(fd) => Some(Box::new(pipe::Sender::from_owned_fd(fd)?)),
            None => None,
        },
        stdout: attachment.stdout.map(reader).transpose()?,
        stderr: attachment.stderr.map(reader).transpose()?,
        terminal: attachment.terminal.map(Terminal::new).transpose()?,
    };
    link.send(Frame::Started(true)).await?;
    // Held until the end: it is the attachment's life line.
    let _line = attachment.connection;
    {
        let (up, down) = ends.carry(link, &CancellationToken::new());
        tokio::select! {
            read = up => read?,
            error = down => return Err(error),
        }
    }
    link.send(Frame::End(true)).await
}
