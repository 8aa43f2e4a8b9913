//! The programs of the Workshop's chapter on containers: a server that greets and logs, one that takes memory, a counter
//! of visitors, and the store that it may keep its number in.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use http::StatusCode;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::http::text;
use super::print_line;

/// Pieces that the memory program takes, and how much each holds.
const PIECES: usize = 50;
const PIECE_BYTES: usize = 1_000_000;
const SLEEP: Duration = Duration::from_secs(3600);
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The counter's key.
const KEY: &str = "visitors";
/// Words of a request to the store, and bytes of each.
const WORDS_MAX: usize = 16;
const WORD_BYTES_MAX: usize = 64 << 10;
/// As much of a time as a log line shows: date and time of day.
const TIME_LETTERS: usize = 19;

/// Flags of `pings`.
#[derive(Debug, Args)]
pub(crate) struct PingsArgs {
    /// The port to listen on.
    #[arg(long, default_value_t = 8080)]
    port: u16,
}

/// Flags of `counter`.
#[derive(Debug, Args)]
pub(crate) struct CounterArgs {
    /// The port to listen on.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Where the number is kept, as in db:6379. Default: in memory.
    #[arg(long, value_name = "HOST:PORT")]
    store: Option<String>,
}

/// Flags of `keys`.
#[derive(Debug, Args)]
pub(crate) struct KeysArgs {
    /// The port to listen on.
    #[arg(long, default_value_t = 6379)]
    port: u16,
}

/// Greets whoever asks, and logs who did on standard error.
pub(super) async fn pings(args: &PingsArgs) -> anyhow::Result<()> {
    serve(args.port, |stream, peer| async move {
        let answer = |_request| {
            log(format_args!("Ping from {peer}"));
            text(StatusCode::OK, "Hello Kubernetes Beginners!\n")
        };
        super::http::serve(stream, CancellationToken::new(), answer).await;
    })
    .await
}

/// Takes a megabyte after the other, says so before each, and keeps them.
pub(super) fn memory() {
    let mut kept = Vec::with_capacity(PIECES);
    for number in 1..=PIECES {
        print_line(format_args!("{line}{number}{line}", line = "=".repeat(15)));
        // Every byte is written, so that all of it is taken and not only promised.
        kept.push(vec![b'x'; PIECE_BYTES]);
    }
    std::thread::sleep(SLEEP);
    drop(kept);
}

/// Tells each visitor the number of visitors so far.
pub(super) async fn counter(args: &CounterArgs) -> anyhow::Result<()> {
    let (own, store) = (Arc::new(AtomicU64::new(0)), args.store.clone());
    serve(args.port, move |stream, _peer| {
        let (own, store) = (Arc::clone(&own), store.clone());
        async move {
            // One visit for each connection: the number is taken before the question is known.
            let number = match &store {
                None => Ok(own.fetch_add(1, Ordering::SeqCst) + 1),
                Some(store) => increment(store).await,
            };
            let (status, body) = match number {
                Ok(number) => (StatusCode::OK, format!("Hello, you're visitor #{number}.\n")),
                Err(error) => (StatusCode::BAD_GATEWAY, format!("{error:#}\n")),
            };
            let answer = move |_request| text(status, body.clone());
            super::http::serve_once(stream, answer).await;
        }
    })
    .await
}

/// Adds one to the number in the store.
async fn increment(store: &str) -> anyhow::Result<u64> {
    let mut stream = TcpStream::connect(store).await.with_context(|| format!("cannot reach {store}"))?;
    let request = format!("*2\r\n$4\r\nINCR\r\n${}\r\n{KEY}\r\n", KEY.len());
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).await?;
    let number = answer.strip_prefix(':').with_context(|| format!("{store} answers {answer:?}"))?;
    Ok(number.trim_end().parse()?)
}

/// Keeps values by key in memory, and speaks as much of Redis's protocol as a counter needs.
pub(super) async fn keys(args: &KeysArgs) -> anyhow::Result<()> {
    let values: Arc<Mutex<HashMap<Vec<u8>, Vec<u8>>>> = Arc::default();
    serve(args.port, move |stream, _peer| {
        let values = Arc::clone(&values);
        async move {
            let mut stream = BufReader::new(stream);
            while let Ok(Some(words)) = request(&mut stream).await {
                let answer = answer(&words, &mut values.lock().unwrap_or_else(PoisonError::into_inner));
                if stream.write_all(&answer).await.is_err() {
                    return;
                }
            }
        }
    })
    .await
}

/// The words of the next request; `None` at the end.
async fn request(stream: &mut BufReader<TcpStream>) -> anyhow::Result<Option<Vec<Vec<u8>>>> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let Some(count) = line.strip_prefix('*') else {
        let words = line.split_whitespace().map(|word| word.as_bytes().to_vec());
        return Ok(Some(words.take(WORDS_MAX).collect()));
    };
    let count: usize = count.trim_end().parse()?;
    ensure!(count <= WORDS_MAX, "a request of {count} words");
    let mut words = Vec::with_capacity(count);
    for _ in 0..count {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let length: usize = line.strip_prefix('$').context("no length of a word")?.trim_end().parse()?;
        ensure!(length <= WORD_BYTES_MAX, "a word of {length} bytes");
        let mut word = vec![0; length + 2];
        stream.read_exact(&mut word).await?;
        word.truncate(length);
        words.push(word);
    }
    Ok(Some(words))
}

fn answer(words: &[Vec<u8>], values: &mut HashMap<Vec<u8>, Vec<u8>>) -> Vec<u8> {
    let verb = words.first().map(|word| word.to_ascii_uppercase()).unwrap_or_default();
    match (verb.as_slice(), words.get(1..).unwrap_or_default()) {
        (b"PING", []) => b"+PONG\r\n".to_vec(),
        (b"SELECT", [_]) => b"+OK\r\n".to_vec(),
        (b"GET", [key]) => match values.get(key) {
            Some(value) => [format!("${}\r\n", value.len()).as_bytes(), value, b"\r\n"].concat(),
            None => b"$-1\r\n".to_vec(),
        },
        (b"SET", [key, value]) => {
            values.insert(key.clone(), value.clone());
            b"+OK\r\n".to_vec()
        }
        (b"INCR", [key]) => match incremented(values.get(key)) {
            Ok(next) => {
                values.insert(key.clone(), next.to_string().into_bytes());
                format!(":{next}\r\n").into_bytes()
            }
            Err(_) => b"-ERR value is not an integer or out of range\r\n".to_vec(),
        },
        _ => b"-ERR unknown command\r\n".to_vec(),
    }
}

fn incremented(value: Option<&Vec<u8>>) -> anyhow::Result<i64> {
    let now: i64 = match value {
        None => 0,
        Some(value) => std::str::from_utf8(value)?.parse()?,
    };
    match now.checked_add(1) {
        Some(next) => Ok(next),
        None => bail!("it is the greatest number"),
    }
}

/// Serves each caller in a task of its own, until the process is ended.
async fn serve<F: Future<Output = ()> + Send + 'static>(
    port: u16,
    converse: impl Fn(TcpStream, SocketAddr) -> F,
) -> anyhow::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await;
    let listener =
        listener.with_context(|| format!("cannot listen on port {port}; choose another with --port"))?;
    let mut signals = crate::signals::Signals::listen()?;
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => drop(tokio::spawn(converse(stream, peer))),
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
            _signal = signals.next() => return Ok(()),
        }
    }
}

/// A line with date and time, as Go's programs log.
fn log(line: std::fmt::Arguments<'_>) {
    use std::io::Write as _;
    let now = runtime::Timestamp::now().to_string().replace('-', "/").replace('T', " ");
    let _closed = writeln!(std::io::stderr(), "{} {line}", now.get(..TIME_LETTERS).unwrap_or(&now));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_counts() {
        let mut values = HashMap::new();
        let mut ask = |line: &str| {
            let words: Vec<Vec<u8>> = line.split(' ').map(|word| word.as_bytes().to_vec()).collect();
            String::from_utf8(answer(&words, &mut values)).unwrap()
        };
        assert_eq!(ask("get n"), "$-1\r\n");
        assert_eq!((ask("INCR n"), ask("INCR n")), (":1\r\n".to_owned(), ":2\r\n".to_owned()));
        assert_eq!(ask("GET n"), "$1\r\n2\r\n");
        assert_eq!(ask("SET n x"), "+OK\r\n");
        assert!(ask("INCR n").starts_with("-ERR") && ask("FLUSHALL").starts_with("-ERR"));
    }
}
