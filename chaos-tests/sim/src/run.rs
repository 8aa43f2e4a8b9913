//! One run.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;
use chaos_tests::checker::{self, Verdict, liveness, vacuity};
use chaos_tests::history::{History, Recorder, json};
use chaos_tests::nemesis::schedule::moments;
use chaos_tests::workload::{self, Target, hash};
use proto::etcd::etcdserverpb as pb;
use proto::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use turmoil::Sim;

use crate::faults::{CLIENTS, LATENCY_MAX, Nemesis};
use crate::members::{CLIENT_PORT, Seat, name};
use crate::plan::{LOAD, Plan};
use crate::{chance, net};

/// The clock's step.
const TICK: Duration = Duration::from_millis(1);
/// How long clients wait for an answer.
const TIMEOUT: Duration = Duration::from_millis(1_500);
/// After healing, something must be acknowledged within this time: connections that were cut are found dead in 2 s.
const ALIVE_WITHIN: Duration = Duration::from_secs(4);
/// How long clients may take to end, and members to apply the same.
const DRAIN: Duration = Duration::from_secs(20);
/// Between two looks whether members have applied the same.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// What a run showed.
#[derive(Debug)]
pub struct Outcome {
    /// SHA-256 of all that clients asked and were told, and of all faults, with their times.
    pub trace: String,
    /// What was found.
    pub verdicts: Vec<Verdict>,
    /// How many operations were asked.
    pub operations: usize,
    /// The histories, by workload; the last is that of the faults.
    pub histories: Vec<(String, History)>,
}

impl Outcome {
    /// Whether everything held.
    pub fn is_valid(&self) -> bool {
        self.verdicts.iter().all(Verdict::is_valid)
    }
}

/// Runs a plan, on a thread of its own.
///
/// # Errors
/// When the simulation itself fails: a member cannot start, or clients do not end.
pub fn run(plan: &Plan) -> anyhow::Result<Outcome> {
    let plan = plan.clone();
    let thread = std::thread::Builder::new().name(format!("seed-{}", plan.seed)).spawn(move || {
        chance::seed(plan.seed);
        Simulation::new(&plan)?.finish()
    })?;
    thread.join().map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        anyhow::anyhow!("the run panicked: {}", text.unwrap_or_default())
    })?
}

struct Simulation {
    plan: Plan,
    sim: Sim<'static>,
    nemesis: Nemesis,
    seats: Vec<Rc<Seat>>,
    recorders: Vec<(String, Recorder)>,
    faults: Recorder,
    stop: CancellationToken,
    converged: Rc<RefCell<bool>>,
    step: u64,
    /// Goes with all directories.
    _directory: tempfile::TempDir,
}

impl Simulation {
    fn new(plan: &Plan) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())?;
        let mut sim = turmoil::Builder::new()
            .rng_seed(plan.seed)
            .tick_duration(TICK)
            .simulation_duration(LOAD + plan.recovery() + 2 * DRAIN)
            .min_message_latency(Duration::ZERO)
            .max_message_latency(LATENCY_MAX)
            .tcp_capacity(4096)
            .enable_random_order()
            .build();
        let members = plan.members;
        let mut seats = Vec::new();
        for number in 0..members {
            let seat = Seat::new(number, directory.path().join(name(number)));
            let host = Rc::clone(&seat);
            sim.host(name(number), move || Rc::clone(&host).live(members));
            seats.push(seat);
        }
        let recorders: Vec<_> = plan
            .workloads
            .iter()
            .map(|plan| (plan.kind.name().to_owned(), Recorder::on_clock(chance::now)))
            .collect();
        let (stop, converged) = (CancellationToken::new(), Rc::new(RefCell::new(false)));
        let clients = Clients {
            plan: plan.clone(),
            recorders: recorders.iter().map(|(_, recorder)| recorder.clone()).collect(),
            stop: stop.clone(),
            converged: Rc::clone(&converged),
        };
        sim.client(CLIENTS, clients.work());
        let faults = Recorder::on_clock(chance::now);
        let random = StdRng::seed_from_u64(chance::mixed(plan.seed));
        let nemesis = Nemesis::new(seats.clone(), random, faults.clone());
        let plan = plan.clone();
        Ok(Self {
            plan,
            sim,
            nemesis,
            seats,
            recorders,
            faults,
            stop,
            converged,
            step: 0,
            _directory: directory,
        })
    }

    fn finish(mut self) -> anyhow::Result<Outcome> {
        let faults = self.plan.faults.clone();
        for (at, number, begins) in moments(&faults) {
            self.until(at.min(LOAD))?;
            if begins {
                self.nemesis.begin(&mut self.sim, self.step, number, &faults[number]);
            } else {
                self.nemesis.end(&mut self.sim, self.step, number);
            }
        }
        self.until(LOAD)?;
        self.nemesis.heal(&mut self.sim, self.step);
        let healed = self.sim.elapsed();
        self.until(LOAD + self.plan.recovery())?;
        self.stop.cancel();
        while !self.tick()? {}
        self.judge(healed)
    }

    /// Goes on to that time.
    fn until(&mut self, time: Duration) -> anyhow::Result<()> {
        while self.sim.elapsed() < time {
            self.tick()?;
        }
        Ok(())
    }

    /// One step; whether clients have ended.
    fn tick(&mut self) -> anyhow::Result<bool> {
        self.step += 1;
        chance::set_now(self.sim.elapsed());
        self.nemesis.step(&mut self.sim, self.step);
        self.sim.step().map_err(|error| anyhow::anyhow!("at {:?}: {error}", self.sim.elapsed()))
    }

    fn judge(self, healed: Duration) -> anyhow::Result<Outcome> {
        let healed_ns = u64::try_from(healed.as_nanos()).unwrap_or(u64::MAX);
        let mut histories: Vec<(String, History)> =
            self.recorders.iter().map(|(name, recorder)| (name.clone(), recorder.history())).collect();
        let (mut verdicts, mut operations) = (Vec::new(), 0);
        for ((name, history), workload) in histories.iter().zip(&self.plan.workloads) {
            let all = history.operations().context("a recorder writes what fits together")?;
            operations += all.len();
            let mut found = checker::check(history)?;
            found.push(liveness::check(&all, healed_ns, ALIVE_WITHIN + workload.kind.held_up()));
            verdicts.extend(found.into_iter().map(|mut verdict| {
                verdict.property = format!("{name}: {}", verdict.property);
                verdict
            }));
        }
        let faults = self.faults.history();
        if !self.plan.faults.is_empty() {
            verdicts.push(vacuity::fired(&faults, self.plan.faults.iter().map(|entry| entry.fault.name())));
        }
        verdicts.push(if *self.converged.borrow() {
            Verdict::valid("converged", self.seats.len(), "all members have the same revision and hash")
        } else {
            let explanation = format!("members had not applied the same within {DRAIN:?}");
            Verdict::invalid("converged", 0, explanation)
        });
        if let Some(reason) = self.seats.iter().find_map(|seat| seat.ended.borrow().clone()) {
            verdicts.push(Verdict::invalid("no-member-ends", 1, reason));
        }
        histories.push(("faults".to_owned(), faults));
        let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
        histories.iter().for_each(|(_, history)| digest.update(json::print(history).as_bytes()));
        let trace = digest.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Outcome { trace, verdicts, operations, histories })
    }
}

/// The clients' host.
struct Clients {
    plan: Plan,
    recorders: Vec<Recorder>,
    stop: CancellationToken,
    converged: Rc<RefCell<bool>>,
}

impl Clients {
    async fn work(self) -> turmoil::Result {
        let address = |number| SocketAddr::new(turmoil::lookup(name(number)), CLIENT_PORT);
        let endpoints: Vec<SocketAddr> = (0..self.plan.members).map(address).collect();
        let tasks = TaskTracker::new();
        for (number, (plan, recorder)) in self.plan.workloads.iter().zip(&self.recorders).enumerate() {
            let target = Target {
                endpoints: endpoints.clone(),
                channel: net::client_channel,
                timeout: TIMEOUT,
                recorder: recorder.clone(),
                stop: self.stop.clone(),
                seed: self.plan.seed,
            };
            workload::run(plan, number, &target, &tasks);
        }
        self.stop.cancelled().await;
        tasks.close();
        tokio::time::timeout(DRAIN, tasks.wait())
            .await
            .map_err(|_| format!("clients did not end within {DRAIN:?}"))?;
        if let Some(recorder) = self.recorders.first() {
            let compared = tokio::time::timeout(DRAIN, compare(&endpoints, recorder)).await;
            *self.converged.borrow_mut() = compared.is_ok();
        }
        Ok(())
    }
}

/// Waits until all members have the same revision, then has each hash it.
async fn compare(endpoints: &[SocketAddr], recorder: &Recorder) {
    loop {
        let mut revisions = Vec::new();
        for endpoint in endpoints {
            let mut member = MaintenanceClient::new(net::client_channel(*endpoint));
            let status = tokio::time::timeout(TIMEOUT, member.status(pb::StatusRequest {})).await;
            revisions.push(
                status
                    .ok()
                    .and_then(Result::ok)
                    .and_then(|status| Some(status.into_inner().header?.revision)),
            );
        }
        if let Some(Some(revision)) = revisions.first().copied()
            && revisions.iter().all(|other| *other == Some(revision))
            && ask(endpoints, recorder, revision).await
        {
            return;
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

async fn ask(endpoints: &[SocketAddr], recorder: &Recorder, revision: i64) -> bool {
    for (number, endpoint) in endpoints.iter().enumerate() {
        recorder.invoke(hash::PROCESS, "hash", Value::Null);
        let mut member = MaintenanceClient::new(net::client_channel(*endpoint));
        let answer = tokio::time::timeout(TIMEOUT, member.hash_kv(pb::HashKvRequest { revision })).await;
        let Ok(Ok(answer)) = answer else {
            recorder.fail(hash::PROCESS, "hash", Value::Null, "no answer");
            return false;
        };
        let answer = answer.into_inner();
        let told = json!({
            "member": name(number), "revision": revision, "compact": answer.compact_revision, "hash": answer.hash,
        });
        recorder.ok(hash::PROCESS, "hash", told);
    }
    true
}
