//! `ps`, `inspect`, `info`.

use anyhow::Context as _;
use node::engine::{Container, Engine, Status};
use serde_json::{Value, json};

use super::args::{InspectArgs, PsArgs};
use super::template::Template;
use super::{EXIT_FAILED, print, say};
use crate::commands::words;
use crate::table::Table;

const HEADER: [&str; 7] = ["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"];
/// Spaces between columns.
pub(super) const GAP: usize = 3;

/// `ps`.
pub(super) fn containers(engine: &Engine, args: &PsArgs) -> anyhow::Result<()> {
    let containers = engine.list(args.all)?;
    if let Some(format) = &args.format {
        let template = match format.as_str() {
            "json" => "{{json .}}",
            other => other.strip_prefix("table ").unwrap_or(other),
        };
        let template = Template::parse(template)?;
        let mut text = String::new();
        for container in &containers {
            text += &template.render(&about(container, args.no_trunc))?;
            text.push('\n');
        }
        return print(&text);
    }
    if args.quiet {
        let ids = containers.iter().map(|container| match args.no_trunc {
            true => format!("{}\n", container.id),
            false => format!("{}\n", container.short_id()),
        });
        return print(&ids.collect::<String>());
    }
    let mut table = Table::with_gap(&HEADER, GAP);
    for container in &containers {
        let about = about(container, args.no_trunc);
        let cell = |name: &str| about[name].as_str().unwrap_or_default().to_owned();
        table.row(["ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names"].map(cell).into());
    }
    print(&table.to_string())
}

/// A container as templates know it.
fn about(container: &Container, whole: bool) -> Value {
    let (state, status) = match container.status {
        Status::Created | Status::Exited { ran: false, .. } => ("created", "Created".to_owned()),
        Status::Running { since } => {
            ("running", format!("Up {}", words::duration(words::seconds_since(since))))
        }
        Status::Exited { exit_code, at, .. } => {
            ("exited", format!("Exited ({exit_code}) {} ago", words::duration(words::seconds_since(at))))
        }
    };
    json!({
        "ID": if whole { &container.id } else { container.short_id() },
        "Names": container.name,
        "Image": container.image,
        "Command": words::command(&container.command, whole),
        "RunningFor": format!("{} ago", words::duration(words::seconds_since(container.created_at))),
        "State": state,
        "Status": status,
        "Ports": container.ports,
        "Labels": container.labels.join(","),
    })
}

/// `inspect`. What is not there does not keep the others from being shown.
pub(super) fn inspect(engine: &Engine, args: &InspectArgs) -> anyhow::Result<u8> {
    let template = args.format.as_deref().map(Template::parse).transpose()?;
    let mut found = Vec::new();
    let mut code = 0;
    for container in &args.of.containers {
        match engine.inspect(container) {
            Ok(about) => found.push(about),
            Err(error) => {
                say(&format!("Error: {error}"));
                code = EXIT_FAILED;
            }
        }
    }
    match template {
        Some(template) => {
            for about in &found {
                print(&format!("{}\n", template.render(about)?))?;
            }
        }
        None => print(&format!(
            "{}\n",
            serde_json::to_string_pretty(&found).context("cannot be written as JSON")?
        ))?,
    }
    Ok(code)
}

/// `info`. What may surprise goes to standard error.
pub(super) fn info(engine: &Engine) -> anyhow::Result<()> {
    let containers = engine.list(true)?;
    let running = containers.iter().filter(|c| matches!(c.status, Status::Running { .. })).count();
    let kernel = nix::sys::utsname::uname().context("cannot ask the kernel for its name")?;
    let config = engine.config();
    let lines = [
        ("Containers", containers.len().to_string()),
        (" Running", running.to_string()),
        (" Stopped", (containers.len() - running).to_string()),
        ("Images", engine.images().list().len().to_string()),
        ("Server Version", env!("CARGO_PKG_VERSION").to_owned()),
        ("Storage Driver", "overlayfs".to_owned()),
        ("Cgroup Parent", config.cgroup_parent.clone()),
        ("Bridge", format!("{} {}", config.bridge_name, config.bridge_range)),
        ("Kernel Version", kernel.release().to_string_lossy().into_owned()),
        ("Architecture", kernel.machine().to_string_lossy().into_owned()),
        ("Root Dir", config.data_dir.display().to_string()),
    ];
    print(&lines.map(|(name, value)| format!("{name}: {value}\n")).concat())?;
    if !engine.limits_swap() {
        say("WARNING: No swap limit support");
    }
    Ok(())
}
