//! `barque hello`: the web application of the books' examples.
//!
//! Answers with its host name and the caller's address and logs each request to standard output. Two variants: one
//! takes each line of its standard input as the new greeting, one leaves TERM unhandled, as a program does that was
//! not made to be process 1.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use clap::Args;
use http::StatusCode;
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::http::{accept, listen_at, text};
use super::print_line;
use crate::signals::Signals;

/// Flags of `hello`.
#[derive(Debug, Args)]
pub(crate) struct HelloArgs {
    /// The port to listen on.
    #[arg(long, default_value_t = 8080)]
    port: u16,

    /// The one address to listen on; all of them without it.
    #[arg(long)]
    address: Option<IpAddr>,

    /// Takes each line of standard input as the new greeting.
    #[arg(long)]
    stdin: bool,

    /// Does not handle TERM. The kernel then keeps it from process 1, and a pod ends only after its grace period.
    #[arg(long)]
    no_term_handler: bool,
}

/// The words of the answer, which standard input may change.
type Greeting = Arc<Mutex<String>>;

/// Serves until TERM or INT.
pub(super) async fn serve(args: &HelloArgs) -> anyhow::Result<()> {
    let host = nix::unistd::gethostname().context("cannot read the host name")?;
    let host = host.to_string_lossy().into_owned();
    let greeting: Greeting = Arc::new(Mutex::new("Hey there".to_owned()));
    print_line(format_args!("Hello server starting..."));
    let ended = ended(args.no_term_handler)?;
    let listener = listen_at(args.address, args.port).await?;
    print_line(format_args!("Local hostname is {host}"));
    print_line(format_args!("Listening on port {}", listener.local_addr()?.port()));
    if args.stdin {
        let greeting = Arc::clone(&greeting);
        // Reading standard input cannot be broken off; the thread ends with the process.
        std::thread::spawn(move || take_greetings(&greeting));
    }
    let mut ended = std::pin::pin!(ended);
    loop {
        tokio::select! {
            (stream, caller) = accept(&listener) => {
                tokio::spawn(answer(stream, caller, host.clone(), Arc::clone(&greeting)));
            }
            () = ended.as_mut() => return Ok(()),
        }
    }
}

/// Waits for the signal that ends the server. The handlers stand when this function has returned.
fn ended(no_term_handler: bool) -> anyhow::Result<impl Future<Output = ()>> {
    let (mut all, mut interrupt) = match no_term_handler {
        true => (None, Some(signal(SignalKind::interrupt()).context("cannot listen for INT")?)),
        false => (Some(Signals::listen()?), None),
    };
    Ok(async move {
        if let Some(signals) = &mut all {
            let name = signals.next().await;
            print_line(format_args!("Received SIG{name}. Server shutting down..."));
        } else if let Some(interrupt) = &mut interrupt {
            interrupt.recv().await;
        }
    })
}

fn take_greetings(greeting: &Greeting) {
    for line in std::io::stdin().lines().map_while(Result::ok) {
        print_line(format_args!("Greeting set to: {line}"));
        *greeting.lock().unwrap_or_else(PoisonError::into_inner) = line;
    }
}

async fn answer(stream: TcpStream, caller: IpAddr, host: String, greeting: Greeting) {
    super::http::serve(stream, CancellationToken::new(), |request| {
        print_line(format_args!("Received request for {} from {caller}", request.uri()));
        let greeting = greeting.lock().unwrap_or_else(PoisonError::into_inner).clone();
        text(StatusCode::OK, format!("{greeting}, this is {host}. Your IP is {caller}.\n"))
    })
    .await;
}
