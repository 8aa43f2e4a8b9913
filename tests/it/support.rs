//! Running the binary.

use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant, SystemTime};

use control::pki::{Authority, ControlToken, MemberIdentity};

/// Longest wait for anything a test waits for.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// How often a name is asked for that another test has.
const NAME_POLL: Duration = Duration::from_millis(100);

/// The binary under test.
pub(crate) fn barque() -> Command {
    Command::new(env!("CARGO_BIN_EXE_barque"))
}

/// How a command ended.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a command to its end.
pub(crate) fn run(args: &[&str]) -> Ended {
    let output = barque().args(args).stdin(Stdio::null()).output().unwrap();
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// The name of a cluster, for one test of this machine at a time.
#[derive(Debug)]
pub(crate) struct Owned {
    // An abstract socket leaves no file and ends with the process that holds it.
    _name: UnixListener,
}

impl Owned {
    /// Waits until no other test has the name, and removes the cluster that a test left which could not end.
    pub(crate) fn name(name: &str) -> Self {
        let address = UnixAddr::from_abstract_name(format!("barque/tests/{name}")).unwrap();
        let listener = loop {
            match UnixListener::bind_addr(&address) {
                Ok(listener) => break listener,
                Err(error) if error.kind() == ErrorKind::AddrInUse => std::thread::sleep(NAME_POLL),
                Err(error) => panic!("the name {name}: {error}"),
            }
        };
        let removed = run(&["down", "--name", name]);
        assert_eq!(removed.code, Some(0), "{}", removed.stderr);
        Self { _name: listener }
    }
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A process that is killed when the test ends.
pub(crate) struct Running {
    pub(crate) child: Child,
    lines: Receiver<String>,
}

impl Running {
    /// Starts a command and reads its standard output line by line.
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// The next line of its output.
    pub(crate) fn line(&self) -> String {
        self.lines.recv_timeout(DEADLINE).expect("the process prints a line")
    }

    /// Sends TERM and waits for the exit code.
    pub(crate) fn terminate(&mut self) -> Option<i32> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        eventually(|| self.child.try_wait().unwrap()).code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Asks until there is an answer.
#[track_caller]
pub(crate) fn eventually<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A port that nobody listens on at the moment.
pub(crate) fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Certificates of one authority in files: `NAME.pem`, `NAME.key`, `NAME-ca.pem`.
pub(crate) fn certificates(directory: &Path, name: &str) {
    let now = SystemTime::now();
    let authority = Authority::from_token(&ControlToken::generate(now).unwrap()).unwrap();
    let identity = MemberIdentity { name: name.to_owned(), addresses: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)] };
    let issued = authority.issue_member(&identity, now).unwrap();
    std::fs::write(directory.join(format!("{name}.pem")), issued.certificate_pem).unwrap();
    std::fs::write(directory.join(format!("{name}.key")), issued.key_pem).unwrap();
    std::fs::write(directory.join(format!("{name}-ca.pem")), issued.ca_pem).unwrap();
}

/// Says that a test could not run here. CI counts these lines, so they go round the test harness, which
/// keeps what passing tests print to itself.
pub(crate) fn skipped(why: &str) {
    let _closed = writeln!(std::io::stderr(), "skipped: {why}");
}
