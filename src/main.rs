//! The echo server as a program: what it does with its options, signals and exit codes.

mod cli;

use std::env;
use std::io::{self, Write};
use std::process::{self, ExitCode};
use std::sync::OnceLock;
use std::time::Duration;

use futures_lite::StreamExt;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tinyloop::signal::{self, Signal, Signals};
use tinyloop::{Event, EventLoop, Listener, Report, SLOW_POLL, Server, monitor};

use cli::args::{Early, Model, Options};
use cli::listen::listen;
use cli::models::{self, Echo};
use cli::output::Output;

/// How long to wait for a reader of our output, when the server starts and when it ends.
const PATIENCE: Duration = Duration::from_millis(200);

/// Descriptors that are not for connections: listeners, standard streams, the reactor's, signals, a monitor.
const OTHER_DESCRIPTORS: u64 = 32;

/// The most connections by default, however many descriptors there are.
const MAX_CONNECTIONS: u64 = 10_000;

/// How long a peer may not read, by default.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// How long open connections may go on after a signal, by default.
const DRAIN: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let options = match Options::parse(env::args_os().skip(1)) {
        Ok(options) => options,
        Err(Early::Answer(text)) => {
            // Whoever has seen enough (`| head -1`) closes the pipe: no failure of ours.
            writeln!(io::stdout(), "{text}").ok();
            return ExitCode::SUCCESS;
        }
        Err(Early::Usage(line)) => {
            writeln!(io::stderr(), "{line}").ok();
            return ExitCode::from(2);
        }
    };
    match run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            writeln!(io::stderr(), "{error}").ok();
            ExitCode::from(1)
        }
    }
}

/// Listens, and serves with the chosen model until a signal comes.
fn run(options: Options) -> io::Result<()> {
    let max_descriptors = raise_descriptor_limit();
    let event_loop = EventLoop::new()?;
    let listeners = listen(&options.listen)?;
    let output = Output::start(io::stdout())?;
    let errors = Output::start(io::stderr())?;
    // Before we say that we listen: whoever waits for that may send a signal at once.
    let signals = signal::signals([Signal::Int, Signal::Term])?;

    match options.model {
        Model::Async => {
            let server = serve(
                options,
                listeners,
                signals,
                max_descriptors,
                &output,
                &errors,
            );
            let report = event_loop.run(server)?;
            errors.line(report);
        }
        Model::Threaded | Model::Sequential => {
            start_model(options, listeners, &output)?;
            event_loop.run(shutdown(signals));
        }
    }

    output.flush(PATIENCE);
    if output.lost_lines() > 0 {
        errors.line(format_args!(
            "lines of output lost: {}",
            output.lost_lines()
        ));
    }
    errors.flush(PATIENCE);
    Ok(())
}

/// The async model: tinyloop's own server.
async fn serve(
    options: Options,
    listeners: Vec<Listener>,
    signals: Signals,
    max_descriptors: u64,
    output: &Output,
    errors: &Output,
) -> io::Result<Report> {
    let monitor = options.monitor.map(monitor::serve).transpose()?;
    announce(&listeners, output)?;
    if let Some(monitor) = &monitor {
        output.line(format_args!("monitor on {}", monitor.local_addr()));
        output.flush(PATIENCE);
        let errors = errors.clone();
        tinyloop::on_slow_poll(SLOW_POLL, move |slow_poll| errors.line(slow_poll));
    }

    let room = max_descriptors.saturating_sub(OTHER_DESCRIPTORS);
    let default_max = room.clamp(1, MAX_CONNECTIONS) as usize;
    let (quiet, output, errors) = (options.quiet, output.clone(), errors.clone());
    let mut server = Server::from_listeners(listeners)?
        .max_connections(options.max_connections.unwrap_or(default_max))
        .when_full(options.when_full.unwrap_or_default())
        .stall_timeout(options.stall_timeout.unwrap_or(STALL_TIMEOUT))
        .shutdown_on(shutdown(signals))
        .drain(options.drain.unwrap_or(DRAIN))
        .observe(move |event| match event {
            // Was told before.
            Event::Listening { .. } => {}
            Event::Connected { .. } | Event::Closed { .. } if quiet => {}
            Event::Connected { .. } | Event::Closed { .. } => output.line(event),
            _ => errors.line(event),
        });
    if let Some(timeout) = options.idle_timeout {
        server = server.idle_timeout(timeout);
    }
    // For all connections and as long as the process.
    static PREFIX: OnceLock<String> = OnceLock::new();
    let (prefix, framing) = (PREFIX.get_or_init(|| options.prefix), options.framing);
    server
        .serve(move |connection| tinyloop::echo_framed(connection, prefix.as_bytes(), framing))
        .await
}

/// Says where we listen, before anybody is served.
fn announce(listeners: &[Listener], output: &Output) -> io::Result<()> {
    for listener in listeners {
        output.line(format_args!("listening on {}", listener.local_addr()?));
    }
    output.flush(PATIENCE);
    Ok(())
}

/// Resolves at the first signal. The second one ends the process at once.
async fn shutdown(mut signals: Signals) {
    signals.next().await;
    let second = async move {
        if let Some(signal) = signals.next().await {
            process::exit(128 + signal as i32);
        }
    };
    tinyloop::spawn(second).detach();
}

/// Starts one of the other two models, in threads of its own.
fn start_model(options: Options, listeners: Vec<Listener>, output: &Output) -> io::Result<()> {
    announce(&listeners, output)?;
    let listeners = listeners
        .into_iter()
        .filter_map(Listener::into_tcp)
        .collect();
    let echo = Echo {
        prefix: options.prefix.into_bytes().into(),
        framing: options.framing,
        output: (!options.quiet).then(|| output.clone()),
    };
    match options.model {
        Model::Sequential => models::serve_sequentially(listeners, echo),
        _ => models::serve_in_threads(listeners, echo),
    }
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
