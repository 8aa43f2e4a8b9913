//! One module per subcommand. Each reads its flags, calls what does the work, and prints.

pub(crate) mod bench;
pub(crate) mod chaos;
pub(crate) mod container;
pub(crate) mod control;
pub(crate) mod cri;
pub(crate) mod crictl;
pub(crate) mod down;
pub(crate) mod endpoint;
pub(crate) mod explain;
pub(crate) mod image;
pub(crate) mod kubeconfig;
pub(crate) mod leader;
pub(crate) mod member;
pub(crate) mod node;
pub(crate) mod snapshot;
pub(crate) mod status;
pub(crate) mod token;
pub(crate) mod up;
pub(crate) mod version;
mod words;

use anyhow::Context as _;

/// An event loop on as many threads as the machine has processors, but not more than `threads_max`.
pub(crate) fn event_loop(threads_max: usize) -> anyhow::Result<tokio::runtime::Runtime> {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(processors.div_ceil(2).min(threads_max))
        .enable_all()
        .build()
        .context("cannot start the event loop")
}

/// Runs a service on an event loop until it ends. A task of the loop runs it: what runs on the calling thread itself
/// takes a system call and a change of threads each time it is woken.
pub(crate) fn run_service(
    threads_max: usize,
    service: impl Future<Output = anyhow::Result<()>> + Send + 'static,
) -> anyhow::Result<()> {
    event_loop(threads_max)?.block_on(async { tokio::spawn(service).await.context("the service broke off")? })
}

/// Writes to standard output.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    std::io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")
}

/// A table with borders, as etcdctl draws it.
fn boxed_table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |at: usize| rows.iter().map(|row| row[at].len()).chain([head[at].len()]).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let border: String =
        widths.iter().map(|width| format!("+{}", "-".repeat(width + 2))).collect::<String>() + "+\n";
    let line = |cells: Vec<&str>| {
        let cells = cells.iter().zip(&widths).map(|(cell, width)| format!("| {cell:^width$} "));
        cells.collect::<String>() + "|\n"
    };
    let mut text = border.clone() + &line(head.to_vec()) + &border;
    for row in rows {
        text += &line(row.iter().map(String::as_str).collect());
    }
    text + &border
}
