//! A node agent without containers: speaks with the masters as a real one does, and begins and ends programs of a simulated
//! machine, which take their time.
//!
//! As the real one: it keeps a session with every master and hears of pods only from who leads under the newest epoch; what it has
//! to say waits until it is acknowledged, and is said again to a new leader; what runs goes on when it dies, and is adopted
//! when it is back; a pod's end is written down before it is told.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use proto::node::node_sessions_client::NodeSessionsClient;
use proto::node::{self as wire, FromNode, ToNode, from_node, to_node};
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;

use crate::machine::Machine;
use crate::{chance, net};

/// How often pods are looked after.
const TURN: Duration = Duration::from_millis(10);
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(200);
/// From one attempt to reach a master to the next.
const REDIAL: Duration = Duration::from_millis(80);
/// Messages on their way to a master.
const OUTGOING_MAX: usize = 64;
/// The longest that a program takes to begin, and to end when it is asked to.
const BEGIN_MS_MAX: u64 = 200;
const END_MS_MAX: u64 = 400;
/// How long the program of a Job runs, at most.
const JOB_MS_MAX: u64 = 600;
/// What a node has: room for thirteen of the workloads' pods.
const CPU: &str = "2";

type Message = from_node::Message;

/// How far a pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Its program begins then.
    Beginning(Duration),
    Running,
    /// Its program was told to end, and has until then.
    Ending(Duration),
    Succeeded,
    /// Its program was lost, and is not to begin again.
    Failed,
}

/// What goes with the process.
#[derive(Default)]
struct State {
    /// The newest epoch that any master has named, and which master that was.
    epoch: u64,
    leader: Option<usize>,
    stages: BTreeMap<String, Stage>,
    /// What has not been acknowledged, by number; statuses bear their pod's uid.
    outbox: BTreeMap<u64, (String, Message)>,
    sequence: u64,
    draws: u64,
}

pub(crate) struct Agent {
    machine: Rc<Machine>,
    state: RefCell<State>,
    changed: Notify,
}

impl Agent {
    /// The agent's process, from its start to its end.
    pub(crate) async fn live(machine: Rc<Machine>, masters: Vec<SocketAddr>) -> turmoil::Result {
        let agent = Rc::new(Self { machine, state: RefCell::default(), changed: Notify::new() });
        for (number, address) in masters.into_iter().enumerate() {
            let agent = Rc::clone(&agent);
            tokio::task::spawn_local(async move {
                loop {
                    // Whatever broke it: it is begun again.
                    let _ = agent.session(number, address).await;
                    agent.follows_nobody(number);
                    tokio::time::sleep(REDIAL).await;
                }
            });
        }
        let mut turns = tokio::time::interval(TURN);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            turns.tick().await;
            agent.look_after_pods();
        }
    }

    async fn session(&self, number: usize, master: SocketAddr) -> Result<(), tonic::Status> {
        let mut client = NodeSessionsClient::new(net::peer_channel(&master.to_string()));
        let (outgoing, waiting) = mpsc::channel(OUTGOING_MAX);
        let say = async |message| {
            let said = outgoing.send(FromNode { message: Some(message) }).await;
            said.map_err(|_| tonic::Status::cancelled("the session is over"))
        };
        let node_json = self.node().to_string().into_bytes().into();
        let node_name = self.machine.name.clone();
        say(Message::Hello(wire::Hello { node_name, node_json, agent_version: "simulated".to_owned() }))
            .await?;
        let mut incoming = client.session(ReceiverStream::new(waiting)).await?.into_inner();
        let mut heartbeats = tokio::time::interval(HEARTBEAT_INTERVAL);
        let (mut sent, mut beats) = (None, 0);
        loop {
            let changed = self.changed.notified();
            if self.state.borrow().leader != Some(number) {
                sent = None;
            } else if let Some(newest) = sent {
                for (sequence, message) in self.after(newest) {
                    say(message).await?;
                    sent = Some(sequence);
                }
            }
            tokio::select! {
                message = incoming.message() => match message?.and_then(|ToNode { message }| message) {
                    Some(message) => self.hear(number, message, &mut sent),
                    None => return Ok(()),
                },
                _ = heartbeats.tick() => {
                    beats += 1;
                    say(Message::Heartbeat(wire::Heartbeat { sequence: beats })).await?;
                }
                () = changed => {}
            }
        }
    }

    fn follows_nobody(&self, number: usize) {
        let mut state = self.state.borrow_mut();
        if state.leader == Some(number) {
            state.leader = None;
        }
    }

    /// What is to be said behind that number.
    fn after(&self, newest: u64) -> Vec<(u64, Message)> {
        let state = self.state.borrow();
        state.outbox.range(newest + 1..).map(|(number, (_, message))| (*number, message.clone())).collect()
    }

    fn hear(&self, from: usize, message: to_node::Message, sent: &mut Option<u64>) {
        let heard = |epoch: u64| {
            let state = self.state.borrow();
            state.leader == Some(from) && epoch >= state.epoch
        };
        match message {
            to_node::Message::Role(role) if role.leader => {
                {
                    let mut state = self.state.borrow_mut();
                    if role.epoch < state.epoch {
                        return;
                    }
                    (state.epoch, state.leader) = (role.epoch, Some(from));
                }
                self.say_everything();
                *sent = Some(0);
            }
            to_node::Message::Role(_) => self.follows_nobody(from),
            to_node::Message::Resync(_) => {
                self.say_everything();
                *sent = sent.map(|_| 0);
            }
            to_node::Message::PodSet(set) if heard(set.epoch) => self.take_set(&set.pods_json),
            to_node::Message::PodChange(change) if heard(change.epoch) => self.take(&change.pod_json),
            to_node::Message::PodRemoved(removed) if heard(removed.epoch) => self.forget(&removed.uid),
            to_node::Message::Ack(ack) => {
                let done = self.state.borrow_mut().outbox.remove(&ack.sequence);
                if let Some((_, Message::PodTerminated(end))) = done {
                    self.machine.disk.borrow_mut().ends.remove(&end.uid);
                }
            }
            _ => {}
        }
    }

    fn take_set(&self, pods: &[bytes::Bytes]) {
        pods.iter().for_each(|pod| self.take(pod));
        let told: BTreeSet<String> = pods.iter().filter_map(|pod| uid_of(pod)).collect();
        let known: Vec<String> = self.machine.disk.borrow().pods.keys().cloned().collect();
        known.iter().filter(|uid| !told.contains(*uid)).for_each(|uid| self.forget(uid));
    }

    /// A pod is to run here, or to end.
    fn take(&self, pod: &[u8]) {
        let Ok(pod) = serde_json::from_slice::<Value>(pod) else { return };
        let Some(uid) = word(&pod["metadata"], "uid") else { return };
        let mut disk = self.machine.disk.borrow_mut();
        // Of a pod that has ended here nothing begins again.
        if !disk.ends.contains_key(&uid) {
            disk.pods.insert(uid, pod);
        }
    }

    /// A pod's object is gone: so is the pod, at once.
    fn forget(&self, uid: &str) {
        self.machine.kill(uid);
        self.state.borrow_mut().stages.remove(uid);
        let mut disk = self.machine.disk.borrow_mut();
        disk.pods.remove(uid);
        disk.begun.remove(uid);
        disk.exits.remove(uid);
    }

    fn look_after_pods(&self) {
        let pods: Vec<(String, Value)> =
            self.machine.disk.borrow().pods.iter().map(|(uid, pod)| (uid.clone(), pod.clone())).collect();
        for (uid, pod) in pods {
            let before = self.state.borrow().stages.get(&uid).copied();
            let Some(stage) = self.next(&uid, &pod, before) else {
                self.end(&uid, &pod);
                continue;
            };
            if before != Some(stage) {
                self.state.borrow_mut().stages.insert(uid.clone(), stage);
                self.say_status(&uid, &pod, stage);
            }
        }
    }

    /// Where a pod gets to now; `None`: to its end.
    fn next(&self, uid: &str, pod: &Value, stage: Option<Stage>) -> Option<Stage> {
        let (now, machine) = (chance::now(), &self.machine);
        let exited = machine.disk.borrow().exits.contains_key(uid);
        let ending = !pod["metadata"]["deletionTimestamp"].is_null();
        let runs_once = pod["spec"]["restartPolicy"] == "Never";
        Some(match stage {
            None if exited => Stage::Succeeded,
            // Whoever was here before began it.
            None if machine.runs(uid) => Stage::Running,
            None if ending => return None,
            None if runs_once && machine.disk.borrow().begun.contains_key(uid) => Stage::Failed,
            None => Stage::Beginning(now + self.moment(BEGIN_MS_MAX)),
            Some(Stage::Beginning(_)) if ending => return None,
            Some(Stage::Beginning(at)) if at <= now => {
                let identity = word(&pod["metadata"], "name").unwrap_or_default();
                machine.begin(uid, &identity, runs_once.then(|| now + self.moment(JOB_MS_MAX)));
                Stage::Running
            }
            Some(Stage::Running) if exited => Stage::Succeeded,
            Some(Stage::Running) if ending => Stage::Ending(now + self.moment(END_MS_MAX)),
            Some(Stage::Ending(at)) if at <= now || exited => return None,
            Some(Stage::Succeeded | Stage::Failed) if ending => return None,
            Some(stage) => stage,
        })
    }

    /// Nothing of the pod is left: that is written down, and told.
    fn end(&self, uid: &str, pod: &Value) {
        let last =
            if self.machine.disk.borrow().exits.contains_key(uid) { Stage::Succeeded } else { Stage::Failed };
        let end = wire::PodTerminated {
            sequence: 0,
            namespace: word(&pod["metadata"], "namespace").unwrap_or_default(),
            name: word(&pod["metadata"], "name").unwrap_or_default(),
            uid: uid.to_owned(),
            status_json: self.status(last).to_string().into_bytes().into(),
        };
        self.forget(uid);
        self.machine.disk.borrow_mut().ends.insert(uid.to_owned(), end.clone());
        self.say(uid, Message::PodTerminated(end));
    }

    fn say_status(&self, uid: &str, pod: &Value, stage: Stage) {
        let status = wire::PodStatus {
            sequence: 0,
            namespace: word(&pod["metadata"], "namespace").unwrap_or_default(),
            name: word(&pod["metadata"], "name").unwrap_or_default(),
            uid: uid.to_owned(),
            status_json: self.status(stage).to_string().into_bytes().into(),
        };
        self.say(uid, Message::PodStatus(status));
    }

    fn say_everything(&self) {
        let status_json = self.node()["status"].to_string().into_bytes().into();
        self.say("", Message::NodeStatus(wire::NodeStatus { sequence: 0, status_json }));
        let stages: Vec<(String, Stage)> =
            self.state.borrow().stages.iter().map(|(uid, stage)| (uid.clone(), *stage)).collect();
        for (uid, stage) in stages {
            let pod = self.machine.disk.borrow().pods.get(&uid).cloned();
            pod.iter().for_each(|pod| self.say_status(&uid, pod, stage));
        }
        let ends: Vec<wire::PodTerminated> = self.machine.disk.borrow().ends.values().cloned().collect();
        ends.into_iter().for_each(|end| self.say(&end.uid.clone(), Message::PodTerminated(end)));
    }

    /// Says it to whoever leads until it is acknowledged, in place of what was to be said before of that pod.
    fn say(&self, about: &str, mut message: Message) {
        let mut state = self.state.borrow_mut();
        state.sequence += 1;
        let number = state.sequence;
        match &mut message {
            Message::PodStatus(status) => status.sequence = number,
            Message::PodTerminated(end) => end.sequence = number,
            Message::NodeStatus(status) => status.sequence = number,
            _ => {}
        }
        state.outbox.retain(|_, (other, _)| other != about);
        state.outbox.insert(number, (about.to_owned(), message));
        drop(state);
        self.changed.notify_waiters();
    }

    fn node(&self) -> Value {
        let list = json!({"cpu": CPU, "memory": "8Gi", "pods": "110"});
        let Machine { name, number, .. } = &*self.machine;
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "status": {
                "allocatable": list, "capacity": list,
                "addresses": [
                    {"type": "InternalIP", "address": format!("10.99.0.{}", number + 1)},
                    {"type": "Hostname", "address": name},
                ],
                "conditions": [{
                    "type": "Ready", "status": "True", "reason": "KubeletReady",
                    "lastHeartbeatTime": now(), "lastTransitionTime": now(),
                }],
            },
        })
    }

    fn status(&self, stage: Stage) -> Value {
        let (phase, state) = match stage {
            Stage::Beginning(_) => ("Pending", json!({"waiting": {"reason": "ContainerCreating"}})),
            Stage::Running | Stage::Ending(_) => ("Running", json!({"running": {"startedAt": now()}})),
            Stage::Succeeded => ("Succeeded", json!({"terminated": {"exitCode": 0, "reason": "Completed"}})),
            Stage::Failed => ("Failed", json!({"terminated": {"exitCode": 137, "reason": "Error"}})),
        };
        let is_ready = stage == Stage::Running;
        let ready = if is_ready { "True" } else { "False" };
        let conditions = [("Initialized", "True"), ("ContainersReady", ready), ("Ready", ready)]
            .map(|(name, status)| json!({"type": name, "status": status, "lastTransitionTime": now()}));
        json!({
            "phase": phase,
            "startTime": now(),
            "conditions": conditions,
            "containerStatuses": [{
                "name": "main", "image": "barque/hello:1.0", "imageID": "", "restartCount": 0,
                "ready": is_ready, "state": state,
            }],
        })
    }

    /// Up to so many milliseconds.
    fn moment(&self, milliseconds: u64) -> Duration {
        let mut state = self.state.borrow_mut();
        state.draws += 1;
        let drawn = chance::mixed(
            state.draws ^ (self.machine.number as u64) << 32 ^ chance::now().as_millis() as u64,
        );
        Duration::from_millis(drawn % milliseconds)
    }
}

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn word(value: &Value, name: &str) -> Option<String> {
    value[name].as_str().map(str::to_owned)
}

fn uid_of(pod: &[u8]) -> Option<String> {
    word(&serde_json::from_slice::<Value>(pod).ok()?["metadata"], "uid")
}
