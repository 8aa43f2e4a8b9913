//! Masters that are nodes too: shown as such, left alone by pods that do not ask for them, used once an operator says so, and
//! used at once where there is nobody else.
//!
//! Rows: KIA-NODE-004, 019, 022, KIA-EVT-008, 011, KC-CTL-04, A4-01, 12, J4.

use std::collections::BTreeSet;
use std::path::PathBuf;

use chaos_tests::cluster::until;

use super::{Lab, PATIENCE, kubectl_ok, kubectls, skip, skipped};

struct Site {
    lab: Lab,
    program: PathBuf,
}

impl Site {
    async fn up(test: &str, name: &str, nodes: u8) -> Option<Self> {
        if skipped(test) {
            return None;
        }
        let Some(program) = kubectls().pop() else {
            skip(test, "there is no kubectl on PATH");
            return None;
        };
        Some(Self { lab: Lab::up_with_master_nodes(name, 1, nodes).await, program })
    }

    fn run(&self, line: &str) -> String {
        let args: Vec<&str> = line.split_whitespace().collect();
        kubectl_ok(&self.program, &self.lab.cluster, &args)
    }

    /// Name, status and role of each node.
    fn nodes(&self) -> Vec<[String; 3]> {
        let text = self.run("get nodes --no-headers");
        let word = |line: &str, at: usize| line.split_whitespace().nth(at).unwrap_or_default().to_owned();
        text.lines().map(|line| [0, 1, 2].map(|at| word(line, at))).collect()
    }

    /// Scales to so many pods, waits for them, and says where they are.
    fn scaled(&self, pods: u8) -> BTreeSet<String> {
        self.run(&format!("scale deployment hello --replicas={pods}"));
        self.run("rollout status deployment hello --timeout=90s");
        let places = self.run("get pods -l app=hello -o jsonpath={.items[*].spec.nodeName}");
        assert_eq!(places.split_whitespace().count(), usize::from(pods), "{places}");
        places.split_whitespace().map(str::to_owned).collect()
    }
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn masters_that_are_nodes_take_pods_only_when_told_to() {
    let test = "masters_that_are_nodes_take_pods_only_when_told_to";
    let Some(site) = Site::up(test, "it-masters", 1).await else { return };
    let row = |name: &str, role: &str| [name, "Ready", role].map(str::to_owned);
    assert_eq!(site.nodes(), [row("master-1", "master"), row("node-1", "<none>")]);
    let taints = |node: &str| {
        let text = site.run(&format!("describe node {node}"));
        text.lines().find_map(|line| Some(line.strip_prefix("Taints:")?.trim().to_owned())).unwrap()
    };
    assert_eq!(taints("master-1"), "node-role.kubernetes.io/master:NoSchedule");
    assert_eq!(taints("node-1"), "<none>");
    site.run("create deployment hello --image=barque/hello:1.0");
    assert_eq!(site.scaled(10), set(["node-1"]));

    site.run("taint nodes master-1 node-role.kubernetes.io/master-");
    assert_eq!(site.scaled(16), set(["master-1", "node-1"]));
    // A pod on the master is reached as any other is.
    let path = "jsonpath={.items[0].metadata.name}";
    let pod = site.run(&format!("get pods -l app=hello --field-selector spec.nodeName=master-1 -o {path}"));
    let answer = site.run(&format!("get --raw /api/v1/namespaces/default/pods/{pod}:8080/proxy/"));
    assert!(answer.contains(&format!("this is {pod}.")), "{answer}");

    // Its agent comes back with what the operator made of it.
    site.lab.cluster.kill("master-1-node").unwrap();
    site.lab.cluster.complete().unwrap();
    assert_eq!(site.nodes()[0], row("master-1", "master"));
    assert_eq!(taints("master-1"), "<none>");
    // What an agent and its keeper of Services say when they start, oldest first, and that they said it again.
    site.lab.cluster.kill("node-1").unwrap();
    site.lab.cluster.complete().unwrap();
    let columns =
        "custom-columns=A:.source.component,B:.source.host,C:.involvedObject.uid,D:.reason,E:.count";
    let about = "involvedObject.kind=Node,involvedObject.name=node-1";
    let mut said = Vec::new();
    let wanted = [
        "kubelet node-1 node-1 Starting 2",
        "kubelet node-1 node-1 NodeAllocatableEnforced 2",
        "kubelet node-1 node-1 NodeHasSufficientMemory 2",
        "kubelet node-1 node-1 NodeHasNoDiskPressure 2",
        "kubelet node-1 node-1 NodeHasSufficientPID 2",
        "kube-proxy node-1 node-1 Starting 2",
    ];
    until(PATIENCE, || {
        let text = site.run(&format!("get events --field-selector {about} --no-headers -o {columns}"));
        let rows = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let of_nodes = |row: &Vec<&str>| row[0].starts_with("kube") && row[3] != "NodeReady";
        said = rows.filter(of_nodes).map(|row| row.join(" ")).collect();
        (said == wanted).then_some(())
    });
    assert_eq!(said, wanted);
    site.lab.down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_machine_of_a_cluster_runs_its_pods() {
    let Some(site) = Site::up("the_only_machine_of_a_cluster_runs_its_pods", "it-alone", 0).await else {
        return;
    };
    assert_eq!(site.nodes(), [["master-1", "Ready", "master"].map(str::to_owned)]);
    site.run("create deployment hello --image=barque/hello:1.0");
    assert_eq!(site.scaled(2), set(["master-1"]));
    site.lab.down();
}
