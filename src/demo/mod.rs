//! The demo workloads: the programs of the books' examples, small enough to be part of this binary, so that a cluster
//! can be tried out without any registry. The built-in image `barque/hello:1.0` holds them all.
//!
//! `barque hello` is the web application. Beside it stand a TLS proxy with an admin interface, a web server of files
//! with a writer of quotes, programs for init containers and a store of documents. They are made to be process 1 of a
//! container: process 1 gets no default action for signals, so each handles what it says that it handles. They keep no
//! promise that the cluster rests on.

mod docdb;
mod hello;
mod http;
mod init;
mod proxy;
mod quote;
mod web;
mod workshop;

use anyhow::Context as _;
use clap::Subcommand;

pub(crate) use hello::HelloArgs;

/// The demo workloads besides `hello`.
#[derive(Debug, Subcommand)]
pub(crate) enum DemoCommand {
    /// Takes HTTPS with a certificate of its own and passes it on as HTTP; has an admin interface.
    Proxy(proxy::ProxyArgs),
    /// Serves the files of a directory over HTTP.
    Web(web::WebArgs),
    /// Prints a quote, never the same one twice.
    Quote,
    /// Writes a quote into a file every INTERVAL seconds (environment; default 30) until INT.
    QuoteWriter(quote::WriterArgs),
    /// Prints a line a second for a while and ends: an init container.
    WarmUp(init::WarmUpArgs),
    /// Ends well if an address answers pings: an init container.
    Netcheck(init::NetcheckArgs),
    /// Keeps documents in files and serves them over TCP.
    Docdb(docdb::DocdbArgs),
    /// Greets over HTTP and logs who asks.
    Pings(workshop::PingsArgs),
    /// Takes 50 megabytes, one after the other, and sleeps.
    Memory,
    /// Counts visitors over HTTP.
    Counter(workshop::CounterArgs),
    /// Keeps values by key in memory: enough of Redis for `counter`.
    Keys(workshop::KeysArgs),
    /// Speaks to `docdb`: `use DB`, `db.NAME.insert(DOCUMENT)`, `db.NAME.find()`, `exit`.
    DocdbShell(docdb::ShellArgs),
}

/// Runs `barque hello` until it is told to end.
pub(crate) fn run_hello(args: &HelloArgs) -> anyhow::Result<()> {
    event_loop()?.block_on(hello::serve(args))
}

/// Runs a demo workload to its end.
pub(crate) fn run(command: &DemoCommand) -> anyhow::Result<()> {
    match command {
        DemoCommand::Proxy(args) => event_loop()?.block_on(proxy::serve(args)),
        DemoCommand::Web(args) => web::run(args),
        DemoCommand::Quote => quote::print(),
        DemoCommand::QuoteWriter(args) => event_loop()?.block_on(quote::write(args)),
        DemoCommand::WarmUp(args) => event_loop()?.block_on(init::warm_up(args)),
        DemoCommand::Netcheck(args) => init::netcheck(args),
        DemoCommand::Docdb(args) => event_loop()?.block_on(docdb::serve(args)),
        DemoCommand::Pings(args) => event_loop()?.block_on(workshop::pings(args)),
        DemoCommand::Memory => {
            workshop::memory();
            Ok(())
        }
        DemoCommand::Counter(args) => event_loop()?.block_on(workshop::counter(args)),
        DemoCommand::Keys(args) => event_loop()?.block_on(workshop::keys(args)),
        DemoCommand::DocdbShell(args) => docdb::shell(args),
    }
}

/// An event loop on the calling thread: these programs should be small.
fn event_loop() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the event loop")
}

/// Standard output may be closed by whoever reads the log; the program goes on.
fn print_line(line: std::fmt::Arguments<'_>) {
    use std::io::Write as _;
    let _closed = writeln!(std::io::stdout(), "{line}");
}
