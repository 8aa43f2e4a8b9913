//! One run.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use chaos_tests::checker::{self, Verdict, liveness, vacuity};
use chaos_tests::client::Client;
use chaos_tests::history::{History, Recorder, json};
use chaos_tests::nemesis::schedule::moments;
use chaos_tests::workload::platform::{self, Instances};
use chaos_tests::workload::{self, Target, hash};
use control::pki::{Authority, ControlToken};
use proto::etcd::etcdserverpb as pb;
use proto::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use turmoil::Sim;

use crate::agent::Agent;
use crate::faults::{CLIENTS, LATENCY_MAX, Nemesis};
use crate::machine::Machine;
use crate::masters::{API_PORT, NODE_PORT};
use crate::members::{CLIENT_PORT, Seat, name};
use crate::plan::Plan;
use crate::steward::{Order, Steward};
use crate::{chance, net};

/// The same authority in every run: what it signs lies in the store.
const TOKEN: &str = "barque-control.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE4g";
/// The clock's step.
const TICK: Duration = Duration::from_millis(1);
/// How long clients wait for an answer.
const TIMEOUT: Duration = Duration::from_millis(1_500);
/// After healing, something must be acknowledged within this time: connections that were cut are found dead in 2 s.
const ALIVE_WITHIN: Duration = Duration::from_secs(4);
/// How long clients may take to end, and members to apply the same.
const DRAIN: Duration = Duration::from_secs(20);
/// How long clients of a cluster wait at the end for what they asked for, and then until it is gone.
const CONVERGE: Duration = Duration::from_secs(20);
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
    machines: Vec<Rc<Machine>>,
    /// What the machines run, as each workload's history is told.
    instances: Vec<Instances>,
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
            .simulation_duration(plan.load() + plan.recovery() + 3 * patience(plan))
            .min_message_latency(Duration::ZERO)
            .max_message_latency(LATENCY_MAX)
            .tcp_capacity(4096)
            .enable_random_order()
            .build();
        let members = plan.members;
        let mut seats = Vec::new();
        let authority = match plan.nodes {
            0 => None,
            _ => Some(Arc::new(Authority::from_token(&TOKEN.parse::<ControlToken>()?)?)),
        };
        for number in 0..members {
            let directory = directory.path().join(name(number));
            let seat = Seat::new(number, directory, members, plan.settings, authority.clone());
            let host = Rc::clone(&seat);
            sim.host(name(number), move || Rc::clone(&host).live());
            seats.push(seat);
        }
        let machines: Vec<Rc<Machine>> = (0..plan.nodes).map(Machine::new).collect();
        for machine in machines.clone() {
            sim.host(machine.name.clone(), move || {
                let machine = Rc::clone(&machine);
                async move {
                    let masters = (0..members).map(|number| address(number, NODE_PORT)).collect();
                    Agent::live(machine, masters).await
                }
            });
        }
        let recorders: Vec<_> = plan
            .workloads
            .iter()
            .map(|plan| (plan.kind.name().to_owned(), Recorder::on_clock(chance::now)))
            .collect();
        let (stop, converged) = (CancellationToken::new(), Rc::new(RefCell::new(false)));
        let (orders, ordered) = mpsc::unbounded_channel();
        let clients = Clients {
            plan: plan.clone(),
            seats: seats.clone(),
            ordered,
            recorders: recorders.iter().map(|(_, recorder)| recorder.clone()).collect(),
            stop: stop.clone(),
            converged: Rc::clone(&converged),
        };
        sim.client(CLIENTS, clients.work());
        let faults = Recorder::on_clock(chance::now);
        let random = StdRng::seed_from_u64(chance::mixed(plan.seed));
        let nemesis = Nemesis::new(seats.clone(), machines.clone(), random, faults.clone(), orders);
        let of_plan =
            |(number, (_, recorder)): (usize, &(String, Recorder))| Instances::new(recorder.clone(), number);
        let instances = match plan.nodes {
            0 => Vec::new(),
            _ => recorders.iter().enumerate().map(of_plan).collect(),
        };
        let plan = plan.clone();
        Ok(Self {
            plan,
            sim,
            nemesis,
            seats,
            machines,
            instances,
            recorders,
            faults,
            stop,
            converged,
            step: 0,
            _directory: directory,
        })
    }

    fn finish(mut self) -> anyhow::Result<Outcome> {
        let (faults, load) = (self.plan.faults.clone(), self.plan.load());
        for (at, number, begins) in moments(&faults) {
            self.until(at.min(load))?;
            if begins {
                self.nemesis.begin(&mut self.sim, self.step, number, &faults[number]);
            } else {
                self.nemesis.end(&mut self.sim, self.step, number);
            }
        }
        self.until(load)?;
        self.nemesis.heal(&mut self.sim, self.step);
        let healed = self.sim.elapsed();
        self.until(load + self.plan.recovery())?;
        self.stop.cancel();
        while !self.tick()? {}
        self.look_at_machines(true);
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
        self.machines.iter().for_each(|machine| machine.step());
        self.nemesis.step(&mut self.sim, self.step);
        self.look_at_machines(false);
        self.sim.step().map_err(|error| anyhow::anyhow!("at {:?}: {error}", self.sim.elapsed()))
    }

    /// Tells every history what really runs.
    fn look_at_machines(&mut self, is_last: bool) {
        for instances in &mut self.instances {
            instances.note(self.machines.iter().flat_map(|machine| machine.instances()).collect(), is_last);
        }
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

fn address(number: usize, port: u16) -> SocketAddr {
    SocketAddr::new(turmoil::lookup(name(number)), port)
}

/// How long clients may take to end: those of a cluster wait for what they asked for, and until it is gone again.
fn patience(plan: &Plan) -> Duration {
    if plan.nodes == 0 { DRAIN } else { DRAIN + 3 * CONVERGE }
}

/// The clients' host.
struct Clients {
    plan: Plan,
    seats: Vec<Rc<Seat>>,
    ordered: UnboundedReceiver<Order>,
    recorders: Vec<Recorder>,
    stop: CancellationToken,
    converged: Rc<RefCell<bool>>,
}

impl Clients {
    async fn work(self) -> turmoil::Result {
        let at = |port| (0..self.plan.members).map(move |number| address(number, port)).collect::<Vec<_>>();
        let endpoints = at(CLIENT_PORT);
        let steward = Steward { seats: self.seats, endpoints: endpoints.clone() };
        tokio::task::spawn_local(steward.work(self.ordered));
        let (tasks, observers) = (TaskTracker::new(), TaskTracker::new());
        let look_no_more = CancellationToken::new();
        let servers = at(API_PORT);
        if self.plan.nodes > 0 {
            until_nodes_are_ready(&servers, self.plan.nodes).await;
        }
        for (number, (plan, recorder)) in self.plan.workloads.iter().zip(&self.recorders).enumerate() {
            if self.plan.nodes > 0 {
                let target = platform::Target {
                    namespace: "default".to_owned(),
                    client: Arc::new(Client::without_credentials(servers[0], net::api_stream)),
                    servers: servers.clone(),
                    cluster: String::new(),
                    timeout: TIMEOUT,
                    converge: CONVERGE,
                    recorder: recorder.clone(),
                    stop: self.stop.clone(),
                    look_no_more: look_no_more.clone(),
                    seed: self.plan.seed,
                };
                platform::run(plan, number, &target, &tasks, &observers);
                continue;
            }
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
        let patience = patience(&self.plan);
        tokio::time::timeout(patience, tasks.wait())
            .await
            .map_err(|_| format!("clients did not end within {patience:?}"))?;
        look_no_more.cancel();
        observers.close();
        observers.wait().await;
        if let Some(recorder) = self.recorders.first() {
            let compared = tokio::time::timeout(DRAIN, compare(&endpoints, recorder)).await;
            *self.converged.borrow_mut() = compared.is_ok();
        }
        Ok(())
    }
}

/// Waits until every node has registered and may be given pods.
async fn until_nodes_are_ready(servers: &[SocketAddr], nodes: usize) {
    for server in servers.iter().cycle() {
        let mut client = Client::without_credentials(*server, net::api_stream);
        let asked = tokio::time::timeout(TIMEOUT, client.get("/api/v1/nodes")).await;
        let list = asked.ok().and_then(Result::ok).unwrap_or_default();
        let is_free = |node: &&Value| node["spec"]["taints"].as_array().is_none_or(Vec::is_empty);
        if list["items"].as_array().is_some_and(|all| all.iter().filter(is_free).count() == nodes) {
            return;
        }
        tokio::time::sleep(POLL_INTERVAL).await;
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
