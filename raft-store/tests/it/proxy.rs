//! A port in front of a member's, whose connections can be cut and made slow.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Passes connections on, until they are cut.
pub(crate) struct Proxy {
    pub(crate) address: String,
    cut: watch::Sender<u64>,
    refuse: CancellationToken,
    delay_ms: Arc<AtomicU64>,
}

impl Proxy {
    pub(crate) async fn to(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let (cut, cuts) = watch::channel(0);
        let refuse = CancellationToken::new();
        let refused = refuse.clone();
        let delay_ms = Arc::new(AtomicU64::new(0));
        let delay = Arc::clone(&delay_ms);
        tokio::spawn(async move {
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = refused.cancelled() => return,
                };
                let Ok((here, _)) = accepted else { return };
                let mut cuts = cuts.clone();
                cuts.mark_unchanged();
                tokio::spawn(pass(here, target.clone(), cuts, Arc::clone(&delay)));
            }
        });
        Self { address, cut, refuse, delay_ms }
    }

    /// Ends the connections that there are; others may be made.
    pub(crate) fn cut(&self) {
        self.cut.send_modify(|cuts| *cuts += 1);
    }

    /// Refuses connections from now on.
    pub(crate) fn refuse(&self) {
        self.refuse.cancel();
    }

    /// What is read from now on is written so much later, in both directions.
    pub(crate) fn delay(&self, delay: Duration) {
        self.delay_ms.store(delay.as_millis() as u64, Ordering::Relaxed);
    }
}

async fn pass(here: TcpStream, target: String, mut cuts: watch::Receiver<u64>, delay_ms: Arc<AtomicU64>) {
    let Ok(there) = TcpStream::connect(target).await else { return };
    for stream in [&here, &there] {
        stream.set_nodelay(true).expect("a socket");
    }
    let ((from_here, to_here), (from_there, to_there)) = (here.into_split(), there.into_split());
    tokio::select! {
        _ = async { tokio::join!(relay(from_here, to_there, &delay_ms), relay(from_there, to_here, &delay_ms)) } => {}
        _ = cuts.changed() => {}
    }
}

/// Passes on what comes until the end of it, in order.
async fn relay(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, delay_ms: &AtomicU64) {
    let (late, mut due) = mpsc::unbounded_channel();
    let read = async move {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            let delay = Duration::from_millis(delay_ms.load(Ordering::Relaxed));
            if late.send((Instant::now() + delay, buffer[..length].to_vec())).is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((at, bytes)) = due.recv().await {
            tokio::time::sleep_until(at).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
        // The other side has gone already if this fails.
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}
