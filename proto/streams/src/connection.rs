//! One connection to a port of a pod, as bytes both ways.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf, duplex, split};

use super::{ClientFrame, NodeFrame, NodeStream};

/// Bytes on their way in each direction.
const BUFFER_BYTES: usize = 64 << 10;
/// Largest piece that is handed to the node.
const FRAME_BYTES: usize = 32 << 10;
/// How long a pod may go on to speak when nothing more is said to it.
const LINGER: Duration = Duration::from_secs(30);

/// The connection of a port-forward that has started. It ends when the pod ends it, and soon after it is dropped.
pub fn connection(node: NodeStream) -> DuplexStream {
    let (near, far) = duplex(BUFFER_BYTES);
    tokio::spawn(carry(far, node));
    near
}

async fn carry(io: DuplexStream, node: NodeStream) {
    let NodeStream { mut incoming, outgoing } = node;
    let (mut reader, mut writer) = split(io);
    let down = async {
        // What breaks off and what ends look alike to whoever reads.
        while let Some(Ok(frame)) = incoming.recv().await {
            match frame {
                NodeFrame::Stdout(bytes) if writer.write_all(&bytes).await.is_ok() => {}
                NodeFrame::Started | NodeFrame::Stderr(_) => {}
                _ => break,
            }
        }
        let _gone = WriteHalf::shutdown(&mut writer).await;
    };
    tokio::pin!(down);
    tokio::select! {
        () = &mut down => return,
        () = up(&mut reader, &outgoing) => {}
    }
    let _ended = outgoing.send(ClientFrame::StdinEnd).await;
    let _ended = tokio::time::timeout(LINGER, down).await;
}

async fn up(reader: &mut ReadHalf<DuplexStream>, outgoing: &tokio::sync::mpsc::Sender<ClientFrame>) {
    loop {
        let mut bytes = BytesMut::with_capacity(FRAME_BYTES);
        match reader.read_buf(&mut bytes).await {
            Ok(0) | Err(_) => return,
            Ok(_) if outgoing.send(ClientFrame::Stdin(bytes.freeze())).await.is_err() => return,
            Ok(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn bytes_go_both_ways_until_either_side_ends() {
        let (to_client, incoming) = mpsc::channel(4);
        let (outgoing, mut from_client) = mpsc::channel(4);
        let mut io = connection(NodeStream { incoming, outgoing });
        io.write_all(b"ping").await.expect("it takes bytes");
        let said = from_client.recv().await;
        assert_eq!(said, Some(ClientFrame::Stdin("ping".into())));
        to_client.send(Ok(NodeFrame::Stdout("pong".into()))).await.expect("it is carried");
        let mut answer = [0; 4];
        io.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(&answer, b"pong");
        drop(io);
        assert_eq!(from_client.recv().await, Some(ClientFrame::StdinEnd));
        drop(to_client);
        assert_eq!(from_client.recv().await, None, "nothing is left behind");
    }
}
