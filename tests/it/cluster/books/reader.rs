//! A reader of the books: a cluster with the books' images, and one session of commands in a namespace of its own.
//!
//! Each session has two terminals that watch, as the books' reader does: `kubectl get pods -w` and `kubectl get events
//! -w`. What a step waits for is read off them, so waiting costs nothing.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::images::{Layers, Registry, missing, program};
use crate::cluster::images::configure;
use crate::cluster::stage::Live;
use crate::cluster::{Lab, kubectls, measured, skip, skipped};

/// Longest wait for what should come soon. Sessions share the machine.
pub(super) const SOON: Duration = Duration::from_secs(60);
/// The pause between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// A session: its namespace, and what its reader does.
pub(super) type Session = (&'static str, fn(&Reader<'_>));

/// A cluster with the books' images.
pub(super) struct Book {
    pub(super) lab: Lab,
    pub(super) registry: Registry,
    /// Another registry, for what must not disturb other sessions.
    pub(super) second: Registry,
    pub(super) layers: Layers,
    kubectl: PathBuf,
}

impl Book {
    pub(super) async fn open(test: &str, name: &str, nodes: u8) -> Option<Self> {
        if skipped(test) {
            return None;
        }
        let Some(kubectl) = kubectls().pop() else {
            skip(test, "no kubectl on PATH");
            return None;
        };
        if let Some(name) = missing() {
            skip(test, &format!("no {name} on PATH for the books' images"));
            return None;
        }
        let lab = Lab::up(name, 1, nodes).await;
        let layers = Layers::make(lab.directory.path());
        let address = ["get", "node", "node-1", "-o", "jsonpath={.status.addresses[0].address}"];
        let address = crate::cluster::kubectl_ok(&kubectl, &lab.cluster, &address);
        let host = format!("{}.1", address.rsplit_once('.').unwrap().0);
        let (registry, second) = (Registry::start(&host), Registry::start(&host));
        registry.put_all(&layers);
        let [first_name, second_name] = [&registry, &second].map(|registry| registry.address.to_string());
        let settings = serde_json::json!({"registries": {
            "docker.io": {"mirrors": [&first_name]},
            first_name: {"insecure": true},
            second_name: {"insecure": true},
        }});
        for node in 1..=nodes {
            configure(&lab.cluster, &format!("node-{node}"), &settings);
        }
        Some(Self { lab, registry, second, layers, kubectl })
    }

    /// Reads sessions, all at once, each in a namespace of its name; then closes the book.
    pub(super) fn read(self, sessions: &[Session]) {
        let book = &self;
        let failed: Vec<&str> = std::thread::scope(|scope| {
            let running: Vec<_> = sessions
                .iter()
                .map(|(name, session)| {
                    let (name, session) = (*name, *session);
                    let begin = move || {
                        let began = Instant::now();
                        session(&Reader::sit_down(book, name));
                        measured(&format!("session {name}: {:.1} s", began.elapsed().as_secs_f32()));
                    };
                    (
                        name,
                        std::thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, begin).unwrap(),
                    )
                })
                .collect();
            running.into_iter().filter_map(|(name, thread)| thread.join().err().map(|_| name)).collect()
        });
        // AX-24: what the images share is brought to each node once, however many of them are pulled at the same time,
        // and from whichever registry was asked first.
        let programs = Registry::programs(&self.layers);
        let shared = self.registry.asked(&programs) + self.second.asked(&programs);
        assert!((1..=usize::from(self.lab.options.nodes)).contains(&shared), "pulled {shared} times");
        assert!(failed.is_empty(), "sessions that failed, each said why above: {failed:?}");
        self.lab.down();
    }
}

/// One session.
pub(super) struct Reader<'a> {
    pub(super) book: &'a Book,
    pub(super) namespace: String,
    directory: PathBuf,
    kubeconfig: PathBuf,
    pods: Option<Watching>,
    events: Option<Watching>,
}

/// A terminal in which `kubectl get -w` runs. When the server ends a watch, which it may, it is typed again.
struct Watching {
    again: &'static str,
    /// What was shown before, and what is shown now.
    shown: Mutex<(String, Live)>,
}

impl Watching {
    fn begin(reader: &Reader<'_>, line: &str, again: &'static str) -> Option<Self> {
        Some(Self { again, shown: Mutex::new((String::new(), reader.live(line))) })
    }

    fn text(&self, reader: &Reader<'_>) -> String {
        let mut shown = self.shown.lock().unwrap();
        if shown.1.child.try_wait().unwrap().is_some() {
            let before = shown.1.text();
            shown.0.push_str(&before);
            shown.1 = reader.live(self.again);
            measured(&format!("session {}: a watch was ended and begun again", reader.namespace));
        }
        format!("{}{}", shown.0, shown.1.text())
    }
}

/// A line of `kubectl get events`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Told {
    pub(super) warning: bool,
    pub(super) reason: String,
    pub(super) message: String,
}

impl<'a> Reader<'a> {
    fn sit_down(book: &'a Book, namespace: &str) -> Self {
        let directory = book.lab.directory.path().join(namespace);
        copy_manifests(&directory);
        let kubeconfig = directory.join("kubeconfig");
        std::fs::copy(book.lab.cluster.kubeconfig(), &kubeconfig).unwrap();
        let mut reader =
            Self { book, namespace: namespace.to_owned(), directory, kubeconfig, pods: None, events: None };
        reader.prints(&format!("kubectl create namespace {namespace}"));
        reader.prints(&format!("kubectl config set-context --current --namespace={namespace}"));
        let (pods, events) = ("kubectl get pods -w", "kubectl get events -w");
        reader.pods = Watching::begin(&reader, pods, pods);
        reader.events = Watching::begin(&reader, events, "kubectl get events --watch-only");
        reader
    }

    /// A command as it is typed; quotes are a shell's single ones.
    pub(super) fn command(&self, line: &str) -> Command {
        let words = words(line);
        let file = match words[0].as_str() {
            "kubectl" => self.book.kubectl.clone(),
            name => program(name).unwrap_or_else(|| panic!("no {name}")),
        };
        let mut command = Command::new(file);
        command
            .args(&words[1..])
            .current_dir(&self.directory)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", &self.directory)
            .stdin(Stdio::null());
        command
    }

    pub(super) fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    /// What a command prints that succeeds.
    #[track_caller]
    pub(super) fn prints(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What a command says that fails.
    #[track_caller]
    pub(super) fn refuses(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(!output.status.success(), "{line} succeeds: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// A command that keeps running.
    pub(super) fn live(&self, line: &str) -> Live {
        Live::start(self.command(line))
    }

    /// A command on a terminal.
    pub(super) fn terminal(&self, line: &str) -> (Live, File) {
        Live::on_terminal(self.command(line))
    }

    /// Changes a manifest of this session.
    pub(super) fn fill(&self, file: &str, from: &str, to: &str) {
        let path = self.directory.join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(path, text.replace(from, to)).unwrap();
    }

    /// A file or directory of this session.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// A pod as the API has it.
    #[track_caller]
    pub(super) fn pod(&self, name: &str) -> Value {
        serde_json::from_str(&self.prints(&format!("kubectl get po {name} -o json"))).unwrap()
    }

    /// A container's status in a pod.
    #[track_caller]
    pub(super) fn container(&self, pod: &str, container: &str) -> Value {
        let pod = self.pod(pod);
        let lists = ["containerStatuses", "initContainerStatuses"].map(|key| pod["status"][key].clone());
        let mut all = lists.iter().filter_map(Value::as_array).flatten();
        all.find(|status| status["name"] == container)
            .cloned()
            .unwrap_or_else(|| panic!("{container} in {pod:#}"))
    }

    /// READY, STATUS and RESTARTS of a pod as `get pods -w` has shown them, without repetitions.
    pub(super) fn rows(&self, pod: &str) -> Vec<String> {
        let text = self.pods.as_ref().map(|pods| pods.text(self)).unwrap_or_default();
        let mut rows: Vec<String> = text.lines().filter_map(|line| row(line, pod)).collect();
        rows.dedup();
        rows
    }

    /// Waits until the last row of a pod is this one: `1/1 Running 0`.
    #[track_caller]
    pub(super) fn shows(&self, pod: &str, wanted: &str) {
        self.soon(&format!("{pod} {wanted}"), || {
            (self.rows(pod).last().map(String::as_str) == Some(wanted)).then_some(())
        });
    }

    /// Waits until a row of a pod was this one, whatever came after.
    #[track_caller]
    pub(super) fn showed(&self, pod: &str, wanted: &str) {
        self.soon(&format!("{pod} {wanted}"), || {
            self.rows(pod).iter().any(|row| row == wanted).then_some(())
        });
    }

    /// Waits until a look finds something.
    #[track_caller]
    pub(super) fn soon<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let until = Instant::now() + SOON;
        loop {
            if let Some(found) = look() {
                return found;
            }
            if Instant::now() > until {
                let log = ["pods", "events"].map(|kind| self.prints(&format!("kubectl get {kind}")));
                let seen = self.pods.as_ref().map(|pods| pods.text(self)).unwrap_or_default();
                panic!("{}: {what} does not come\n{}\nwatched:\n{seen}", self.namespace, log.join("\n"));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// The events of a pod in the order in which `get events -w` has shown them.
    pub(super) fn told(&self, pod: &str) -> Vec<Told> {
        let text = self.events.as_ref().map(|events| events.text(self)).unwrap_or_default();
        let object = format!("pod/{pod}");
        text.lines()
            .filter_map(|line| {
                let mut rest = line;
                let mut word = || {
                    let (word, more) = rest.trim_start().split_once(char::is_whitespace)?;
                    rest = more;
                    Some(word.to_owned())
                };
                let (_seen, kind, reason, about) = (word()?, word()?, word()?, word()?);
                let message = rest.trim().to_owned();
                (about == object).then(|| Told { warning: kind == "Warning", reason, message })
            })
            .collect()
    }

    /// Waits for an event with a reason whose message holds some text.
    #[track_caller]
    pub(super) fn tells(&self, pod: &str, reason: &str, text: &str) -> Told {
        self.soon(&format!("{reason} {text:?} of {pod}"), || {
            self.told(pod).into_iter().find(|told| told.reason == reason && told.message.contains(text))
        })
    }

    /// The reasons of a pod's events, in order.
    pub(super) fn reasons(&self, pod: &str) -> Vec<String> {
        self.told(pod).into_iter().map(|told| told.reason).collect()
    }

    /// Forwards to ports of a pod: the running kubectl and the local ports.
    pub(super) fn forward<const N: usize>(&self, pod: &str, ports: [u16; N]) -> (Live, [u16; N]) {
        let local = ports.map(|_| crate::cluster::forward::free_port());
        let pairs: Vec<String> =
            local.iter().zip(ports).map(|(local, port)| format!("{local}:{port}")).collect();
        let live = self.live(&format!("kubectl port-forward {pod} {}", pairs.join(" ")));
        for (local, port) in local.iter().zip(ports) {
            live.await_text(&format!("Forwarding from 127.0.0.1:{local} -> {port}"));
        }
        (live, local)
    }

    /// What `curl` prints on this machine.
    #[track_caller]
    pub(super) fn curl(&self, rest: &str) -> String {
        self.prints(&format!("curl -s {rest}"))
    }

    /// Deletes pods and returns how long kubectl waited for it.
    #[track_caller]
    pub(super) fn delete(&self, line: &str) -> Duration {
        let began = Instant::now();
        self.prints(line);
        began.elapsed()
    }
}

/// READY, STATUS and RESTARTS in a row of `get pods`. A status may have spaces: RESTARTS is the first number after it.
fn row(line: &str, pod: &str) -> Option<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    if words.first() != Some(&pod) || words.len() < 5 {
        return None;
    }
    let count = words[2..].iter().position(|word| word.parse::<u32>().is_ok())? + 2;
    Some(words[1..=count].join(" "))
}

/// A line's words; single quotes keep spaces.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let (mut quoted, mut fresh) = (false, true);
    for letter in line.chars() {
        match letter {
            '\'' => (quoted, fresh) = (!quoted, false),
            ' ' if !quoted => {
                if !fresh {
                    words.push(String::new());
                }
                fresh = true;
            }
            other => {
                words.last_mut().unwrap().push(other);
                fresh = false;
            }
        }
    }
    words
}

fn copy_manifests(directory: &Path) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/cluster/books/manifests");
    std::fs::create_dir_all(directory).unwrap();
    for file in std::fs::read_dir(from).unwrap().flatten() {
        std::fs::copy(file.path(), directory.join(file.file_name())).unwrap();
    }
}
