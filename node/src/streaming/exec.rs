//! `exec`: a program in a running container, its input and output over a stream.

use std::sync::Arc;

use proto::node::stream_frame::Frame;
use proto::node::{ExecRequest, ProgramExit};
use runtime::{ExecExit, ExecSpec, ExecStreams, TerminalSize};
use tokio::net::unix::pipe;
use tokio_util::sync::CancellationToken;

use super::pump::{Ends, Terminal};
use super::target::{self, StreamError};
use super::{Link, Sources};
use crate::exec::Exec;
use crate::pods::containers::{ContainerError, ContainerRuntime};

/// A terminal's window until the client names one.
const WINDOW: TerminalSize = TerminalSize { rows: 24, columns: 80 };

pub(super) async fn serve(
    sources: &Sources,
    request: ExecRequest,
    link: &mut Link,
) -> Result<(), StreamError> {
    let target = request.target.clone().unwrap_or_default();
    let id = target::running(&sources.logs.roster, &target)?;
    run_in(&sources.runtime, &id, request, link).await
}

/// The same in a container of this id.
pub(super) async fn run_in(
    runtime: &Arc<dyn ContainerRuntime>,
    id: &str,
    request: ExecRequest,
    link: &mut Link,
) -> Result<(), StreamError> {
    let name = request.target.clone().unwrap_or_default().container;
    let spec = ExecSpec {
        args: request.command.clone(),
        terminal: request.tty.then_some(WINDOW),
        stdin: request.stdin,
        detached: false,
    };
    let (exec, streams) = match Exec::start(runtime, id, spec).await {
        Ok(started) => started,
        Err(ContainerError::Start { exit_code, message }) => {
            return not_started(link, &request, exit_code, &message).await;
        }
        Err(ContainerError::Gone(_)) => return Err(StreamError::NoContainer(name)),
        Err(error) => return Err(error.into()),
    };
    let ends = ends(&request, streams)?;
    link.send(Frame::Started(true)).await?;
    let code = run(&exec, ends, link).await?;
    link.send(Frame::Exit(ProgramExit { code })).await
}

/// What a shell would say and answer.
async fn not_started(
    link: &Link,
    request: &ExecRequest,
    code: i32,
    message: &str,
) -> Result<(), StreamError> {
    link.send(Frame::Started(true)).await?;
    let end = if request.tty { "\r\n" } else { "\n" };
    let words = format!("cannot run the program in the container: {message}{end}").into();
    let on_stdout = request.tty || !request.stderr;
    link.send(if on_stdout { Frame::Stdout(words) } else { Frame::Stderr(words) }).await?;
    link.send(Frame::Exit(ProgramExit { code })).await
}

fn ends(request: &ExecRequest, streams: ExecStreams) -> Result<Ends, StreamError> {
    match streams {
        ExecStreams::Terminal(fd) => {
            let terminal = Terminal::new(fd)?;
            Ok(Ends {
                input: request.stdin.then(|| Box::new(terminal.clone()) as _),
                stdout: Some(Box::new(terminal.clone())),
                stderr: None,
                terminal: Some(terminal),
            })
        }
        ExecStreams::Pipes { stdin, stdout, stderr } => {
            let input = stdin.map(pipe::Sender::from_owned_fd).transpose()?;
            // Outputs that nobody asked for are read all the same: the program must not wait.
            Ok(Ends {
                input: input.map(|input| Box::new(input) as _),
                stdout: Some(Box::new(pipe::Receiver::from_owned_fd(stdout)?)),
                stderr: Some(Box::new(pipe::Receiver::from_owned_fd(stderr)?)),
                terminal: None,
            })
        }
    }
}

/// Carries until the program has ended and its output is through; its exit code.
async fn run(exec: &Exec, ends: Ends, link: &mut Link) -> Result<i32, StreamError> {
    let ended = CancellationToken::new();
    let (mut up, mut down) = ends.carry(link, &ended);
    let (mut carried, mut exit) = (false, None);
    loop {
        if let (true, Some(ExecExit { code, .. })) = (carried, exit) {
            return Ok(code);
        }
        tokio::select! {
            read = &mut up, if !carried => {
                read?;
                carried = true;
            }
            error = &mut down => return Err(error),
            how = exec.exit(), if exit.is_none() => {
                exit = Some(how?);
                ended.cancel();
            }
        }
    }
}
