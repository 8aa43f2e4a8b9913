//! `barque demo docdb` and `docdb-shell`: documents kept in files, and a line-by-line client.
//!
//! A document is one line of text; a collection is one file, appended to and synced before the insert is acknowledged.
//! On the wire: `insert DB COLLECTION DOCUMENT` is answered with `ok` or `error: …`, `find DB COLLECTION` with the
//! documents and an empty line.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::Args;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::http::{accept, listen};
use super::print_line;
use crate::signals::Signals;

/// The longest line of a client.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// Clients served at the same time; others wait.
const CLIENTS_MAX: usize = 64;
const NAME_LENGTH_MAX: usize = 64;

/// Flags of `demo docdb`.
#[derive(Debug, Args)]
pub(crate) struct DocdbArgs {
    /// The port to listen on.
    #[arg(long, default_value_t = 27017)]
    port: u16,

    /// Where the documents lie.
    #[arg(long, value_name = "DIR", default_value = "/data/db")]
    data: PathBuf,
}

/// Flags of `demo docdb-shell`.
#[derive(Debug, Args)]
pub(crate) struct ShellArgs {
    /// The store's port on this loopback.
    #[arg(long, default_value_t = 27017)]
    port: u16,
}

/// Serves until TERM or INT.
pub(super) async fn serve(args: &DocdbArgs) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    fs::create_dir_all(&args.data).with_context(|| format!("cannot create {}", args.data.display()))?;
    let listener = listen(args.port).await?;
    print_line(format_args!("waiting for connections on port {}", args.port));
    let clients = Arc::new(Semaphore::new(CLIENTS_MAX));
    loop {
        tokio::select! {
            (stream, _) = accept(&listener) => {
                let (data, clients) = (args.data.clone(), Arc::clone(&clients));
                tokio::spawn(async move {
                    let Ok(_turn) = clients.acquire_owned().await else { return };
                    // A client that breaks off is no event here.
                    let _broken = converse(stream, &data).await;
                });
            }
            _ = signals.next() => return Ok(()),
        }
    }
}

async fn converse(mut stream: TcpStream, data: &Path) -> std::io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut reader = tokio::io::BufReader::new(reader);
    loop {
        let mut line = String::new();
        if (&mut reader).take(LINE_BYTES_MAX).read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let answer = obey(data, line.trim_end()).unwrap_or_else(|error| format!("error: {error:#}\n"));
        writer.write_all(answer.as_bytes()).await?;
    }
}

fn obey(data: &Path, line: &str) -> anyhow::Result<String> {
    let mut words = line.splitn(4, ' ');
    let (verb, database, collection) = (words.next(), words.next(), words.next());
    let (Some(database), Some(collection)) = (database, collection) else { bail!("{line:?} is incomplete") };
    for name in [database, collection] {
        let fine = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if name.is_empty() || name.len() > NAME_LENGTH_MAX || !fine {
            bail!("{name:?} is no name; use letters, digits and _");
        }
    }
    let file = data.join(format!("{database}.{collection}"));
    match (verb, words.next()) {
        (Some("insert"), Some(document)) => {
            let mut open =
                fs::OpenOptions::new().create(true).append(true).open(&file).context("cannot open")?;
            open.write_all(format!("{document}\n").as_bytes()).context("cannot write")?;
            open.sync_data().context("cannot sync")?;
            Ok("ok\n".to_owned())
        }
        (Some("find"), None) => Ok(fs::read_to_string(&file).unwrap_or_default() + "\n"),
        _ => bail!("{line:?} is not understood"),
    }
}

/// Takes commands from standard input until `exit` or its end.
pub(super) fn shell(args: &ShellArgs) -> anyhow::Result<()> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, args.port));
    let mut stream =
        std::net::TcpStream::connect(address).with_context(|| format!("cannot reach {address}"))?;
    let mut answers = BufReader::new(stream.try_clone().context("cannot read from the store")?);
    let mut database = "test".to_owned();
    for line in std::io::stdin().lines() {
        let line = line.context("cannot read standard input")?;
        let command = match line.trim() {
            "" => continue,
            "exit" => return Ok(()),
            other => other,
        };
        if let Some(name) = command.strip_prefix("use ") {
            database = name.trim().to_owned();
            print_line(format_args!("switched to db {database}"));
            continue;
        }
        let Some(asked) = translate(&database, command) else {
            print_line(format_args!("not understood: {command}"));
            continue;
        };
        stream.write_all(asked.as_bytes()).context("the store is gone")?;
        loop {
            let mut answer = String::new();
            let length = answers.read_line(&mut answer).context("the store is gone")?;
            if length == 0 {
                bail!("the store has closed the connection");
            }
            if answer != "\n" {
                print_line(format_args!("{}", answer.trim_end()));
            }
            if asked.starts_with("insert") || answer == "\n" || answer.starts_with("error: ") {
                break;
            }
        }
    }
    Ok(())
}

/// `db.NAME.insert(DOCUMENT)` and `db.NAME.find()` in the store's words.
fn translate(database: &str, command: &str) -> Option<String> {
    let (collection, call) = command.strip_prefix("db.")?.split_once('.')?;
    let call = call.trim_end_matches(';').strip_suffix(')')?;
    match call.split_once('(')? {
        ("find", "") => Some(format!("find {database} {collection}\n")),
        ("insert", document) => Some(format!("insert {database} {collection} {document}\n")),
        _ => None,
    }
}
