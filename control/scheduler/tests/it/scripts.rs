//! Runs every script of `testdata` (its README.txt says how to read them).

use std::path::{Path, PathBuf};
use std::time::Duration;

use scheduler::{Budget, Configuration, Outcome, Scheduler, SchedulerConfig};

use crate::build;

struct Script {
    scheduler: Scheduler,
    now: Duration,
    /// What the last `schedule` gave and no line has expected yet.
    got: Vec<String>,
    /// Pods decided on by the last `schedule`; their bindings are stored by the time of the next.
    binding: Vec<(String, String)>,
    budgets: Vec<Budget>,
}

impl Script {
    fn new() -> Self {
        let scheduler = Scheduler::new(SchedulerConfig::default());
        Self { scheduler, now: Duration::ZERO, got: Vec::new(), binding: Vec::new(), budgets: Vec::new() }
    }

    fn run(&mut self, words: &[&str]) -> Result<(), String> {
        if words[0] != "=>" && !self.got.is_empty() {
            return Err(format!("not expected: {:?}", self.got));
        }
        match words {
            ["node", name, rest @ ..] => self
                .scheduler
                .node_changed(&build::node(name, rest), self.now)
                .map_err(|error| error.to_string())?,
            ["drop-node", name] => self.scheduler.node_removed(name, self.now),
            ["config", json @ ..] => self.configure(&json.join(" "))?,
            ["budget", labels, allowed] => self.budget(labels, allowed)?,
            ["namespace", name, labels @ ..] => {
                let labels = labels.iter().filter_map(|label| label.split_once('='));
                let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
                self.scheduler.namespace_changed(name, Some(labels), self.now);
            }
            ["group", name, minimum] => {
                let minimum = minimum.parse().map_err(|_| "a number")?;
                self.scheduler.group_changed("default", name, Some(minimum), self.now);
            }
            ["pod", name, rest @ ..] => self
                .scheduler
                .pod_changed(&build::pod(name, rest), self.now)
                .map_err(|error| error.to_string())?,
            ["delete-pod", name] => self.scheduler.pod_removed(name, self.now),
            ["fail-bind", name] => {
                self.binding.retain(|(uid, _)| uid != name);
                self.scheduler.bind_failed(name, self.now);
            }
            ["wait", seconds] => {
                self.now += Duration::from_secs(seconds.parse().map_err(|_| "seconds")?);
            }
            ["schedule"] => self.schedule(),
            ["count", wanted, nodes @ ..] => self.count(wanted, nodes)?,
            ["=>", expected @ ..] => self.expect(expected)?,
            _ => return Err("unknown statement".to_owned()),
        }
        Ok(())
    }

    fn configure(&mut self, json: &str) -> Result<(), String> {
        let value = serde_json::from_str(json).map_err(|error| error.to_string())?;
        let configuration = Configuration::from_value(value).map_err(|error| error.to_string())?;
        let config = SchedulerConfig::new(&configuration, 0).map_err(|error| error.to_string())?;
        self.scheduler = Scheduler::new(config);
        self.binding.clear();
        Ok(())
    }

    fn budget(&mut self, labels: &str, allowed: &str) -> Result<(), String> {
        self.budgets.push(Budget {
            namespace: "default".to_owned(),
            selector: api::selector::LabelSelector::parse(labels).map_err(|error| error.to_string())?,
            allowed: allowed.parse().map_err(|_| "a number")?,
            disrupted: Default::default(),
        });
        self.scheduler.budgets_changed(self.budgets.clone());
        Ok(())
    }

    fn schedule(&mut self) {
        for (uid, node) in self.binding.drain(..) {
            self.scheduler.bound(&uid, &node);
        }
        while let Some(outcome) = self.scheduler.schedule_next(self.now) {
            match outcome {
                Outcome::Bind { pod, node } => {
                    self.binding.push((pod.uid.to_string(), node.to_string()));
                    self.got.push(format!("{} {node}", pod.name));
                }
                Outcome::BindGroup { pods } => {
                    for (pod, node) in pods {
                        self.binding.push((pod.uid.to_string(), node.to_string()));
                        self.got.push(format!("{} {node}", pod.name));
                    }
                }
                Outcome::Unschedulable { pod, error } => self.got.push(format!("{} ! {error}", pod.name)),
                Outcome::Displace { pod, displacement, .. } => {
                    let victims: Vec<&str> = displacement.victims.iter().map(|pod| &*pod.name).collect();
                    let (victims, node) = (victims.join(","), &displacement.node);
                    self.got.push(format!("{} displaces {victims} on {node}", pod.name));
                }
            }
            // Back-offs order by time: no two attempts happen at the same instant.
            self.now += Duration::from_micros(1);
        }
        if self.got.is_empty() {
            self.got.push("nothing".to_owned());
        }
    }

    fn count(&self, wanted: &str, nodes: &[&str]) -> Result<(), String> {
        for name in nodes {
            let node = self.scheduler.cache().node(name).ok_or("no such node")?;
            if node.pods().len().to_string() != wanted {
                return Err(format!("node {name} has {} pods", node.pods().len()));
            }
        }
        Ok(())
    }

    fn expect(&mut self, expected: &[&str]) -> Result<(), String> {
        if self.got.is_empty() {
            return Err("nothing more came".to_owned());
        }
        let got = self.got.remove(0);
        let matches = match expected {
            [_, "!" | "displaces", ..] | ["nothing"] => got == expected.join(" "),
            [pod, nodes] => nodes.split('|').any(|node| got == format!("{pod} {node}")),
            _ => false,
        };
        if matches { Ok(()) } else { Err(format!("got {got}")) }
    }
}

fn run(path: &Path) -> Result<(), String> {
    let text = std::fs::read_to_string(path).expect("readable script");
    let mut script = Script::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split_once('#').map_or(line, |(before, _)| before);
        let words: Vec<&str> = line.split_whitespace().collect();
        if !words.is_empty() {
            let place = || format!("{}:{}: {line}", path.display(), number + 1);
            script.run(&words).map_err(|why| format!("{}\n  {why}", place()))?;
        }
    }
    match script.got.is_empty() {
        true => Ok(()),
        false => Err(format!("{}: not expected at the end: {:?}", path.display(), script.got)),
    }
}

#[test]
fn every_script() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let mut scripts: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("testdata")
        .map(|entry| entry.expect("entry").path())
        .filter(|path| path.file_stem().is_some_and(|stem| stem != "README"))
        .collect();
    scripts.sort();
    assert!(scripts.len() >= 14, "scripts are missing");
    let failures: Vec<String> = scripts.iter().filter_map(|path| run(path).err()).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
