//! Section C from C5 on, with Debian's `docker-registry`: login, tag, push.

use super::stage::{Stage, types};
use crate::cluster::books::images::program;
use crate::cluster::images::{HTPASSWD_PASSWORD, Registry};
use crate::support::skipped;

/// The book's servers, of programs that the base image has.
const SERVER: &str = "#!/bin/sh\nexec /barque demo pings\n";
const COUNTER: &str = "#!/bin/sh\nexec /barque demo counter\n";

/// C5, C7 to C10, H3 to H5. WS-REG-04, -06 to -10, WS-IMG-13, -14, WS-ACT-05, A2-17, KIA-CR-022.
pub(super) fn login_and_push(stage: &Stage) {
    let Some(program) = program("docker-registry") else {
        skipped("images_are_pushed_by_who_has_logged_in: docker-registry is not there");
        return;
    };
    let registry_program = program.clone();
    let registry = Registry::new(program, stage.directory.path(), "127.0.0.1");
    let host = registry.address.to_string();
    stage.prints("docker pull hello-world; docker pull alpine:3.10");
    assert_eq!(stage.prints(&format!("docker tag hello-world {host}/robot/hello:v1")), "");
    let ids = stage.prints("docker images | awk '/hello/ {print $3}' | sort -u");
    assert_eq!(ids.lines().count(), 1, "both names are one image: {ids}");
    let denied = stage.refuses(&format!("docker push {host}/robot/hello:v1"), 1);
    assert!(denied.contains("robot/hello"), "{denied}");
    let wrong = stage.refuses(&format!("echo wrong | docker login -u robot --password-stdin {host}"), 1);
    assert!(!wrong.contains("Login Succeeded") && !wrong.is_empty(), "{wrong}");
    let (mut login, terminal) = stage.terminal(&format!("docker login {host}"));
    login.await_text("Username: ");
    types(&terminal, "robot");
    login.await_text("Password: ");
    types(&terminal, HTPASSWD_PASSWORD);
    assert_eq!(login.ended(), Some(0), "{}", login.text());
    assert!(login.text().contains("Login Succeeded") && !login.text().contains(HTPASSWD_PASSWORD));
    let said = stage.run(&format!("docker login -u robot -p '{HTPASSWD_PASSWORD}' {host}"));
    assert!(String::from_utf8_lossy(&said.stdout).contains("Login Succeeded"), "{said:?}");
    let pushed = stage.prints(&format!("docker push {host}/robot/hello:v1"));
    assert_eq!(pushed.matches(": Pushed").count(), 2, "{pushed}");
    let last = pushed.lines().last().unwrap();
    assert!(last.starts_with("v1: digest: sha256:") && last.contains(" size: "), "{last}");
    let again = stage.prints(&format!("docker push {host}/robot/hello:v1"));
    assert_eq!(again.matches(": Layer already exists").count(), 2, "{again}");
    assert_eq!(again.lines().last().unwrap(), last);
    let tags = stage
        .prints(&format!("curl -s -u 'robot:{HTPASSWD_PASSWORD}' http://{host}/v2/robot/hello/tags/list"));
    assert!(tags.contains("\"v1\""), "{tags}");
    // Taken away here, it comes from there.
    stage.prints(&format!("docker rmi {host}/robot/hello:v1"));
    assert!(stage.prints("docker run --rm hello-world").contains("Hello from Docker!"));
    let pulled = stage.run(&format!("docker run --rm {host}/robot/hello:v1"));
    assert!(String::from_utf8_lossy(&pulled.stdout).contains("Hello from Docker!"), "{pulled:?}");
    stage.clean();
    let public = Registry::public(registry_program, stage.directory.path(), "127.0.0.1");
    built_images(stage, &host, &public.address.to_string());
}

/// What was built here runs elsewhere: an engine of its own that has nothing and has not logged in.
fn built_images(stage: &Stage, host: &str, public: &str) {
    let file = |name: &str| format!("FROM alpine:3.10\nCOPY {name} /\nCMD [\"/{name}\"]\n");
    for (directory, server, text) in [("app", "k8s-for-beginners", SERVER), ("page", "pageview", COUNTER)] {
        super::builds::directory(stage, directory, &[("Dockerfile", &file(server)), (server, text)]);
    }
    let pushed =
        |text: &str| (text.matches(": Pushed").count(), text.matches(": Layer already exists").count());
    let first = format!("{host}/student/k8s-for-beginners:v0.0.1");
    stage.prints(&format!(
        "docker build -t k8s-for-beginners:v0.0.1 app; docker tag k8s-for-beginners:v0.0.1 {first}"
    ));
    let sent = stage.prints(&format!("docker push {first}"));
    let layers = pushed(&sent).0;
    assert!(layers > 1 && sent.lines().last().unwrap().starts_with("v0.0.1: digest: sha256:"), "{sent}");
    // Of another version only what differs is sent.
    let second = first.replace("v0.0.1", "v0.0.2");
    super::builds::directory(stage, "app", &[("k8s-for-beginners", &SERVER.replace("exec", "exec "))]);
    stage.prints(&format!("docker build -t {second} app"));
    assert_eq!(pushed(&stage.prints(&format!("docker push {second}"))), (1, layers - 1));
    let page = format!("{host}/student/pageview:v0.0.1");
    stage.prints(&format!("docker build -t {page} page && docker push {page}"));
    let tags = stage.prints(&format!("curl -s http://{public}/v2/student/k8s-for-beginners/tags/list"));
    assert!(tags.contains("v0.0.1") && tags.contains("v0.0.2"), "{tags}");

    let other = stage.another();
    for (image, answer) in [
        ("k8s-for-beginners:v0.0.1", "Hello Kubernetes Beginners!"),
        ("pageview:v0.0.1", "Hello, you're visitor #"),
    ] {
        let run = format!("{other} docker run -p 8080:8080 -d {public}/student/{image}");
        let id = stage.detached(&format!("{run} 2>/dev/null"));
        assert!(stage.curl("localhost:8080").starts_with(answer), "{image}");
        // Or by the container's own address.
        let address = stage
            .prints(&format!("{other} docker inspect --format '{{{{.NetworkSettings.IPAddress}}}}' {id}"));
        assert!(stage.curl(&format!("{address}:8080")).starts_with("Hello"), "{address}");
        stage.prints(&format!("{other} docker rm -f {id}"));
    }
    let kept = stage.prints(&format!("{other} docker images -q")).lines().count();
    assert_eq!(kept, 2, "the other engine has what it pulled and nothing else");
    // Of another version only what differs is fetched.
    let fetched = stage.prints(&format!("{other} docker pull {public}/student/k8s-for-beginners:v0.0.2"));
    assert_eq!(fetched.matches(": Already exists").count(), layers - 1, "{fetched}");
    assert_eq!(fetched.matches(": Pull complete").count(), 1, "{fetched}");
    // Or as a file.
    stage.prints("docker save -o saved.tar k8s-for-beginners:v0.0.1");
    let loaded = stage.prints(&format!("{other} docker load -i saved.tar"));
    assert_eq!(loaded, "Loaded image: k8s-for-beginners:v0.0.1");
    let listing =
        stage.prints(&format!("docker save k8s-for-beginners:v0.0.1 | tar t; {other} docker images"));
    assert!(listing.contains("manifest.json") && listing.contains("\nk8s-for-beginners   "), "{listing}");
    let nobody = stage.refuses("docker save -o nobody.tar nobody", 1);
    assert!(nobody.contains("No such image: nobody"), "{nobody}");
    stage.clean();
}
