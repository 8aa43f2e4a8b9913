//! `barque token create`.

use std::io::Write as _;
use std::time::SystemTime;

use anyhow::Context as _;
use control::pki::{self, Authority, ControlToken};

use crate::cli::{TokenCommand, TokenCreateArgs, TokenRole};

/// Makes a token and prints it, alone on a line, so that it can be redirected into a file.
pub(crate) fn run(command: &TokenCommand) -> anyhow::Result<()> {
    let TokenCommand::Create(args) = command;
    let text = create(args)?;
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}

fn create(args: &TokenCreateArgs) -> anyhow::Result<String> {
    let now = SystemTime::now();
    match (args.role, &args.from) {
        (TokenRole::Control, None) => Ok(ControlToken::generate(now)?.to_secret_text()),
        (TokenRole::Control, Some(_)) => {
            anyhow::bail!("--from is for node tokens; a control token is not made from another one")
        }
        (TokenRole::Node, Some(file)) => {
            let token: ControlToken = pki::read_token(file)
                .with_context(|| format!("cannot use the control token in {}", file.display()))?;
            Ok(Authority::from_token(&token)?.issue_node_token(args.ttl, now)?.to_secret_text())
        }
        (TokenRole::Node, None) => {
            anyhow::bail!("a node token is made from the control token: name its file with --from")
        }
    }
}
