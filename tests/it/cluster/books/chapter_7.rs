//! Chapter 7: volumes that live as long as a pod, and the node's own files.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use super::reader::{Reader, Session};

/// The chapter's sessions.
pub(super) const SESSIONS: &[Session] = &[
    ("quotes", quotes),
    ("sidecar", sidecar),
    ("mounts", mounts),
    ("propagation", propagation),
    ("documents", documents),
    ("node-view", node_view),
    ("host-paths", host_paths),
];

/// A7-01 to A7-04, KIA-VOL-003, KIA-VOL-015, KIA-VOL-033.
fn quotes(me: &Reader<'_>) {
    const FILE: &str = "/usr/share/nginx/html/quote";
    // The container may end before the command that ends it.
    let stop = |pod: &str| me.run(&format!("kubectl exec {pod} -- nginx -s stop"));
    let quote = |pod: &str| me.prints(&format!("kubectl exec {pod} -- cat {FILE}"));
    // A7-03
    let refused = me.refuses("kubectl apply -f quote-edir-no-version.yaml");
    assert!(refused.contains("apiVersion not set"), "{refused}");
    assert_eq!(me.prints("kubectl apply -f quote-novol.yaml"), "pod/quote-novol created\n");
    me.prints("kubectl apply -f quote-edir.yaml");
    me.shows("quote-novol", "1/1 Running 0");
    me.shows("quote-edir", "1/1 Running 0");
    // A7-01: without a volume the file is the container's, and goes with it.
    let first = quote("quote-novol");
    stop("quote-novol");
    me.shows("quote-novol", "1/1 Running 1");
    assert_ne!(quote("quote-novol"), first);
    // A7-02: with one it is the pod's.
    let first = quote("quote-edir");
    stop("quote-edir");
    me.shows("quote-edir", "1/1 Running 1");
    assert_eq!(quote("quote-edir"), first);
    let hooks = me.prints("kubectl exec quote-edir -- cat /usr/share/nginx/html/hooks");
    assert_eq!(hooks, "ran\nran\n", "the hook ran each time and wrote the quote once");
    // A7-04
    let mounts = me.prints("kubectl exec quote-edir -- mount");
    let line = mounts.lines().find(|line| line.contains(" on /usr/share/nginx/html type ")).unwrap();
    assert!(line.contains("(rw"), "{line}");
}

/// A7-06, AX-23, AX-30, KIA-VOL-004, KIA-VOL-014, KIA-APP-010.
fn sidecar(me: &Reader<'_>) {
    me.prints("kubectl apply -f quote.yaml");
    me.shows("quote", "3/3 Running 0");
    let log = me.prints("kubectl logs quote -c fortune");
    assert!(log.contains("Configured to write a quote to /var/local/output/quote every 5 seconds"), "{log}");
    let (mut forward, [port]) = me.forward("quote", [80]);
    let ask = || me.curl(&format!("localhost:{port}/quote"));
    let first = ask();
    assert!(first.contains("(No. "), "{first}");
    let began = std::time::Instant::now();
    me.soon("another quote", || (ask() != first).then_some(()));
    let next = ask();
    me.soon("a third", || (ask() != next).then_some(()));
    assert!(began.elapsed().as_secs() >= 5 && began.elapsed().as_secs() < 15, "{:?}", began.elapsed());
    let read =
        |container: &str, file: &str| me.prints(&format!("kubectl exec quote -c {container} -- cat {file}"));
    let same = me.soon("the same file in both", || {
        let written = read("fortune", "/var/local/output/quote");
        (written == read("nginx", "/usr/share/nginx/html/quote")).then_some(written)
    });
    assert!(same.contains("(No. "));
    let refused = me.refuses("kubectl exec quote -c nginx -- touch /usr/share/nginx/html/mine");
    assert!(refused.contains("Read-only file system"), "{refused}");
    assert_eq!(
        me.prints("kubectl exec quote -c apart -- ls /usr/share/nginx/html /var/local/output")
            .matches("quote")
            .count(),
        0
    );
    forward.interrupt();
    forward.ended();
}

/// A7-07, A7-08, A7-12, AX-26, KIA-POD-047.
fn mounts(me: &Reader<'_>) {
    me.prints("kubectl apply -f quote-mem.yaml -f subpaths.yaml -f hostname-path.yaml");
    me.shows("quote-mem", "1/1 Running 0");
    // A7-07
    let mounts = me.prints("kubectl exec quote-mem -- mount");
    let content = mounts.lines().find(|line| line.contains(" on /content type tmpfs")).unwrap();
    assert!(content.contains("size=10240k"), "{content}");
    assert!(mounts.lines().any(|line| line.contains(" on /again type tmpfs (ro")), "{mounts}");
    assert!(mounts.lines().any(|line| line.contains(" on /bare type ")), "{mounts}");
    me.prints("kubectl exec quote-mem -- dd if=/dev/zero of=/content/much bs=1M count=9");
    let full = me.refuses("kubectl exec quote-mem -- dd if=/dev/zero of=/content/more bs=1M count=2");
    assert!(full.contains("No space left on device"), "{full}");
    // AX-26: writes succeed in volumes only.
    for (file, fine) in [("/content/a", true), ("/bare/a", true), ("/a", false), ("/again/b", false)] {
        let done = me.run(&format!(
            "kubectl exec quote-mem -- sh -c 'rm -f /content/more; echo secret-{file} > {file}'"
        ));
        assert_eq!(done.status.success(), fine, "{file}");
    }
    assert_eq!(me.prints("kubectl exec quote-mem -- cat /again/a"), "secret-/content/a\n");
    let uid = me.pod("quote-mem")["metadata"]["uid"].as_str().unwrap().to_owned();
    let node = me.pod("quote-mem")["spec"]["nodeName"].as_str().unwrap().to_owned();
    let on_disk = || {
        let data = me.book.lab.cluster.directory().join(&node);
        let found = me.prints(&format!("bash -c 'find {} -xdev -path *{uid}*; true'", data.display()));
        found.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(on_disk().iter().any(|path| path.ends_with("/bare/a")), "{:?}", on_disk());
    assert!(!on_disk().iter().any(|path| path.ends_with("/content/a")), "memory leaves nothing on the disk");
    // A7-08
    me.shows("subpaths", "2/2 Running 0");
    me.prints("kubectl exec subpaths -c part -- touch /part/here /own/mine");
    let all = me.prints("kubectl exec subpaths -c all -- ls -R /content");
    for line in ["/content/one/part:", "here", "/content/of-subpaths:", "mine"] {
        assert!(all.lines().any(|found| found == line), "{line:?} in {all}");
    }
    assert!(!me.prints("kubectl exec subpaths -c part -- ls /part").contains("of-subpaths"));
    // KIA-VOL-014: of another pod's volume of the same name nothing is seen.
    me.refuses("kubectl exec subpaths -c all -- ls /content/a");
    let refused = me.refuses("kubectl apply -f no-such-volume.yaml");
    assert!(refused.contains("spec.containers[0].volumeMounts[0].name: Not found: \"absent\""), "{refused}");
    // KIA-POD-047: the variable is there and is no part of the container's definition.
    assert_eq!(me.prints("kubectl exec subpaths -c all -- sh -c 'echo $HOSTNAME'"), "subpaths\n");
    me.soon("the refusal", || {
        (me.rows("hostname-path").last()? == "0/1 CreateContainerConfigError 0").then_some(())
    });
    me.tells("hostname-path", "Failed", "HOSTNAME");
    // A7-12
    let explained = me.prints("kubectl explain pod.spec.volumes");
    for kind in [
        "emptyDir",
        "hostPath",
        "nfs",
        "awsElasticBlockStore",
        "gcePersistentDisk",
        "configMap",
        "secret",
        "csi",
    ] {
        assert!(explained.contains(&format!("  {kind}\t<")), "{kind} in {explained}");
    }
    // A7-07: the directory goes with the pod.
    me.prints("kubectl delete po quote-mem");
    me.soon("an empty disk", || on_disk().is_empty().then_some(()));
}

/// A7-08: mounts made later, on either side.
fn propagation(me: &Reader<'_>) {
    let shared = me.path("shared");
    for below in ["from-host", "from-pod"] {
        fs::create_dir_all(shared.join(below)).unwrap();
    }
    let node = me.book.lab.cluster.pid("node-1").unwrap();
    let on_node = |line: &str| me.run(&format!("nsenter -t {node} -m {line}")).status.success();
    let at = shared.display();
    // The node's directory becomes a mount of its own that is shared, as the node's root is on a real machine.
    assert!(on_node(&format!("mount --bind {at} {at}")) && on_node(&format!("mount --make-shared {at}")));
    me.fill("propagation.yaml", "PLACE", crate::support::text(&shared));
    me.prints("kubectl apply -f propagation.yaml");
    me.shows("propagation", "3/3 Running 0");
    assert!(on_node(&format!("mount -t tmpfs later {at}/from-host")));
    let sees = |container: &str, below: &str| {
        let mounts = me.prints(&format!("kubectl exec propagation -c {container} -- mount"));
        mounts.contains(&format!(" on /shared/{below} type tmpfs"))
    };
    let who = |below: &str| ["none", "inward", "both"].map(|container| sees(container, below));
    assert_eq!(who("from-host"), [false, true, true]);
    me.prints("kubectl exec propagation -c both -- mount -t tmpfs later /shared/from-pod");
    assert_eq!(who("from-pod"), [false, true, true]);
    let mounts = me.prints(&format!("nsenter -t {node} -m cat /proc/self/mounts"));
    assert!(mounts.contains(&format!("{at}/from-pod tmpfs")), "{mounts}");
    me.prints("kubectl delete po propagation");
    for below in ["/from-pod", "/from-host", ""] {
        assert!(on_node(&format!("umount {at}{below}")), "{below}");
    }
}

/// A7-10, A7-11, A7-13, KIA-APP-012.
fn documents(me: &Reader<'_>) {
    let disk = me.path("disk");
    me.fill("docdb-pod.yaml", "PLACE", crate::support::text(&disk));
    let prompt = |line: &str, commands: &str, wanted: &str| {
        let (mut client, mut keys) = me.terminal(line);
        keys.write_all(commands.as_bytes()).unwrap();
        client.await_text(wanted);
        keys.write_all(b"exit\r").unwrap();
        assert_eq!(client.ended(), Some(0), "{}", client.text());
    };
    let create = || me.prints("kubectl create -f docdb-pod.yaml");
    assert_eq!(create(), "pod/docdb created\n");
    me.shows("docdb", "1/1 Running 0");
    me.soon("the store", || me.prints("kubectl logs docdb").contains("port 27017").then_some(()));
    prompt("kubectl exec -it docdb -- mongo", "use mystore\rdb.foo.insert({name:'foo'})\r", "\nok");
    prompt("kubectl exec -it docdb -- mongo", "use mystore\rdb.foo.find()\r", "\n{name:'foo'}");
    let refused = me.refuses("kubectl create -f docdb-pod.yaml");
    assert_eq!(
        refused,
        "Error from server (AlreadyExists): error when creating \"docdb-pod.yaml\": pods \"docdb\" already exists\n"
    );
    // A7-11, A7-13: another pod of the same name on the same node.
    assert_eq!(me.prints("kubectl delete pod docdb"), "pod \"docdb\" deleted\n");
    create();
    me.soon("the second", || me.run("kubectl logs docdb").stdout.ends_with(b"port 27017\n").then_some(()));
    assert!(me.prints("kubectl get po -o wide").contains("node-1"));
    prompt("kubectl exec -it docdb -- mongo", "use mystore\rdb.foo.find()\r", "\n{name:'foo'}");
    assert_eq!(fs::read_to_string(disk.join("mystore.foo")).unwrap(), "{name:'foo'}\n");
}

/// A7-17, A7-19, KIA-VOL-017, KIA-VOL-021.
fn node_view(me: &Reader<'_>) {
    let directory = me.path("of-the-node");
    fs::create_dir(&directory).unwrap();
    me.prints("kubectl apply -f node-view.yaml");
    me.shows("node-view", "1/1 Running 0");
    let (mut shell, mut keys) = me.terminal("kubectl exec -it node-view -- sh");
    keys.write_all(b"cd /host; ls\r").unwrap();
    for name in ["proc", "usr", "etc"] {
        shell.await_text(name);
    }
    let file = directory.join("written");
    keys.write_all(format!("echo by-the-pod > /host{}; exit\r", file.display()).as_bytes()).unwrap();
    assert_eq!(shell.ended(), Some(0));
    assert_eq!(fs::read_to_string(&file).unwrap(), "by-the-pod\n");
    // A7-19: the next pod on this node sees it too.
    let twin =
        fs::read_to_string(me.path("node-view.yaml")).unwrap().replace("name: node-view", "name: twin");
    fs::write(me.path("twin.yaml"), twin).unwrap();
    me.prints("kubectl apply -f twin.yaml");
    me.shows("twin", "1/1 Running 0");
    let read = me.prints(&format!("kubectl exec twin -- cat /host{}", file.display()));
    assert_eq!(read, "by-the-pod\n");
}

/// A7-18, A7-20, KIA-VOL-002, KIA-VOL-019, KIA-EVT-022.
fn host_paths(me: &Reader<'_>) {
    let directory = me.path("paths");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("file"), "x").unwrap();
    fs::create_dir(directory.join("dir")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(directory.join("socket")).unwrap();
    let cases: &[(&str, &Path, &str, bool)] = &[
        ("absent-dir", &directory.join("nothing"), "Directory", false),
        ("dir-is-file", &directory.join("file"), "Directory", false),
        ("file-is-dir", &directory.join("dir"), "File", false),
        ("absent-file", &directory.join("nothing"), "File", false),
        ("socket-is-file", &directory.join("file"), "Socket", false),
        ("block-is-char", Path::new("/dev/null"), "BlockDevice", false),
        ("char-is-file", &directory.join("file"), "CharDevice", false),
        ("dir", &directory.join("dir"), "Directory", true),
        ("file", &directory.join("file"), "File", true),
        ("socket", &directory.join("socket"), "Socket", true),
        ("char", Path::new("/dev/null"), "CharDevice", true),
        ("made-dir", &directory.join("made/dir"), "DirectoryOrCreate", true),
        ("made-file", &directory.join("made-file"), "FileOrCreate", true),
        ("unchecked", &directory.join("file"), "", true),
    ];
    let pods = cases.iter().map(|(name, path, kind, _)| {
        serde_json::json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {
                "terminationGracePeriodSeconds": 1, "nodeSelector": {"kubernetes.io/hostname": "node-1"},
                "volumes": [{"name": "v", "hostPath": {"path": path, "type": kind}}],
                "initContainers": [{"name": "i", "image": "lab/busybox:1", "command": ["test", "-e", "/v"],
                    "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
                "containers": [{"name": "c", "image": "lab/hello:1.1",
                    "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
            },
        })
    });
    let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": pods.collect::<Vec<_>>()});
    fs::write(me.path("paths.json"), list.to_string()).unwrap();
    me.prints("kubectl apply -f paths.json");
    for (name, _, kind, fine) in cases {
        if *fine {
            me.shows(name, "1/1 Running 0");
            continue;
        }
        let told = me.tells(name, "FailedMount", "hostPath type check failed");
        assert!(told.warning, "{told:?}");
        assert_eq!(
            me.rows(name).last().unwrap(),
            "0/1 Init:0/1 0",
            "{kind}: not even its init container runs"
        );
        assert!(me.told(name).iter().all(|told| told.reason != "Created"), "{kind}");
    }
    for (name, mode) in [("made/dir", 0o755), ("made-file", 0o644)] {
        let made = fs::metadata(directory.join(name)).unwrap();
        assert_eq!((made.permissions().mode() & 0o777, made.uid()), (mode, 0), "{name}");
    }
}
