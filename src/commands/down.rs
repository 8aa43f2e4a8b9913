//! `barque down`.

use std::io::Write as _;

use anyhow::bail;

use crate::cli::DownArgs;
use crate::up::plan::Plan;
use crate::up::progress::Step;
use crate::up::teardown::{self, Removed};
use crate::up::{lock, preflight};

/// Removes a cluster and says what was removed.
pub(crate) fn run(args: &DownArgs) -> anyhow::Result<()> {
    let name = &args.cluster.name;
    if let Err(problem) = preflight::check_root() {
        bail!("{problem}");
    }
    let _lock = lock(name)?;
    let Some(plan) = Plan::find(&args.cluster)? else {
        writeln!(std::io::stdout(), "no cluster named {name} is up; there is nothing to remove")?;
        return Ok(());
    };
    let step = Step::begin(format!("remove cluster {name}"));
    match teardown::remove(&plan) {
        Ok(removed) => {
            step.done();
            std::io::stdout().write_all(report(name, &removed).as_bytes())?;
            Ok(())
        }
        Err(error) => {
            step.failed();
            Err(error)
        }
    }
}

fn report(name: &str, removed: &Removed) -> String {
    let mut text = format!("cluster {name} is down. Removed:\n");
    for (count, one, many) in [
        (removed.processes, "process of masters and nodes", "processes of masters and nodes"),
        (removed.residents, "process of pods", "processes of pods"),
        (removed.mounts, "mount", "mounts"),
        (removed.namespaces, "network namespace", "network namespaces"),
        (removed.links, "link", "links"),
        (removed.cgroups, "cgroup", "cgroups"),
    ] {
        text.push_str(&format!("  {count:>4} {}\n", if count == 1 { one } else { many }));
    }
    for directory in &removed.directories {
        text.push_str(&format!("       {}\n", directory.display()));
    }
    text
}
