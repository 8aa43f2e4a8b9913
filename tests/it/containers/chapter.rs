//! Sections A and C of the chapter: containers are run, listed, looked at and removed.

use super::stage::{Stage, is_free};
use crate::support::eventually;

/// A1 to C1.
pub(super) fn first_containers(stage: &Stage) {
    // A1. WS-CLI-01: no engine is there yet.
    let version = stage.prints("docker --version");
    let (number, build) = version.strip_prefix("Docker version ").unwrap().split_once(", build ").unwrap();
    assert_eq!(number.split('.').filter(|part| part.parse::<u32>().is_ok()).count(), 3, "{version}");
    assert!(build.len() == 7 && build.bytes().all(|byte| byte.is_ascii_hexdigit()), "{version}");
    assert!(!stage.data("").exists());

    // A2. WS-REG-02, -03, WS-RUN-01, WS-CLI-03.
    let output = stage.run("docker run -d nginx");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let id = |output: std::process::Output| String::from_utf8(output.stdout).unwrap().trim_end().to_owned();
    let nginx = id(output);
    assert_eq!(nginx.len(), 64, "{told}");
    for text in [
        "Unable to find image 'nginx:latest' locally\n",
        "latest: Pulling from library/nginx\n",
        ": Pull complete\n",
        "Digest: sha256:",
        "Status: Downloaded newer image for nginx:latest\n",
    ] {
        assert!(told.contains(text), "{text:?} is not in {told:?}");
    }
    eventually(|| stage.prints(&format!("docker logs {nginx}")).starts_with("serving").then_some(()));

    // A3. WS-RUN-03, WS-NET-06, WS-CLI-02, -04.
    let rows = stage.rows("docker ps");
    assert_eq!(rows.len(), 1);
    let name = rows[0].rsplit(' ').next().unwrap();
    assert!(rows[0].starts_with(&nginx[..12]) && rows[0].contains(" nginx ") && rows[0].contains(" Up "));
    assert!(rows[0].contains("  80/tcp  ") && name.contains('_'), "{rows:?}");
    for reference in [&nginx[..4], &nginx[..12], &nginx, name] {
        assert_eq!(stage.about(reference, ".Id"), nginx, "{reference}");
    }
    assert!(stage.refuses("docker inspect nobody", 1).contains("No such container: nobody"));
    assert!(is_free(80), "nothing is published");

    // A4, A5. WS-RUN-16, WS-NET-01, -02.
    let ip = stage.about(&nginx, ".NetworkSettings.IPAddress");
    assert_eq!(ip, "172.17.0.2");
    let page = stage.curl(&format!("{ip}:80"));
    assert!(page.contains("<title>Welcome to nginx!</title>"), "{page}");

    // A6, A7. WS-REG-01, WS-NET-03, -05.
    let asked = stage.registry.asked("");
    let second = stage.run("docker run -p 8080:80 -d nginx");
    assert_eq!(String::from_utf8_lossy(&second.stderr), "", "nothing is pulled");
    let second = id(second);
    assert_eq!(stage.registry.asked(""), asked, "the registry is not asked");
    eventually(|| stage.run("curl -s localhost:8080").status.success().then_some(()));
    let own = stage
        .prints("ip -4 -o address show scope global up | grep -v barque0 | awk '{print $4}' | cut -d/ -f1");
    for host in ["localhost", "127.0.0.1"].into_iter().chain(own.lines().take(1)) {
        assert_eq!(stage.curl(&format!("{host}:8080")), page, "{host}");
    }
    assert!(stage.rows("docker ps")[0].contains("0.0.0.0:8080->80/tcp"));
    let refusal = stage.refuses("docker run --name third -p 8080:80 -d nginx", 125);
    assert!(refusal.contains("port is already allocated") && refusal.contains("8080"), "{refusal}");
    assert_eq!(stage.rows("docker ps").len(), 2);
    stage.prints("docker rm third");

    // A8, A9. WS-RUN-02, -04.
    assert!(stage.prints("docker run hello-world").starts_with("Hello from Docker!\n"));
    assert_eq!(stage.rows("docker ps").len(), 2);
    let rows = stage.rows("docker ps -a");
    assert_eq!(rows.len(), 3);
    assert!(rows[0].contains("hello-world") && rows[0].contains("Exited (0) "), "{rows:?}");
    assert!(rows[1].contains(" Up ") && rows[2].contains(" Up "));

    // A10. WS-RUN-09, -06.
    let hello = stage.prints("docker ps -aq").lines().next().unwrap().to_owned();
    for line in ["docker start -a", "docker run"] {
        assert!(stage.prints(&format!("{line} {hello}")).starts_with("Hello from Docker!\n"), "{line}");
        assert_eq!(stage.rows("docker ps -a").len(), 3, "{line}");
    }
    assert_eq!(stage.prints(&format!("docker logs {hello}")).matches("Hello from Docker!").count(), 3);
    assert!(stage.refuses(&format!("docker rm {nginx}"), 1).contains("running"));
    assert_eq!(stage.rows("docker ps").len(), 2);

    // A11, A12. WS-IMG-01, -04.
    stage.prints("docker run hello-world");
    let rows = stage.rows("docker ps -a");
    assert_eq!(rows.iter().filter(|row| row.contains("Exited (0)")).count(), 2);
    let images = stage.prints("docker images");
    let header: Vec<&str> =
        images.lines().next().unwrap().split("   ").map(str::trim).filter(|w| !w.is_empty()).collect();
    assert_eq!(header, ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"]);
    assert_eq!(images.lines().filter(|line| line.starts_with("nginx   ")).count(), 1, "{images}");
    assert_eq!(images.lines().filter(|line| line.starts_with("hello-world   ")).count(), 1, "{images}");
    let used = stage.refuses("docker rmi nginx", 1);
    assert!(used.contains("in use"), "{used}");

    // C1. WS-RUN-05, -07, -08.
    let pids = [&nginx, &second].map(|container| stage.pid(container));
    let all = stage.prints("docker ps -aq");
    let ids: Vec<&str> = all.lines().collect();
    assert_eq!((ids.len(), ids[2], ids[3], ids[1]), (4, &second[..12], &nginx[..12], hello.as_str()));
    assert_eq!(stage.prints("docker rm -f $(docker ps -aq)"), all);
    assert!(is_free(8080), "the port is free at once");
    assert!(pids.iter().all(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()));
    stage.holds_nothing();
    stage.refuses("docker rm -f $(docker ps -aq)", 1);
}

/// C2 to C4. WS-RUN-12, -13, WS-NET-04.
pub(super) fn logs_of_a_server(stage: &Stage) {
    let server = stage.detached("docker run -p 8080:8080 -d k8s-for-beginners:v0.0.1 2>/dev/null");
    eventually(|| stage.run("curl -s localhost:8080").status.success().then_some(()));
    assert_eq!(stage.prints("curl -s localhost:8080"), "Hello Kubernetes Beginners!");
    let logs = || stage.run(&format!("docker logs {server}"));
    let text = String::from_utf8(logs().stderr).unwrap();
    let line = text.lines().last().unwrap();
    let (time, from) = line.split_once(" Ping from ").unwrap();
    assert!(time.len() == 19 && time.as_bytes()[4] == b'/' && time.as_bytes()[13] == b':', "{line}");
    assert!(from.starts_with("172.17.0.1:"), "the bridge's address, not the loopback's: {line}");
    assert_eq!(stage.prints(&format!("docker logs {server} 2>/dev/null")), "");
    // Nothing is lost when it is killed, and it is there until the container is removed.
    stage.detached(
        "docker run -d --name talker alpine:3.10 \
         bash -c 'for i in {1..500}; do echo out; echo err >&2; done; exec sleep 600'",
    );
    let count =
        |stream: &str| stage.prints(&format!("docker logs talker {stream} | wc -l")).trim().to_owned();
    eventually(|| (count("2>/dev/null") == "500" && count("2>&1 >/dev/null") == "500").then_some(()));
    stage.prints("docker kill talker");
    assert_eq!(count("2>&1"), "1000");
    assert!(stage.rows("docker ps -a")[0].contains("Exited (137)"));
    assert_eq!(stage.about("talker", ".State.OOMKilled"), "false");
    assert_eq!(stage.prints("docker start talker"), "talker");
    assert!(stage.rows("docker ps")[0].ends_with("talker"));
    assert_eq!(stage.prints("docker stop -t 0 talker; docker wait talker"), "talker\n137");
    stage.clean();
}
