//! The run of one experiment: make, load, break, heal, look, judge.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{ClusterShape, Disks, Experiment};
use crate::checker::{self, Verdict, liveness, vacuity};
use crate::client::Client;
use crate::cluster::group::{Group, Shape, System, channel};
use crate::cluster::guest::Guest;
use crate::cluster::machines::Machines;
use crate::cluster::site::Site;
use crate::history::{History, Phase, Recorder};
use crate::nemesis::Nemesis;
use crate::nemesis::schedule::{Entry, moments};
use crate::workload::{self, Target, hash, platform};

/// How often is looked at members and clients.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// How often is asked who leads.
const LEADER_INTERVAL: Duration = Duration::from_millis(200);
/// Load before the first fault, at least.
const SETTLE: Duration = Duration::from_millis(300);
/// Longest wait until all members have applied the same.
const CONVERGE: Duration = Duration::from_secs(20);
/// Longest wait for clients to end.
const DRAIN: Duration = Duration::from_secs(15);
/// Longest wait for one fault to begin or end; some restart every member.
const FAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// Where pods are made in a cluster of an experiment's own.
const NAMESPACE: &str = "default";

/// How to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whose members.
    pub system: System,
    /// The program that has `chaos keep`.
    pub keeper: PathBuf,
    /// Where members' directories are made.
    pub parent: PathBuf,
    /// Where histories are written.
    pub output: PathBuf,
    /// What is drawn at random is drawn from this.
    pub seed: u64,
    /// More flags for each member.
    pub flags: Vec<String>,
    /// A cluster that is there already, and is broken instead of one that is made for this.
    pub guest: Option<Guest>,
}

/// How far a run is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Progress {
    /// What it does.
    pub stage: &'static str,
    /// Since the load began.
    pub elapsed: Duration,
    /// Of how much.
    pub duration: Duration,
    /// Operations that were done, were not done, nobody knows.
    pub counts: [u64; 3],
    /// Faults under way.
    pub faults: Vec<&'static str>,
    /// Who leads.
    pub leader: Option<String>,
}

/// What one workload recorded.
#[derive(Debug, Clone)]
pub struct WorkloadRun {
    /// Which.
    pub name: String,
    /// What it recorded.
    pub history: History,
    /// Where that was written.
    pub path: PathBuf,
}

/// All that is known of a run.
#[derive(Debug, Clone)]
pub struct Run {
    /// What was asked for.
    pub experiment: Experiment,
    /// From which seed.
    pub seed: u64,
    /// The faults that were planned.
    pub plan: Vec<Entry>,
    /// The faults as they happened.
    pub faults: History,
    /// What clients recorded.
    pub workloads: Vec<WorkloadRun>,
    /// When who led: nanoseconds, and the member's name.
    pub leaders: Vec<(u64, String)>,
    /// When everything was whole again.
    pub healed_ns: u64,
    /// What was found.
    pub verdicts: Vec<Verdict>,
}

/// Runs an experiment. Progress is told through `progress`; when `stop` is cancelled, everything is healed and what there is
/// is judged.
///
/// # Errors
/// When the cluster cannot be made, or is not well before any fault.
pub async fn run(
    experiment: &Experiment,
    options: &Options,
    progress: &watch::Sender<Progress>,
    stop: &CancellationToken,
) -> anyhow::Result<Run> {
    progress.send_modify(|progress| progress.stage = "starting");
    let (site, namespace) = make(experiment, options).await?;
    let began = Instant::now();
    let mut recorders = Vec::new();
    for (number, plan) in experiment.workloads.iter().enumerate() {
        let path = options.output.join(format!("history-{}-{}.jsonl", number + 1, plan.kind.name()));
        recorders.push((plan.kind.name().to_owned(), Recorder::to_file_since(&path, began)?, path));
    }
    let faults = Recorder::to_file_since(&options.output.join("faults.jsonl"), began)?;
    let running = Running {
        experiment,
        options,
        progress,
        stop,
        site,
        namespace,
        recorders,
        faults,
        began,
        leaders: Vec::new(),
        ends: Vec::new(),
        seen: Vec::new(),
        last_answer: began,
    };
    running.finish().await
}

/// What is broken, and where pods are made.
async fn make(experiment: &Experiment, options: &Options) -> anyhow::Result<(Site, String)> {
    let ClusterShape { members, nodes, disks, flags } = &experiment.cluster;
    if let Some(guest) = &options.guest {
        ensure!(
            *nodes > 0,
            "{} breaks a store alone: a whole cluster needs `nodes` under `cluster`",
            experiment.name
        );
        ensure!(
            flags.is_empty() && options.flags.is_empty(),
            "a cluster that runs already has its flags: leave `flags` and --member-flag out"
        );
        let visit = guest.visit(&options.keeper, &options.parent, time_box(experiment));
        let (machines, namespace) = visit.await?;
        return Ok((Site::Cluster(Box::new(machines)), namespace));
    }
    let namespace = NAMESPACE.to_owned();
    let more_flags = flags.iter().chain(&options.flags).cloned().collect();
    if *nodes > 0 {
        ensure!(
            matches!(options.system, System::Barque(_)),
            "a cluster with nodes is made by `barque up`: there is no other target"
        );
        let sizes = [u8::try_from(*members)?, u8::try_from(*nodes)?];
        let up = || Machines::up(&options.keeper, &options.parent, sizes, more_flags);
        return Ok((Site::Cluster(Box::new(tokio::task::block_in_place(up)?)), namespace));
    }
    let shape = Shape {
        system: options.system.clone(),
        keeper: options.keeper.clone(),
        members: *members,
        flags: more_flags,
        parent: options.parent.clone(),
        faulty_disks: *disks == Disks::Faulty,
    };
    Ok((Site::Store(Box::new(Group::start(shape).await?)), namespace))
}

/// How long an experiment may take at the very most, whatever becomes of it.
fn time_box(experiment: &Experiment) -> Duration {
    let Experiment { steady_within, duration, recover_within, converge_within, .. } = experiment;
    *steady_within
        + *duration
        + *recover_within
        + *converge_within * 3
        + FAULT_TIMEOUT * 2
        + DRAIN * 2
        + CONVERGE
}

struct Running<'a> {
    experiment: &'a Experiment,
    options: &'a Options,
    progress: &'a watch::Sender<Progress>,
    stop: &'a CancellationToken,
    site: Site,
    /// Where pods are made.
    namespace: String,
    recorders: Vec<(String, Recorder, PathBuf)>,
    faults: Recorder,
    began: Instant,
    leaders: Vec<(u64, String)>,
    /// Members that ended by themselves.
    ends: Vec<String>,
    /// How far each recorder was looked at.
    seen: Vec<usize>,
    last_answer: Instant,
}

impl Running<'_> {
    async fn finish(mut self) -> anyhow::Result<Run> {
        let stop_load = CancellationToken::new();
        let look_no_more = CancellationToken::new();
        let _stop_when_dropped = [&stop_load, &look_no_more].map(|token| token.clone().drop_guard());
        let (tasks, observers) = (TaskTracker::new(), TaskTracker::new());
        self.load([&stop_load, &look_no_more], &tasks, &observers)?;
        self.seen = vec![0; self.recorders.len()];
        self.steady().await?;

        let plan = self.experiment.plan(self.options.seed);
        let random = StdRng::seed_from_u64(self.options.seed);
        let mut nemesis = Nemesis::new(self.faults.clone(), random);
        self.break_it(&plan, &mut nemesis).await;
        self.stage("healing");
        let healing = tokio::time::timeout(FAULT_TIMEOUT, nemesis.heal(&mut self.site)).await;
        healing.context("the cluster could not be healed in time")??;
        let healed_ns = self.faults.now_ns();
        let held_up = self.experiment.workloads.iter().map(|plan| plan.kind.held_up()).max();
        let recovery = self.experiment.recover_within + held_up.unwrap_or_default();
        self.go_on(recovery, &nemesis).await;

        self.stage("judging");
        stop_load.cancel();
        tasks.close();
        // Clients of a cluster wait for what they asked for, and until it is gone again.
        let patience = match self.site.as_machines() {
            Some(_) => DRAIN + self.experiment.converge_within * 3,
            None => DRAIN,
        };
        let drained = tokio::time::timeout(patience, tasks.wait()).await.is_ok();
        ensure!(drained, "clients did not end within {patience:?}");
        look_no_more.cancel();
        observers.close();
        let drained = tokio::time::timeout(DRAIN, observers.wait()).await.is_ok();
        ensure!(drained, "observers did not end within {DRAIN:?}");
        let first = self.recorders.first().context("an experiment has a workload")?.1.clone();
        let converged = match &self.site {
            Site::Store(group) => hash::compare(group, &first, CONVERGE).await,
            Site::Cluster(machines) => tokio::task::block_in_place(|| machines.agree(CONVERGE)),
        };
        self.note_ends();
        self.judge(plan, healed_ns, converged)
    }

    /// Starts the clients of every plan, and what looks on beside them.
    fn load(
        &self,
        [stop, look_no_more]: [&CancellationToken; 2],
        tasks: &TaskTracker,
        observers: &TaskTracker,
    ) -> anyhow::Result<()> {
        for (number, plan) in self.experiment.workloads.iter().enumerate() {
            let recorder = self.recorders[number].1.clone();
            let (timeout, seed) = (self.experiment.timeout, self.options.seed);
            if let Some(machines) = self.site.as_machines() {
                let target = platform::Target {
                    client: Arc::new(Client::from_kubeconfig(&machines.kubeconfig())?),
                    servers: machines.servers(),
                    namespace: self.namespace.clone(),
                    cluster: machines.cluster().to_owned(),
                    timeout,
                    converge: self.experiment.converge_within,
                    recorder,
                    stop: stop.clone(),
                    look_no_more: look_no_more.clone(),
                    seed,
                };
                platform::run(plan, number, &target, tasks, observers);
                continue;
            }
            let endpoints = self.site.clients();
            let target = Target { endpoints, channel, timeout, recorder, stop: stop.clone(), seed };
            workload::run(plan, number, &target, tasks);
        }
        Ok(())
    }

    fn stage(&self, stage: &'static str) {
        self.progress.send_modify(|progress| progress.stage = stage);
    }

    /// Waits until something is acknowledged by each workload.
    async fn steady(&mut self) -> anyhow::Result<()> {
        self.stage("settling");
        let deadline = Instant::now() + self.experiment.steady_within;
        let mut answered = vec![false; self.recorders.len()];
        while !answered.iter().all(|answered| *answered) || self.began.elapsed() < SETTLE {
            for (number, (name, recorder, _)) in self.recorders.iter().enumerate() {
                recorder.since(0, |event| answered[number] |= event.phase == Phase::Ok);
                let within = self.experiment.steady_within;
                ensure!(
                    answered[number] || Instant::now() < deadline,
                    "before any fault, nothing was acknowledged to {name} within {within:?}{}",
                    self.site.log_tail(0)
                );
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        self.last_answer = Instant::now();
        Ok(())
    }

    async fn break_it(&mut self, plan: &[Entry], nemesis: &mut Nemesis) {
        self.stage("breaking");
        let began = Instant::now();
        // A fault that begins late, because one before it took its time, lasts as long as it was to.
        let mut begun = vec![began; plan.len()];
        for (at, number, begins) in moments(plan) {
            let due = if begins { began + at } else { begun[number] + plan[number].lasting };
            self.until(due, nemesis).await;
            if self.is_over() {
                return;
            }
            let work = async {
                if begins {
                    nemesis.begin(&mut self.site, &plan[number], number).await;
                } else {
                    nemesis.end(&mut self.site, number).await;
                }
            };
            // What takes longer is recorded as what did not happen.
            let _late = tokio::time::timeout(FAULT_TIMEOUT, work).await;
            if begins {
                begun[number] = Instant::now();
            }
        }
        self.until(began + self.experiment.duration, nemesis).await;
    }

    fn is_over(&self) -> bool {
        self.stop.is_cancelled() || self.last_answer.elapsed() > self.experiment.abort_after_silence
    }

    async fn go_on(&mut self, time: Duration, nemesis: &Nemesis) {
        self.stage("recovering");
        self.until(Instant::now() + time, nemesis).await;
    }

    /// Looks at everything until then.
    async fn until(&mut self, then: Instant, nemesis: &Nemesis) {
        let mut leader_at = Instant::now();
        while Instant::now() < then && !self.is_over() {
            if Instant::now() >= leader_at {
                self.ask_who_leads().await;
                leader_at = Instant::now() + LEADER_INTERVAL;
            }
            self.note_ends();
            self.look(nemesis);
            let pause = LOOK_INTERVAL.min(then.saturating_duration_since(Instant::now()));
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn ask_who_leads(&mut self) {
        let Ok(Some(leader)) = tokio::time::timeout(LEADER_INTERVAL, self.site.leader()).await else {
            return;
        };
        let name = self.site.name(leader).to_owned();
        if self.leaders.last().is_none_or(|(_, last)| *last != name) {
            self.leaders.push((self.faults.now_ns(), name));
        }
    }

    /// A member that ends by itself is started again, as whoever looks after it would do.
    fn note_ends(&mut self) {
        for (number, what) in self.site.unexpected_ends() {
            self.ends.push(what);
            if let Err(error) = self.site.launch(number) {
                self.ends.push(format!("{error:#}"));
            }
        }
    }

    fn look(&mut self, nemesis: &Nemesis) {
        let mut new = [0_u64; 3];
        for (number, (_, recorder, _)) in self.recorders.iter().enumerate() {
            self.seen[number] = recorder.since(self.seen[number], |event| match event.phase {
                Phase::Ok => new[0] += 1,
                Phase::Fail => new[1] += 1,
                Phase::Info => new[2] += 1,
                Phase::Invoke => {}
            });
        }
        if new[0] > 0 {
            self.last_answer = Instant::now();
        }
        self.progress.send_modify(|progress| {
            progress.elapsed = self.began.elapsed();
            progress.duration = self.experiment.duration;
            for (sum, new) in progress.counts.iter_mut().zip(new) {
                *sum += new;
            }
            progress.faults = nemesis.active();
            progress.leader = self.leaders.last().map(|(_, name)| name.clone());
        });
    }

    fn judge(self, plan: Vec<Entry>, healed_ns: u64, converged: bool) -> anyhow::Result<Run> {
        let faults = self.faults.history();
        let mut verdicts = vec![vacuity::fired(&faults, plan.iter().map(|entry| entry.fault.name()))];
        if plan.is_empty() {
            verdicts.clear();
        }
        let mut workloads = Vec::new();
        for ((name, recorder, path), plan) in self.recorders.into_iter().zip(&self.experiment.workloads) {
            let history = recorder.history();
            let mut found = checker::check(&history)?;
            let operations = history.operations()?;
            let bound = self.experiment.recover_within + plan.kind.held_up();
            found.push(liveness::check(&operations, healed_ns, bound));
            if recorder.refused() > 0 {
                let explanation = format!("{} events were too many to record", recorder.refused());
                found.push(Verdict::unknown("complete", operations.len(), explanation));
            }
            verdicts.extend(found.into_iter().map(|mut verdict| {
                verdict.property = format!("{name}: {}", verdict.property);
                verdict
            }));
            workloads.push(WorkloadRun { name, history, path });
        }
        verdicts.push(if converged {
            Verdict::valid("converged", workloads.len(), "all members have the same revision and hash")
        } else {
            let explanation = format!("members had not applied the same within {CONVERGE:?} after healing");
            Verdict::invalid("converged", 0, explanation)
        });
        let allowed = plan.iter().any(|entry| entry.fault.may_end_members());
        verdicts.push(match self.ends.first() {
            Some(what) if !allowed => Verdict::invalid("no-member-ends", self.ends.len(), what.clone()),
            Some(_) => Verdict::valid(
                "no-member-ends",
                self.ends.len(),
                "members ended on failing disks, as they should",
            ),
            None => Verdict::valid("no-member-ends", self.site.nodes().end, "no member ended by itself"),
        });
        Ok(Run {
            experiment: self.experiment.clone(),
            seed: self.options.seed,
            plan,
            faults,
            workloads,
            leaders: self.leaders,
            healed_ns,
            verdicts,
        })
    }
}
