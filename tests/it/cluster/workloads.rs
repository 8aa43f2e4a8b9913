//! The other workloads on real nodes, through every stock kubectl at hand: deployments made by command, Services,
//! StatefulSets, DaemonSets, Jobs, CronJobs and budgets, and everything removed at once.
//!
//! Rows: KIA-CLI-011, 034, 035, 046, 047, 050, KIA-SVC-006, 010, 011, A3-21, 27, 28, A5-41 to 43, AX-18, 27.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::{Lab, PATIENCE, kubectl, kubectl_ok, kubectls, skip, skipped};

const WORKLOADS: &str = "apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: c, image: barque/hello:1.0, readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}}]
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: c, image: barque/hello:1.0}]
---
apiVersion: batch/v1
kind: Job
metadata: {name: sum}
spec:
  completions: 3
  parallelism: 2
  template:
    spec:
      restartPolicy: Never
      containers: [{name: c, image: barque/hello:1.0, command: [/barque, --version]}]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: db}
spec:
  minAvailable: 2
  selector: {matchLabels: {app: db}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: hungry}
spec:
  selector: {matchLabels: {app: hungry}}
  template:
    metadata: {labels: {app: hungry}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: c, image: barque/hello:1.0}]
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: hungry}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: hungry}
  maxReplicas: 3
  metrics: [{type: Resource, resource: {name: memory, target: {type: AverageValue, averageValue: 64Ki}}}]
";

/// What a pod has to end, unless it says otherwise.
const GRACE_PERIOD: Duration = Duration::from_secs(30);

struct Session {
    lab: Lab,
    program: PathBuf,
}

impl Session {
    fn run(&self, line: &str) -> String {
        let args: Vec<&str> = line.split_whitespace().collect();
        kubectl_ok(&self.program, &self.lab.cluster, &args)
    }

    /// Runs a command until it prints what is waited for.
    async fn until(&self, line: &str, is_right: impl Fn(&str) -> bool) -> String {
        let started = Instant::now();
        loop {
            let printed = self.run(line);
            if is_right(&printed) {
                return printed;
            }
            assert!(started.elapsed() < PATIENCE, "{line}: {printed}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// The words of the row that begins so.
fn row<'a>(table: &'a str, name: &str) -> Vec<&'a str> {
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.into_iter().find(|row| row.first() == Some(&name)).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kubectl_makes_exposes_and_removes_a_deployment() {
    let name = "every_kubectl_makes_exposes_and_removes_a_deployment";
    if skipped(name) {
        return;
    }
    let programs = kubectls();
    let Some(first) = programs.first().cloned() else { return skip(name, "there is no kubectl on PATH") };
    let mut session = Session { lab: Lab::up("it-expose", 3, 1).await, program: first };
    for program in programs {
        session.program = program;
        let made = session.run("create deployment hello --image=barque/hello:1.0");
        assert_eq!(made, "deployment.apps/hello created\n");
        session.run("rollout status deployment hello --timeout=60s");
        let exposed = session.run("expose deployment hello --type=LoadBalancer --port 8080");
        assert_eq!(exposed, "service/hello exposed\n");
        let table = session.run("get svc");
        let header: Vec<&str> = table.lines().next().unwrap_or_default().split_whitespace().collect();
        assert_eq!(header, ["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"]);
        let api = row(&table, "kubernetes");
        assert_eq!((api[1], api[3], api[4]), ("ClusterIP", "<none>", "443/TCP"), "{table}");
        let service = row(&table, "hello").iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert_eq!((service[1].as_str(), service[3].as_str()), ("LoadBalancer", "<pending>"), "{table}");
        assert!(service[4].starts_with("8080:3") && service[4].ends_with("/TCP"), "{table}");
        session.until("get endpoints hello", |table| table.contains(":8080")).await;
        session.run("scale deployment hello --replicas=2");
        session.run("rollout status deployment hello --timeout=60s");
        let table = session.run("get svc hello");
        assert_eq!(row(&table, "hello")[2], service[2], "the address stays: {table}");
        let patch = r#"{"spec":{"replicas":1}}"#;
        session.run(&format!("patch deployment hello -p {patch}"));
        session.until("get deployment hello", |table| row(table, "hello")[1] == "1/1").await;
        let removed = session.run("delete events,all --all --wait=false");
        for line in
            ["pod \"hello-", "service \"kubernetes\"", "service \"hello\"", "deployment.apps \"hello\""]
        {
            assert!(removed.contains(line), "{line} in {removed}");
        }
        // A pod that was made meanwhile in place of a deleted one may be told to end before it listens to that.
        let started = Instant::now();
        while session.run("get all -o name").trim() != "service/kubernetes" {
            let left = || session.run("get pods,replicasets -o yaml");
            assert!(started.elapsed() < GRACE_PERIOD + PATIENCE, "{}", left());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let table = session.run("get svc kubernetes");
        assert_eq!(row(&table, "kubernetes")[4], "443/TCP");
    }
    session.lab.down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sets_jobs_and_budgets_do_what_their_names_say() {
    let name = "sets_jobs_and_budgets_do_what_their_names_say";
    if skipped(name) {
        return;
    }
    let Some(program) = kubectls().pop() else { return skip(name, "there is no kubectl on PATH") };
    let session = Session { lab: Lab::up("it-workloads", 3, 2).await, program };
    let file = session.lab.directory.path().join("workloads.yaml");
    std::fs::write(&file, WORKLOADS).unwrap();
    session.run(&format!("apply -f {}", file.display()));
    session.run("rollout status statefulset db --timeout=60s");
    session.run("rollout status daemonset agent --timeout=60s");
    session.run("wait job sum --for=condition=complete --timeout=60s");
    assert_eq!(row(&session.run("get sts"), "db")[1], "2/2");
    let agents = session.run("get ds");
    assert_eq!(row(&agents, "agent")[1..6], ["2", "2", "2", "2", "2"], "{agents}");
    assert!(session.run("get jobs").contains("3/3"));
    let pods = session.run("get pods -l app=db -o name");
    assert_eq!(pods, "pod/db-0\npod/db-1\n");

    // A new template, and the leader dies in the middle of it.
    session.run("set env statefulset/db daemonset/agent VERSION=2");
    let leader = session.lab.cluster.leader(PATIENCE).unwrap();
    session.lab.cluster.kill(&leader).unwrap();
    session.lab.cluster.complete().unwrap();
    session.run("rollout status statefulset db --timeout=60s");
    session.run("rollout status daemonset agent --timeout=60s");
    assert!(
        session.run("rollout history statefulset db").lines().filter(|line| !line.is_empty()).count() >= 4
    );
    session.run("rollout undo daemonset agent");
    session.run("rollout status daemonset agent --timeout=60s");

    // Two must stay and there are two: nobody may be evicted.
    session.until("get pdb db", |table| row(table, "db").get(3) == Some(&"0")).await;
    let node = session.run("get pod db-0 -o jsonpath={.spec.nodeName}");
    let line = format!("drain {node} --ignore-daemonsets --force --timeout=3s");
    let args: Vec<&str> = line.split_whitespace().collect();
    let refused = kubectl(&session.program, &session.lab.cluster, &args);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("would violate the pod's disruption budget"), "{said}");
    session.run("patch pdb db --type=merge -p {\"spec\":{\"minAvailable\":1}}");
    session.run(&format!("drain {node} --ignore-daemonsets --force --timeout=60s"));
    session.run(&format!("uncordon {node}"));
    session.run("rollout status statefulset db --timeout=60s");

    let cron = [
        "create",
        "cronjob",
        "tick",
        "--image=barque/hello:1.0",
        "--schedule=0 3 * * *",
        "--",
        "/barque",
        "--version",
    ];
    assert_eq!(kubectl_ok(&session.program, &session.lab.cluster, &cron), "cronjob.batch/tick created\n");
    session.run("create job now --from=cronjob/tick");
    session.run("wait job now --for=condition=complete --timeout=60s");
    assert!(session.run("logs job/now").contains("barque"));

    // What pods use was measured meanwhile, and one deployment grew with it. It is measured every 15 s.
    session.until("get hpa hungry", |table| row(table, "hungry").get(5) == Some(&"3")).await;
    session.run("rollout status deployment hungry --timeout=60s");
    let told = session.run("describe hpa hungry");
    assert!(told.contains("New size: 3; reason: memory resource above target"), "{told}");
    for node in ["node-1", "node-2"] {
        let table = session.until("top nodes", |table| row(table, node).len() == 5).await;
        assert!(row(&table, node)[3].ends_with("Mi") && row(&table, node)[1].ends_with('m'), "{table}");
    }
    let containers = |table: &str| table.lines().filter(|line| line.contains("hungry-")).count();
    let table = session.until("top pods --containers", |table| containers(table) == 3).await;
    assert!(table.lines().next().unwrap_or_default().contains("MEMORY(bytes)"), "{table}");
    // A title and two pods, one of which has only begun.
    session.until("get podmetrics -l app=db", |table| table.lines().count() == 3).await;
    every_component_tells_its_numbers(&session).await;
    a_user_schedules_his_own_pods(&session).await;
    session.run("delete all --all --wait=false");
    session.lab.down();
}

/// J18: what another scheduler does through the API is all that it takes.
async fn a_user_schedules_his_own_pods(session: &Session) {
    let own = r#"--overrides={"apiVersion":"v1","spec":{"schedulerName":"mine"}}"#;
    session.run(&format!("run mine --image=barque/hello:1.0 {own}"));
    // A pod that is everybody's, made later, has a node: so this one is left alone.
    session.run("run theirs --image=barque/hello:1.0");
    session.run("wait pod theirs --for=condition=Ready --timeout=60s");
    assert_eq!(session.run("get pod mine -o jsonpath={.status.phase}/{.spec.nodeName}"), "Pending/");
    let waiting = "get pods --all-namespaces -o jsonpath={.items[?(@.spec.schedulerName==\"mine\")].metadata.name} --field-selector spec.nodeName=";
    assert_eq!(session.run(waiting), "mine");
    let binding = serde_json::json!({
        "apiVersion": "v1", "kind": "Binding",
        "metadata": {"name": "mine"}, "target": {"apiVersion": "v1", "kind": "Node", "name": "node-2"},
    });
    let file = session.lab.directory.path().join("binding.json");
    std::fs::write(&file, binding.to_string()).unwrap();
    let path = "/api/v1/namespaces/default/pods/mine/binding";
    session.run(&format!("create --raw {path} -f {}", file.display()));
    session.run("wait pod mine --for=condition=Ready --timeout=60s");
    assert_eq!(session.run("get pod mine -o jsonpath={.spec.nodeName}"), "node-2");
}

/// The value of a sample in Prometheus' text; 0 if it is not there yet.
fn sample(text: &str, name: &str) -> f64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|value| value.split(' ').next()?.parse().ok()).unwrap_or_default()
}

/// J24: each master and each node has metrics, which change with load.
async fn every_component_tells_its_numbers(session: &Session) {
    let leader = session.lab.cluster.leader(PATIENCE).unwrap();
    let status = session.lab.cluster.status().unwrap();
    let address_of = |master: &str| {
        let line = status.lines().find(|line| line.starts_with(master)).expect("a master has a line");
        line.split_whitespace().nth(1).expect("its address is the second word").to_owned()
    };
    let metrics = |master: &str| {
        let server = format!("https://{}", address_of(master));
        session.run(&format!("--server {server} get --raw /metrics"))
    };
    let leads = "leader_election_master_status{name=\"kube-scheduler\"}";
    let scheduled = "scheduler_schedule_attempts_total{result=\"scheduled\"}";
    for master in session.lab.cluster.masters() {
        let text = metrics(&master);
        assert_eq!(sample(&text, leads), f64::from(master == leader), "{master}: {text}");
        assert!(sample(&text, "barque_node_sessions") >= 2.0, "{master}: {text}");
        assert!(sample(&text, "etcd_server_has_leader") > 0.0, "{master}: {text}");
        assert!(sample(&text, "process_resident_memory_bytes") > 1e6, "{master}: {text}");
        let read = "apiserver_request_total{verb=\"get\",resource=\"\",code=\"200\"}";
        assert!(sample(&text, read) >= 1.0, "{master}: {text}");
    }
    let node = session.run("get pod db-0 -o jsonpath={.spec.nodeName}");
    let ask = |path: &str| session.run(&format!("get --raw /api/v1/nodes/{node}/proxy/{path}"));
    let starts = "kubelet_runtime_operations_total{operation_type=\"start_container\"}";
    let (bound, started) = (sample(&metrics(&leader), scheduled), sample(&ask("metrics"), starts));
    assert!(bound >= 1.0 && started >= 1.0, "{bound} bound, {started} started");
    let pin = format!(
        r#"--overrides={{"apiVersion":"v1","spec":{{"nodeSelector":{{"kubernetes.io/hostname":"{node}"}}}}}}"#
    );
    session.run(&format!("run load --image=barque/hello:1.0 {pin}"));
    session.run("wait pod load --for=condition=Ready --timeout=60s");
    assert_eq!(sample(&metrics(&leader), scheduled), bound + 1.0);
    let own = ask("metrics");
    assert!(sample(&own, starts) > started, "{own}");
    assert!(sample(&own, "kubelet_running_pods") >= 2.0, "{own}");
    assert!(sample(&own, "process_resident_memory_bytes") > 1e6, "{own}");

    let resources = ask("metrics/resource");
    let pod = "{namespace=\"default\",pod=\"load\"}";
    assert!(sample(&resources, &format!("pod_memory_working_set_bytes{pod}")) > 1e4, "{resources}");
    assert!(sample(&resources, &format!("pod_cpu_usage_seconds_total{pod}")) > 0.0, "{resources}");
    assert!(sample(&resources, "node_cpu_usage_seconds_total") > 1.0, "{resources}");
    let summary: serde_json::Value = serde_json::from_str(&ask("stats/summary")).unwrap();
    assert_eq!(summary["node"]["nodeName"], node.as_str());
    let pods = summary["pods"].as_array().cloned().unwrap_or_default();
    let load = pods.iter().find(|pod| pod["podRef"]["name"] == "load").expect("the pod is summed up");
    assert!(load["containers"][0]["memory"]["workingSetBytes"].as_u64() > Some(10_000), "{load:#}");
    assert!(load["cpu"]["usageCoreNanoSeconds"].as_u64() > Some(0), "{load:#}");
}
