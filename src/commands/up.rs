//! `barque up`.

use std::io::Write as _;
use std::time::Instant;

use anyhow::Context as _;

use crate::cli::{CLUSTER_NAME, ClusterArgs, UpArgs};
use crate::up::plan::Plan;
use crate::up::{self, Outcome};

/// Makes a cluster and says what to try next.
pub(crate) fn run(args: &UpArgs, log_level: &str) -> anyhow::Result<()> {
    let began = Instant::now();
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?
        .block_on(up::up(args, log_level))
        .context("the cluster is not up")?;
    let text = match &outcome {
        Outcome::Made(plan) => format!(
            "cluster {} is up after {:.1} s: {}\n\n{}",
            plan.name,
            began.elapsed().as_secs_f64(),
            size(plan),
            next_steps(&args.cluster)
        ),
        Outcome::Completed(plan, again) => {
            format!("cluster {} is whole again: started {}\n", plan.name, again.join(", "))
        }
        Outcome::AlreadyUp(plan) => format!(
            "cluster {} is already up: {}; `barque status` shows it, `barque down` removes it\n",
            plan.name,
            size(plan)
        ),
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn size(plan: &Plan) -> String {
    let count = |number: usize, word: &str| format!("{number} {word}{}", if number == 1 { "" } else { "s" });
    format!(
        "{}, {}{}, API at https://{}",
        count(plan.masters().count(), "master"),
        count(plan.workers().count(), "node"),
        if plan.master_nodes { ", masters are nodes too" } else { "" },
        plan.endpoint()
    )
}

fn next_steps(cluster: &ClusterArgs) -> String {
    let program = std::env::args().next().unwrap_or_else(|| "barque".to_owned());
    let flags = flags(cluster);
    format!(
        "Try next:\n\
         \x20 export KUBECONFIG=$({program} kubeconfig{flags})\n\
         \x20 kubectl get nodes\n\
         \x20 kubectl run hello --image=barque/hello:1.0\n\
         \x20 kubectl get pods -o wide\n\
         \x20 curl http://<the pod's IP>:8080\n\
         \x20 {program} status{flags}\n\
         \x20 {program} down{flags}\n"
    )
}

/// The flags that name the cluster again, where they are not the default.
fn flags(cluster: &ClusterArgs) -> String {
    let mut flags = String::new();
    if cluster.name != CLUSTER_NAME {
        flags.push_str(&format!(" --name {}", cluster.name));
    }
    if let Some(data_dir) = &cluster.data_dir {
        flags.push_str(&format!(" --data-dir {}", data_dir.display()));
    }
    flags
}
