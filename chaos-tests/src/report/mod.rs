//! What a run has shown, for people and for machines: a page of HTML that needs nothing else, JSON, and JUnit's XML.

mod html;
mod plot;
mod space_time;

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::checker::{Outcome, overall};
use crate::experiment::Run;
use crate::history::{End, Operation};

pub use space_time::draw as draw_counter_example;

/// A number of operations by how they ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Done.
    pub ok: usize,
    /// Not done.
    pub fail: usize,
    /// Nobody knows.
    pub info: usize,
}

/// Writes `report.html`, `report.json` and `junit.xml` into a directory.
///
/// # Errors
/// When a file cannot be written.
pub fn write(run: &Run, command: &str, directory: &Path) -> anyhow::Result<()> {
    let files = [
        ("report.html", html::page(run, command)?),
        ("report.json", serde_json::to_string_pretty(&json(run, command))? + "\n"),
        ("junit.xml", junit(run)),
    ];
    for (name, text) in files {
        let path = directory.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// How the operations of a run ended.
pub fn counts(run: &Run) -> Counts {
    let mut counts = Counts::default();
    for operation in operations(run) {
        match operation.end {
            End::Ok => counts.ok += 1,
            End::Fail => counts.fail += 1,
            End::Info => counts.info += 1,
        }
    }
    counts
}

fn operations(run: &Run) -> impl Iterator<Item = Operation> + '_ {
    // A history that contradicts itself was refused before there was a run.
    run.workloads.iter().flat_map(|workload| workload.history.operations().unwrap_or_default())
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Valid => "valid",
        Outcome::Invalid => "invalid",
        Outcome::Unknown => "unknown",
    }
}

/// The whole report as one value.
pub fn json(run: &Run, command: &str) -> Value {
    let counts = counts(run);
    let histories: Vec<String> =
        run.workloads.iter().map(|workload| workload.path.display().to_string()).collect();
    json!({
        "experiment": run.experiment.name,
        "about": run.experiment.about,
        "seed": run.seed,
        "outcome": word(overall(&run.verdicts)),
        "command": command,
        "operations": {"ok": counts.ok, "fail": counts.fail, "info": counts.info},
        "longest_pause_seconds": plot::longest_pause(run).as_secs_f64(),
        "leaders": run.leaders.iter().map(|(at, name)| json!([*at as f64 / 1e9, name])).collect::<Vec<_>>(),
        "healed_seconds": run.healed_ns as f64 / 1e9,
        "faults": run.faults.events.len(),
        "verdicts": run.verdicts,
        "histories": histories,
    })
}

fn junit(run: &Run) -> String {
    let failures = run.verdicts.iter().filter(|verdict| verdict.outcome == Outcome::Invalid).count();
    let skipped = run.verdicts.iter().filter(|verdict| verdict.outcome == Outcome::Unknown).count();
    let name = escape(&run.experiment.name);
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"{name}\" tests=\"{}\" failures=\"{failures}\" \
         skipped=\"{skipped}\">\n",
        run.verdicts.len()
    );
    for verdict in &run.verdicts {
        let explanation = escape(&verdict.explanation);
        let inner = match verdict.outcome {
            Outcome::Valid => format!("<system-out>{explanation}</system-out>"),
            Outcome::Invalid => format!("<failure message=\"{explanation}\"/>"),
            Outcome::Unknown => format!("<skipped message=\"{explanation}\"/>"),
        };
        let property = escape(&verdict.property);
        let _ = writeln!(text, "  <testcase classname=\"{name}\" name=\"{property}\">{inner}</testcase>");
    }
    text + "</testsuite>\n"
}

/// Text as it stands in XML and HTML.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            // Not allowed in XML at all.
            control if (control as u32) < 32 && !"\t\n\r".contains(control) => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}
