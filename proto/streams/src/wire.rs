//! Frames as they pass between a node and a replica.

use proto::node::stream_frame::Frame;
use proto::node::{StreamFrame, TerminalSize};

use crate::{ClientFrame, NodeFrame, StreamFailure};

/// What a failure without a code of HTTP counts as.
const CODE_DEFAULT: u16 = 500;

/// What a client says, on its way to the node.
pub fn to_node(frame: ClientFrame) -> StreamFrame {
    let frame = match frame {
        ClientFrame::Stdin(bytes) => Frame::Stdin(bytes),
        ClientFrame::StdinEnd => Frame::StdinEnd(true),
        ClientFrame::Resize { rows, columns } => {
            Frame::Resize(TerminalSize { rows: rows.into(), columns: columns.into() })
        }
    };
    StreamFrame { frame: Some(frame) }
}

/// What a node's frame says; `None`: nothing that concerns a reader.
pub fn from_node(frame: Frame) -> Option<Result<NodeFrame, StreamFailure>> {
    Some(Ok(match frame {
        Frame::Started(_) => NodeFrame::Started,
        Frame::Stdout(bytes) => NodeFrame::Stdout(bytes),
        Frame::Stderr(bytes) => NodeFrame::Stderr(bytes),
        Frame::Exit(exit) => NodeFrame::Exit(exit.code),
        Frame::End(_) => NodeFrame::End,
        Frame::Error(error) => {
            let code = u16::try_from(error.code).unwrap_or(CODE_DEFAULT);
            return Some(Err(StreamFailure { code, message: error.message }));
        }
        Frame::StreamId(_) | Frame::Stdin(_) | Frame::StdinEnd(_) | Frame::Resize(_) => return None,
    }))
}
