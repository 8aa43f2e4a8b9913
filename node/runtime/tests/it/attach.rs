//! The input and output of a container's main process, for those who attach.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use runtime::{AttachSpec, Attachment, ContainerSpec, Error, TerminalSize};

use crate::Test;
use crate::support::{Host, eventually};

pub(crate) const TESTS: &[Test] = &[
    ("attach::input_reaches_the_process_and_output_comes_back", input_and_output),
    ("attach::leaving_ends_nothing_and_others_can_come", leaving_ends_nothing),
    ("attach::input_for_one_session_ends_with_it", input_for_one_session),
    ("attach::without_input_the_process_reads_its_end", without_input),
    ("attach::several_see_the_same_and_the_log_too", several_at_once),
    ("attach::a_reader_that_does_not_read_holds_nothing_up_for_long", a_stuck_reader),
    ("attach::a_terminal_can_be_typed_into_and_resized", a_terminal),
    ("attach::it_ends_with_the_container", it_ends_with_the_container),
];

const ALL: AttachSpec = AttachSpec { stdin: true, stdout: true, stderr: true };
const OUTPUT: AttachSpec = AttachSpec { stdin: false, stdout: true, stderr: true };

fn reading(host: &Host, once: bool) -> ContainerSpec {
    host.sandbox("s");
    let mut spec = host.spec("c", "s", &["copy-input"]);
    spec.process.stdin = true;
    spec.process.stdin_once = once;
    host.start(&spec);
    spec
}

fn attach(host: &Host, spec: AttachSpec) -> Attachment {
    host.runtime.attach("c", spec).unwrap()
}

fn write(to: &Option<OwnedFd>, text: &str) {
    File::from(to.as_ref().unwrap().try_clone().unwrap()).write_all(text.as_bytes()).unwrap();
}

fn read_until(from: &Option<OwnedFd>, wanted: &str) -> String {
    let mut file = File::from(from.as_ref().unwrap().try_clone().unwrap());
    let mut text = String::new();
    while !text.contains(wanted) {
        let mut chunk = [0; 4096];
        let length = file.read(&mut chunk).unwrap();
        assert!(length > 0, "it ended before {wanted:?}: {text:?}");
        text.push_str(&String::from_utf8_lossy(&chunk[..length]));
    }
    text
}

fn read_all(from: Option<OwnedFd>) -> String {
    let mut text = String::new();
    File::from(from.unwrap()).read_to_string(&mut text).unwrap();
    text
}

fn input_and_output() {
    let host = Host::new();
    reading(&host, false);
    let attached = attach(&host, ALL);
    write(&attached.stdin, "one\n");
    assert_eq!(read_until(&attached.stdout, "\n"), "one\n");
    assert!(attached.terminal.is_none());
    host.await_output("c", "one\n");
    host.finish();
}

fn leaving_ends_nothing() {
    let host = Host::new();
    reading(&host, false);
    let first = attach(&host, ALL);
    write(&first.stdin, "one\n");
    read_until(&first.stdout, "one\n");
    drop(first);
    // As after the agent's death: another runtime over the same state.
    let second = host.restarted().attach("c", ALL).unwrap();
    write(&second.stdin, "two\n");
    assert_eq!(read_until(&second.stdout, "\n"), "two\n", "from now on");
    assert_eq!(host.state("c").unwrap().word(), "running");
    host.finish();
}

fn input_for_one_session() {
    let host = Host::new();
    reading(&host, true);
    // Who only looks does not end it.
    drop(attach(&host, OUTPUT));
    let session = attach(&host, ALL);
    write(&session.stdin, "last words\n");
    read_until(&session.stdout, "words\n");
    assert_eq!(host.state("c").unwrap().word(), "running");
    drop(session);
    assert_eq!(host.runtime.wait_exit("c").unwrap().unwrap().code, 0);
    assert_eq!(host.output("c"), "last words\n");
    host.finish();
}

fn without_input() {
    let host = Host::new();
    host.sandbox("s");
    let (exit, _) = host.run(&host.spec("c", "s", &["copy-input"]));
    assert_eq!(exit.code, 0);
    let error = host.runtime.attach("c", ALL).unwrap_err();
    assert!(matches!(error, Error::NotRunning { .. }), "{error}");
    host.finish();
}

fn several_at_once() {
    let host = Host::new();
    reading(&host, false);
    let readers: Vec<Attachment> = (0..3).map(|_| attach(&host, OUTPUT)).collect();
    let writer = attach(&host, ALL);
    write(&writer.stdin, "everybody\n");
    for reader in &readers {
        assert_eq!(read_until(&reader.stdout, "\n"), "everybody\n");
    }
    host.await_output("c", "everybody\n");
    host.finish();
}

fn a_stuck_reader() {
    let host = Host::new();
    host.sandbox("s");
    let mut spec = host.spec("c", "s", &["flood-after-input", "100000"]);
    spec.process.stdin = true;
    host.start(&spec);
    let stuck = attach(&host, OUTPUT);
    let reading = attach(&host, ALL);
    write(&reading.stdin, "go\n");
    let text = read_all(reading.stdout);
    assert_eq!(text.lines().count(), 100_000, "a reader that reads gets everything");
    assert_eq!(host.runtime.wait_exit("c").unwrap().unwrap().log_bytes_lost, 0);
    assert!(read_all(stuck.stdout).len() < text.len(), "who did not read was let go");
    host.finish();
}

fn a_terminal() {
    let host = Host::new();
    host.sandbox("s");
    let mut spec = host.spec("c", "s", &["window"]);
    spec.process.stdin = true;
    spec.process.terminal = true;
    host.start(&spec);
    let attached = attach(&host, AttachSpec { stderr: false, ..ALL });
    let terminal = attached.terminal.as_ref().expect("it has a terminal");
    host.await_output("c", "0 rows 0 columns");
    runtime::resize_terminal(terminal.as_fd(), TerminalSize { rows: 20, columns: 70 }).unwrap();
    read_until(&attached.stdout, "20 rows 70 columns");
    assert_eq!(host.runtime.wait_exit("c").unwrap().unwrap().code, 0);
    let mut spec = host.spec("d", "s", &["copy-input"]);
    spec.process.stdin = true;
    spec.process.terminal = true;
    host.start(&spec);
    let attached = host.runtime.attach("d", ALL).unwrap();
    write(&attached.stdin, "typed\r");
    // Once as the terminal's echo, once from the program.
    read_until(&attached.stdout, "typed\r\ntyped\r\n");
    write(&attached.stdin, "\u{4}");
    assert_eq!(host.runtime.wait_exit("d").unwrap().unwrap().code, 0);
    host.finish();
}

fn it_ends_with_the_container() {
    let host = Host::new();
    reading(&host, false);
    let attached = attach(&host, ALL);
    write(&attached.stdin, "before\n");
    read_until(&attached.stdout, "before\n");
    host.runtime.signal("c", 9).unwrap();
    assert_eq!(read_all(attached.stdout), "");
    assert_eq!(read_all(attached.stderr), "");
    eventually("it has ended", || host.state("c").unwrap().word() == "exited");
    host.finish();
}
