//! One client: a place at a master, a name in the history, and what became of a request.

use std::time::Duration;

use http::Method;
use rand::Rng as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{LABEL, Target};
use crate::client::Client;
use crate::workload::Failure;
use crate::workload::pace::{Pace, random_of};
use crate::workload::voice::Voice;

/// Between two looks at the end.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// See the module.
pub(super) struct Session {
    target: Target,
    pub(super) index: usize,
    voice: Voice,
    at: usize,
    client: Client,
    pace: Pace,
    random: StdRng,
}

impl Session {
    pub(super) fn new(target: &Target, index: usize, process: i64, pause: Duration) -> Self {
        let at = index % target.servers.len();
        Self {
            client: target.client.at(target.servers[at]),
            random: random_of(target.seed, index),
            voice: Voice::new(target.recorder.clone(), process),
            target: target.clone(),
            index,
            at,
            pace: Pace::new(target.stop.clone(), pause),
        }
    }

    /// What this client's objects are labelled with.
    pub(super) fn label(&self) -> String {
        format!("c{}", self.index)
    }

    pub(super) fn cluster(&self) -> &str {
        &self.target.cluster
    }

    /// Waits for this client's next turn; false when it is time to end.
    pub(super) async fn turn(&mut self) -> bool {
        self.pace.turn().await
    }

    /// A number between nothing and `until`.
    pub(super) fn pick(&mut self, until: usize) -> usize {
        self.random.random_range(0..until.max(1))
    }

    /// One operation: recorded, sent once, and what became of it recorded. Returns the answer if it was done.
    pub(super) async fn operate(
        &mut self,
        f: &str,
        asked: Value,
        (method, path): (Method, &str),
        body: Option<&Value>,
    ) -> Option<Value> {
        self.voice.invoke(f, asked.clone());
        match self.call(method, path, body).await {
            Ok(answer) => {
                let mut told = asked;
                told["uid"] = answer["metadata"]["uid"].clone();
                self.voice.ok(f, told);
                Some(answer)
            }
            Err(failure) => {
                self.voice.failed(f, asked, failure);
                self.move_on();
                None
            }
        }
    }

    async fn call(&mut self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        let only_reads = method == Method::GET;
        let path = format!("{}/{path}", collection_root(path, &self.target.namespace));
        let answer =
            tokio::time::timeout(self.target.timeout, self.client.request(method, &path, body)).await;
        let failure = match answer {
            Ok(Ok((status, value))) if status.is_success() => return Ok(value),
            Ok(Ok((status, value))) => {
                let text = format!("{status}: {}", value["message"].as_str().unwrap_or_default());
                if status.is_client_error() { Failure::NotDone(text) } else { Failure::Unknown(text) }
            }
            Ok(Err(error)) => Failure::Unknown(format!("{error:#}")),
            Err(_) => {
                // Nobody may read the late answer as that of the next request.
                self.client = self.client.another();
                Failure::Unknown(format!("no answer within {:?}", self.target.timeout))
            }
        };
        Err(match failure {
            // A read that failed had no effect, whatever became of it.
            Failure::Unknown(text) if only_reads => Failure::NotDone(text),
            failure => failure,
        })
    }

    fn move_on(&mut self) {
        self.at = (self.at + 1) % self.target.servers.len();
        self.client = self.client.at(self.target.servers[self.at]);
    }

    /// Waits at the end until everything is as it was asked for, and records how long that took.
    pub(super) async fn converge(&mut self, path: &str, is_there: impl Fn(&Value) -> Result<(), String>) {
        self.look("converge", path, is_there).await;
    }

    /// Removes this client's objects of a kind and waits until they and their pods are gone.
    pub(super) async fn clean_up(&mut self, collection: &str) {
        let selector = format!("labelSelector={LABEL}%3D{}", self.label());
        // What a Job has made would stay otherwise.
        let path = format!("{collection}?{selector}&propagationPolicy=Background");
        let deadline = Instant::now() + self.target.converge;
        while self.call(Method::DELETE, &path, None).await.is_err() && Instant::now() < deadline {
            self.move_on();
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        let is_empty = |list: &Value| match list["items"].as_array() {
            Some(items) if items.is_empty() => Ok(()),
            Some(items) => Err(format!("{} pods are there yet", items.len())),
            None => Err("that is no list".to_owned()),
        };
        self.look("clean-up", &format!("pods?{selector}"), is_empty).await;
    }

    async fn look(&mut self, f: &str, path: &str, is_done: impl Fn(&Value) -> Result<(), String>) {
        let (began, asked) = (Instant::now(), json!({"path": path}));
        self.voice.invoke(f, asked.clone());
        loop {
            let why = match self.call(Method::GET, path, None).await {
                Ok(answer) => match is_done(&answer) {
                    Ok(()) => {
                        let told = json!({"path": path, "ms": began.elapsed().as_millis() as u64});
                        return self.voice.ok(f, told);
                    }
                    Err(why) => why,
                },
                Err(Failure::NotDone(why) | Failure::Unknown(why)) => {
                    self.move_on();
                    why
                }
            };
            if began.elapsed() > self.target.converge {
                let why = format!("{why}, {:?} after it was asked for last", self.target.converge);
                return self.voice.fail(f, asked, &why);
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
}

/// Where a collection of a namespace lies: the group of those kinds that are used here.
fn collection_root(path: &str, namespace: &str) -> String {
    let root = match path.split(['/', '?']).next() {
        Some("deployments" | "statefulsets") => "/apis/apps/v1",
        Some("jobs") => "/apis/batch/v1",
        _ => "/api/v1",
    };
    format!("{root}/namespaces/{namespace}")
}

/// Whether every pod of a list is ready, and none is on its way out.
pub(super) fn all_ready(list: &Value, count: Option<usize>) -> Result<(), String> {
    let pods = list["items"].as_array().ok_or("that is no list")?;
    for pod in pods {
        let conditions = pod["status"]["conditions"].as_array();
        let is_ready = conditions
            .is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"));
        if !is_ready || !pod["metadata"]["deletionTimestamp"].is_null() {
            let node = pod["spec"]["nodeName"].as_str().unwrap_or("no node");
            return Err(format!("pod {} on {node} is not ready", pod["metadata"]["name"]));
        }
    }
    match count {
        Some(count) if count != pods.len() => Err(format!("{} pods, not {count}", pods.len())),
        _ => Ok(()),
    }
}
