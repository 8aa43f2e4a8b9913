//! What commands answer when no cluster is needed, or none is there.

use std::fs;

use crate::support::{run, skipped, text};

#[test]
fn help_names_every_command_and_hides_the_inner_ones() {
    let ended = run(&["--help"]);
    assert_eq!(ended.code, Some(0));
    for command in
        ["up", "down", "status", "explain", "kubeconfig", "token", "control", "node", "hello", "version"]
    {
        assert!(ended.stdout.contains(&format!("\n  {command} ")), "{command}: {}", ended.stdout);
    }
    assert!(!ended.stdout.contains("new-session"), "{}", ended.stdout);
    let ended = run(&["version"]);
    assert_eq!(ended.stdout, format!("barque {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_wrong_command_line_exits_with_two_and_says_what_is_wrong() {
    let ended = run(&["upp"]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("upp") && ended.stderr.contains("'up'"), "{}", ended.stderr);
    assert_eq!(run(&[]).code, Some(2));
}

#[test]
fn a_configuration_file_that_cannot_be_used_is_named_with_the_line() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("node.yaml");
    let ended = run(&["node", "--config", text(&file)]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains(text(&file)) && ended.stderr.contains("No such file"), "{}", ended.stderr);

    fs::write(&file, "nodeName: one\ninternalIp: 10.0.0.1\nnodeNmae: two\n").unwrap();
    let ended = run(&["node", "--config", text(&file)]);
    assert_eq!(ended.code, Some(1));
    for part in [text(&file), "line 3", "nodeNmae", "correct it"] {
        assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
    }

    fs::write(&file, "nodeName: one\ninternalIp: 10.0.0.1\ncontrolAddresses: []\n").unwrap();
    let ended = run(&["node", "--config", text(&file)]);
    assert!(ended.stderr.contains("controlAddresses"), "{}", ended.stderr);
}

#[test]
fn a_log_level_that_is_none_is_refused() {
    let ended = run(&["node", "--config", "/nowhere", "--log-level", "node=loud"]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("\"node=loud\""), "{}", ended.stderr);
}

#[test]
fn tokens_are_made_from_nothing_and_from_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("control.token");
    let control = run(&["token", "create", "--role", "control"]);
    assert_eq!(control.code, Some(0));
    assert!(control.stdout.starts_with("barque-control.") && control.stdout.lines().count() == 1);
    assert_ne!(run(&["token", "create", "--role", "control"]).stdout, control.stdout);
    fs::write(&file, &control.stdout).unwrap();

    let node = run(&["token", "create", "--role", "node", "--from", text(&file), "--ttl", "30m"]);
    assert_eq!(node.code, Some(0), "{}", node.stderr);
    assert!(node.stdout.starts_with("barque-node."));
    let expiry: u64 = node.stdout.split('.').nth(3).unwrap().parse().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!((now + 1700..=now + 1800).contains(&expiry), "{expiry} is not 30 minutes after {now}");

    let without = run(&["token", "create", "--role", "node"]);
    assert_eq!(without.code, Some(2));
    assert!(without.stderr.contains("--from"), "{}", without.stderr);
    fs::write(&file, &node.stdout).unwrap();
    let wrong = run(&["token", "create", "--role", "node", "--from", text(&file)]);
    assert_eq!(wrong.code, Some(1));
    assert!(wrong.stderr.contains("it is a node token"), "{}", wrong.stderr);
    let ttl = run(&["token", "create", "--role", "control", "--ttl", "soon"]);
    assert_eq!(ttl.code, Some(2));
}

#[test]
fn an_administrators_kubeconfig_comes_from_the_control_token() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("control.token");
    fs::write(&file, run(&["token", "create", "--role", "control"]).stdout).unwrap();
    let ended = run(&["kubeconfig", "create", "--from", text(&file), "--server", "10.0.0.1:6443"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    for part in ["server: https://10.0.0.1:6443", "client-key-data: ", "current-context: barque"] {
        assert!(ended.stdout.contains(part), "{part}: {}", ended.stdout);
    }
}

#[test]
fn commands_about_a_cluster_say_when_there_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = text(directory.path());
    for command in ["kubeconfig", "status"] {
        let ended = run(&[command, "--name", "nobody", "--data-dir", data_dir]);
        assert_eq!(ended.code, Some(1), "{command}");
        assert_eq!(ended.stdout, "", "{command}: nothing to export");
        assert!(ended.stderr.contains("no cluster named nobody is up"), "{command}: {}", ended.stderr);
    }
    if !nix::unistd::geteuid().is_root() {
        skipped("down with nothing up: needs root");
        return;
    }
    for _ in 0..2 {
        let ended = run(&["down", "--name", "nobody", "--data-dir", data_dir]);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(ended.stdout.contains("there is nothing to remove"), "{}", ended.stdout);
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "nothing is left");
}

#[test]
fn up_refuses_what_cannot_work_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().join("data");
    if !nix::unistd::geteuid().is_root() {
        let ended = run(&["up", "--data-dir", text(&data_dir)]);
        assert!(ended.stderr.contains("needs root"), "{}", ended.stderr);
        return;
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (flags, parts) in [
        (vec!["--port", &port], vec!["is in use", "--port"]),
        (vec!["--masters", "2"], vec!["give 1, 3, 5, 7 or 9"]),
        (vec!["--subnet", "127.0.0.0/24"], vec!["127.0.0.0/24 is in use", "--subnet"]),
        (vec!["--subnet", "10.0.0.0/29"], vec!["from /8 to /24"]),
    ] {
        let mut args = vec!["up", "--name", "refused", "--data-dir", text(&data_dir)];
        args.extend(flags);
        let ended = run(&args);
        assert_eq!(ended.code, Some(1));
        for part in parts {
            assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
        }
        assert!(!data_dir.exists(), "nothing is left");
    }
}

#[test]
fn up_finds_out_when_an_overlay_cannot_lie_where_the_files_would() {
    if !nix::unistd::geteuid().is_root() {
        skipped("an overlay on an overlay: needs root");
        return;
    }
    // An overlay cannot carry the upper layer of another one.
    let directory = tempfile::tempdir().unwrap();
    let [lower, upper, work, merged] = ["lower", "upper", "work", "merged"].map(|name| {
        let path = directory.path().join(name);
        fs::create_dir(&path).unwrap();
        path
    });
    let options =
        format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    let mounted = nix::mount::mount(
        Some("overlay"),
        &merged,
        Some("overlay"),
        nix::mount::MsFlags::empty(),
        Some(options.as_str()),
    );
    if let Err(errno) = mounted {
        skipped(&format!("an overlay on an overlay: {errno}"));
        return;
    }
    let ended = run(&["up", "--name", "refused-overlay", "--data-dir", text(&merged.join("data"))]);
    let left = fs::read_dir(&merged).unwrap().count();
    nix::mount::umount2(&merged, nix::mount::MntFlags::MNT_DETACH).unwrap();
    assert_eq!(ended.code, Some(1));
    for part in ["overlayfs cannot be mounted", "--data-dir"] {
        assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
    }
    assert_eq!(left, 0, "nothing is left");
}
