//! The command-line program, an echo server: its options, signals and exit codes.

mod cli;

use std::env;
use std::fmt::Display;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Duration;

use futures_lite::FutureExt;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tinyloop::monitor::Monitor;
use tinyloop::signal::{self, Signal};
use tinyloop::{Event, EventLoop, Listener, Report, Server};

use cli::PATIENCE;
use cli::args::{Early, Options};
use cli::faulty::{self, Fates};
use cli::listen;
use cli::log::Log;
use cli::models::{self, Echo};
use cli::output::{self, Output};
use cli::systemd;
use cli::values::{LogFormat, Model};
use cli::worker::Worker;
use cli::workers::supervise;

/// Descriptors that are not for connections: listeners, standard streams, the reactor's, signals, a monitor.
const OTHER_DESCRIPTORS: u64 = 32;

/// The default connection limit is not higher than this, even with more file descriptors.
const MAX_CONNECTIONS: u64 = 10_000;

/// The default stall timeout.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// The default drain time.
pub(crate) const DRAIN: Duration = Duration::from_secs(5);

/// How long a connection may take to send its PROXY header. TCP sends a lost packet again after one second, then two.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// The file descriptors of the monitor: its listener, and one that the kernel reserves while it waits to accept.
const OF_MONITOR: usize = 2;

/// Those that starting processes needs at once, beside what each process and listener needs.
const OF_PROCESSES: usize = 8;

fn main() -> ExitCode {
    let options = match Options::parse(env::args_os().skip(1)) {
        Ok(options) => options,
        Err(Early::Answer(text)) => {
            // If the reader has closed the pipe (`| head -1`), this is not an error of the program.
            return match writeln!(io::stdout(), "{text}") {
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => fail(1, error),
                _ => ExitCode::SUCCESS,
            };
        }
        Err(Early::Usage(line)) => return fail(2, line),
    };
    match run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, error),
    }
}

/// Reports why the program ends. Does not wait for a reader.
fn fail(status: u8, reason: impl Display) -> ExitCode {
    match Output::start(io::stderr()) {
        Ok(errors) => {
            errors.line(reason);
            errors.flush(PATIENCE);
        }
        // No thread can be started.
        Err(_) => output::write_if_read(io::stderr(), reason, PATIENCE),
    }
    ExitCode::from(status)
}

/// Listens, and serves with the chosen model until a signal comes.
fn run(mut options: Options) -> io::Result<()> {
    // Before there is a descriptor or a thread of ours: it could be taken for one that was passed on.
    let worker = Worker::from_env()?;
    let inherited = match options.listen[..] {
        [] => tinyloop::inherited()?,
        _ if worker.is_some() => tinyloop::inherited()?,
        _ => Vec::new(),
    };
    if let Some(worker) = &worker {
        worker.interrupt_nobody();
    }
    let errors = Output::start(io::stderr())?;
    let _flushed = FlushOnDrop(&errors);
    output::tell_panics(&errors);

    let max_descriptors = raise_descriptor_limit();
    let event_loop = EventLoop::new()?;
    // Now a write above the limit for file sizes (`ulimit -f`) returns an error, as on a full disk.
    drop(signal::signals([Signal::Xfsz])?);
    let listeners = listen::or_inherited(&options.listen, inherited)?;
    let output = Output::start(io::stdout())?;
    let log = Log {
        format: options.log.unwrap_or(LogFormat::Text),
        timestamps: options.timestamps,
        output: output.clone(),
        errors: errors.clone(),
        worker: worker.as_ref().map(|worker| worker.number),
    };
    match options.model {
        Model::Async => match (worker, options.workers) {
            (Some(worker), _) => {
                worker.take_share(&mut options);
                let server = serve(options, listeners, max_descriptors, &log, Some(&worker));
                worker.report(&event_loop.run(server)?);
            }
            (None, Some(count)) => {
                // The workers' lines and sockets, their sockets' copies for one of them, and what waits for their ends.
                check_room(count + listeners.len() + OF_PROCESSES)?;
                event_loop.run(supervise(count, &options, listeners, &log))?;
            }
            (None, None) => {
                let server = serve(options, listeners, max_descriptors, &log, None);
                log.report(&event_loop.run(server)?);
            }
        },
        Model::Threaded | Model::Sequential => {
            // Before the line "listening": a program that waits for this line may send a signal at once.
            let shutdown = signal::shutdown()?;
            start_model(options, listeners, &output)?;
            event_loop.run(shutdown);
        }
    }

    output.flush(PATIENCE);
    log.lost_lines();
    Ok(())
}

/// Gives the last lines time to be written, even if [`run`] returns an error.
struct FlushOnDrop<'o>(&'o Output);

impl Drop for FlushOnDrop<'_> {
    fn drop(&mut self) {
        self.0.flush(PATIENCE);
    }
}

/// The async model: tinyloop's own server.
async fn serve(
    options: Options,
    listeners: Vec<(String, Listener)>,
    max_descriptors: u64,
    log: &Log,
    worker: Option<&Worker>,
) -> io::Result<Report> {
    // Before the line "listening": a program that waits for this line may send a signal at once.
    let signalled = signal::shutdown()?;
    check_room(
        1 + if options.monitor.is_some() {
            OF_MONITOR
        } else {
            0
        },
    )?;
    let monitor = options.monitor.map(listen::monitor).transpose()?;
    let room = max_descriptors.saturating_sub(OTHER_DESCRIPTORS);
    let default_max = room.clamp(1, MAX_CONNECTIONS) as usize;
    let plan = faulty::plan(options.fault, options.seed);
    let faults = plan.as_ref().map(ToString::to_string);
    let fates = plan.map(Fates::new);
    let observed = fates.clone();
    let (quiet, events) = (options.quiet, log.clone());
    let parent = worker.map(Worker::end).transpose()?;
    let shutdown = async move {
        match parent {
            Some(parent) => signalled.or(parent).await,
            None => signalled.await,
        }
        systemd::stopping();
    };
    let listeners = listeners.into_iter().map(|(_, listener)| listener);
    let mut server = Server::from_listeners(listeners)?
        .max_connections(options.max_connections.unwrap_or(default_max))
        .when_full(options.when_full.unwrap_or_default())
        .stall_timeout(options.stall_timeout.unwrap_or(STALL_TIMEOUT))
        .shutdown_on(shutdown)
        .lame_duck(options.lame_duck.unwrap_or_default())
        .drain(options.drain.unwrap_or(DRAIN))
        .observe(move |event| {
            let fate = match (event, &observed) {
                (Event::Connected { id, .. }, Some(fates)) => Some(fates.draw(*id)),
                _ => None,
            };
            match event {
                // Already reported.
                Event::Listening { .. } => {}
                // Caused by a signal, and only once.
                Event::LameDuck { .. } | Event::Draining { .. } => events.event(event, None),
                // Caused by clients.
                _ if quiet => {}
                _ => events.event(event, fate),
            }
        });
    if let Some(timeout) = options.idle_timeout {
        server = server.idle_timeout(timeout);
    }
    if options.proxy_protocol {
        server = server.proxy_protocol(HEADER_TIMEOUT);
    }
    if worker.is_none() {
        log.listening(server.local_addrs(), PATIENCE);
        if let Some(faults) = faults {
            log.notice("faults", "misbehaving on purpose:", faults);
        }
        if let Some(monitor) = &monitor {
            listen::tell_monitor(monitor, log);
        }
    }
    if monitor.is_some() {
        listen::tell_slow_polls(log);
    }
    log.output.flush(PATIENCE);
    let live_report = server.live_report();
    match worker {
        Some(worker) => worker.ready(monitor.as_ref().map(Monitor::local_addr), live_report)?,
        None => systemd::ready(move || systemd::status(&live_report.report())),
    }
    // One prefix for all connections, which lives as long as the process.
    static PREFIX: OnceLock<String> = OnceLock::new();
    let prefix = PREFIX.get_or_init(|| options.prefix).as_bytes();
    let framing = options.framing;
    match fates {
        None => {
            let echo = move |connection| tinyloop::echo_framed(connection, prefix, framing);
            server.serve(echo).await
        }
        Some(fates) => {
            let echo = move |connection| fates.clone().echo(connection, prefix, framing);
            server.serve(echo).await
        }
    }
}

/// Fails if there are not so many file descriptors left: one for a connection, and those that will be opened before
/// that.
fn check_room(descriptors: usize) -> io::Result<()> {
    let explain = |error: io::Error| {
        let text = format!(
            "cannot accept any connection: {error}; raise the limit of open files (ulimit -n)"
        );
        io::Error::new(error.kind(), text)
    };
    let open = |_| io::stderr().as_fd().try_clone_to_owned();
    let opened: io::Result<Vec<_>> = (0..descriptors).map(open).collect();
    opened.map(drop).map_err(explain)
}

/// Starts one of the other two models, in threads of its own.
fn start_model(
    options: Options,
    listeners: Vec<(String, Listener)>,
    output: &Output,
) -> io::Result<()> {
    let addrs = listeners
        .iter()
        .map(|(_, listener)| listener.local_addr())
        .collect::<io::Result<Vec<_>>>()?;
    let listeners = listeners
        .into_iter()
        .map(|(_, listener)| listen::blocking(listener))
        .collect::<io::Result<_>>()?;
    let echo = Echo {
        prefix: options.prefix.into_bytes().into(),
        framing: options.framing,
        output: (!options.quiet).then(|| output.clone()),
    };
    let begin = match options.model {
        Model::Sequential => models::serve_sequentially(listeners, echo)?,
        _ => models::serve_in_threads(listeners, echo)?,
    };
    check_room(1)?;
    for addr in addrs {
        output.line(format_args!("listening on {addr}"));
    }
    output.flush(PATIENCE);
    begin.wait();
    Ok(())
}

/// Raises the soft limit of descriptors to the hard one. Returns the limit.
fn raise_descriptor_limit() -> u64 {
    let mut limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if setrlimit(Resource::Nofile, raised).is_ok() {
        limit = raised;
    }
    limit.current.unwrap_or(u64::MAX)
}
