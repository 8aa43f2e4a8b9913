//! Programs in containers: the node's stream as messages, both ways.
//!
//! Nothing runs beside the call: whoever drops the answer drops the node's stream, which ends the program's input.
//! Output never waits for input that the program does not read.

use futures_util::stream::{self, BoxStream, StreamExt};
use http::Method;
use proto::objects::exec_request::Message as Said;
use proto::objects::exec_response::Message as Answer;
use proto::objects::{ExecRequest, ExecResponse};
use tonic::{Status, Streaming};

use super::error;
use super::request::{Asked, Caller};
use crate::rest::{ClientFrame, NodeFrame, OpenStream};

/// The request that a call stands for.
pub(super) fn asked(first: Option<ExecRequest>) -> Result<Asked, Status> {
    let Some(Said::Start(start)) = first.and_then(|first| first.message) else {
        return Err(Status::invalid_argument("the first message must be `start`"));
    };
    let mut asked = Asked::pod(Method::POST, start.namespace, start.pod, "exec")?;
    asked.add("container", &start.container);
    for word in &start.command {
        // An empty word is a word.
        asked.add_even_empty("command", word);
    }
    for (end, is_wanted) in
        [("stdin", start.stdin), ("stdout", start.stdout), ("stderr", start.stderr), ("tty", start.tty)]
    {
        if is_wanted {
            asked.add(end, "true");
        }
    }
    Ok(asked)
}

struct Session {
    incoming: Streaming<ExecRequest>,
    open: OpenStream,
    caller: Caller,
    /// Said by the client, and not yet taken by the node.
    pending: Option<ClientFrame>,
    input_ended: bool,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Begun,
    Running,
    Ended,
}

/// What follows once the program runs.
pub(super) fn stream(
    incoming: Streaming<ExecRequest>,
    open: OpenStream,
    caller: Caller,
) -> BoxStream<'static, Result<ExecResponse, Status>> {
    let session = Session { incoming, open, caller, pending: None, input_ended: false, state: State::Begun };
    stream::unfold(session, |mut session| async move {
        let message = session.next().await?;
        Some((message.map(|message| ExecResponse { message: Some(message) }), session))
    })
    .boxed()
}

impl Session {
    async fn next(&mut self) -> Option<Result<Answer, Status>> {
        match self.state {
            State::Begun => {
                self.state = State::Running;
                return Some(Ok(Answer::Started(true)));
            }
            State::Running => {}
            State::Ended => return None,
        }
        let answer = self.run().await;
        if !matches!(answer, Some(Ok(Answer::Stdout(_) | Answer::Stderr(_)))) {
            self.state = State::Ended;
        }
        answer
    }

    /// Carries input until there is output.
    async fn run(&mut self) -> Option<Result<Answer, Status>> {
        loop {
            let Self { incoming, open, caller, pending, input_ended, .. } = self;
            tokio::select! {
                () = open.stop.cancelled() => {
                    return Some(Err(Status::unavailable("this replica is stopping; ask another")));
                }
                () = caller.overdue() => {
                    return Some(Err(Status::deadline_exceeded("the call's deadline has passed")));
                }
                frame = open.node.incoming.recv() => return match frame {
                    Some(Ok(NodeFrame::Stdout(bytes))) => Some(Ok(Answer::Stdout(bytes))),
                    Some(Ok(NodeFrame::Stderr(bytes))) => Some(Ok(Answer::Stderr(bytes))),
                    Some(Ok(NodeFrame::Exit(code))) => Some(Ok(Answer::Exit(code))),
                    Some(Ok(NodeFrame::End)) => None,
                    Some(Ok(NodeFrame::Started)) => continue,
                    Some(Err(failure)) => Some(Err(error::of_code(failure.code, &failure.message))),
                    None => Some(Err(Status::unavailable("the node broke the stream off"))),
                },
                room = open.node.outgoing.reserve(), if pending.is_some() => {
                    match (room, pending.take()) {
                        (Ok(room), Some(frame)) => room.send(frame),
                        // The program takes no more input; its output goes on.
                        _ => *input_ended = true,
                    }
                }
                said = incoming.message(), if pending.is_none() && !*input_ended => match said {
                    Ok(Some(request)) => match frame(request) {
                        Ok(frame) => {
                            *input_ended = frame == ClientFrame::StdinEnd;
                            *pending = Some(frame);
                        }
                        Err(status) => return Some(Err(status)),
                    },
                    Ok(None) => {
                        *input_ended = true;
                        *pending = Some(ClientFrame::StdinEnd);
                    }
                    Err(_) => return None,
                },
            }
        }
    }
}

fn frame(request: ExecRequest) -> Result<ClientFrame, Status> {
    match request.message {
        Some(Said::Stdin(bytes)) => Ok(ClientFrame::Stdin(bytes)),
        Some(Said::StdinEnd(_)) => Ok(ClientFrame::StdinEnd),
        Some(Said::Resize(size)) => {
            let number = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
            Ok(ClientFrame::Resize { rows: number(size.rows), columns: number(size.columns) })
        }
        Some(Said::Start(_)) | None => Err(Status::invalid_argument("the program has been started already")),
    }
}
