//! Lines for stdout and stderr that never make the server wait.
//!
//! A full pipe blocks its writer, and a closed pipe makes `println!` panic. So lines go into a bounded queue, and a
//! thread writes them. Lines are counted as lost if the queue is full or they cannot be written.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::Display;
use std::io::{self, Write};
use std::iter;
use std::mem;
use std::os::fd::AsFd;
use std::panic;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::event::{self, PollFd, PollFlags, Timespec};

use super::start_thread;

/// Maximum number of bytes that wait to be written.
const QUEUE_BYTES: usize = 256 * 1024;

/// Maximum number of bytes in one write, in whole lines. A pipe takes this many bytes completely or not at all
/// (`PIPE_BUF`), so it is known which lines were written if the reader stops.
const PIECE_BYTES: usize = 4096;

/// A stream of lines, with a thread that writes them.
#[derive(Clone)]
pub(crate) struct Output {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    /// Notified when lines are queued, and when they are written.
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    /// Whole lines.
    text: Vec<u8>,
    /// Number of lines in `text`, plus the lines that are being written.
    waiting_lines: u64,
    lost_lines: u64,
}

impl Output {
    /// Starts the thread that writes to `stream`.
    pub(crate) fn start(stream: impl Write + Send + 'static) -> io::Result<Output> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            changed: Condvar::new(),
        });
        let output = Output {
            shared: shared.clone(),
        };
        start_thread("output", move || shared.write_to(stream))?;
        Ok(output)
    }

    /// Queues a line or several lines, or counts them as lost.
    pub(crate) fn line(&self, line: impl Display) {
        let line = format!("{line}\n");
        let lines = count_lines(line.as_bytes());
        let mut queue = self.shared.lock();
        if queue.text.len() + line.len() > QUEUE_BYTES {
            queue.lost_lines += lines;
            return;
        }
        queue.text.extend_from_slice(line.as_bytes());
        queue.waiting_lines += lines;
        drop(queue);
        self.shared.changed.notify_all();
    }

    /// Waits until everything is written, but at most `patience`.
    pub(crate) fn flush(&self, patience: Duration) {
        let is_busy = |queue: &mut Queue| queue.waiting_lines > 0;
        // If the time is over, the remaining lines stay in the queue and are lost.
        drop(
            self.shared
                .changed
                .wait_timeout_while(self.shared.lock(), patience, is_busy),
        );
    }

    /// Number of lines that are not written, because the queue was full or the stream failed or is stalled.
    pub(crate) fn lost_lines(&self) -> u64 {
        let queue = self.shared.lock();
        queue.lost_lines + queue.waiting_lines
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_to(&self, mut stream: impl Write) {
        let mut queue = self.lock();
        loop {
            while queue.text.is_empty() {
                queue = self
                    .changed
                    .wait(queue)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            let text = mem::take(&mut queue.text);
            drop(queue);
            for piece in pieces(&text) {
                let written = stream.write_all(piece).and_then(|()| stream.flush());
                let lines = count_lines(piece);
                let mut queue = self.lock();
                queue.waiting_lines -= lines;
                if written.is_err() {
                    queue.lost_lines += lines;
                }
            }
            queue = self.lock();
            self.changed.notify_all();
        }
    }
}

fn count_lines(text: &[u8]) -> u64 {
    text.iter().filter(|&&byte| byte == b'\n').count() as u64
}

/// Cuts text into pieces of whole lines, of at most [`PIECE_BYTES`]. A longer line is a piece of its own.
fn pieces(mut text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let is_end = |byte: &u8| *byte == b'\n';
    iter::from_fn(move || {
        let most = &text[..text.len().min(PIECE_BYTES)];
        let end = most
            .iter()
            .rposition(is_end)
            .or_else(|| text.iter().position(is_end))?;
        let (piece, rest) = text.split_at(end + 1);
        text = rest;
        Some(piece)
    })
}

/// From now on, panic messages go into the queue `errors`. std's own hook would wait for the reader of stderr; in the
/// event loop's thread this would stop all connections.
pub(crate) fn tell_panics(errors: &Output) {
    let errors = errors.clone();
    panic::set_hook(Box::new(move |panic| {
        let thread = thread::current();
        let name = thread.name().unwrap_or("unnamed");
        let backtrace = Backtrace::capture();
        match backtrace.status() {
            BacktraceStatus::Captured => {
                errors.line(format_args!("thread '{name}' {panic}\n{backtrace}"));
            }
            _ => errors.line(format_args!("thread '{name}' {panic}")),
        }
    }));
}

/// Writes a line, if this takes no longer than `patience`.
pub(crate) fn write_if_read(mut stream: impl Write + AsFd, line: impl Display, patience: Duration) {
    let timeout = Timespec::try_from(patience).ok();
    let mut polled = [PollFd::new(&stream, PollFlags::OUT)];
    if event::poll(&mut polled, timeout.as_ref()).is_ok_and(|ready| ready > 0) {
        writeln!(stream, "{line}").ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::sync::mpsc;

    /// Each write waits for a message from the test, and fails when the test has dropped its sender.
    struct Stalled(mpsc::Receiver<()>, mpsc::Sender<Vec<u8>>);

    impl Write for Stalled {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().map_err(io::Error::other)?;
            self.1.send(bytes.to_owned()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stalled_stream_costs_lines_and_no_time() {
        let (go, may_go) = mpsc::channel();
        let (write, written) = mpsc::channel();
        let output = Output::start(Stalled(may_go, write)).unwrap();
        output.line("first");
        let lines_in_queue = QUEUE_BYTES / 8;
        for _ in 0..2 * lines_in_queue {
            output.line("1234567");
        }
        assert!(output.shared.lock().text.len() <= QUEUE_BYTES);
        assert!(output.shared.lock().lost_lines > 0, "the queue has bounds");
        go.send(()).unwrap();
        let written = written.recv().unwrap();
        assert!(written.starts_with(b"first\n"));
        assert!(written.len() <= PIECE_BYTES);
        drop(go);
        output.flush(Duration::from_secs(10));
        assert_eq!(
            output.lost_lines(),
            1 + 2 * lines_in_queue as u64 - count_lines(&written),
            "lines that cannot be written are counted, too"
        );
    }
    #[test]
    fn a_panic_does_not_wait_for_who_reads_its_message() {
        let (go, may_go) = mpsc::channel();
        let (write, written) = mpsc::channel();
        let errors = Output::start(Stalled(may_go, write)).unwrap();
        let old_hook = panic::take_hook();
        tell_panics(&errors);
        let outcome = panic::catch_unwind(|| panic!("in a handler"));
        panic::set_hook(old_hook);
        outcome.unwrap_err();
        // With a backtrace, if that is asked for, it comes in several pieces.
        for _ in 0..100 {
            go.send(()).unwrap();
        }
        let written = String::from_utf8(written.recv().unwrap()).unwrap();
        assert!(
            written.contains("' panicked at src/cli/output.rs:"),
            "{written}"
        );
        assert!(written.contains("\nin a handler\n"), "{written}");
        errors.flush(Duration::from_secs(10));
        assert_eq!(errors.lost_lines(), 0, "all of its lines are written");
    }

    #[test]
    fn without_a_thread_a_line_that_nobody_reads_is_dropped() {
        let (reader, writer) = io::pipe().unwrap();
        write_if_read(&writer, "read", Duration::ZERO);
        let mut line = [0; 5];
        (&reader).read_exact(&mut line).unwrap();
        assert_eq!(&line, b"read\n");
        let filling = Output::start(writer.try_clone().unwrap()).unwrap();
        while filling.lost_lines() < 1000 {
            filling.line("x".repeat(4000));
        }
        filling.flush(Duration::from_millis(100));
        write_if_read(&writer, "dropped", Duration::from_millis(1));
    }
}
