//! Programs of users against a replica: the examples of the gRPC API, and client libraries of the Kubernetes API.
//!
//! Python is `$BARQUE_PYTHON` or `python3`, Node is `node` with the packages of `$BARQUE_NODE_MODULES` or of the
//! example's own directory. What is not installed is skipped, and said.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::process::Command;

use crate::server::TestServer;

/// No program takes longer, not even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A server, and a directory with an operator's credentials and kubeconfig.
async fn server() -> (TestServer, TempDir) {
    let server = TestServer::start().await;
    let (directory, admin) = (tempfile::tempdir().unwrap(), server.admin());
    let files =
        [("ca.crt", admin.ca_pem), ("client.crt", admin.certificate_pem), ("client.key", admin.key_pem)];
    for (name, text) in files {
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    let config = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
         clusters: [{{name: test, cluster: {{server: \"https://{}\", certificate-authority: ca.crt}}}}]\n\
         users: [{{name: test, user: {{client-certificate: client.crt, client-key: client.key}}}}]\n\
         contexts: [{{name: test, context: {{cluster: test, user: test}}}}]\n",
        server.address
    );
    std::fs::write(directory.path().join("config"), config).unwrap();
    (server, directory)
}

async fn output(command: &mut Command) -> Option<Output> {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    tokio::time::timeout(PATIENCE, output).await.expect("an end in time").ok()
}

/// A program that has all it needs, or why not.
struct Program {
    command: Command,
}

impl Program {
    async fn python(modules: &str) -> Option<Self> {
        let python = std::env::var_os("BARQUE_PYTHON").unwrap_or_else(|| "python3".into());
        let probe = output(Command::new(&python).args(["-c", &format!("import {modules}")])).await;
        if !probe.is_some_and(|probe| probe.status.success()) {
            println!("skipped: {python:?} has not all of: {modules}");
            return None;
        }
        Some(Self { command: Command::new(python) })
    }

    async fn node(directory: &Path, modules: &[&str]) -> Option<Self> {
        let own = directory.join("node_modules");
        let packages = std::env::var_os("BARQUE_NODE_MODULES").map_or(own, PathBuf::from);
        let mut command = Command::new("node");
        command.env("NODE_PATH", &packages).env("NODE_NO_WARNINGS", "1");
        let missing = modules.iter().find(|module| !packages.join(module).is_dir());
        let runs = output(Command::new("node").arg("--version")).await.is_some();
        if let Some(missing) = missing.filter(|_| runs) {
            println!("skipped: {} has no {missing}", packages.display());
            return None;
        }
        if !runs {
            println!("skipped: there is no node on PATH");
            return None;
        }
        Some(Self { command })
    }

    /// Whether this Node can load a module: some want a newer one.
    async fn loads(self, module: &str) -> Option<Self> {
        let mut probe = Command::new("node");
        let packages = self.command.as_std().get_envs().find(|(name, _)| *name == "NODE_PATH");
        let packages = packages.and_then(|(_, value)| value).unwrap_or_default();
        let probe = probe.env("NODE_PATH", packages).args(["-e", &format!("require({module:?})")]);
        let said = output(probe).await.expect("node runs");
        if !said.status.success() {
            println!("skipped: node cannot load {module}: {}", String::from_utf8_lossy(&said.stderr));
            return None;
        }
        Some(self)
    }

    /// Runs it to its end; gives its lines.
    async fn run(mut self, home: &TempDir, arguments: &[&str]) -> Vec<String> {
        let command = self.command.current_dir(home.path()).args(arguments).env("NO_PROXY", "*");
        let output = output(command).await.expect("it starts");
        let (said, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{arguments:?}: {said}{errors}");
        said.lines().map(str::to_owned).collect()
    }
}

/// What every example of the gRPC API does.
fn check_objects(lines: &[String]) {
    let begins = |text: &str| assert!(lines.iter().any(|line| line.starts_with(text)), "{text}: {lines:?}");
    for text in ["created greeting-", "got ", "listed", "watched MODIFIED", "watched DELETED", "deleted"] {
        begins(text);
    }
    assert!(lines.iter().any(|line| line.ends_with(": pods \"ghost\" not found")), "{lines:?}");
    assert!(lines.iter().any(|line| line.starts_with("got") && line.contains("hey there")), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_in_python_works() {
    let Some(program) = Program::python("grpc, grpc_tools").await else { return };
    let (server, home) = server().await;
    let script = repository().join("examples/objects/python/objects.py");
    let address = server.address.to_string();
    let arguments = [script.to_str().unwrap(), &address, "ca.crt", "client.crt", "client.key"];
    check_objects(&program.run(&home, &arguments).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_in_node_works() {
    let directory = repository().join("examples/objects/node");
    let Some(program) = Program::node(&directory, &["@grpc/grpc-js", "@grpc/proto-loader"]).await else {
        return;
    };
    let (server, home) = server().await;
    let script = directory.join("objects.js");
    let address = server.address.to_string();
    let arguments = [script.to_str().unwrap(), &address, "ca.crt", "client.crt", "client.key"];
    check_objects(&program.run(&home, &arguments).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_in_rust_works() {
    // Built beside the tests.
    let tests = std::env::current_exe().unwrap();
    let example = tests.parent().unwrap().parent().unwrap().join("examples/objects");
    if !example.is_file() {
        println!("skipped: {} was not built; `cargo test -p control` builds it", example.display());
        return;
    }
    let (server, home) = server().await;
    let address = server.address.to_string();
    let program = Program { command: Command::new(example) };
    let lines = program.run(&home, &[&address, "ca.crt", "client.crt", "client.key"]).await;
    let said: Vec<String> = lines.iter().map(|line| line.replace("Modified", "MODIFIED")).collect();
    let said: Vec<String> = said.iter().map(|line| line.replace("Deleted", "DELETED")).collect();
    check_objects(&said);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kubernetes_client_of_python_works() {
    let Some(program) = Program::python("kubernetes").await else { return };
    let (_server, home) = server().await;
    let script = repository().join("control/tests/it/testdata/client.py");
    let lines = program.run(&home, &[script.to_str().unwrap(), "config"]).await;
    assert_eq!(lines.last().map(String::as_str), Some("done"), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kubernetes_client_of_node_works() {
    let directory = repository().join("examples/objects/node");
    let Some(program) = Program::node(&directory, &["@kubernetes/client-node"]).await else { return };
    let Some(program) = program.loads("@kubernetes/client-node").await else { return };
    let (_server, home) = server().await;
    // Modules are looked for from the script's own place up.
    let script = home.path().join("client.mjs");
    std::fs::copy(repository().join("control/tests/it/testdata/client.mjs"), &script).unwrap();
    let own = directory.join("node_modules");
    let packages = std::env::var_os("BARQUE_NODE_MODULES").map_or(own, PathBuf::from);
    std::os::unix::fs::symlink(packages, home.path().join("node_modules")).unwrap();
    let lines = program.run(&home, &[script.to_str().unwrap(), "config"]).await;
    assert_eq!(lines.last().map(String::as_str), Some("done"), "{lines:?}");
}
