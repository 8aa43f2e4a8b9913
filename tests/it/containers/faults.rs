//! What is refused, what dies half-way, and what several ask for at once.

use std::os::unix::process::ExitStatusExt as _;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::stage::{SERVER, Stage, is_free};
use crate::support::eventually;

/// Words and codes. WS-CLI-04, WS-RUN-06, -11.
pub(super) fn refusals(stage: &Stage) {
    for (line, code, words) in [
        ("docker rm nobody", 1, "No such container: nobody"),
        ("docker logs nobody", 1, "No such container: nobody"),
        ("docker exec nobody true", 1, "No such container: nobody"),
        ("docker rm", 1, "required"),
        ("docker run", 125, "required"),
        ("docker run --no-such-flag alpine:3.10", 125, "--no-such-flag"),
        ("docker run -m 1m alpine:3.10", 125, "memory"),
        ("docker run --name a alpine:3.10", 125, "container name"),
        ("docker run -p x:80 alpine:3.10", 125, "--publish"),
        ("docker run Upper:Case", 125, "lowercase"),
        ("docker run --net container:nobody alpine:3.10", 125, "No such container: nobody"),
        ("docker kill -s NOPE nobody", 1, "No such container"),
        ("docker inspect --format '{{.Nothing}}' $(docker create alpine:3.10)", 1, "Nothing"),
    ] {
        let told = stage.refuses(line, code);
        assert!(told.contains(words), "{line}: {told}");
    }
    // A name is its container's until that is removed.
    let first = stage.detached("docker create --name only alpine:3.10 sleep 600");
    let told = stage.refuses("docker run -d --name only alpine:3.10", 125);
    assert!(told.contains("already in use") && told.contains(&first), "{told}");
    assert_eq!(stage.prints("docker ps -q"), "");
    assert!(stage.rows("docker ps -a")[0].contains("Created"));
    stage.prints("docker start only; docker rm -f only; docker run -d --name only alpine:3.10 sleep 600");
    // Of ids that begin alike none is meant.
    let ids = (0..20).map(|_| stage.prints("docker create alpine:3.10")).collect::<Vec<_>>();
    let twice =
        ids.iter().map(|id| &id[..1]).find(|begin| ids.iter().filter(|id| id.starts_with(begin)).count() > 1);
    let twice = twice.expect("20 ids begin with 16 digits");
    let told = stage.refuses(&format!("docker rm -f {twice}"), 1);
    assert!(told.contains(&format!("\"{twice}\"")), "{told}");
    assert!(stage.prints("docker ps -aq").lines().count() > 20);
    // Of several, those that are there are removed.
    let output = stage.run(&format!("docker rm {} nobody {}", ids[0], ids[1]));
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{}\n{}\n", ids[0], ids[1]));
    assert_eq!(output.status.code(), Some(1));
    stage.clean();
}

pub(super) fn a_program_that_is_not_there(stage: &Stage) {
    for (command, code) in [("/no/such/program", 127), ("nothing-like-it", 127), ("/etc/passwd", 126)] {
        let told = stage.refuses(&format!("docker run --name broken alpine:3.10 {command}"), code);
        assert!(told.contains(command.rsplit('/').next().unwrap()), "{told}");
        assert_eq!(stage.about("broken", ".State.ExitCode"), code.to_string());
        assert_eq!(stage.about("broken", ".State.Status"), "created");
        stage.prints("docker rm broken");
        stage.refuses(&format!("docker run --rm alpine:3.10 {command}"), code);
        stage.refuses(&format!("docker run --rm -d alpine:3.10 {command}"), code);
    }
    let running = stage.detached("docker run -d alpine:3.10 sleep 600");
    assert_eq!(stage.run(&format!("docker exec {running} nothing-like-it")).status.code(), Some(127));
    assert_eq!(stage.run(&format!("docker exec {running} /etc/passwd")).status.code(), Some(126));
    stage.clean();
}

/// Several commands at once want one name, one port, addresses.
pub(super) fn races(stage: &Stage) {
    stage.prints("docker pull alpine:3.10");
    let at_once = |lines: Vec<String>| -> Vec<std::process::Output> {
        let children = lines.iter().map(|line| {
            let mut command = stage.command(line);
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap()
        });
        let children: Vec<_> = children.collect();
        children.into_iter().map(|child| child.wait_with_output().unwrap()).collect()
    };
    let ended = at_once(vec!["docker run -d --name one alpine:3.10 sleep 600".to_owned(); 5]);
    assert_eq!(ended.iter().filter(|output| output.status.success()).count(), 1, "{ended:?}");
    assert_eq!(stage.rows("docker ps -a").len(), 1);
    let ended = at_once(vec!["docker run -d -p 8080:80 alpine:3.10 sleep 600".to_owned(); 4]);
    assert_eq!(ended.iter().filter(|output| output.status.success()).count(), 1, "{ended:?}");
    assert_eq!(stage.rows("docker ps").len(), 2);
    let ended = at_once(vec!["docker run -d alpine:3.10 sleep 600".to_owned(); 6]);
    assert!(ended.iter().all(|output| output.status.success()), "{ended:?}");
    let ips = stage.prints("docker inspect --format '{{.NetworkSettings.IPAddress}}' $(docker ps -q) | sort");
    let mut different: Vec<&str> = ips.lines().collect();
    different.dedup();
    assert_eq!((different.len(), ips.lines().count()), (8, 8), "{ips}");
    // Who waits hears how it ended, though its shim is having it taken down.
    let waits =
        (0..8).map(|_| "docker wait $(docker run -d alpine:3.10 sh -c 'sleep 0.1; exit 4')".to_owned());
    for output in at_once(waits.collect()) {
        assert_eq!(String::from_utf8_lossy(&output.stdout), "4\n", "{output:?}");
    }
    // Starts, stops and removals of the same one, and looks at all: nothing is left half.
    let target = stage.prints("docker ps -q").lines().next().unwrap().to_owned();
    at_once(
        ["restart -t 0", "stop -t 0", "kill", "start", "rm -f", "inspect"]
            .iter()
            .map(|verb| format!("docker {verb} {target}"))
            .chain(vec!["docker ps -a".to_owned(); 3])
            .collect(),
    );
    assert!(!stage.prints("docker ps -aq").contains(&target));
    stage.clean();
}

/// `run` is killed at any moment. What it left can be seen and removed, and nothing else is there.
pub(super) fn killed_commands(stage: &Stage) {
    stage.prints("docker pull alpine:3.10");
    let line = "exec docker run -d --name victim -p 8080:80 alpine:3.10 sleep 600";
    let began = Instant::now();
    stage.prints(&format!("{}; docker rm -f victim", line.trim_start_matches("exec ")));
    let whole = began.elapsed();
    let steps = 24;
    for step in 0..steps {
        let mut command = stage.command(line);
        let mut child =
            command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
        // Not a wait for something: the moment of death is what differs.
        std::thread::sleep(whole * step / steps);
        kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL).unwrap();
        let _status = child.wait().unwrap();
        let there = stage.prints("docker ps -aq");
        assert!(there.lines().count() <= 1, "{there}");
        match step % 2 {
            // What was left is used on, or removed.
            0 if !there.is_empty() => {
                assert_eq!(stage.prints("docker start victim"), "victim");
                assert_eq!(stage.rows("docker ps").len(), 1);
            }
            _ => {}
        }
        stage.clean();
        assert!(is_free(8080));
    }
    // A command in the foreground that is killed leaves the container to itself; its end is found later.
    let mut command = stage.command(
        "exec docker run --name late alpine:3.10 sh -c 'while [ ! -e /go ]; do sleep 0.1; done; exit 9'",
    );
    let mut child = command.stdout(std::process::Stdio::null()).spawn().unwrap();
    eventually(|| (stage.run("docker exec late sh -c 'test ! -e /go'").status.success()).then_some(()));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    stage.prints("docker exec late touch /go");
    eventually(|| stage.rows("docker ps -a")[0].contains("Exited (9)").then_some(()));
    stage.clean();
}

/// WS-RUN-19, -21: a shim that dies takes its container along, and that is told.
pub(super) fn killed_shims(stage: &Stage) {
    let container = stage.detached(&format!("docker run -d --name web -p 8080:8080 {SERVER} 2>/dev/null"));
    let pid = stage.pid(&container);
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let shim: i32 = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().parse().unwrap();
    kill(Pid::from_raw(shim), Signal::SIGKILL).unwrap();
    eventually(|| stage.rows("docker ps").is_empty().then_some(()));
    assert_eq!(stage.about("web", ".State.ExitCode"), "255");
    assert!(is_free(8080));
    assert_eq!(stage.prints("docker start web"), "web");
    assert_eq!(stage.curl("localhost:8080"), "Hello Kubernetes Beginners!");
    // Who is removed at its end is, though nobody waits for it.
    stage.detached("docker run -d --rm --name brief alpine:3.10 sleep 0.2");
    let until = Instant::now() + Duration::from_secs(20);
    while stage.data("containers").read_dir().unwrap().count() > 2 {
        assert!(Instant::now() < until, "its shim does not see to its removal");
        std::thread::sleep(Duration::from_millis(20));
    }
    stage.clean();
}
