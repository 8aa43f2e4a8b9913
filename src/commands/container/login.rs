//! `login`: name and password for a registry, kept once the registry has taken them.

use std::io::{BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
use node::engine::Engine;
use node::images::{Credentials, check_login};
use serde_json::{Value, json};

use super::{image, print};
use crate::commands::event_loop;

const THREADS: usize = 1;
/// The registry that is meant without another being named.
const DEFAULT: &str = "docker.io";

/// Flags of `login`.
#[derive(Debug, Args)]
pub(crate) struct LoginArgs {
    /// The name. Default: it is asked for.
    #[arg(short, long)]
    username: Option<String>,
    /// The password; whoever lists processes can see it.
    #[arg(short, long, conflicts_with = "password_stdin")]
    password: Option<String>,
    /// Read the password from standard input.
    #[arg(long)]
    password_stdin: bool,
    /// The registry.
    #[arg(default_value = DEFAULT)]
    registry: String,
}

/// Carries it out.
pub(super) fn run(engine: &Engine, args: &LoginArgs) -> anyhow::Result<u8> {
    ensure!(!args.password_stdin || args.username.is_some(), "--password-stdin needs --username");
    let username = match &args.username {
        Some(name) => name.clone(),
        None => ask("Username: ", true)?,
    };
    let password = match (&args.password, args.password_stdin) {
        (Some(password), _) => password.clone(),
        (None, true) => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("cannot read the password")?;
            text.trim_end_matches(['\r', '\n']).to_owned()
        }
        (None, false) => ask("Password: ", false)?,
    };
    let credentials = Credentials::new(username.clone(), password.clone());
    let config = engine.config().images.clone();
    event_loop(THREADS)?.block_on(check_login(config, &args.registry, credentials))?;
    keep(engine, &args.registry, &format!("{username}:{password}"))?;
    print("Login Succeeded\n")?;
    Ok(0)
}

/// Asks the user, who may not want to see the answer.
fn ask(question: &str, seen: bool) -> anyhow::Result<String> {
    let stdin = std::io::stdin();
    let mut out = std::io::stdout();
    out.write_all(question.as_bytes()).and_then(|()| out.flush()).context("cannot ask")?;
    let before = if stdin.is_terminal() && !seen { tcgetattr(&stdin).ok() } else { None };
    if let Some(before) = &before {
        let mut hidden = before.clone();
        hidden.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(&stdin, SetArg::TCSANOW, &hidden).context("cannot hide the password")?;
    }
    let mut line = String::new();
    let read = stdin.lock().read_line(&mut line);
    if let Some(before) = before {
        tcsetattr(&stdin, SetArg::TCSANOW, &before).context("cannot restore the terminal")?;
        print("\n")?;
    }
    read.context("cannot read the answer")?;
    let answer = line.trim_end_matches(['\r', '\n']);
    ensure!(!answer.is_empty(), "nothing was answered");
    Ok(answer.to_owned())
}

fn keep(engine: &Engine, registry: &str, pair: &str) -> anyhow::Result<()> {
    let file = image::credentials_file(engine);
    let mut known: Value = match std::fs::read(&file) {
        Ok(text) => {
            serde_json::from_slice(&text).with_context(|| format!("{} cannot be used", file.display()))?
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => json!({}),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
    };
    known["auths"][registry] = json!({"auth": STANDARD.encode(pair)});
    let scratch = file.with_extension("new");
    let text = serde_json::to_vec_pretty(&known).context("cannot be written as JSON")?;
    let options =
        std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&scratch);
    options
        .and_then(|mut opened| opened.write_all(&text))
        .and_then(|()| std::fs::rename(&scratch, &file))
        .with_context(|| format!("cannot write {}", file.display()))
}
