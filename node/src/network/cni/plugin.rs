//! One call of a plugin: a program that is told what to do by variables and its standard input.

use std::path::Path;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt as _;

use super::CniError;

/// How long a plugin may take before it is killed.
const TIME_MAX: Duration = Duration::from_secs(60);
/// Where plugins find programs of the host (iptables, for example).
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a plugin is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    /// Connect a pod.
    Add,
    /// Take down what was made.
    Delete,
}

impl Command {
    fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Delete => "DEL",
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Delete => "delete",
        }
    }
}

/// For what a plugin is called.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) command: Command,
    pub(super) container_id: &'a str,
    pub(super) netns: Option<&'a Path>,
    pub(super) link: &'a str,
    pub(super) args: &'a str,
    pub(super) bin_dirs: &'a [PathBuf],
}

impl Call<'_> {
    /// Runs a plugin; gives what it printed. Blocks, inside of a runtime.
    pub(super) fn run(&self, plugin: &str, given: &Value) -> Result<Value, CniError> {
        let failed = |message: String| CniError::Plugin {
            plugin: plugin.to_owned(),
            command: self.command.word(),
            message,
        };
        let found = self.bin_dirs.iter().map(|dir| dir.join(plugin)).find(|path| path.is_file());
        let no_plugin = || CniError::NoPlugin { plugin: plugin.to_owned(), dirs: self.bin_dirs.to_vec() };
        let program = found.ok_or_else(no_plugin)?;
        let run = tokio::time::timeout(TIME_MAX, self.execute(&program, given.to_string()));
        let ended = tokio::runtime::Handle::current().block_on(run);
        let late = |_| failed(format!("no answer within {} s; it was killed", TIME_MAX.as_secs()));
        let output = ended.map_err(late)?.map_err(|error| failed(error.to_string()))?;
        if !output.status.success() {
            return Err(failed(complaint(&output)));
        }
        match (self.command, output.stdout.trim_ascii()) {
            // DEL says nothing; ADD must say what it made.
            (Command::Delete, b"") => Ok(Value::Null),
            (_, text) => serde_json::from_slice(text)
                .map_err(|error| failed(format!("its answer is not JSON: {error}"))),
        }
    }

    async fn execute(&self, program: &Path, given: String) -> std::io::Result<Output> {
        let dirs: Vec<_> = self.bin_dirs.iter().map(|dir| dir.to_string_lossy()).collect();
        let mut child = tokio::process::Command::new(program)
            .env_clear()
            .env("PATH", PATH)
            .env("CNI_COMMAND", self.command.name())
            .env("CNI_CONTAINERID", self.container_id)
            .env("CNI_NETNS", self.netns.unwrap_or(Path::new("")))
            .env("CNI_IFNAME", self.link)
            .env("CNI_ARGS", self.args)
            .env("CNI_PATH", dirs.join(":"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdin = child.stdin.take();
        let tell = async move {
            let Some(mut stdin) = stdin else { return };
            // One that does not listen says by its end what it thinks of it.
            drop(stdin.write_all(given.as_bytes()).await);
        };
        let ((), output) = tokio::join!(tell, child.wait_with_output());
        output
    }
}

/// What a plugin that failed says: an error object, or something on standard error.
fn complaint(output: &Output) -> String {
    let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let text = |key: &str| said[key].as_str().unwrap_or_default().to_owned();
    let told = match (text("msg"), text("details")) {
        (message, details) if details.is_empty() => message,
        (message, details) => format!("{message}; {details}"),
    };
    if !told.is_empty() {
        return told;
    }
    match String::from_utf8_lossy(&output.stderr).trim() {
        "" => format!("it ended with {}", output.status),
        words => format!("it ended with {}: {words}", output.status),
    }
}
