//! Flags as what is asked of a container.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

use anyhow::{Context as _, ensure};
use node::engine::{CreateOptions, Limits, NetworkMode, PidSource, parse_bytes};
use runtime::IoLimit;
use runtime::seccomp::{Profile, Seccomp};

use super::args::{CreateFlags, LimitFlags};

/// Billionths of a processor in one.
const NANO: f64 = 1e9;

/// Reads what was given.
pub(super) fn read(flags: &CreateFlags) -> anyhow::Result<CreateOptions> {
    let (image, command) = flags.words.split_first().context("an image is missing")?;
    let host_users = match flags.userns.as_deref() {
        None | Some("") => false,
        Some("host") => true,
        Some(other) => anyhow::bail!("invalid argument {other:?} for --userns: there is host"),
    };
    let host_ipc = match flags.ipc.as_deref() {
        None | Some("" | "private") => false,
        Some("host") => true,
        Some(other) => anyhow::bail!("invalid argument {other:?} for --ipc: there are host and private"),
    };
    let network: NetworkMode = flags.network.parse()?;
    match flags.uts.as_deref() {
        None | Some("") => {}
        Some("host") => ensure!(network == NetworkMode::Host, "--uts host needs --network host"),
        Some(other) => anyhow::bail!("invalid argument {other:?} for --uts: there is host"),
    }
    let (seccomp, no_new_privileges) = security(&flags.security_opt)?;
    Ok(CreateOptions {
        name: flags.name.clone(),
        image: image.clone(),
        command: command.to_vec(),
        entrypoint: flags.entrypoint.clone(),
        env: flags.env.iter().filter_map(|entry| variable(entry)).collect(),
        hostname: flags.hostname.clone(),
        user: flags.user.clone(),
        working_dir: flags.workdir.clone(),
        network,
        pid: flags.pid.as_deref().map_or(Ok(PidSource::Own), str::parse)?,
        ports: read_all(&flags.publish)?,
        expose: flags.expose.clone(),
        links: read_all(&flags.link)?,
        volumes: read_all(&flags.volume)?,
        terminal: flags.tty,
        interactive: flags.interactive,
        remove: flags.rm,
        limits: limits(&flags.limits)?,
        privileged: flags.privileged,
        host_users,
        host_ipc,
        seccomp,
        no_new_privileges,
        read_only: flags.read_only,
        cap_add: flags.cap_add.clone(),
        cap_drop: flags.cap_drop.clone(),
        labels: flags.label.clone(),
        stop_signal: flags.stop_signal.clone(),
    })
}

/// What system calls it may make, and whether programs may gain rights.
fn security(options: &[String]) -> anyhow::Result<(Seccomp, bool)> {
    let (mut seccomp, mut no_new_privileges) = (Seccomp::RuntimeDefault, false);
    for option in options {
        // Both ways of writing them are usual.
        let (name, value) = option.split_once(['=', ':']).unwrap_or((option, ""));
        match (name, value) {
            ("no-new-privileges", "" | "true") => no_new_privileges = true,
            ("no-new-privileges", "false") => no_new_privileges = false,
            ("seccomp", "unconfined") => seccomp = Seccomp::Unconfined,
            ("seccomp", file) => {
                let text =
                    std::fs::read(file).with_context(|| format!("cannot read the seccomp profile {file}"))?;
                let profile =
                    Profile::parse(&text).map_err(|problem| anyhow::anyhow!("{file}: {problem}"))?;
                seccomp = Seccomp::Profile(Box::new(profile));
            }
            // Nothing of the kind holds it.
            ("apparmor", "unconfined") | ("label", "disable") => {}
            _ => anyhow::bail!(
                "invalid --security-opt {option:?}: there are seccomp=unconfined, seccomp=FILE and no-new-privileges"
            ),
        }
    }
    Ok((seccomp, no_new_privileges))
}

fn read_all<T: std::str::FromStr>(texts: &[String]) -> anyhow::Result<Vec<T>>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    texts.iter().map(|text| Ok(text.parse::<T>()?)).collect()
}

/// A variable that is only named has its value here; without one it is left out.
fn variable(entry: &str) -> Option<String> {
    match entry.contains('=') {
        true => Some(entry.to_owned()),
        false => std::env::var(entry).ok().map(|value| format!("{entry}={value}")),
    }
}

fn limits(flags: &LimitFlags) -> anyhow::Result<Limits> {
    let bytes = |option: &'static str, text: &Option<String>| {
        text.as_deref().map(|text| parse_bytes(option, text)).transpose()
    };
    let memory_swap = match flags.memory_swap.as_deref() {
        Some("-1") => Some(-1),
        Some(text) => {
            Some(i64::try_from(parse_bytes("--memory-swap", text)?).context("--memory-swap is too much")?)
        }
        None => None,
    };
    Ok(Limits {
        memory: bytes("--memory", &flags.memory)?,
        memory_swap,
        memory_reservation: bytes("--memory-reservation", &flags.memory_reservation)?,
        nano_cpus: flags.cpus.as_deref().map(cpus).transpose()?,
        cpu_shares: flags.cpu_shares.filter(|shares| *shares != 0),
        cpuset_cpus: flags.cpuset_cpus.clone(),
        cpuset_mems: flags.cpuset_mems.clone(),
        pids: flags.pids_limit.and_then(|limit| u64::try_from(limit).ok()).filter(|limit| *limit != 0),
        io: io_limits(flags)?,
    })
}

fn cpus(text: &str) -> anyhow::Result<u64> {
    let number: f64 = text.parse().with_context(|| format!("invalid argument {text:?} for --cpus"))?;
    ensure!((0.01..=1e6).contains(&number), "--cpus is 0.01 at least, and not {text}");
    Ok((number * NANO) as u64)
}

fn io_limits(flags: &LimitFlags) -> anyhow::Result<Vec<IoLimit>> {
    let mut limits: Vec<IoLimit> = Vec::new();
    let mut add =
        |option: &'static str, texts: &[String], set: fn(&mut IoLimit, u64)| -> anyhow::Result<()> {
            for text in texts {
                let (device, rate) =
                    text.rsplit_once(':').with_context(|| format!("{option} {text:?} is not DEVICE:RATE"))?;
                let rate = parse_bytes(option, rate)?;
                let metadata =
                    std::fs::metadata(device).with_context(|| format!("cannot look at {device}"))?;
                ensure!(metadata.file_type().is_block_device(), "{device} is no block device");
                let (major, minor) =
                    (nix::sys::stat::major(metadata.rdev()), nix::sys::stat::minor(metadata.rdev()));
                let known = limits.iter().position(|limit| (limit.major, limit.minor) == (major, minor));
                let at = known.unwrap_or_else(|| {
                    limits.push(IoLimit { major, minor, ..IoLimit::default() });
                    limits.len() - 1
                });
                set(&mut limits[at], rate);
            }
            Ok(())
        };
    add("--device-read-bps", &flags.device_read_bps, |limit, rate| limit.read_bytes_per_second = Some(rate))?;
    add("--device-write-bps", &flags.device_write_bps, |limit, rate| {
        limit.write_bytes_per_second = Some(rate)
    })?;
    add("--device-read-iops", &flags.device_read_iops, |limit, rate| limit.reads_per_second = Some(rate))?;
    add("--device-write-iops", &flags.device_write_iops, |limit, rate| limit.writes_per_second = Some(rate))?;
    Ok(limits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_read() {
        assert_eq!(cpus("0.5").unwrap(), 500_000_000);
        assert_eq!(cpus("2").unwrap(), 2_000_000_000);
        for text in ["", "0", "-1", "x", "NaN"] {
            assert!(cpus(text).is_err(), "{text}");
        }
    }
}
