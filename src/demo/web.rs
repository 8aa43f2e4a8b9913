//! `barque demo web`: a web server of the files in a directory, and the commands that end it.
//!
//! `-s quit` lets answers under way come to their end, `-s stop` does not; both find the server by its pid file. TERM
//! and INT are as `stop`, QUIT is as `quit`; after a QUIT, TERM changes nothing.

use std::fs;
use std::net::IpAddr;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use http::StatusCode;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::http::{Answer, accept, listen, text};
use super::print_line;
use crate::signals::Signals;

/// The largest file that is served.
const FILE_BYTES_MAX: u64 = 256 << 20;
/// The file that is shown for a directory's own address.
const INDEX: &str = "index.html";
/// The pause between two looks at what is not sent yet.
const UNSENT_PAUSE: Duration = Duration::from_millis(20);
/// How long answers under way may take after `-s quit`.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(3600);

/// Flags of `demo web`.
#[derive(Debug, Args)]
pub(crate) struct WebArgs {
    /// The port to listen on.
    #[arg(long, default_value_t = 80)]
    port: u16,

    /// The directory whose files are served.
    #[arg(long, value_name = "DIR", default_value = "/usr/share/nginx/html")]
    root: PathBuf,

    /// Where the server's process id is kept for `-s`.
    #[arg(long, value_name = "FILE", default_value = "/run/web.pid")]
    pid_file: PathBuf,

    /// Begins to listen only after so many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    delay: u64,

    /// Ends the server that runs, instead of starting one.
    #[arg(short, value_name = "HOW")]
    signal: Option<End>,
}

/// How a running server ends.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum End {
    /// After the answers under way.
    Quit,
    /// At once.
    Stop,
}

/// Serves, or ends the server that runs.
pub(super) fn run(args: &WebArgs) -> anyhow::Result<()> {
    match args.signal {
        None => super::event_loop()?.block_on(serve(args)),
        Some(how) => end(&args.pid_file, how),
    }
}

fn end(pid_file: &Path, how: End) -> anyhow::Result<()> {
    let text = fs::read_to_string(pid_file)
        .with_context(|| format!("no server runs: cannot read {}", pid_file.display()))?;
    let pid: i32 = text.trim().parse().with_context(|| format!("no process id in {}", pid_file.display()))?;
    if pid < 1 {
        bail!("{pid} in {} is no process id", pid_file.display());
    }
    let signal = match how {
        End::Quit => Signal::SIGQUIT,
        End::Stop => Signal::SIGTERM,
    };
    nix::sys::signal::kill(Pid::from_raw(pid), signal).with_context(|| format!("cannot signal process {pid}"))
}

async fn serve(args: &WebArgs) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    let mut quit = signal(SignalKind::quit()).context("cannot listen for QUIT")?;
    fs::write(&args.pid_file, format!("{}\n", std::process::id())).with_context(|| {
        format!("cannot write {}; choose another with --pid-file", args.pid_file.display())
    })?;
    tokio::select! {
        () = tokio::time::sleep(Duration::from_secs(args.delay)) => {}
        _ = signals.next() => return Ok(()),
    }
    let listener = listen(args.port).await?;
    print_line(format_args!("serving {} on port {}", args.root.display(), args.port));
    let (answers, stop) = (TaskTracker::new(), CancellationToken::new());
    tokio::select! {
        biased;
        // First: `-s quit` in a pre-stop hook is followed by TERM at once, and on a busy machine both are found together.
        _ = quit.recv() => {
            print_line(format_args!("SIGQUIT: ending after {} connections", answers.len()));
            drop(listener);
            stop.cancel();
            answers.close();
            let sent = async {
                answers.wait().await;
                // What callers have not taken yet is in the kernel, and would go with the container's network.
                while unsent(args.port) {
                    tokio::time::sleep(UNSENT_PAUSE).await;
                }
            };
            let _long = tokio::time::timeout(DRAIN_TIME_MAX, sent).await;
            print_line(format_args!("every answer is sent"));
        }
        name = signals.next() => print_line(format_args!("SIG{name}: ending at once")),
        () = answer_all(&listener, &args.root, (&answers, &stop)) => {}
    }
    Ok(())
}

/// Whether connections at a port have bytes that their callers have not acknowledged.
fn unsent(port: u16) -> bool {
    let end = format!(":{port:04X}");
    let tables = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];
    let lines = tables.iter().filter_map(|table| fs::read_to_string(table).ok());
    lines.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).any(|line| {
        // Number, local address, remote address, state, bytes to send and to read.
        let words: Vec<&str> = line.split_whitespace().take(5).collect();
        let [_, local, _, _, queues] = words[..] else { return false };
        local.ends_with(&end)
            && queues.split(':').next().is_some_and(|sent| sent.bytes().any(|digit| digit != b'0'))
    })
}

async fn answer_all(
    listener: &TcpListener,
    root: &Path,
    (answers, stop): (&TaskTracker, &CancellationToken),
) {
    loop {
        let (stream, caller) = accept(listener).await;
        let (root, stop) = (root.to_owned(), stop.clone());
        answers.spawn(async move {
            super::http::serve(stream, stop, |request| file(&root, request.uri().path(), caller)).await;
        });
    }
}

fn file(root: &Path, path: &str, caller: IpAddr) -> Answer {
    let relative = Path::new(if path == "/" { INDEX } else { path.trim_start_matches('/') });
    let inside = relative.components().all(|part| matches!(part, Component::Normal(_)));
    let found = if inside { read(&root.join(relative)) } else { None };
    let answer = match found {
        Some(content) => text(StatusCode::OK, content),
        None if path == "/" => text(StatusCode::OK, "Welcome!\n"),
        None => text(StatusCode::NOT_FOUND, "404 Not Found\n"),
    };
    print_line(format_args!("{caller} \"GET {path}\" {}", answer.status().as_u16()));
    answer
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let metadata = fs::metadata(path).ok()?;
    if !metadata.is_file() || metadata.len() > FILE_BYTES_MAX {
        return None;
    }
    fs::read(path).ok()
}
