//! `barque kubeconfig` and `barque kubeconfig create`.

use std::io::Write as _;
use std::time::SystemTime;

use anyhow::Context as _;
use control::pki::{self, Authority, ControlToken};

use crate::cli::{KubeconfigArgs, KubeconfigCommand, KubeconfigCreateArgs};
use crate::kubeconfig;
use crate::up::plan::Plan;

/// Prints the path of a cluster's kubeconfig, and nothing else; or makes one and prints it.
pub(crate) fn run(args: &KubeconfigArgs) -> anyhow::Result<()> {
    match &args.command {
        None => {
            let path = Plan::load(&args.cluster)?.kubeconfig_file();
            anyhow::ensure!(
                path.exists(),
                "cluster {} has no kubeconfig: `barque up` did not get that far; `barque down` removes it",
                args.cluster.name
            );
            writeln!(std::io::stdout(), "{}", path.display())?;
        }
        Some(KubeconfigCommand::Create(create)) => {
            std::io::stdout().write_all(render(create)?.as_bytes())?;
        }
    }
    Ok(())
}

fn render(args: &KubeconfigCreateArgs) -> anyhow::Result<String> {
    let token: ControlToken = pki::read_token(&args.from)
        .with_context(|| format!("cannot use the control token in {}", args.from.display()))?;
    let admin = Authority::from_token(&token)?.issue_admin(&args.user, SystemTime::now())?;
    Ok(kubeconfig::render(&args.cluster_name, &format!("https://{}", args.server), &args.user, &admin))
}
