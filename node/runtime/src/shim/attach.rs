//! The container's standard input, which the shim keeps, and those who are attached to it and to its output.
//!
//! An attacher brings the ends of pipes along: one that its input is read from, others that output is written
//! to beside the log. Its connection is its life line.
//!
//! Promises: nothing here waits; what a reader has not taken yet is bounded, and while there is any the
//! container's output is not read on; a reader that takes nothing for [`STUCK_TIME_MAX`] is let go, so that
//! nobody can hold the container up for long. Letting go ends nothing in the container, unless its input was
//! to last for one attacher only (`stdin_once`).

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// A reader that takes nothing for so long is let go.
pub(super) const STUCK_TIME_MAX: Duration = Duration::from_secs(5);
/// Output that one reader has not taken; it is let go beyond that.
const PENDING_BYTES_MAX: usize = 512 << 10;
/// One read of input, which is all that waits for the container.
const INPUT_BYTES: usize = 16 << 10;

/// Which ends an attacher brings along, as a request says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
}

impl Ends {
    /// As a number in a request.
    pub(super) fn encode(self) -> u8 {
        u8::from(self.stdin) | u8::from(self.stdout) << 1 | u8::from(self.stderr) << 2
    }

    pub(super) fn decode(number: u8) -> Option<Ends> {
        let bit = |place: u8| number & 1 << place != 0;
        (number < 8).then(|| Ends { stdin: bit(0), stdout: bit(1), stderr: bit(2) })
    }
}

/// The container's standard input.
#[derive(Debug)]
pub(super) struct Input {
    file: File,
    pending: Vec<u8>,
    /// Whether it ends with the first attacher.
    once: bool,
}

impl Input {
    pub(super) fn new(fd: OwnedFd, once: bool) -> io::Result<Input> {
        Ok(Input { file: nonblocking(fd)?, pending: Vec::new(), once })
    }

    /// Whether more can be taken.
    pub(super) fn has_room(&self) -> bool {
        self.pending.is_empty()
    }

    /// What becomes writable when the container has read, while something waits for that.
    pub(super) fn waiting(&self) -> Option<BorrowedFd<'_>> {
        (!self.has_room()).then(|| self.file.as_fd())
    }

    /// Writes what waits. `false`: nobody reads it any more.
    pub(super) fn flush(&mut self) -> bool {
        write_some(&mut self.file, &mut self.pending)
    }
}

/// Somebody who is attached.
#[derive(Debug)]
pub(super) struct Attachment {
    input: Option<File>,
    /// Whether its going ends an input that is for one attacher only.
    had_input: bool,
    outputs: [Option<Sink>; 2],
}

/// A reader of output.
#[derive(Debug)]
struct Sink {
    file: File,
    pending: Vec<u8>,
    stuck_since: Option<Instant>,
}

impl Attachment {
    /// Takes over the ends that came with a request, in the order of [`Ends`].
    pub(super) fn new(ends: Ends, passed: Vec<OwnedFd>) -> io::Result<Attachment> {
        let mut passed = passed.into_iter();
        let mut take = |wanted: bool| match wanted {
            true => passed.next().ok_or_else(|| Errno::EINVAL.into()).and_then(nonblocking).map(Some),
            false => Ok(None),
        };
        let input = take(ends.stdin)?;
        let sink =
            |file: Option<File>| file.map(|file| Sink { file, pending: Vec::new(), stuck_since: None });
        let outputs = [sink(take(ends.stdout)?), sink(take(ends.stderr)?)];
        Ok(Attachment { had_input: input.is_some(), input, outputs })
    }

    /// What is readable when it has input for the container.
    pub(super) fn source(&self) -> Option<BorrowedFd<'_>> {
        self.input.as_ref().map(AsFd::as_fd)
    }

    /// What is writable when it can take more of what waits for it.
    pub(super) fn waiting(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let sinks = self.outputs.iter().flatten();
        sinks.filter(|sink| !sink.pending.is_empty()).map(|sink| sink.file.as_fd())
    }

    /// When it is to be let go unless it takes something.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let since = self.outputs.iter().flatten().filter_map(|sink| sink.stuck_since).min();
        since.map(|since| since + STUCK_TIME_MAX)
    }

    /// Carries its input on to the container. At the input's end, one that is for one attacher ends as well.
    pub(super) fn carry_input(&mut self, input: &mut Option<Input>) {
        let mut chunk = [0; INPUT_BYTES];
        let Some(source) = &mut self.input else { return };
        match source.read(&mut chunk) {
            Ok(length) if length > 0 => {
                let alive = input.as_mut().is_none_or(|input| {
                    input.pending.extend_from_slice(&chunk[..length]);
                    input.flush()
                });
                if !alive {
                    *input = None;
                }
            }
            Err(error) if is_transient(&error) => {}
            Ok(_) | Err(_) => {
                self.input = None;
                self.leave(input);
            }
        }
    }

    /// What its going means for the container's input.
    pub(super) fn leave(&self, input: &mut Option<Input>) {
        if self.had_input && input.as_ref().is_some_and(|input| input.once) {
            *input = None;
        }
    }

    /// Gives it output of a stream (0 standard output, 1 error). `false`: it is to be let go.
    pub(super) fn give(&mut self, stream: usize, bytes: &[u8]) -> bool {
        let Some(sink) = &mut self.outputs[stream] else { return true };
        sink.pending.extend_from_slice(bytes);
        self.flush()
    }

    /// Writes what waits. `false`: it is to be let go: it is gone, or does not read.
    pub(super) fn flush(&mut self) -> bool {
        let mut fine = true;
        for sink in self.outputs.iter_mut().flatten().filter(|sink| !sink.pending.is_empty()) {
            let before = sink.pending.len();
            fine &= write_some(&mut sink.file, &mut sink.pending);
            if sink.pending.is_empty() {
                sink.stuck_since = None;
            } else if sink.pending.len() < before || sink.stuck_since.is_none() {
                sink.stuck_since = Some(Instant::now());
            }
            fine &= sink.pending.len() <= PENDING_BYTES_MAX;
        }
        fine && self.deadline().is_none_or(|deadline| Instant::now() < deadline)
    }
}

/// Writes from the front of a buffer what fits. `false`: nobody reads.
fn write_some(file: &mut File, pending: &mut Vec<u8>) -> bool {
    let mut written = 0;
    let alive = loop {
        if written == pending.len() {
            break true;
        }
        match file.write(&pending[written..]) {
            Ok(0) => break false,
            Ok(length) => written += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break error.kind() == io::ErrorKind::WouldBlock,
        }
    };
    pending.drain(..written);
    alive
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}

/// Makes a descriptor answer `WouldBlock` where it would wait.
pub(super) fn nonblocking(fd: OwnedFd) -> io::Result<File> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(File::from(fd))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipe() -> (OwnedFd, OwnedFd) {
        nix::unistd::pipe().unwrap()
    }

    #[test]
    fn ends_go_round() {
        for number in 0..8 {
            assert_eq!(Ends::decode(number).unwrap().encode(), number);
        }
        assert_eq!(Ends::decode(8), None);
    }

    #[test]
    fn a_reader_that_takes_nothing_is_let_go_and_one_that_is_gone() {
        let ends = Ends { stdin: false, stdout: true, stderr: false };
        let (reader, writer) = pipe();
        let mut attachment = Attachment::new(ends, vec![writer]).unwrap();
        assert!(attachment.give(0, b"hello") && attachment.waiting().count() == 0);
        assert!(attachment.give(1, b"nobody wants it"));
        let (mut given, chunk) = (0, [7; 64 << 10]);
        while attachment.give(0, &chunk) {
            given += chunk.len();
            assert!(attachment.waiting().count() == 1 || given <= 64 << 10);
            assert!(given <= PENDING_BYTES_MAX + (128 << 10), "it is bounded");
        }
        drop(reader);
        let (reader, writer) = pipe();
        let mut attachment = Attachment::new(ends, vec![writer]).unwrap();
        drop(reader);
        assert!(!attachment.give(0, b"hello"));
        assert!(Attachment::new(ends, Vec::new()).is_err());
    }

    #[test]
    fn input_for_one_attacher_ends_with_it_and_other_input_does_not() {
        let ends = Ends { stdin: true, stdout: false, stderr: false };
        for once in [false, true] {
            let (container, near) = pipe();
            let mut input = Some(Input::new(near, once).unwrap());
            let (source, attacher) = pipe();
            let mut attachment = Attachment::new(ends, vec![source]).unwrap();
            File::from(attacher).write_all(b"word").unwrap();
            attachment.carry_input(&mut input);
            let mut word = [0; 4];
            File::from(container).read_exact(&mut word).unwrap();
            assert_eq!(&word, b"word");
            attachment.carry_input(&mut input);
            assert_eq!(input.is_none(), once, "once: {once}");
        }
    }
}
