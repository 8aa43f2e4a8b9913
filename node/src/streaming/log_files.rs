//! Reading a container instance's log: the CRI format, over rotation, from a start to an end.
//!
//! Each line is `<RFC 3339 time> <stdout|stderr> <F|P> <text>`; P marks a piece of a line that goes on.
//! Files rotated away lie beside the current one, named `<file>.<time>`, so that names sort by age.
//! Synchronous; one call of [`LogReader::read`] gives at most one chunk.

use std::fs;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use nix::fcntl::OFlag;

/// How often a log that grows is looked at when nothing comes.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(50);
/// How much of a file is read at once, and about how much a chunk holds.
const READ_BYTES: usize = 64 << 10;

/// What of a log is wanted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted {
    pub(crate) since: Option<Timestamp>,
    pub(crate) tail_lines: Option<u64>,
    pub(crate) limit_bytes: Option<u64>,
    pub(crate) timestamps: bool,
}

/// Some of a container's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogPiece {
    /// Whether it came on standard error.
    pub is_error: bool,
    /// As it came.
    pub text: Vec<u8>,
}

/// A place in the log.
#[derive(Debug)]
pub(crate) struct LogReader {
    path: PathBuf,
    wanted: Wanted,
    file: Option<fs::File>,
    /// Bytes of an entry that is not complete yet.
    rest: Vec<u8>,
    /// The last entry was a piece of a line.
    within_line: bool,
    bytes_left: Option<u64>,
}

impl LogReader {
    /// Begins at the first entry that is wanted.
    pub(crate) fn open(path: &Path, wanted: Wanted) -> io::Result<Self> {
        let bytes_left = wanted.limit_bytes;
        let mut reader = Self {
            path: path.to_owned(),
            wanted,
            file: None,
            rest: Vec::new(),
            within_line: false,
            bytes_left,
        };
        match reader.wanted.tail_lines {
            Some(lines) => reader.seek_tail(lines)?,
            None => reader.file = reader.files()?.first().map(|path| open_plain(path)).transpose()?,
        }
        Ok(reader)
    }

    /// The next chunk; empty when there is nothing more for now; `None` when the limit was reached.
    pub(crate) fn read(&mut self) -> io::Result<Option<Vec<u8>>> {
        let pieces = self.read_pieces()?;
        Ok(pieces.map(|pieces| pieces.into_iter().flat_map(|piece| piece.text).collect()))
    }

    /// The same, by the streams that it came on.
    pub(crate) fn read_pieces(&mut self) -> io::Result<Option<Vec<LogPiece>>> {
        let mut out = Vec::new();
        let mut buffer = vec![0; READ_BYTES];
        while out.is_empty() {
            if self.bytes_left == Some(0) {
                return Ok(None);
            }
            let count = match self.file.as_mut() {
                Some(file) => file.read(&mut buffer)?,
                None => 0,
            };
            if count == 0 {
                if self.next_file()? {
                    continue;
                }
                return Ok(Some(out));
            }
            self.rest.extend_from_slice(&buffer[..count]);
            self.take_entries(&mut out);
        }
        Ok(Some(out))
    }

    /// What comes next; waits for it while the log grows. `None`: no more.
    pub(crate) fn next_pieces<E>(
        &mut self,
        grows: impl Fn() -> Result<bool, E>,
        failed: impl Fn(&Path, io::Error) -> E,
    ) -> Result<Option<Vec<LogPiece>>, E> {
        loop {
            // Asked before reading: what was written before the end is read after it.
            let more = grows()?;
            match self.read_pieces().map_err(|error| failed(&self.path, error))? {
                Some(pieces) if !pieces.is_empty() => return Ok(Some(pieces)),
                Some(_) if more => std::thread::sleep(FOLLOW_INTERVAL),
                _ => return Ok(None),
            }
        }
    }

    fn take_entries(&mut self, out: &mut Vec<LogPiece>) {
        let rest = std::mem::take(&mut self.rest);
        for entry in rest.split_inclusive(|b| *b == b'\n') {
            match entry.strip_suffix(b"\n") {
                Some(entry) => self.take_entry(entry, out),
                None => self.rest = entry.to_vec(),
            }
        }
    }

    fn take_entry(&mut self, entry: &[u8], out: &mut Vec<LogPiece>) {
        let mut parts = entry.splitn(4, |b| *b == b' ');
        let (Some(time), Some(stream), Some(tag)) = (parts.next(), parts.next(), parts.next()) else {
            return;
        };
        let text = parts.next().unwrap_or_default();
        let at = || std::str::from_utf8(time).ok()?.parse::<Timestamp>().ok();
        if self.wanted.since.is_some_and(|since| at().is_none_or(|at| at < since)) {
            return;
        }
        let mut line = Vec::with_capacity(text.len() + time.len() + 2);
        if self.wanted.timestamps && !self.within_line {
            line.extend_from_slice(time);
            line.push(b' ');
        }
        line.extend_from_slice(text);
        self.within_line = tag.starts_with(b"P");
        if !self.within_line {
            line.push(b'\n');
        }
        if let Some(left) = self.bytes_left.as_mut() {
            line.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= line.len() as u64;
        }
        let is_error = stream == b"stderr";
        match out.last_mut() {
            Some(last) if last.is_error == is_error => last.text.extend_from_slice(&line),
            _ => out.push(LogPiece { is_error, text: line }),
        }
    }

    /// Goes on to the file that follows the one that is open, if there is one.
    fn next_file(&mut self) -> io::Result<bool> {
        let files = self.files()?;
        let Some(open) = self.file.as_ref() else {
            self.file = files.first().map(|path| open_plain(path)).transpose()?;
            return Ok(self.file.is_some());
        };
        let inode = open.metadata()?.ino();
        let at = files.iter().position(|f| fs::metadata(f).is_ok_and(|m| m.ino() == inode));
        // A file that is gone was rotated away and removed: go on with the oldest that is left.
        let next = at.map_or(files.first(), |at| files.get(at + 1));
        let Some(next) = next else { return Ok(false) };
        self.file = Some(open_plain(next)?);
        self.rest.clear();
        Ok(true)
    }

    /// All files of the log, oldest first.
    fn files(&self) -> io::Result<Vec<PathBuf>> {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut files = Vec::new();
        let Some(dir) = self.path.parent() else { return Ok(files) };
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            // Not made yet, or the pod is gone: what is open can still be read to its end.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(files),
            Err(e) => return Err(e),
        };
        for entry in entries {
            let entry = entry?;
            let file = entry.file_name().to_string_lossy().into_owned();
            if file.strip_prefix(&name).is_some_and(|suffix| suffix.starts_with('.')) {
                files.push(entry.path());
            }
        }
        files.sort();
        if self.path.exists() {
            files.push(self.path.clone());
        }
        Ok(files)
    }

    /// Opens the file, and goes to the place in it, from where `lines` entries follow.
    fn seek_tail(&mut self, lines: u64) -> io::Result<()> {
        let mut missing = lines;
        let mut files = self.files()?;
        files.reverse();
        for (number, path) in files.iter().enumerate() {
            let mut file = open_plain(path)?;
            let (offset, found) = tail_offset(&mut file, missing)?;
            missing -= found;
            if missing == 0 || number + 1 == files.len() {
                file.seek(SeekFrom::Start(offset))?;
                self.file = Some(file);
                break;
            }
        }
        Ok(())
    }
}

/// Where the last `lines` entries of a file begin, and how many there are.
fn tail_offset(file: &mut fs::File, lines: u64) -> io::Result<(u64, u64)> {
    let size = file.metadata()?.len();
    if lines == 0 || size == 0 {
        return Ok((size, 0));
    }
    let mut end = size;
    let mut found = 0;
    let mut buffer = vec![0; READ_BYTES];
    while end > 0 {
        let count = end.min(READ_BYTES as u64);
        let start = end - count;
        file.seek(SeekFrom::Start(start))?;
        let chunk = &mut buffer[..count as usize];
        file.read_exact(chunk)?;
        for (at, byte) in chunk.iter().enumerate().rev() {
            let position = start + at as u64;
            // The newline at the very end closes the last entry.
            if *byte == b'\n' && position + 1 < size {
                found += 1;
                if found == lines {
                    return Ok((position + 1, lines));
                }
            }
        }
        end = start;
    }
    Ok((0, found + 1))
}

/// Opens a log that is no link: whoever may write to the directory of logs must not choose what is shown.
pub(crate) fn open_plain(path: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new().read(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(second: u32, tag: &str, text: &str) -> String {
        format!("2026-01-01T00:00:{second:02}.000000000Z stdout {tag} {text}\n")
    }

    fn all(reader: &mut LogReader) -> String {
        let mut text = Vec::new();
        while let Some(chunk) = reader.read().unwrap() {
            if chunk.is_empty() {
                break;
            }
            text.extend(chunk);
        }
        String::from_utf8(text).unwrap()
    }

    fn log(dir: &Path) -> PathBuf {
        let path = dir.join("0.log");
        fs::write(dir.join("0.log.20260101-000000.000000001"), entry(0, "F", "a") + &entry(1, "F", "b"))
            .unwrap();
        fs::write(&path, entry(2, "P", "c") + &entry(3, "F", "d") + &entry(4, "F", "e")).unwrap();
        path
    }

    #[test]
    fn a_link_in_place_of_a_log_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("shadow"), entry(0, "F", "secret")).unwrap();
        let path = dir.path().join("0.log");
        std::os::unix::fs::symlink("shadow", &path).unwrap();
        assert!(LogReader::open(&path, Wanted::default()).and_then(|mut reader| reader.read()).is_err());
    }

    #[test]
    fn reads_over_rotation_and_joins_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let path = log(dir.path());
        let mut reader = LogReader::open(&path, Wanted::default()).unwrap();
        assert_eq!(all(&mut reader), "a\nb\ncd\ne\n");
        let wanted = Wanted { timestamps: true, ..Wanted::default() };
        let text = all(&mut LogReader::open(&path, wanted).unwrap());
        assert!(
            text.ends_with("2026-01-01T00:00:02.000000000Z cd\n2026-01-01T00:00:04.000000000Z e\n"),
            "{text}"
        );
    }

    #[test]
    fn streams_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let error = entry(1, "F", "b").replace("stdout", "stderr");
        fs::write(&path, entry(0, "F", "a") + &error + &entry(2, "P", "c") + &entry(3, "F", "d")).unwrap();
        let pieces = LogReader::open(&path, Wanted::default()).unwrap().read_pieces().unwrap().unwrap();
        let found: Vec<_> = pieces.iter().map(|piece| (piece.is_error, piece.text.as_slice())).collect();
        assert_eq!(found, [(false, &b"a\n"[..]), (true, b"b\n"), (false, b"cd\n")]);
    }

    #[test]
    fn takes_what_is_wanted_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = log(dir.path());
        let with = |wanted: Wanted| all(&mut LogReader::open(&path, wanted).unwrap());
        assert_eq!(with(Wanted { tail_lines: Some(1), ..Wanted::default() }), "e\n");
        assert_eq!(with(Wanted { tail_lines: Some(4), ..Wanted::default() }), "b\ncd\ne\n");
        assert_eq!(with(Wanted { tail_lines: Some(99), ..Wanted::default() }), "a\nb\ncd\ne\n");
        assert_eq!(with(Wanted { tail_lines: Some(0), ..Wanted::default() }), "");
        assert_eq!(with(Wanted { limit_bytes: Some(3), ..Wanted::default() }), "a\nb");
        let since = Some("2026-01-01T00:00:03Z".parse().unwrap());
        assert_eq!(with(Wanted { since, ..Wanted::default() }), "d\ne\n");
    }

    #[test]
    fn goes_on_where_the_log_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = log(dir.path());
        let mut reader = LogReader::open(&path, Wanted { tail_lines: Some(1), ..Wanted::default() }).unwrap();
        assert_eq!(all(&mut reader), "e\n");
        let more = entry(5, "F", "f");
        let write = |text: &str| {
            let mut file = fs::OpenOptions::new().append(true).create(true).open(&path).unwrap();
            io::Write::write_all(&mut file, text.as_bytes()).unwrap();
        };
        write(&more[..10]);
        assert_eq!(all(&mut reader), "");
        write(&more[10..]);
        assert_eq!(all(&mut reader), "f\n");
        fs::rename(&path, dir.path().join("0.log.20260101-000001.000000001")).unwrap();
        write(&entry(6, "F", "g"));
        assert_eq!(all(&mut reader), "g\n");
    }

    #[test]
    fn a_log_that_is_not_there_yet_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let mut reader = LogReader::open(&dir.path().join("0.log"), Wanted::default()).unwrap();
        assert_eq!(all(&mut reader), "");
        fs::write(dir.path().join("0.log"), entry(0, "F", "x")).unwrap();
        assert_eq!(all(&mut reader), "x\n");
    }
}
