//! What the test containers do: one small deed per word.

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileTypeExt;
use std::process::exit;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

pub(crate) fn main(args: impl Iterator<Item = OsString>) -> ! {
    let args: Vec<String> = args.map(|arg| arg.into_string().unwrap()).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["exit", code] => exit(code.parse().unwrap()),
        ["sleep"] | ["sleep", _] => sleep(),
        ["echo", ..] => println!("{}", args[1..].join(" ")),
        ["warn", ..] => eprintln!("{}", args[1..].join(" ")),
        ["write-raw", text] => print(text),
        ["flood", lines] => flood(lines.parse().unwrap()),
        ["flood-after-input", lines] => {
            std::io::stdin().read_line(&mut String::new()).unwrap();
            flood(lines.parse().unwrap());
        }
        ["env"] => std::env::vars().for_each(|(name, value)| println!("{name}={value}")),
        ["cwd"] => println!("{}", std::env::current_dir().unwrap().display()),
        ["report"] => report(),
        ["cat", path] => match fs::read_to_string(path) {
            Ok(text) => print(&text),
            Err(error) => println!("error: {error}"),
        },
        ["list", path] => list(path),
        ["mount-memory", path] => {
            let none = nix::mount::MsFlags::empty();
            nix::mount::mount(Some("tmpfs"), path, Some("tmpfs"), none, None::<&str>).unwrap();
            fs::write(format!("{path}/from-inside"), "").unwrap();
            println!("mounted");
        }
        ["write", path, text] => match fs::write(path, text) {
            Ok(()) => println!("written"),
            Err(error) => println!("error: {error}"),
        },
        ["probe-devices", dir] => probe_devices(dir),
        ["probe-disk", dir, major, minor] => {
            use nix::sys::stat::{Mode, SFlag, makedev, mknod};
            let path = format!("{dir}/disk");
            let number = makedev(major.parse().unwrap(), minor.parse().unwrap());
            let made = mknod(path.as_str(), SFlag::S_IFBLK, Mode::from_bits_truncate(0o666), number);
            let opened = if fs::File::open(&path).is_ok() { "opened" } else { "not opened" };
            println!("{made:?} {opened}");
        }
        ["forbidden-calls"] => crate::forbidden::try_all(),
        ["release-agent"] => release_agent(),
        ["owner", ..] => owners(&args[1..]),
        ["open-disks"] => open_disks(),
        ["set-clock"] => {
            use nix::time::{ClockId, clock_gettime, clock_settime};
            let now = clock_gettime(ClockId::CLOCK_REALTIME).unwrap();
            println!("{:?}", clock_settime(ClockId::CLOCK_REALTIME, now));
        }
        ["rename-host", name] => match nix::unistd::sethostname(name) {
            Ok(()) => println!("renamed"),
            Err(error) => println!("error: {error}"),
        },
        ["make-bridge", name] => match runtime::net::Netlink::open().unwrap().add_bridge(name) {
            Ok(_) => println!("made"),
            Err(error) => println!("error: {error}"),
        },
        ["obey"] => obey(),
        ["hoard", bytes] => hoard(bytes.parse().unwrap()),
        ["fork", count] => fork(count.parse().unwrap()),
        ["spin", millis] => spin(millis.parse().unwrap()),
        ["orphan"] => orphan(),
        ["serve", port] => serve(port.parse().unwrap()),
        ["serve-both", port] => {
            let listener = TcpListener::bind(format!("[::]:{port}")).unwrap();
            println!("listening");
            loop {
                let (mut connection, peer) = listener.accept().unwrap();
                connection.write_all(format!("hello {}\n", peer.ip()).as_bytes()).unwrap();
            }
        }
        ["call", address] => call(address),
        ["abort"] => std::process::abort(),
        ["terminal"] => terminal(),
        ["call-kernel"] => call_kernel(),
        ["copy-input"] => drop(std::io::copy(&mut std::io::stdin(), &mut std::io::stdout()).unwrap()),
        ["namespaces"] => namespaces(),
        ["window"] => window(),
        ["leave-child", word] => leave_child(word),
        _ => {
            eprintln!("no such work: {args:?}");
            exit(64);
        }
    }
    exit(0)
}

fn print(text: &str) {
    std::io::stdout().write_all(text.as_bytes()).unwrap();
    std::io::stdout().flush().unwrap();
}

fn sleep() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

fn flood(lines: usize) {
    let out = std::io::stdout().lock();
    let mut out = std::io::BufWriter::new(out);
    for number in 0..lines {
        writeln!(out, "line {number:08} of a program that has very much to say about nothing").unwrap();
    }
}

/// What a program can see of itself.
fn report() {
    println!("pid={}", std::process::id());
    println!("hostname={}", nix::unistd::gethostname().unwrap().to_string_lossy());
    println!("uid={}", nix::unistd::getuid());
    println!("gid={}", nix::unistd::getgid());
    let groups = fs::read_to_string("/proc/self/status").unwrap();
    for key in [
        "Groups",
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "NoNewPrivs",
        "Seccomp",
        "SigIgn",
        "SigBlk",
    ] {
        let line = groups.lines().find_map(|line| line.strip_prefix(&format!("{key}:")));
        println!("{key}={}", line.unwrap_or("?").trim());
    }
    println!("umask={:?}", nix::sys::stat::umask(nix::sys::stat::Mode::empty()).bits());
    println!("fds={}", fs::read_dir("/proc/self/fd").unwrap().count() - 1);
    println!(
        "nofile={:?}",
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap()
    );
}

/// Calls that a filter may refuse: what came of each. The thread shows that its library got along.
fn call_kernel() {
    use nix::sched::{CloneFlags, unshare};
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let told =
        |result: nix::Result<()>| result.map_or_else(|error| format!("{error:?}"), |()| "ok".to_owned());
    let vsock = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::empty(), None).map(drop);
    println!("vsock={}", told(vsock));
    println!("thread={}", std::thread::spawn(|| "ok").join().unwrap());
    // The kernel knows a thread for a moment longer than its library, and gives no user namespace to two.
    while fs::read_dir("/proc/self/task").unwrap().count() > 1 {
        std::thread::yield_now();
    }
    println!("unshare={}", told(unshare(CloneFlags::CLONE_NEWUSER)));
    println!("mkdir={}", told(nix::unistd::mkdir("/tmp-made", nix::sys::stat::Mode::S_IRWXU)));
}

fn list(path: &str) {
    let mut names: Vec<String> =
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    println!("{}", names.join(" "));
}

/// Mounts a hierarchy and names a program for the host to execute.
fn release_agent() {
    use nix::mount::{MsFlags, mount};
    fs::create_dir_all("/tmp/groups").unwrap();
    let mounted = mount(Some("x"), "/tmp/groups", Some("cgroup"), MsFlags::empty(), Some("memory"));
    if let Err(error) = mounted {
        return println!("mount: {error:?}");
    }
    match fs::write("/tmp/groups/release_agent", "/bin/false") {
        Ok(()) => println!("written"),
        Err(error) => println!("write: {error}"),
    }
}

fn owners(paths: &[&str]) {
    use std::os::unix::fs::MetadataExt as _;
    let owner = |path: &&str| {
        let found = fs::metadata(path).unwrap();
        format!("{}:{}", found.uid(), found.gid())
    };
    println!("{}", paths.iter().map(owner).collect::<Vec<_>>().join(" "));
}

/// Opens every block device that it sees.
fn open_disks() {
    let mut opened = Vec::new();
    for entry in fs::read_dir("/dev").unwrap().map(Result::unwrap) {
        let is_disk = entry.metadata().is_ok_and(|found| found.file_type().is_block_device());
        if is_disk && fs::File::open(entry.path()).is_ok() {
            opened.push(entry.file_name().into_string().unwrap());
        }
    }
    println!("{}", if opened.is_empty() { "none opened".to_owned() } else { opened.join(" ") });
}

/// Makes a node of the memory device and tries to open it.
fn probe_devices(dir: &str) {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    let path = format!("{dir}/node");
    match mknod(path.as_str(), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 5)) {
        Ok(()) => println!("made {}", fs::metadata(&path).unwrap().file_type().is_char_device()),
        Err(error) => println!("not made: {error}"),
    }
    match fs::File::open(&path) {
        Ok(_) => println!("opened"),
        Err(error) => println!("not opened: {error}"),
    }
}

/// Ends with 0 when it is asked to.
fn obey() {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGUSR1);
    signals.thread_block().unwrap();
    println!("ready");
    loop {
        match signals.wait().unwrap() {
            Signal::SIGTERM => return println!("asked to stop"),
            _ => println!("got a signal"),
        }
    }
}

/// Takes memory until it has so much.
fn hoard(bytes: usize) {
    println!("hoarding");
    let memory = vec![7_u8; bytes];
    println!("has {}", memory.iter().filter(|byte| **byte == 7).count());
}

/// Starts so many sleeping processes.
fn fork(count: usize) {
    for number in 0..count {
        let started = std::process::Command::new("/bin/workload").args(["work", "sleep"]).spawn();
        if let Err(error) = started {
            println!("process {number}: {error}");
            return;
        }
    }
    println!("all {count}");
}

/// Uses so much CPU time, however long that takes.
fn spin(millis: u64) {
    use nix::time::{ClockId, clock_gettime};
    let used = || Duration::from(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap());
    while used() < Duration::from_millis(millis) {
        std::hint::spin_loop();
    }
    println!("spun");
}

/// Leaves a child that holds standard output open.
#[expect(clippy::zombie_processes, reason = "not to wait for it is the point")]
fn orphan() {
    std::process::Command::new("/bin/workload").args(["work", "sleep"]).spawn().unwrap();
    println!("leaving");
}

/// Answers one connection.
fn serve(port: u16) {
    let listener = TcpListener::bind(("0.0.0.0", port)).unwrap();
    println!("listening");
    let (mut connection, peer) = listener.accept().unwrap();
    connection.write_all(format!("hello {}\n", peer.ip()).as_bytes()).unwrap();
}

fn call(address: &str) {
    match TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_secs(3)) {
        Ok(mut connection) => {
            let mut text = String::new();
            connection.read_to_string(&mut text).unwrap();
            print(&text);
        }
        Err(error) => println!("error: {error}"),
    }
}

fn terminal() {
    use std::io::IsTerminal;
    let all = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    println!("terminal={all} console={}", fs::metadata("/dev/console").is_ok());
    eprintln!("error text");
}

/// The namespaces and groups that it is in.
fn namespaces() {
    for kind in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
        println!("{kind}={}", fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display());
    }
    println!("groups={}", fs::read_to_string("/proc/self/cgroup").unwrap().replace('\n', " "));
}

/// Says how large its terminal is, now and after the next change.
fn window() {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGWINCH);
    signals.thread_block().unwrap();
    let say = || {
        let size = runtime::terminal_size(std::os::fd::AsFd::as_fd(&std::io::stdout())).unwrap();
        println!("{} rows {} columns", size.rows, size.columns);
    };
    say();
    signals.wait().unwrap();
    say();
}

/// Starts a sleeping child of the same session, which a word marks, and sleeps too.
#[expect(clippy::zombie_processes, reason = "not to wait for it is the point")]
fn leave_child(word: &str) {
    std::process::Command::new("/bin/workload").args(["work", "sleep", word]).spawn().unwrap();
    println!("both");
    sleep()
}
