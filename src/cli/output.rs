//! Lines for stdout and stderr, which never make the server wait.
//!
//! A pipe that nobody reads blocks whoever writes to it, and a closed one makes `println!` panic. So lines go into a
//! bounded queue, a thread writes them, and those that find no room or cannot be written are counted.

use std::fmt::Display;
use std::io::{self, Write};
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// How many bytes may wait to be written.
const QUEUE_BYTES: usize = 256 * 1024;

/// A stream of lines, with a thread that writes them.
#[derive(Clone)]
pub(crate) struct Output {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    /// Told when lines are queued, and when they are written.
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    /// Whole lines.
    text: Vec<u8>,
    /// Lines were taken out and are being written.
    writing: bool,
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
        thread::Builder::new()
            .name("output".to_owned())
            .spawn(move || shared.write_to(stream))?;
        Ok(output)
    }

    /// Queues a line, or counts it as lost.
    pub(crate) fn line(&self, line: impl Display) {
        let line = format!("{line}\n");
        let mut queue = self.shared.lock();
        if queue.text.len() + line.len() > QUEUE_BYTES {
            queue.lost_lines += 1;
            return;
        }
        queue.text.extend_from_slice(line.as_bytes());
        drop(queue);
        self.shared.changed.notify_all();
    }

    /// Waits until everything is written, for `patience` at most.
    pub(crate) fn flush(&self, patience: Duration) {
        let is_busy = |queue: &mut Queue| queue.writing || !queue.text.is_empty();
        // If time is over, the lines are still queued, and there is nothing better to do.
        drop(
            self.shared
                .changed
                .wait_timeout_while(self.shared.lock(), patience, is_busy),
        );
    }

    /// How many lines were not written, because there was no room or the stream failed.
    pub(crate) fn lost_lines(&self) -> u64 {
        self.shared.lock().lost_lines
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
            queue.writing = true;
            drop(queue);
            let written = stream.write_all(&text).and_then(|()| stream.flush());
            queue = self.lock();
            queue.writing = false;
            if written.is_err() {
                queue.lost_lines += text.iter().filter(|&&byte| byte == b'\n').count() as u64;
            }
            self.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// Writes only when it is told to, and fails when nobody tells it any more.
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
        let (written, lines) = mpsc::channel();
        let output = Output::start(Stalled(may_go, written)).unwrap();
        output.line("first");
        for _ in 0..2 * QUEUE_BYTES / 8 {
            output.line("1234567");
        }
        let lost = output.lost_lines();
        assert!(lost > 0, "the queue has bounds");
        go.send(()).unwrap();
        assert!(lines.recv().unwrap().starts_with(b"first\n"));
        drop(go);
        output.flush(Duration::from_secs(10));
        assert!(
            output.lost_lines() > lost,
            "lines that cannot be written are counted, too"
        );
    }
}
