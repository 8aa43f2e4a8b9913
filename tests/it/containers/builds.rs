//! Sections B, H3, H9 and I3 to I6 of the Workshop, and the images of *Kubernetes in Action*, chapter 2: images are built,
//! looked at, changed and run.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;

use serde_json::Value;

use super::stage::{Stage, types};
use crate::support::eventually;

/// The book's server, of a program that the base image has.
const SERVER: &str = "#!/bin/sh\nexec /barque demo pings\n";
const DOCKERFILE: &str = "FROM alpine:3.10\nCOPY k8s-for-beginners /\nCMD [\"/k8s-for-beginners\"]\n";

/// A directory with files; those that begin with `#!` can be run.
pub(super) fn directory(stage: &Stage, name: &str, files: &[(&str, &str)]) -> PathBuf {
    let dir = stage.directory.path().join(name);
    for (file, text) in files {
        let path = dir.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        let mode = if text.starts_with("#!") { 0o755 } else { 0o644 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    dir
}

fn is_id(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The id that a build tells at its end.
fn built(text: &str) -> String {
    let id = text.lines().find_map(|line| line.strip_prefix("Successfully built ")).unwrap().to_owned();
    assert!(is_id(&id), "{text}");
    id
}

/// The digests of an image's layers, the lowest first, and its settings.
fn about(stage: &Stage, image: &str) -> (Vec<String>, Value) {
    // The engine keeps images as a node does.
    let store = node::images::ImageStore::open(stage.data("images")).unwrap();
    let reference = node::images::Reference::parse(image).unwrap();
    let about = node::images::inspect(&store, &reference).unwrap();
    let layers = about["RootFS"]["Layers"].as_array().unwrap().iter();
    (layers.map(|digest| digest.as_str().unwrap().to_owned()).collect(), about["Config"].clone())
}

/// B1, B5, B6. WS-IMG-03, -06 to -12, -15, KIA-CR-010 to -012.
pub(super) fn the_first_image(stage: &Stage) {
    let context = directory(stage, "app", &[("Dockerfile", DOCKERFILE), ("k8s-for-beginners", SERVER)]);
    let text = stage.prints("docker build -t k8s-for-beginners:v0.0.1 app 2>/dev/null");
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines[0].starts_with("Sending build context to Docker daemon  ") && lines[0].ends_with('B'),
        "{text}"
    );
    for (number, line) in DOCKERFILE.lines().enumerate() {
        let shown = format!("Step {}/3 : {line}", number + 1);
        let at = lines.iter().position(|line| *line == shown).unwrap_or_else(|| panic!("{shown:?}: {text}"));
        let next = lines[at + 1..].iter().find_map(|line| line.strip_prefix(" ---> ").filter(|id| is_id(id)));
        assert!(next.is_some(), "an image after {shown:?}: {text}");
    }
    let id = built(&text);
    assert_eq!(lines.last(), Some(&"Successfully tagged k8s-for-beginners:v0.0.1"));
    let rows = stage.prints("docker images");
    assert!(
        rows.lines().any(|row| row.starts_with("k8s-for-beginners   v0.0.1") && row.contains(&id)),
        "{rows}"
    );
    assert_eq!(rows.lines().count(), 3, "nothing but the header, the base and the image: {rows}");

    // The same again: nothing is done, not even asked for.
    let asked = stage.registry.asked("");
    let again = stage.prints("docker build -t k8s-for-beginners:v0.0.1 app");
    assert_eq!((built(&again), again.matches(" ---> Using cache").count()), (id, 2), "{again}");
    assert_eq!(stage.registry.asked(""), asked, "the registry is not asked");
    // Another time is not another content.
    fs::write(context.join("k8s-for-beginners"), SERVER).unwrap();
    assert_eq!(built(&stage.prints("docker build app")), built(&again));

    // One byte: one layer, and the old image stays as it is.
    fs::write(context.join("k8s-for-beginners"), SERVER.replace("exec", "exec ")).unwrap();
    let changed = stage.prints("docker build -t k8s-for-beginners:v0.0.2 app");
    assert_eq!(changed.matches(" ---> Using cache").count(), 0, "{changed}");
    let [old, new] = ["v0.0.1", "v0.0.2"].map(|tag| about(stage, &format!("k8s-for-beginners:{tag}")).0);
    assert_eq!(old[..old.len() - 1], new[..new.len() - 1]);
    assert_ne!(old.last(), new.last());
    assert_eq!(old.len(), about(stage, "alpine:3.10").0.len() + 1);
    for (tag, wanted) in [("v0.0.1", SERVER.to_owned()), ("v0.0.2", SERVER.replace("exec", "exec "))] {
        let text = stage.prints(&format!("docker run --rm k8s-for-beginners:{tag} cat /k8s-for-beginners"));
        assert_eq!(text, wanted.trim_end(), "{tag}");
    }

    // It is run at once, and its program is process 1.
    let server = stage.detached("docker run -d -p 8080:8080 k8s-for-beginners:v0.0.1");
    assert_eq!(stage.curl("localhost:8080"), "Hello Kubernetes Beginners!");
    let first = stage.prints(&format!("docker exec {server} cat /proc/1/cmdline | tr '\\0' ' '"));
    assert!(first.starts_with("/barque demo pings"), "{first}");
    let mode = stage.prints(&format!("docker exec {server} stat -c '%a %u:%g' /k8s-for-beginners"));
    assert_eq!(mode, "755 0:0");
    stage.clean();

    // What is not used is sent, but in no image.
    fs::write(context.join("large"), vec![0; 5 << 20]).unwrap();
    let larger = stage.prints("docker build -t k8s-for-beginners:v0.0.2 app");
    assert!(larger.starts_with("Sending build context to Docker daemon  5.2MB"), "{larger}");
    assert_eq!(built(&larger), built(&changed));
    fs::write(context.join(".dockerignore"), "large\n").unwrap();
    let smaller = stage.prints("docker build app");
    assert!(smaller.lines().next().unwrap().ends_with("kB") || smaller.contains("daemon  1"), "{smaller}");
}

/// A2-06 to A2-08, A2-22, KIA-CR-011, -013, -024, -027.
pub(super) fn layers_and_history(stage: &Stage) {
    let file = "FROM alpine:3.10\nADD app.js /app.js\nENTRYPOINT [\"bash\", \"/app.js\"]\n";
    directory(stage, "hello", &[("Dockerfile", file), ("app.js", "exec /barque hello\n")]);
    let text = stage.prints("docker build -t hello:latest hello");
    let running = text.lines().find_map(|line| line.strip_prefix(" ---> Running in ")).unwrap();
    assert!(is_id(running) && text.contains(&format!("Removing intermediate container {running}")), "{text}");
    let id = built(&text);
    let table = stage.prints("docker history hello:latest");
    let rows: Vec<Vec<&str>> = table
        .lines()
        .map(|row| row.split("   ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
        .collect();
    assert_eq!(rows[0], ["IMAGE", "CREATED", "CREATED BY", "SIZE"]);
    let base = about(stage, "alpine:3.10").0.len();
    assert_eq!(rows.len(), 1 + 2 + base, "{table}");
    assert_eq!(
        (rows[1][0], rows[1][2], rows[1][3]),
        (id.as_str(), "ENTRYPOINT [\"bash\",\"/app.js\"]", "0B")
    );
    assert!(is_id(rows[2][0]) && rows[2][2] == "ADD app.js /app.js" && rows[2][3] != "0B", "{table}");
    assert!(rows[3..].iter().all(|row| row[0] == "<missing>"), "{table}");
    // A2-09, A2-10, A2-13
    let container = stage.detached("docker run --name hello-c -p 1234:8080 -d hello");
    let answer = stage.curl("localhost:1234");
    let wanted = format!("Hey there, this is {}. Your IP is ::ffff:172.17.0.1.", &container[..12]);
    assert_eq!(answer.trim_end(), wanted);
    let logs = stage.prints("docker logs hello-c 2>&1");
    assert!(logs.contains(&container[..12]) && logs.contains("Received request for / from "), "{logs}");
    // A2-12
    let about: Value = serde_json::from_str(&stage.prints("docker inspect hello-c")).unwrap();
    assert_eq!(
        (about[0]["State"]["Status"].as_str(), about[0]["Config"]["Image"].as_str()),
        (Some("running"), Some("hello"))
    );
    assert_eq!(about[0]["NetworkSettings"]["IPAddress"], "172.17.0.2", "{about:#}");
    // A2-23, A2-26: input only with -i, a terminal only with -t.
    assert_eq!(stage.prints("echo 'echo heard' | docker exec hello-c bash"), "");
    assert_eq!(stage.prints("echo 'echo heard' | docker exec -i hello-c bash"), "heard");
    assert!(!stage.prints("docker exec -i hello-c env").contains("TERM="));
    let (mut shell, terminal) = stage.terminal("docker exec -it hello-c bash");
    shell.await_text(&format!("root@{}:/#", &container[..12]));
    types(&terminal, "exit");
    assert_eq!(shell.ended(), Some(0), "{}", shell.text());
    let names =
        ["app.js", "barque", "bin", "data", "dev", "etc", "proc", "root", "run", "sys", "tmp", "usr", "var"];
    let seen = stage.prints("docker exec hello-c ls /");
    assert!(seen.lines().all(|name| names.contains(&name) || name.starts_with("lib")), "{seen}");
    assert!(names.iter().all(|name| seen.lines().any(|line| line == *name)), "{seen}");
    assert!(stage.rows("docker ps")[0].ends_with("hello-c"), "it goes on");
    stage.prints("docker rm -f hello-c");
    // AX-24: what two images share is here once.
    let pulled = stage.prints("docker pull fedora");
    assert_eq!(
        (pulled.matches(": Already exists").count(), pulled.matches(": Pull complete").count()),
        (2, 0)
    );

    // A file that is removed later still weighs; one that is removed at once never did.
    let make = "dd if=/dev/zero of=/large bs=1M count=10 2>/dev/null";
    let one = format!("FROM alpine:3.10\nRUN {make} && rm /large\n");
    let two = format!("FROM alpine:3.10\nRUN {make}\nRUN rm /large\n");
    directory(stage, "one", &[("Dockerfile", &one)]);
    directory(stage, "two", &[("Dockerfile", &two)]);
    let bytes = |name: &str| -> f64 {
        stage.prints(&format!("docker build -t {name} {name}"));
        let history = stage.prints(&format!("docker history {name}"));
        let size = |row: &str| {
            let text = row.split_whitespace().last().unwrap();
            let units = [("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("B", 1.0)];
            let (number, unit) =
                units.iter().find_map(|(end, unit)| Some((text.strip_suffix(end)?, unit))).unwrap();
            number.parse::<f64>().unwrap() * unit
        };
        let own = history.lines().skip(1).filter(|row| row.contains("/bin/sh -c"));
        own.map(size).sum()
    };
    assert!(bytes("one") < 1e5);
    assert!(bytes("two") > 1e7);
    assert_eq!(stage.prints("docker run --rm two bash -c '[ -e /large ] || echo gone'"), "gone");

    // A tag that moves on leaves an image without one, until it is pruned.
    fs::write(stage.directory.path().join("hello/app.js"), "exec /barque hello \n").unwrap();
    let moved = built(&stage.prints("docker build -t hello hello"));
    assert_ne!(moved, id);
    let rows = stage.prints("docker images");
    assert!(rows.lines().any(|row| row.contains("<none>") && row.contains(&id)), "{rows}");
    let pruned = stage.prints("docker image prune -f");
    assert!(pruned.contains("Deleted Images:") && pruned.contains("Total reclaimed space: "), "{pruned}");
    let rows = stage.prints("docker images");
    assert!(!rows.contains("<none>") && rows.contains(&moved), "{rows}");
    assert_eq!(stage.prints("docker image prune -f"), "Total reclaimed space: 0B");
    assert_eq!(built(&stage.prints("docker build -t hello hello")), moved, "what is used stays");
    assert_eq!(stage.prints("echo n | docker image prune | tail -1 | tail -c 6"), "[y/N] ");

    // Nothing of an image is left once its last name is gone.
    for name in ["hello", "one", "two", "fedora", "k8s-for-beginners:v0.0.1", "k8s-for-beginners:v0.0.2"] {
        stage.prints(&format!("docker rmi {name}"));
    }
    let left = fs::read_dir(stage.data("images/layers")).unwrap().count();
    assert_eq!(left, base, "only the base image's layers");
}

/// I3 to I6. KC-IMG-16 to -20, KIA-CR-009, -034.
pub(super) fn commands_and_settings(stage: &Stage) {
    directory(stage, "www", &[("x", "from the network\n")]);
    let mut server = stage
        .command("docker run --rm --name files -v $PWD/www:/usr/share/nginx/html nginx")
        .spawn()
        .unwrap();
    eventually(|| stage.run("docker exec files ls").status.success().then_some(()));
    let address = stage.about("files", ".NetworkSettings.IPAddress");
    eventually(|| stage.run(&format!("curl -sf {address}:80/x")).status.success().then_some(()));
    let file = format!(
        "ARG BASE=alpine:3.10\nFROM $BASE\nARG WHO\nENV GREETING=\"hello $WHO\" PLACE=/opt\n\
         RUN mkdir -p $PLACE/app && \\\n    # the network is there\n    mkdir /opt/venv && \\\n    \
         curl -sf http://{address}:80/x -o /opt/venv/x && hostname > /opt/venv/name\n\
         COPY basicserver.py /opt/app\nEXPOSE 5000/tcp\nVOLUME /opt/state\nWORKDIR /opt/app\nWORKDIR sub\n\
         USER 65534\nLABEL a=1 b=\"two words\"\nSTOPSIGNAL SIGINT\nENTRYPOINT echo $GREETING; cat ../basicserver.py\n"
    );
    let dir = directory(stage, "basic", &[("Dockerfile", &file), ("basicserver.py", "served\n")]);
    let text = stage.prints("docker build --build-arg WHO=you -t basicserver:0.42 basic");
    let run = "RUN mkdir -p $PLACE/app &&     mkdir /opt/venv && ";
    assert!(text.contains("Step 1/14 : ARG BASE=alpine:3.10") && text.contains(run), "{text}");
    assert_eq!(stage.prints("docker run --rm basicserver:0.42"), "hello you\nserved");
    let inside =
        |line: &str| stage.prints(&format!("docker run --rm --entrypoint bash basicserver:0.42 -c '{line}'"));
    assert_eq!(inside("cat /opt/venv/x; pwd; id -u"), "from the network\n/opt/app/sub\n65534");
    assert_eq!(inside("stat -c %F /opt/app/basicserver.py"), "regular file");
    assert_ne!(inside("cat /opt/venv/name; wc -c < /etc/hostname 2>/dev/null; echo"), "");
    let (_, config) = about(stage, "basicserver:0.42");
    assert_eq!(config["ExposedPorts"], serde_json::json!({"5000/tcp": {}}));
    assert_eq!(config["Labels"], serde_json::json!({"a": "1", "b": "two words"}));
    assert_eq!((&config["StopSignal"], &config["User"]), (&"SIGINT".into(), &"65534".into()));
    let published = stage.detached("docker run -d --entrypoint sleep basicserver:0.42 600");
    assert_eq!(
        stage.prints(&format!("docker port {published}")),
        "",
        "a port that is only exposed leads nowhere"
    );
    stage.prints(&format!("docker rm -f {published}"));

    // A step that fails in its midst ends the build, and the tag stays where it was.
    let image = stage.prints("docker images -q basicserver");
    let failing = file.replace("mkdir /opt/venv &&", "echo before; false && mkdir /opt/venv &&");
    fs::write(dir.join("Dockerfile"), failing).unwrap();
    let output = stage.run("docker build --build-arg WHO=you -t basicserver:0.42 basic");
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && told.contains("returned a non-zero code: 1"), "{told}");
    assert!(String::from_utf8(output.stdout).unwrap().contains("\nbefore\n"));
    assert_eq!(stage.prints("docker images -q basicserver"), image);
    assert_eq!(stage.prints("docker ps -aq").lines().count(), 1, "no intermediate container is left");
    stage.prints("docker stop -t 0 files");
    server.wait().unwrap();

    // A7-05
    let writer = "FROM alpine:3.10\nRUN apk add fortune\nCOPY docker-entrypoint.sh /docker-entrypoint.sh\n\
                  VOLUME /var/local/output\nENTRYPOINT [\"/docker-entrypoint.sh\"]\n";
    let script = "#!/bin/bash\nfortune > /var/local/output/quote\ncat /var/local/output/quote\n";
    directory(stage, "quote", &[("Dockerfile", writer), ("docker-entrypoint.sh", script)]);
    let text = stage.prints("docker build -t you/quote-writer:1.0 quote");
    assert!(
        text.contains("OK: installed fortune") && text.ends_with("Successfully tagged you/quote-writer:1.0"),
        "{text}"
    );
    assert_ne!(stage.prints("docker run --rm you/quote-writer:1.0"), "");

    // A volume is the container's, begins with the image's files, and is empty of what others wrote.
    let state = "FROM alpine:3.10\nRUN mkdir /state && echo first > /state/file && chmod 1777 /state\nVOLUME [\"/state\"]\n";
    directory(stage, "state", &[("Dockerfile", state)]);
    stage.prints("docker build -t state state");
    let one = stage.detached("docker run -d state sleep 600");
    stage.prints(&format!("docker exec {one} bash -c 'echo mine >> /state/file'"));
    assert_eq!(stage.about(&one, "range .Mounts}}{{.Type}} {{.Destination}}{{end"), "volume /state");
    stage.prints(&format!("docker stop -t 0 {one}; docker start {one}"));
    assert_eq!(stage.prints(&format!("docker exec {one} cat /state/file")), "first\nmine");
    assert_eq!(
        stage.prints("docker run --rm state bash -c 'cat /state/file; stat -c %a /state'"),
        "first\n1777"
    );
    stage.clean();
}

/// WS-IMG-02, -05, -06, -08, -09, KIA-CR-010: other bases, stages, and what is refused.
pub(super) fn bases_and_refusals(stage: &Stage) {
    // Without a base, and without a shell.
    let file = "FROM scratch\nCOPY server /\nCMD [\"/server\", \"demo\", \"pings\"]\n";
    let dir = directory(stage, "scratch", &[("Dockerfile", file)]);
    symlink(env!("CARGO_BIN_EXE_barque"), dir.join("server")).unwrap();
    let refused = stage.refuses("docker build -t scratched scratch", 1);
    assert!(refused.contains("leads out of the build context"), "{refused}");
    fs::remove_file(dir.join("server")).unwrap();
    fs::hard_link(env!("CARGO_BIN_EXE_barque"), dir.join("server"))
        .or_else(|_| fs::copy(env!("CARGO_BIN_EXE_barque"), dir.join("server")).map(drop))
        .unwrap();
    stage.prints("docker build -t scratched scratch");
    stage.detached("docker run -d -p 8080:8080 scratched");
    assert_eq!(stage.curl("localhost:8080"), "Hello Kubernetes Beginners!");
    stage.clean();

    // A child hides its parent's file, and only for itself.
    directory(
        stage,
        "parent",
        &[("Dockerfile", "FROM alpine:3.10\nCOPY a b/ /files/\n"), ("a", "old"), ("b/c", "c")],
    );
    directory(
        stage,
        "child",
        &[("Dockerfile", "FROM parent\nCOPY a /files/a\nRUN rm /files/c\n"), ("a", "new")],
    );
    stage.prints("docker build -t parent parent && docker build -t child child");
    assert_eq!(stage.prints("docker run --rm parent bash -c 'cat /files/a /files/c; ls /files'"), "oldca\nc");
    assert_eq!(stage.prints("docker run --rm child bash -c 'cat /files/a; ls /files'"), "newa");

    // Stages: only the last is the image; a directory keeps its attributes.
    let stages = "FROM alpine:3.10 AS tools\nRUN echo made > /made && ln -s made /link\nFROM alpine:3.10\n\
                  COPY --from=tools /made /link /tmp/\nCOPY --chown=nobody:7 --chmod=0600 own /tmp/own\n\
                  ADD bundle.tar.gz /unpacked/\n";
    let dir =
        directory(stage, "stages", &[("Dockerfile", stages), ("own", "own"), ("inner/file", "unpacked")]);
    stage.prints("tar -C stages -czf stages/bundle.tar.gz inner");
    stage.prints("docker build -t stages stages");
    let line =
        "cat /tmp/made /unpacked/inner/file; stat -c \" %a %u:%g\" /tmp/own; stat -c %a /tmp; ls /made";
    let output = stage.run(&format!("docker run --rm stages bash -c '{line}'"));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "made\nunpacked 600 65534:7\n1777\n");
    let tools = stage.prints("docker build --target tools -q stages");
    assert_eq!(stage.prints(&format!("docker run --rm {} cat /link", &tools[7..19])), "made");

    // What cannot be.
    let images = stage.prints("docker images -q");
    for (lines, words) in [
        ("COPY ../x /", "forbidden path outside the build context: ../x"),
        ("COPY missing /", "file not found in build context or excluded by .dockerignore"),
        ("COPY own bundle.tar.gz /one", "must be a directory and end with a /"),
        ("COPY --from=nobody/nothing:1 /a /", "nobody/nothing"),
        ("RUN --mount=type=secret,id=x true", "--mount"),
        ("RUN exit 3", "returned a non-zero code: 3"),
        ("EXPOSE http", "is no port"),
        ("WHAT is this", "WHAT"),
        ("ENV A", "has no value"),
    ] {
        fs::write(dir.join("Dockerfile"), format!("FROM alpine:3.10\n{lines}\n")).unwrap();
        let told = stage.refuses("docker build -t never stages", 1);
        assert!(told.contains(words), "{lines}: {told}");
    }
    for line in ["docker build -t never", "docker build -t never nowhere", "docker build -t Never stages"] {
        let told = stage.refuses(line, 1);
        assert!(
            told.contains("PATH") || told.contains("nowhere") || told.contains("lowercase"),
            "{line}: {told}"
        );
    }
    assert_eq!(stage.prints("docker images -q"), images, "no tag is set");
    // Who is told to end ends what it runs, or has just begun to start.
    fs::write(dir.join("Dockerfile"), "FROM alpine:3.10\nRUN echo begun; sleep 600\n").unwrap();
    for shown in ["^begun", "Running in"] {
        let line = format!(
            "docker build -t never stages > out & pid=$!; until grep -q '{shown}' out; do sleep 0.01; done; \
             kill -INT $pid; wait $pid"
        );
        assert_ne!(stage.run(&line).status.code(), Some(0), "{shown}");
        assert_eq!(stage.prints("docker ps -aq"), "", "{shown}");
    }
    stage.clean();
}
