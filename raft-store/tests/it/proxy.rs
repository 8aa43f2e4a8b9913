//! A port in front of a member's, whose connections can be cut.

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Passes connections on, until they are cut.
pub(crate) struct Proxy {
    pub(crate) address: String,
    cut: watch::Sender<u64>,
    refuse: CancellationToken,
}

impl Proxy {
    pub(crate) async fn to(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let (cut, cuts) = watch::channel(0);
        let refuse = CancellationToken::new();
        let refused = refuse.clone();
        tokio::spawn(async move {
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = refused.cancelled() => return,
                };
                let Ok((here, _)) = accepted else { return };
                let mut cuts = cuts.clone();
                cuts.mark_unchanged();
                tokio::spawn(pass(here, target.clone(), cuts));
            }
        });
        Self { address, cut, refuse }
    }

    /// Ends the connections that there are; others may be made.
    pub(crate) fn cut(&self) {
        self.cut.send_modify(|cuts| *cuts += 1);
    }

    /// Refuses connections from now on.
    pub(crate) fn refuse(&self) {
        self.refuse.cancel();
    }
}

async fn pass(mut here: TcpStream, target: String, mut cuts: watch::Receiver<u64>) {
    let Ok(mut there) = TcpStream::connect(target).await else { return };
    for stream in [&here, &there] {
        stream.set_nodelay(true).expect("a socket");
    }
    tokio::select! {
        _ = copy_bidirectional(&mut here, &mut there) => {}
        _ = cuts.changed() => {}
    }
}
