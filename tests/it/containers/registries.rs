//! Section C from C5 on, with Debian's `docker-registry`: login, tag, push.

use super::stage::{Stage, types};
use crate::cluster::books::images::program;
use crate::cluster::images::{HTPASSWD_PASSWORD, Registry};
use crate::support::skipped;

/// C5, C7 to C10. WS-REG-04, -06 to -08, -10, WS-IMG-14.
pub(super) fn login_and_push(stage: &Stage) {
    let Some(program) = program("docker-registry") else {
        skipped("images_are_pushed_by_who_has_logged_in: docker-registry is not there");
        return;
    };
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
}
