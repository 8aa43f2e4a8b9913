//! Follows every pod of the cluster through the API, version by version, and records what it is told.
//!
//! A watch that breaks is taken up at another master from the last version seen, so that no change is missed. Where that version is
//! no longer kept, all pods are listed again, and those that are missing are recorded as gone.

use std::collections::HashMap;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{GROUP_LABEL, LABEL, Target};
use crate::client::Client;

const PODS: &str = "/api/v1/pods";
/// Why a watch cannot go on: its version is no longer kept.
const GONE: i64 = 410;

struct Observer {
    target: Target,
    client: Client,
    process: i64,
    /// The version to go on from; none: list first.
    version: Option<String>,
    /// What was told last of each pod that is there, by uid.
    known: HashMap<String, Value>,
    knows_nodes: bool,
}

pub(super) async fn work(target: Target, client: Client, process: i64) {
    let end = target.look_no_more.clone();
    let mut observer =
        Observer { target, client, process, version: None, known: HashMap::new(), knows_nodes: false };
    for attempt in 0_usize.. {
        let servers = &observer.target.servers;
        observer.client = observer.client.at(servers[attempt % servers.len()]);
        tokio::select! {
            () = end.cancelled() => return,
            // An attempt that failed is made again at the next master.
            _broken = observer.follow() => tokio::time::sleep(observer.target.timeout / 10).await,
        }
    }
}

impl Observer {
    async fn follow(&mut self) -> anyhow::Result<()> {
        if !self.knows_nodes {
            let nodes = self.get("/api/v1/nodes").await?;
            let nodes = nodes["items"].as_array().context("a list has items")?;
            self.record(nodes.iter().filter_map(capacity).collect());
            self.knows_nodes = true;
        }
        let version = match self.version.clone() {
            Some(version) => version,
            None => self.list().await?,
        };
        let path = format!("{PODS}?watch=1&allowWatchBookmarks=true&resourceVersion={version}");
        let opened = tokio::time::timeout(self.target.timeout, self.client.lines(&path)).await;
        let mut events = opened.context("no answer in time")??;
        // Whoever is silent for long may be cut off without a word.
        let silence_max = self.target.timeout * 2;
        while let Some(event) = tokio::time::timeout(silence_max, events.next()).await?? {
            self.take(&event)?;
        }
        Ok(())
    }

    async fn get(&mut self, path: &str) -> anyhow::Result<Value> {
        let answer = tokio::time::timeout(self.target.timeout, self.client.get(path)).await;
        if answer.is_err() {
            self.client = self.client.another();
        }
        answer.context("no answer in time")?
    }

    async fn list(&mut self) -> anyhow::Result<String> {
        let list = self.get(PODS).await?;
        let version =
            list["metadata"]["resourceVersion"].as_str().context("a list has a version")?.to_owned();
        let pods = list["items"].as_array().context("a list has items")?;
        let told: Vec<Value> = pods.iter().map(|pod| self.observation(pod, false)).collect();
        let there: Vec<&str> = told.iter().filter_map(|pod| pod["uid"].as_str()).collect();
        let mut gone: Vec<Value> = Vec::new();
        for (uid, last) in &self.known {
            if !there.contains(&uid.as_str()) {
                let mut last = last.clone();
                last["gone"] = json!(true);
                last["revision"] = json!(version.parse::<u64>()?);
                gone.push(last);
            }
        }
        for pod in gone.into_iter().chain(told) {
            self.note(pod);
        }
        self.version = Some(version.clone());
        Ok(version)
    }

    fn take(&mut self, event: &Value) -> anyhow::Result<()> {
        let object = &event["object"];
        match event["type"].as_str() {
            Some("ADDED" | "MODIFIED") => self.note(self.observation(object, false)),
            Some("DELETED") => self.note(self.observation(object, true)),
            Some("BOOKMARK") => {}
            _ => {
                if object["code"].as_i64() == Some(GONE) {
                    self.version = None;
                }
                anyhow::bail!("the watch ends: {}", object["message"]);
            }
        }
        let version = object["metadata"]["resourceVersion"].as_str();
        self.version = Some(version.context("an object has a version")?.to_owned());
        Ok(())
    }

    fn note(&mut self, pod: Value) {
        let uid = pod["uid"].as_str().unwrap_or_default().to_owned();
        if pod["gone"] == true {
            self.known.remove(&uid);
        } else if self.known.get(&uid) == Some(&pod) {
            return;
        } else {
            self.known.insert(uid, pod.clone());
        }
        self.record(vec![pod]);
    }

    /// What the checks need to know of a pod.
    fn observation(&self, pod: &Value, is_gone: bool) -> Value {
        let (meta, spec, status) = (&pod["metadata"], &pod["spec"], &pod["status"]);
        // Pods of others count for what nodes can hold, and are nobody's here.
        let is_own = meta["namespace"] == self.target.namespace.as_str();
        let requests = spec["containers"].as_array().into_iter().flatten().map(|container| {
            let cpu = &container["resources"]["requests"]["cpu"];
            millicores(cpu.as_str().unwrap_or("0"))
        });
        json!({
            "uid": meta["uid"],
            "name": meta["name"],
            "label": is_own.then(|| &meta["labels"][LABEL]),
            "group": meta["labels"][GROUP_LABEL],
            "node": spec["nodeName"].as_str().unwrap_or_default(),
            "cpu": requests.sum::<i64>(),
            "revision": meta["resourceVersion"].as_str().and_then(|version| version.parse::<u64>().ok()),
            "phase": status["phase"],
            "ending": !meta["deletionTimestamp"].is_null(),
            "gone": is_gone,
        })
    }

    fn record(&self, told: Vec<Value>) {
        self.target.recorder.invoke(self.process, "pods", Value::Null);
        self.target.recorder.ok(self.process, "pods", Value::Array(told));
    }
}

fn capacity(node: &Value) -> Option<Value> {
    let cpu = millicores(node["status"]["allocatable"]["cpu"].as_str()?);
    Some(json!({"node": node["metadata"]["name"], "capacity": cpu}))
}

/// Of the two forms in which the API tells processors.
fn millicores(text: &str) -> i64 {
    match text.strip_suffix('m') {
        Some(millis) => millis.parse().unwrap_or(0),
        None => text.parse::<i64>().unwrap_or(0) * 1000,
    }
}
