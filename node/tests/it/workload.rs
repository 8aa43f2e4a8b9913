//! What runs inside the test containers.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

/// `work <what> [argument]`.
pub(crate) fn main(args: impl Iterator<Item = OsString>) -> ! {
    let args: Vec<String> = args.map(|a| a.into_string().unwrap()).collect();
    let argument = args.get(1).cloned().unwrap_or_default();
    match args[0].as_str() {
        // Answers every connection with the peer's address; ends at once on TERM.
        "serve" => {
            on_term(|| std::process::exit(0));
            println!("serving");
            let listener = TcpListener::bind("[::]:8080").unwrap();
            loop {
                let (mut stream, peer) = listener.accept().unwrap();
                drop(stream.read(&mut [0; 1024]));
                println!("answered {}", peer.ip());
                let body = format!("you are {}\n", peer.ip());
                drop(write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
            }
        }
        // Shows what is asked of it, and goes on when it is asked to end.
        "serve-on" => {
            on_term(|| println!("asked to end"));
            let listener = TcpListener::bind("[::]:8080").unwrap();
            loop {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 1024];
                let read = stream.read(&mut request).unwrap_or(0);
                let text = String::from_utf8_lossy(&request[..read]).into_owned();
                println!("{}", text.lines().next().unwrap_or_default());
                drop(stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n"));
            }
        }
        // Uses all of a core that it gets.
        "spin" => {
            on_term(|| std::process::exit(0));
            loop {
                std::hint::spin_loop();
            }
        }
        // Does nothing, and ends on TERM.
        "rest" => {
            on_term(|| std::process::exit(0));
            loop {
                std::thread::park();
            }
        }
        // Says so many lines, and goes on.
        "flood" => {
            on_term(|| std::process::exit(0));
            let mut out = std::io::BufWriter::new(std::io::stdout().lock());
            (0..argument.parse::<u32>().unwrap()).for_each(|number| writeln!(out, "line {number}").unwrap());
            out.flush().unwrap();
            loop {
                std::thread::park();
            }
        }
        // Shows the command lines of the processes that it sees.
        "commands" => {
            let pids = std::fs::read_dir("/proc").unwrap();
            let pids = pids.filter_map(|e| e.unwrap().file_name().into_string().ok()?.parse::<u32>().ok());
            let mut pids: Vec<u32> = pids.collect();
            pids.sort_unstable();
            for pid in pids {
                let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                println!("{pid}: {}", line.trim_end_matches('\0').replace('\0', " "));
            }
            std::process::exit(0)
        }
        // Appends a line to files, says how many each has, fails.
        "remember" => {
            for path in &args[1..] {
                let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
                writeln!(file, "again").unwrap();
                println!("{path}: {}", std::fs::read_to_string(path).unwrap().lines().count());
            }
            std::process::exit(1)
        }
        // Finds the server and the word of its neighbours, and stays.
        "neighbour" => {
            let pause = || std::thread::sleep(Duration::from_millis(5));
            while std::net::TcpStream::connect("127.0.0.1:8080").is_err() {
                pause();
            }
            println!("8080 answers");
            let taken = TcpListener::bind("[::]:8080").is_err();
            println!("8080 is {}", if taken { "taken" } else { "free" });
            while !std::fs::read_to_string("/dev/shm/word").is_ok_and(|word| word.ends_with('\n')) {
                pause();
            }
            print!("word: {}", std::fs::read_to_string("/dev/shm/word").unwrap());
            loop {
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        // Runs a child that would say so if it was asked to end.
        "shell" => {
            let mut child = std::process::Command::new("/barque").args(["work", "stubborn"]).spawn().unwrap();
            child.wait().unwrap();
            std::process::exit(0)
        }
        // Kills a process.
        "kill" => {
            let pid = nix::unistd::Pid::from_raw(argument.parse().unwrap());
            nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
            std::process::exit(0)
        }
        // Fails once the server of its container can be asked to end.
        "fail-when-served" => {
            while std::net::TcpStream::connect("127.0.0.1:8080").is_err() {
                std::thread::sleep(Duration::from_millis(5));
            }
            println!("served");
            std::process::exit(1)
        }
        // Ends well if the file is there.
        "exists" => std::process::exit(i32::from(!std::path::Path::new(&argument).exists())),
        // Prints something, and ends with the code.
        "exit" => {
            println!("ending with {argument}");
            std::process::exit(argument.parse().unwrap())
        }
        // Prints, sleeps for a while, ends well.
        "sleep" => {
            println!("sleeping");
            std::thread::sleep(Duration::from_millis(argument.parse().unwrap()));
            println!("awake");
            std::process::exit(0)
        }
        // Asks a process of its container to end, as `nginx -s quit` does, and waits until it has.
        "stop" => {
            let pid = nix::unistd::Pid::from_raw(argument.parse().unwrap());
            nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
            loop {
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        // Takes so many megabytes of memory, and stays.
        "hoard" => {
            on_term(|| std::process::exit(0));
            let megabytes: usize = argument.parse().unwrap();
            let mut held: Vec<Vec<u8>> = Vec::new();
            for _ in 0..megabytes {
                held.push(vec![1; 1 << 20]);
            }
            println!("hoarded {}", held.len());
            loop {
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        // Writes so many megabytes into a file, and stays.
        "fill" => {
            on_term(|| std::process::exit(0));
            let mut file = std::fs::File::create(&argument).unwrap();
            for _ in 0..args[2].parse::<usize>().unwrap() {
                file.write_all(&vec![1; 1 << 20]).unwrap();
            }
            println!("filled");
            loop {
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        // Sends datagrams back to whoever sent them.
        "echo" => {
            let socket = std::net::UdpSocket::bind("0.0.0.0:5353").unwrap();
            println!("listening");
            loop {
                let mut buffer = [0; 64];
                let (length, peer) = socket.recv_from(&mut buffer).unwrap();
                socket.send_to(&buffer[..length], peer).unwrap();
            }
        }
        // Does not obey TERM.
        "stubborn" => {
            on_term(|| println!("no"));
            println!("here to stay");
            loop {
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        // Appends a line to a file, and shows it.
        "append" => {
            let (path, text) = (&args[1], &args[2]);
            let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
            writeln!(file, "{text}").unwrap();
            print!("{}", std::fs::read_to_string(path).unwrap());
            std::process::exit(0)
        }
        // Says something at its end, by default where everybody does.
        "say" => {
            let path = args.get(2).map_or("/dev/termination-log", String::as_str);
            std::fs::write(path, "x".repeat(argument.parse().unwrap())).unwrap();
            std::process::exit(0)
        }
        // Prints so many numbered lines, and fails.
        "count-to" => {
            (0..argument.parse::<u32>().unwrap()).for_each(|n| println!("line {n}"));
            std::process::exit(1)
        }
        // Shows an environment variable, a file and the host name.
        "show" => {
            println!("{}={}", argument, std::env::var(&argument).unwrap_or_default());
            println!("hostname={}", nix::unistd::gethostname().unwrap().to_string_lossy());
            print!("{}", std::fs::read_to_string("/etc/hosts").unwrap());
            std::fs::write("/dev/termination-log", "all shown").unwrap();
            std::process::exit(0)
        }
        // Shows variables in one line, and stays.
        "environment" => {
            on_term(|| std::process::exit(0));
            let of = |name: &String| match std::env::var(name) {
                Ok(value) => format!("{name}={value}"),
                Err(_) => format!("{name} is not set"),
            };
            println!("{}", args[1..].iter().map(of).collect::<Vec<_>>().join(" "));
            loop {
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        // Shows files, and again whenever they change; says whether the first's directory can be written.
        "follow" => {
            on_term(|| std::process::exit(0));
            let directory = std::path::Path::new(&args[1]).parent().unwrap();
            let can = std::fs::write(directory.join("probe"), "").map_or("cannot", |()| "can");
            println!("{} {can} be written", directory.display());
            let mut shown = vec![String::new(); args.len()];
            loop {
                for (path, shown) in args.iter().zip(&mut shown).skip(1) {
                    let text = std::fs::read_to_string(path).unwrap_or_else(|error| error.to_string());
                    if text != *shown {
                        println!("{path}: {text}");
                        *shown = text;
                    }
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        // Prints a numbered line every few milliseconds.
        "count" => {
            on_term(|| std::process::exit(0));
            for number in 0.. {
                println!("line {number}");
                std::thread::sleep(Duration::from_millis(argument.parse().unwrap()));
            }
            unreachable!("counting has no end")
        }
        other => panic!("{other} is no work"),
    }
}

fn on_term(act: fn()) {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.thread_block().unwrap();
    std::thread::spawn(move || {
        loop {
            signals.wait().unwrap();
            act();
        }
    });
}
