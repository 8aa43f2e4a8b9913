//! `simulation`: runs seeds, and says which failed, why, and how to see it again.
//!
//! Of several seeds each has a process of its own: some of what chance is made of is counted through a process's life.

use std::io::Write as _;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::Context as _;
use clap::Parser;
use simulation::plan::Plan;
use simulation::{Outcome, run, shrink};
use tracing_subscriber::filter::LevelFilter;

/// So many seeds are told of at a time.
const TOLD_EVERY: u64 = 100;

/// Runs the store in a simulation, one run for each seed.
#[derive(Parser)]
struct Args {
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seeds.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// From one seed to the next. Every tenth seed is a whole cluster: --seed 10 --step 10 runs those alone.
    #[arg(long, default_value_t = 1)]
    step: u64,
    /// How many runs at the same time.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Only these faults of the plan, by number; none: no faults.
    #[arg(long, value_delimiter = ',', num_args = 0..)]
    faults: Option<Vec<usize>>,
    /// A mistake that members make, to see that it is noticed.
    #[arg(long)]
    mutant: Option<String>,
    /// Begin no more runs after one failed.
    #[arg(long)]
    fail_fast: bool,
    /// Print the histories.
    #[arg(long)]
    history: bool,
    /// Members' own words of this level (error, warn, info, debug, trace), to stderr.
    #[arg(long, value_name = "LEVEL")]
    log: Option<LevelFilter>,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let holds = if args.seeds == 1 { one(&args)? } else { many(&args)? };
    Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs one seed here.
fn one(args: &Args) -> anyhow::Result<bool> {
    if let Some(level) = args.log {
        // Without the time of day, so that two runs of a seed can be compared.
        let log = tracing_subscriber::fmt().with_max_level(level).without_time().with_ansi(false);
        log.with_writer(std::io::stderr).init();
    }
    if let Some(mutant) = &args.mutant {
        raft_store::mutants::choose(mutant).map_err(anyhow::Error::msg)?;
    }
    let mut plan = Plan::of(args.seed);
    if let Some(faults) = &args.faults {
        plan = plan.keeping(faults);
    }
    let outcome = run(&plan).with_context(|| format!("seed {}", args.seed))?;
    tell(args, &plan, &outcome);
    Ok(outcome.is_valid())
}

fn tell(args: &Args, plan: &Plan, outcome: &Outcome) {
    if args.history {
        for (name, history) in &outcome.histories {
            say(&format!("-- {name}\n{}", chaos_tests::history::json::print(history)));
        }
    }
    say(&format!("seed {}: {}\n  trace {}", plan.seed, plan.describe(), outcome.trace));
    for verdict in &outcome.verdicts {
        say(&format!("  {:?} {}: {}", verdict.outcome, verdict.property, verdict.explanation));
        for operation in verdict.counter_example.iter().flat_map(|example| &example.operations) {
            say(&format!("    {}", serde_json::to_string(operation).unwrap_or_default()));
        }
    }
    say(&format!("  {} operations", outcome.operations));
}

/// Runs many seeds, each in a process; shows those that fail, and what it takes of the first one's faults.
fn many(args: &Args) -> anyhow::Result<bool> {
    let (next, operations, held) = (AtomicU64::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let failed: Mutex<Vec<u64>> = Mutex::default();
    let list = || failed.lock().unwrap_or_else(PoisonError::into_inner);
    let began = Instant::now();
    let work = || -> anyhow::Result<()> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= args.seeds || (args.fail_fast && !list().is_empty()) {
                return Ok(());
            }
            let seed = args.seed.saturating_add(number.saturating_mul(args.step));
            let (holds, text) = child(args, seed, args.faults.as_deref())?;
            let last = text.lines().last().and_then(|line| line.split_whitespace().next()?.parse().ok());
            operations.fetch_add(last.unwrap_or(0), Ordering::Relaxed);
            if number > 0 && number.is_multiple_of(TOLD_EVERY) {
                let (failed, seconds) = (list().len(), began.elapsed().as_secs());
                let _closed = writeln!(
                    std::io::stderr(),
                    "{number} of {} seeds begun after {seconds} s, {failed} did not hold",
                    args.seeds
                );
            }
            if holds {
                held.fetch_add(1, Ordering::Relaxed);
            } else {
                say(text.trim_end());
                list().push(seed);
            }
        }
    };
    std::thread::scope(|scope| {
        let jobs: Vec<_> = (0..args.jobs.max(1)).map(|_| scope.spawn(work)).collect();
        jobs.into_iter()
            .try_for_each(|job| job.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    let (failed, seconds) = (list().clone(), began.elapsed().as_secs_f64());
    let held = held.into_inner();
    say(&format!(
        "{held} seeds held, {} did not; {} operations, {seconds:.0} s: {:.0} seeds an hour",
        failed.len(),
        operations.into_inner(),
        (held + failed.len()) as f64 / seconds * 3600.0
    ));
    let Some(first) = failed.first() else { return Ok(true) };
    if args.faults.is_none() {
        let mut trouble = None;
        let kept = shrink(Plan::of(*first).faults.len(), |faults| {
            child(args, *first, Some(faults)).map_or_else(
                |error| {
                    trouble = Some(error);
                    false
                },
                |(holds, _)| !holds,
            )
        });
        if let Some(trouble) = trouble {
            return Err(trouble);
        }
        let words = words(args, *first, Some(&kept)).join(" ");
        say(&format!("to see it again: cargo run --release -p simulation -- {words}"));
    }
    Ok(false)
}

fn words(args: &Args, seed: u64, faults: Option<&[usize]>) -> Vec<String> {
    let mut words = vec!["--seed".to_owned(), seed.to_string()];
    if let Some(mutant) = &args.mutant {
        words.extend(["--mutant".to_owned(), mutant.clone()]);
    }
    if let Some(faults) = faults {
        let numbers: Vec<String> = faults.iter().map(ToString::to_string).collect();
        words.push("--faults".to_owned());
        words.extend((!numbers.is_empty()).then(|| numbers.join(",")));
    }
    words
}

/// One seed in a process of its own: whether it held, and what was said.
fn child(args: &Args, seed: u64, faults: Option<&[usize]>) -> anyhow::Result<(bool, String)> {
    let output = Command::new(std::env::current_exe()?).args(words(args, seed, faults)).output()?;
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    Ok((output.status.success(), text))
}

fn say(text: &str) {
    // Whoever closed our output does not want it.
    let _ = writeln!(std::io::stdout(), "{text}");
}
