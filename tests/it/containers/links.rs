//! Sections H and I: links, volumes, a terminal that ends with its container.

use std::fs;
use std::io::Write as _;

use super::builds::directory;
use super::stage::{Stage, is_free, types};
use crate::support::eventually;

/// H5 to H13. WS-ACT-01 to -04, WS-NET-07, -08, WS-RUN-09 to -11.
pub(super) fn a_counter_and_its_store(stage: &Stage) {
    let visit = |number: u32| {
        let answer = eventually(|| {
            let output = stage.run("curl -s localhost:8080");
            output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
        });
        assert_eq!(answer, format!("Hello, you're visitor #{number}.\n"));
    };
    stage.prints("docker run --name alone -p 8080:8080 -d student/pageview:v0.0.1 2>/dev/null");
    (1..=3).for_each(visit);
    let parallel = "seq 100 | xargs -P 10 -I{} curl -s localhost:8080 | sort -u | wc -l";
    assert_eq!(stage.prints(parallel).trim(), "100", "no number twice");
    visit(104);
    stage.prints("docker kill alone; docker start alone");
    visit(1);
    stage.prints("docker rm -f alone");

    stage.detached("docker run --name db -d redis 2>/dev/null");
    let rows = stage.rows("docker ps");
    assert!(rows[0].contains("  6379/tcp  ") && rows[0].ends_with("  db"), "{rows:?}");
    let web = "docker run --name web --link db:db -p 8080:8080 -d student/pageview:v0.0.2 2>/dev/null";
    let id = stage.detached(web);
    (1..=3).for_each(visit);
    assert!(stage.prints("docker exec web cat /etc/hosts").contains("\tdb "));
    let stranger = stage.detached("docker run -d alpine:3.10 sleep 600");
    assert!(!stage.run(&format!("docker exec {stranger} getent hosts db")).status.success());
    let refused = stage.refuses("docker run -d --link nobody:x alpine:3.10", 125);
    assert!(refused.contains("No such container: nobody"), "{refused}");
    // H12, H13.
    assert_eq!(stage.prints("docker kill web"), "web");
    let of_web = |rows: Vec<String>| rows.into_iter().find(|row| row.ends_with("  web")).unwrap();
    assert!(of_web(stage.rows("docker ps -a")).contains("Exited (137)"));
    assert_eq!(stage.prints("docker start web"), "web");
    let row = of_web(stage.rows("docker ps"));
    assert!(row.starts_with(&id[..12]) && row.contains("0.0.0.0:8080->8080/tcp"), "{row}");
    visit(4);
    stage.prints("docker rm -f web");
    stage.detached(web);
    visit(5);
    // The store comes back under another address.
    let before = stage.about("db", ".NetworkSettings.IPAddress");
    stage.prints("docker stop -t 0 db");
    let other = stage.detached("docker run -d alpine:3.10 sleep 600");
    assert_eq!(stage.about(&other, ".NetworkSettings.IPAddress"), before, "its address is given away");
    stage.prints("docker start db");
    assert_ne!(stage.about("db", ".NetworkSettings.IPAddress"), before);
    visit(1);
    stage.clean();
}

/// I7. KC-RUN-23, -24.
pub(super) fn volumes(stage: &Stage) {
    let shared = stage.directory.path().join("site");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("page"), "one").unwrap();
    let (server, _terminal) = stage.terminal(
        "cd site && docker run -it --rm --volume=$(pwd):/usr/share/nginx/html -it -p 4000:80 nginx nginx",
    );
    let page = |wanted: &str| {
        eventually(|| {
            let output = stage.run("curl -s localhost:4000/page");
            (output.stdout == wanted.as_bytes()).then_some(())
        });
    };
    page("one");
    fs::write(shared.join("page"), "two").unwrap();
    page("two");
    let container = stage.prints("docker ps -q");
    stage.prints(&format!("docker exec {container} sh -c 'echo three > /usr/share/nginx/html/new'"));
    assert_eq!(fs::read_to_string(shared.join("new")).unwrap(), "three\n");
    stage.prints(&format!("docker stop -t 1 {container}"));
    drop(server);
    eventually(|| stage.prints("docker ps -aq").is_empty().then_some(()));
    let refused = stage.run("docker run --rm -v $(pwd)/site:/x:ro alpine:3.10 touch /x/y");
    assert!(!refused.status.success() && !shared.join("y").exists());
    stage.clean();
}

/// I5, I6, I8. KC-RUN-22, -23, WS-NET-03, KC-IMG-20.
pub(super) fn a_terminal(stage: &Stage) {
    let file = "FROM fedora\nRUN mkdir -p /etc && echo ID=fedora > /etc/os-release\n";
    directory(stage, "fedora", &[("Dockerfile", file)]);
    stage.prints("docker build -t fedora fedora");
    let (mut shell, terminal) = stage.terminal("docker run -it --rm fedora bash");
    shell.await_text("# ");
    types(&terminal, "stty size; echo kernel $(cat /proc/sys/kernel/osrelease); cat /etc/os-release; exit 3");
    assert_eq!(shell.ended(), Some(3), "{}", shell.text());
    let kernel = stage.prints("uname -r");
    assert!(shell.text().contains(&format!("kernel {kernel}")), "{}", shell.text());
    assert!(shell.text().contains("\nID=fedora"), "the image's own: {}", shell.text());
    stage.holds_nothing();
    // A key that interrupts reaches the program, and ends all of it.
    let file = "FROM alpine:3.10\nRUN mkdir -p /opt/app && echo 'Hello, World!' > /opt/app/index.html\n\
        EXPOSE 5000/tcp\nCMD [\"/barque\", \"demo\", \"web\", \"--port\", \"5000\", \"--root\", \"/opt/app\"]\n";
    directory(stage, "basic", &[("Dockerfile", file)]);
    stage.prints("docker build -t basicserver:0.42 basic");
    for port in [5000, 5001] {
        let line = format!("docker run -p {port}:5000 --rm -it basicserver:0.42");
        let (mut server, mut terminal) = stage.terminal(&line);
        assert_eq!(stage.curl(&format!("localhost:{port}")), "Hello, World!");
        server.await_text("serving /opt/app on port 5000");
        assert!(port == 5000 || is_free(5000), "nothing but what is published");
        terminal.write_all(b"\x03").unwrap();
        assert_eq!(server.ended(), Some(0), "{}", server.text());
        assert_eq!(stage.prints("docker ps -aq"), "");
        assert!(is_free(port));
    }
    stage.detached("docker run -d basicserver:0.42");
    assert!(is_free(5000), "EXPOSE publishes nothing");
    stage.clean();
    // Without a terminal, streams stay apart and the first word is not lost.
    let both = stage.run("docker run --rm alpine:3.10 sh -c 'echo out; echo err >&2; exit 5'");
    assert_eq!((both.stdout.as_slice(), both.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
    assert_eq!(both.status.code(), Some(5));
    assert_eq!(stage.prints("echo word | docker run --rm -i alpine:3.10 cat"), "word");
    stage.clean();
}
