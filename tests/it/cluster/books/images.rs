//! The books' images: the demo workloads of the binary under test over a layer of this machine's own programs, and a
//! registry that serves them and can go away.
//!
//! Nothing comes from a network. The programs are copied with the libraries that they are linked against.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

/// Programs that the images hold.
const PROGRAMS: &[&str] = &[
    "sh", "bash", "cat", "curl", "date", "dd", "env", "grep", "head", "hostname", "ip", "ipcmk", "ipcs",
    "ls", "mkdir", "mount", "getent", "ps", "rm", "sleep", "stat", "tail", "tar", "test", "touch", "id",
    "umount", "ln", "chmod", "chroot", "tr", "sort", "wc",
];
/// Programs that are scripts over those and over the binary under test.
const SCRIPTS: &[(&str, &str)] = &[
    ("nginx", "exec /barque demo web \"$@\""),
    ("mongo", "exec /barque demo docdb-shell \"$@\""),
    ("ping", "exec /barque demo netcheck \"$1\""),
    // Works offline: what it installs is in the binary.
    (
        "apk",
        "[ \"$1 $2\" = 'add fortune' ] || exit 1\nprintf '#!/bin/sh\\nexec /barque demo quote\\n' > /usr/bin/fortune\n\
         chmod +x /usr/bin/fortune\necho 'OK: installed fortune'",
    ),
];
const DIRECTORIES: &[&str] = &[
    "tmp",
    "root",
    "run",
    "var/log",
    "var/local/output",
    "usr/share/nginx/html",
    "data/db",
    "proc",
    "sys",
    "dev",
];
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// Which of the programs this machine lacks.
pub(crate) fn missing() -> Option<&'static str> {
    PROGRAMS.iter().chain(&["ldd"]).find(|name| program(name).is_none()).copied()
}

/// A program on PATH, or where only root's PATH leads.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(more).map(|dir| dir.join(name)).find(|file| file.exists())
}

fn digest(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

/// A registry of our own: an OCI distribution server for reading.
pub(crate) struct Registry {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    away: AtomicBool,
    manifests: Mutex<HashMap<String, Vec<u8>>>,
    blobs: Mutex<HashMap<String, Blob>>,
    asked: Mutex<Vec<String>>,
}

#[derive(Clone)]
enum Blob {
    Bytes(Arc<Vec<u8>>),
    File(PathBuf),
}

/// The layers that images are made of.
pub(crate) struct Layers {
    barque: (String, u64, PathBuf),
    programs: Arc<Vec<u8>>,
}

impl Layers {
    /// Makes them; the binary's own is the one that every node has already.
    pub(crate) fn make(directory: &Path) -> Self {
        let layout = directory.join("layout");
        node::images::build_builtin(Path::new(env!("CARGO_BIN_EXE_barque")), "barque/hello:1.0", &layout)
            .unwrap();
        let read = |digest: &Value| -> Vec<u8> {
            let hex = digest.as_str().unwrap().trim_start_matches("sha256:");
            std::fs::read(layout.join("blobs/sha256").join(hex)).unwrap()
        };
        let index: Value =
            serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
        let manifest: Value = serde_json::from_slice(&read(&index["manifests"][0]["digest"])).unwrap();
        let layer = &manifest["layers"][0];
        let digest = layer["digest"].as_str().unwrap().to_owned();
        let file = layout.join("blobs/sha256").join(digest.trim_start_matches("sha256:"));
        let barque = (digest, layer["size"].as_u64().unwrap(), file);
        Self { barque, programs: Arc::new(programs()) }
    }
}

/// The layer of this machine's programs.
fn programs() -> Vec<u8> {
    let mut layer = tar::Builder::new(Vec::new());
    let mut put = |path: &str, mode: u32, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        let kind = if path.ends_with('/') { tar::EntryType::Directory } else { tar::EntryType::Regular };
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        layer.append_data(&mut header, path, content).unwrap();
    };
    for directory in DIRECTORIES {
        put(&format!("{directory}/"), if *directory == "tmp" { 0o1777 } else { 0o755 }, b"");
    }
    put("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n");
    put("etc/nsswitch.conf", 0o644, b"hosts: files dns\n");
    put("etc/host.conf", 0o644, b"multi on\n");
    put("etc/bash.bashrc", 0o644, b"PS1='\\u@\\h:\\w# '\n");
    let mut libraries = BTreeSet::new();
    for name in PROGRAMS {
        let file = program(name).unwrap();
        put(&format!("usr/bin/{name}"), 0o755, &std::fs::read(&file).unwrap());
        let linked = Command::new("ldd").arg(&file).output().unwrap();
        let linked = String::from_utf8_lossy(&linked.stdout).into_owned();
        libraries.extend(linked.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned));
    }
    for library in libraries {
        put(library.trim_start_matches('/'), 0o755, &std::fs::read(&library).unwrap());
    }
    for (name, script) in SCRIPTS {
        put(&format!("usr/bin/{name}"), 0o755, format!("#!/bin/sh\n{script}\n").as_bytes());
    }
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    link.set_mode(0o777);
    layer.append_link(&mut link, "bin", "usr/bin").unwrap();
    layer.into_inner().unwrap()
}

impl Registry {
    /// Serves at an address of this machine until the process ends.
    pub(crate) fn start(host: &str) -> Self {
        let listener = TcpListener::bind((host, 0)).unwrap();
        let registry = Self { address: listener.local_addr().unwrap(), shared: Arc::default() };
        let shared = Arc::clone(&registry.shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || shared.converse(stream));
            }
        });
        registry
    }

    /// While it is away, connections break.
    pub(crate) fn away(&self, away: bool) {
        self.shared.away.store(away, Ordering::SeqCst);
    }

    /// How often something whose path ends so was asked for.
    pub(crate) fn asked(&self, end: &str) -> usize {
        self.shared.asked.lock().unwrap().iter().filter(|path| path.ends_with(end)).count()
    }

    /// The digest of the layer of this machine's programs.
    pub(crate) fn programs(layers: &Layers) -> String {
        digest(&layers.programs)
    }

    /// Puts an image under a name, in place of what was there.
    pub(crate) fn put(&self, name: &str, layers: &Layers, about: Value) {
        let (barque, size, file) = &layers.barque;
        let programs = digest(&layers.programs);
        let mut about = about;
        about["Env"] = json!(["PATH=/usr/bin:/bin"]);
        let config = json!({
            "architecture": if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" }, "os": "linux",
            "config": about, "rootfs": {"type": "layers", "diff_ids": [barque, programs]},
        });
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": digest(&config), "size": config.len()},
            "layers": [
                {"mediaType": TAR, "digest": barque, "size": size},
                {"mediaType": TAR, "digest": programs, "size": layers.programs.len()},
            ],
        });
        let manifest = manifest.to_string().into_bytes();
        let mut blobs = self.shared.blobs.lock().unwrap();
        blobs.insert(barque.clone(), Blob::File(file.clone()));
        blobs.insert(programs, Blob::Bytes(Arc::clone(&layers.programs)));
        blobs.insert(digest(&config), Blob::Bytes(Arc::new(config)));
        let (repository, tag) = name.rsplit_once(':').unwrap();
        let mut manifests = self.shared.manifests.lock().unwrap();
        manifests.insert(format!("/v2/{repository}/manifests/{}", digest(&manifest)), manifest.clone());
        manifests.insert(format!("/v2/{repository}/manifests/{tag}"), manifest);
    }

    /// Puts every image of the books there.
    pub(crate) fn put_all(&self, layers: &Layers) {
        let runs = |words: &[&str]| json!({"Entrypoint": words, "WorkingDir": "/"});
        let commands = |words: &[&str]| json!({"Cmd": words, "WorkingDir": "/"});
        let images: BTreeMap<&str, Value> = BTreeMap::from([
            ("lab/hello:1.0", runs(&["/barque", "hello", "--no-term-handler"])),
            // For who wants to see it pulled while others run the same program.
            ("lab/hello:1.0-first", runs(&["/barque", "hello", "--no-term-handler"])),
            ("lab/hello:1.0-stdin", runs(&["/barque", "hello", "--no-term-handler", "--stdin"])),
            ("lab/hello:1.1", runs(&["/barque", "hello"])),
            ("lab/tlsproxy:1.0", runs(&["/barque", "demo", "proxy"])),
            ("lab/init-demo:1.0", runs(&["/barque", "demo", "warm-up"])),
            ("lab/netcheck:1.0", runs(&["/barque", "demo", "netcheck"])),
            ("lab/docdb:1", runs(&["/barque", "demo", "docdb"])),
            ("lab/web:alpine", commands(&["nginx"])),
            ("lab/curl:1", commands(&["bash"])),
            ("lab/busybox:1", commands(&["sh"])),
            ("lab/alpine:latest", commands(&["sh"])),
            (
                "lab/quote-writer:1.0",
                json!({"Entrypoint": ["/barque", "demo", "quote-writer"], "Volumes": {"/var/local/output": {}}}),
            ),
        ]);
        for (name, about) in images {
            self.put(name, layers, about);
        }
    }
}

impl Shared {
    fn converse(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        loop {
            let mut lines = Vec::new();
            loop {
                let mut line = String::new();
                match reader.read_line(&mut line) {
                    Ok(1..) if line.trim().is_empty() => break,
                    Ok(1..) => lines.push(line),
                    _ => return,
                }
            }
            let Some(request) = lines.first() else { return };
            let mut words = request.split_whitespace();
            let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            if self.away.load(Ordering::SeqCst) || self.answer(&stream, method, path).is_err() {
                return;
            }
        }
    }

    fn answer(&self, mut stream: &TcpStream, method: &str, path: &str) -> std::io::Result<()> {
        let path = path.split('?').next().unwrap_or_default();
        self.asked.lock().unwrap().push(path.to_owned());
        let manifest = self.manifests.lock().unwrap().get(path).cloned();
        let blob = path.rsplit('/').next().and_then(|digest| self.blobs.lock().unwrap().get(digest).cloned());
        let found = match (manifest, blob) {
            (Some(bytes), _) => Some((MANIFEST, digest(&bytes), bytes)),
            (None, Some(Blob::Bytes(bytes))) => {
                Some(("application/octet-stream", digest(&bytes), bytes.to_vec()))
            }
            (None, Some(Blob::File(file))) => {
                let mut bytes = Vec::new();
                std::fs::File::open(file)?.read_to_end(&mut bytes)?;
                Some(("application/octet-stream", String::new(), bytes))
            }
            (None, None) if path == "/v2/" => Some(("application/json", String::new(), b"{}".to_vec())),
            (None, None) => None,
        };
        let (status, kind, name, body) = match found {
            Some((kind, name, body)) => ("200 OK", kind, name, body),
            None => ("404 Not Found", "application/json", String::new(), b"{\"errors\":[]}".to_vec()),
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nDocker-Content-Digest: {name}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        if method != "HEAD" {
            stream.write_all(&body)?;
        }
        Ok(())
    }
}
