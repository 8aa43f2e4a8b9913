//! The same Services as kube-proxy's iptables mode lays them: one rule after the other in a chain, one of which fits.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use runtime::net::{NetNs, ServiceRules};

/// What the rules are given and taken away by.
#[derive(Debug, Clone)]
pub(super) struct Iptables {
    restore: PathBuf,
}

impl Iptables {
    /// `None` if it is not there or does not run.
    pub(super) fn find(restore: &Path) -> Option<Self> {
        let runs =
            Command::new(restore).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        runs.is_ok_and(|status| status.success()).then(|| Self { restore: restore.to_owned() })
    }

    /// Replaces all rules of address translation in a network namespace.
    pub(super) fn write<'a>(
        &self,
        netns: &NetNs,
        services: impl Iterator<Item = &'a ServiceRules>,
    ) -> anyhow::Result<()> {
        self.restore(netns, rules(services))
    }

    /// Leaves none of them.
    pub(super) fn clear(&self, netns: &NetNs) -> anyhow::Result<()> {
        self.restore(netns, "*nat\nCOMMIT\n".to_owned())
    }

    fn restore(&self, netns: &NetNs, rules: String) -> anyhow::Result<()> {
        let restore = self.restore.clone();
        let spawned = netns.run(move || {
            Command::new(restore).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()
        });
        let mut child = spawned?.with_context(|| format!("cannot run {}", self.restore.display()))?;
        let mut stdin = child.stdin.take().context("the child has a standard input")?;
        let told = stdin.write_all(rules.as_bytes());
        drop(stdin);
        let output = child.wait_with_output().context("cannot wait for iptables")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {}", self.restore.display(), said.trim());
        told.context("iptables did not read its rules")
    }
}

/// Chains as kube-proxy names them: all Services, one Service, one endpoint.
fn rules<'a>(services: impl Iterator<Item = &'a ServiceRules>) -> String {
    let (mut chains, mut rules) = (String::new(), String::new());
    // Writing to a string cannot fail.
    for (number, service) in services.enumerate() {
        for ((frontend, _), pool) in &service.frontends {
            let Some((address, pool)) = frontend.address.zip(service.pools.get(pool)) else { continue };
            let svc = format!("KUBE-SVC-{number:08}");
            let _ = writeln!(chains, ":{svc} - [0:0]");
            let _ = writeln!(
                rules,
                "-A KUBE-SERVICES -d {address}/32 -p tcp -m comment --comment \"bench/s{number} cluster IP\" -m tcp --dport {} -j {svc}",
                frontend.port
            );
            let count = pool.backends.len();
            for (index, backend) in pool.backends.iter().enumerate() {
                let sep = format!("KUBE-SEP-{number:08}-{index}");
                let _ = writeln!(chains, ":{sep} - [0:0]");
                let share = 1.0 / (count - index) as f64;
                let chance = match index + 1 == count {
                    true => String::new(),
                    false => format!("-m statistic --mode random --probability {share:.10} "),
                };
                let _ = writeln!(rules, "-A {svc} {chance}-j {sep}");
                let to = format!("{}:{}", backend.address, backend.port);
                let _ = writeln!(rules, "-A {sep} -p tcp -m tcp -j DNAT --to-destination {to}");
            }
        }
    }
    format!(
        "*nat\n:KUBE-SERVICES - [0:0]\n{chains}-A PREROUTING -j KUBE-SERVICES\n-A OUTPUT -j KUBE-SERVICES\n{rules}COMMIT\n"
    )
}
