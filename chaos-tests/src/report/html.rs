//! The page of a run. Styles and pictures are in it; it loads nothing.

use std::fmt::Write as _;

use super::{Counts, counts, escape, plot, space_time, word};
use crate::checker::overall;
use crate::experiment::Run;

const STYLE: &str = "
:root { color-scheme: light dark; --line: #8884; --ok: #2a7d3f; --bad: #c02d2d; --dim: #777; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1040px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; margin-bottom: 0; } h2 { font-size: 1.15em; margin-top: 2em; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; padding: .3em .6em; vertical-align: top; }
tr { border-bottom: 1px solid var(--line); } td.n { text-align: right; font-variant-numeric: tabular-nums; }
.valid { color: var(--ok); font-weight: 600; } .invalid { color: var(--bad); font-weight: 600; }
.unknown { color: var(--dim); font-weight: 600; } .dim { color: var(--dim); }
code, pre { font: 13px/1.45 ui-monospace, monospace; } pre { overflow-x: auto; padding: .8em; border: 1px solid var(--line); }
figure { margin: 1em 0; background: #fff; } svg { max-width: 100%; height: auto; }
";

pub(super) fn page(run: &Run, command: &str) -> anyhow::Result<String> {
    let outcome = word(overall(&run.verdicts));
    let name = escape(&run.experiment.name);
    let Counts { ok, fail, info } = counts(run);
    let mut text = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{name}: {outcome}</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><style>{STYLE}</style></head><body>\n\
         <h1>{name}: <span class=\"{outcome}\">{outcome}</span></h1>\n<p>{}</p>\n\
         <p class=\"dim\">{ok} operations done, {fail} refused, {info} without an answer · longest pause {:.3} s · \
         {} leaders seen · seed {}</p>\n<h2>To repeat it</h2><pre>{}</pre>\n",
        escape(&run.experiment.about),
        plot::longest_pause(run).as_secs_f64(),
        run.leaders.len(),
        run.seed,
        escape(command),
    );
    verdicts(&mut text, run);
    counter_examples(&mut text, run);
    let _ = write!(
        text,
        "<h2>Operations done, by time</h2><figure>{}</figure>\n<h2>Latency, by time</h2><figure>{}</figure>\n\
         <p class=\"dim\">Shaded: a fault was under way. Dashed: somebody else led from here on. Green line: everything \
         was whole again.</p>\n",
        plot::throughput(run)?,
        plot::latency(run)?,
    );
    faults(&mut text, run);
    Ok(text + "</body></html>\n")
}

fn verdicts(text: &mut String, run: &Run) {
    *text += "<h2>Properties</h2><table><tr><th>property</th><th>verdict</th><th>judged</th><th></th></tr>\n";
    for verdict in &run.verdicts {
        let outcome = word(verdict.outcome);
        let _ = writeln!(
            text,
            "<tr><td>{}</td><td class=\"{outcome}\">{outcome}</td><td class=\"n\">{}</td><td>{}</td></tr>",
            escape(&verdict.property),
            verdict.checked,
            escape(&verdict.explanation).replace('\n', "<br>")
        );
    }
    *text += "</table>\n";
}

fn counter_examples(text: &mut String, run: &Run) {
    for verdict in &run.verdicts {
        if let Some(example) = &verdict.counter_example {
            let _ = writeln!(
                text,
                "<h2>What contradicts “{}”</h2><p>{}</p><figure>{}</figure>",
                escape(&verdict.property),
                escape(&verdict.explanation),
                space_time::draw(example)
            );
        }
    }
}

fn faults(text: &mut String, run: &Run) {
    *text += "<h2>Faults</h2><table><tr><th>at</th><th>what</th><th>to whom</th><th></th></tr>\n";
    for event in &run.faults.events {
        let targets = event.value["targets"].as_array().into_iter().flatten();
        let targets: Vec<&str> = targets.filter_map(|target| target.as_str()).collect();
        let _ = writeln!(
            text,
            "<tr><td class=\"n\">{:.3} s</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            event.time as f64 / 1e9,
            escape(&event.f),
            escape(&targets.join(", ")),
            escape(event.error.as_deref().unwrap_or_default())
        );
    }
    *text += "</table>\n";
}
