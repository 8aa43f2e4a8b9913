//! The container's log, in the CRI format: `<time> <stream> <P|F> <line>`. A line longer than
//! [`LINE_BYTES_MAX`] is split into entries tagged `P` (more follows) and a last one tagged `F`; output
//! that ends without a newline ends with a `P`.
//!
//! The file is rotated by size; old files carry the time of rotation as a suffix. When the disk refuses,
//! output is dropped and counted, so that the container goes on.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::container::spec::LogSpec;
use crate::time::Timestamp;

/// Longest content of one log entry.
pub const LINE_BYTES_MAX: usize = 16 << 10;
/// Entries are written out when so much has gathered, and at the end of each read.
const BATCH_BYTES: usize = 32 << 10;
const FILE_MODE: u32 = 0o640;

/// A log file with its rotation.
#[derive(Debug)]
pub(super) struct Log {
    spec: LogSpec,
    file: Option<File>,
    written: u64,
    batch: Vec<u8>,
    lost: u64,
}

/// One stream of output on its way into the log.
#[derive(Debug)]
pub(super) struct Stream {
    name: &'static str,
    /// The start of a line whose end has not arrived.
    pending: Vec<u8>,
}

impl Log {
    /// Opens the log, continuing a file that is there.
    pub(super) fn open(spec: &LogSpec) -> io::Result<Log> {
        let mut log = Log { spec: spec.clone(), file: None, written: 0, batch: Vec::new(), lost: 0 };
        log.reopen()?;
        Ok(log)
    }

    /// Opens the file at the log's path anew.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        self.file = None;
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(FILE_MODE)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&self.spec.path)?;
        self.written = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    /// Bytes of entries that could not be written.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    fn entry(&mut self, now: Timestamp, stream: &str, tag: char, parts: [&[u8]; 2]) {
        // Writing into memory cannot fail.
        let _ = write!(self.batch, "{now} {stream} {tag} ");
        parts.iter().for_each(|part| self.batch.extend_from_slice(part));
        self.batch.push(b'\n');
        if self.batch.len() >= BATCH_BYTES {
            self.flush();
        }
    }

    /// Writes what has gathered.
    fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let full = self.written > 0 && self.written + self.batch.len() as u64 > self.spec.file_bytes_max;
        if full {
            // One that fails is tried again with the next batch; meanwhile the file grows.
            let _ = self.rotate();
        }
        if self.file.is_none() {
            let _ = self.reopen();
        }
        let length = self.batch.len() as u64;
        let done = self.file.as_mut().map(|file| file.write_all(&self.batch));
        match done {
            Some(Ok(())) => self.written += length,
            Some(Err(_)) | None => self.lost += length,
        }
        self.batch.clear();
    }

    fn rotate(&mut self) -> io::Result<()> {
        let mut name = self.spec.path.clone().into_os_string();
        name.push(format!(".{}", Timestamp::now().file_suffix()));
        fs::rename(&self.spec.path, PathBuf::from(name))?;
        self.reopen()?;
        let old = rotated(&self.spec.path)?;
        let keep = (self.spec.files_max as usize).saturating_sub(1);
        for file in old.iter().take(old.len().saturating_sub(keep)) {
            fs::remove_file(file)?;
        }
        Ok(())
    }
}

/// The files rotated away from a log, oldest first.
fn rotated(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Ok(Vec::new());
    };
    let prefix = format!("{name}.");
    let is_suffix = |suffix: &str| {
        !suffix.is_empty() && suffix.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'-' | b'.'))
    };
    let mut found: Vec<PathBuf> = fs::read_dir(dir)?
        .filter_map(Result::ok)
        .filter(|entry| {
            entry.file_name().to_str().and_then(|name| name.strip_prefix(&prefix)).is_some_and(is_suffix)
        })
        .map(|entry| entry.path())
        .collect();
    found.sort();
    Ok(found)
}

impl Stream {
    pub(super) fn new(name: &'static str) -> Stream {
        Stream { name, pending: Vec::new() }
    }

    /// Takes output that has arrived.
    pub(super) fn take(&mut self, log: &mut Log, output: &[u8], now: Timestamp) {
        let mut rest = output;
        while !rest.is_empty() {
            let room = LINE_BYTES_MAX - self.pending.len();
            match rest.iter().take(room + 1).position(|byte| *byte == b'\n') {
                Some(end) => {
                    log.entry(now, self.name, 'F', [&self.pending, &rest[..end]]);
                    self.pending.clear();
                    rest = &rest[end + 1..];
                }
                // One byte more than fits, and it is no newline: the line goes on.
                None if rest.len() > room => {
                    log.entry(now, self.name, 'P', [&self.pending, &rest[..room]]);
                    self.pending.clear();
                    rest = &rest[room..];
                }
                None => {
                    self.pending.extend_from_slice(rest);
                    rest = &[];
                }
            }
        }
        log.flush();
    }

    /// Writes the start of a line that will have no end.
    pub(super) fn finish(&mut self, log: &mut Log) {
        if !self.pending.is_empty() {
            log.entry(Timestamp::now(), self.name, 'P', [&self.pending, &[]]);
            self.pending.clear();
        }
        log.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_unix_nanos(1_767_225_600_000_000_000);

    fn log_in(dir: &tempfile::TempDir, file_bytes_max: u64) -> Log {
        let spec = LogSpec { path: dir.path().join("0.log"), file_bytes_max, files_max: 3 };
        Log::open(&spec).unwrap()
    }

    fn text(dir: &tempfile::TempDir) -> String {
        fs::read_to_string(dir.path().join("0.log")).unwrap()
    }

    #[test]
    fn lines_become_entries_however_they_arrive() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = log_in(&dir, 1 << 20);
        let (mut stdout, mut stderr) = (Stream::new("stdout"), Stream::new("stderr"));
        stdout.take(&mut log, b"one\ntw", NOW);
        stderr.take(&mut log, b"oops\n", NOW);
        stdout.take(&mut log, b"o\n\nrest", NOW);
        stdout.finish(&mut log);
        stderr.finish(&mut log);
        let time = "2026-01-01T00:00:00.000000000Z";
        let text = text(&dir);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[..4],
            [
                format!("{time} stdout F one"),
                format!("{time} stderr F oops"),
                format!("{time} stdout F two"),
                format!("{time} stdout F "),
            ]
        );
        assert!(lines[4].ends_with(" stdout P rest"), "{}", lines[4]);
        assert_eq!(lines.len(), 5);
    }

    #[test]
    fn long_lines_are_split_at_the_limit_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = log_in(&dir, 1 << 20);
        let mut stream = Stream::new("stdout");
        let fits = [vec![b'a'; LINE_BYTES_MAX], b"\n".to_vec()].concat();
        fits.chunks(1000).for_each(|chunk| stream.take(&mut log, chunk, NOW));
        let long = [vec![b'b'; 2 * LINE_BYTES_MAX + 5], b"\n".to_vec()].concat();
        stream.take(&mut log, &long, NOW);
        let shape: Vec<(String, usize)> = text(&dir)
            .lines()
            .map(|line| {
                let fields: Vec<&str> = line.splitn(4, ' ').collect();
                (fields[2].to_owned(), fields[3].len())
            })
            .collect();
        let entry = |tag: &str, length| (tag.to_owned(), length);
        let max = LINE_BYTES_MAX;
        assert_eq!(shape, [entry("F", max), entry("P", max), entry("P", max), entry("F", 5)]);
    }

    #[test]
    fn files_are_rotated_by_size_and_old_ones_removed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("0.log.notes"), "not ours").unwrap();
        let mut log = log_in(&dir, 200);
        let mut stream = Stream::new("stdout");
        for number in 0..40 {
            stream.take(&mut log, format!("line {number}\n").as_bytes(), NOW);
        }
        let old = rotated(&dir.path().join("0.log")).unwrap();
        assert_eq!(old.len(), 2, "{old:?}");
        assert!(dir.path().join("0.log.notes").exists());
        let all: String = old.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
        let all = all + &text(&dir);
        let numbers: Vec<u32> =
            all.lines().map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
        assert_eq!(*numbers.last().unwrap(), 39);
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
        assert!(fs::metadata(&old[0]).unwrap().len() <= 200);
    }

    #[test]
    fn what_the_disk_refuses_is_counted() {
        let mut log = Log::open(&LogSpec::new("/dev/full")).unwrap();
        Stream::new("stdout").take(&mut log, b"lost\n", NOW);
        assert_eq!(log.lost(), "2026-01-01T00:00:00.000000000Z stdout F lost\n".len() as u64);
    }

    #[test]
    fn a_moved_file_is_left_alone_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = log_in(&dir, 1 << 20);
        let mut stream = Stream::new("stdout");
        stream.take(&mut log, b"before\n", NOW);
        fs::rename(dir.path().join("0.log"), dir.path().join("moved")).unwrap();
        log.reopen().unwrap();
        stream.take(&mut log, b"after\n", NOW);
        assert!(text(&dir).ends_with("stdout F after\n"));
        assert!(fs::read_to_string(dir.path().join("moved")).unwrap().ends_with("stdout F before\n"));
    }
}
