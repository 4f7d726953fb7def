//! The echo server as a program: what it does with its options, signals and exit codes.

mod cli;

use std::env;
use std::io::{self, Write};
use std::process::{self, ExitCode};
use std::time::Duration;

use futures_lite::StreamExt;
use rustix::process::{Resource, getrlimit, setrlimit};
use tinyloop::signal::{self, Signal};
use tinyloop::{Event, EventLoop, Listener, Report, Server};

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
    let stdout = Output::start(io::stdout())?;
    let stderr = Output::start(io::stderr())?;

    match options.model {
        Model::Async => {
            let report = event_loop.run(serve(
                options,
                listeners,
                max_descriptors,
                stdout.clone(),
                stderr.clone(),
            ))?;
            stderr.line(report);
        }
        Model::Threaded => event_loop.run(serve_for_comparison(
            models::serve_in_threads,
            options,
            listeners,
            &stdout,
        ))?,
        Model::Sequential => {
            event_loop.run(serve_for_comparison(
                models::serve_sequentially,
                options,
                listeners,
                &stdout,
            ))?;
        }
    }

    stdout.flush(PATIENCE);
    if stdout.lost_lines() > 0 {
        stderr.line(format_args!(
            "{} lines of output were lost",
            stdout.lost_lines()
        ));
    }
    stderr.flush(PATIENCE);
    Ok(())
}

/// The async model: tinyloop's own server.
async fn serve(
    options: Options,
    listeners: Vec<Listener>,
    max_descriptors: u64,
    stdout: Output,
    stderr: Output,
) -> io::Result<Report> {
    let mut signals = signal::signals([Signal::Int, Signal::Term])?;
    let shutdown = async move {
        signals.next().await;
        // The second signal ends us at once.
        let second = async move {
            if let Some(signal) = signals.next().await {
                process::exit(128 + signal as i32);
            }
        };
        tinyloop::spawn(second).detach();
    };
    let default_max = max_descriptors
        .saturating_sub(OTHER_DESCRIPTORS)
        .clamp(1, MAX_CONNECTIONS) as usize;
    let quiet = options.quiet;
    let mut server = Server::from_listeners(listeners)?
        .max_connections(options.max_connections.unwrap_or(default_max))
        .when_full(options.when_full.unwrap_or_default())
        .stall_timeout(options.stall_timeout.unwrap_or(STALL_TIMEOUT))
        .shutdown_on(shutdown)
        .drain(options.drain.unwrap_or(DRAIN))
        .observe(move |event| match event {
            Event::Listening { .. } => announce(&stdout, event),
            Event::Connected { .. } | Event::Closed { .. } if quiet => {}
            Event::Connected { .. } | Event::Closed { .. } => stdout.line(event),
            _ => stderr.line(event),
        });
    if let Some(timeout) = options.idle_timeout {
        server = server.idle_timeout(timeout);
    }
    let (prefix, framing) = (options.prefix.0, options.framing);
    server
        .serve(async move |connection| {
            tinyloop::echo_framed(connection, prefix.as_bytes(), framing).await
        })
        .await
}

/// One of the other two models, in threads of its own, until a signal comes.
async fn serve_for_comparison(
    serve: fn(Vec<std::net::TcpListener>, Echo) -> io::Result<()>,
    options: Options,
    listeners: Vec<Listener>,
    stdout: &Output,
) -> io::Result<()> {
    let shutdown = signal::shutdown()?;
    for listener in &listeners {
        announce(
            stdout,
            &Event::Listening {
                addr: &listener.local_addr()?,
            },
        );
    }
    let echo = Echo {
        prefix: options.prefix.0.into_bytes().into(),
        framing: options.framing,
        output: (!options.quiet).then(|| stdout.clone()),
    };
    serve(
        listeners
            .into_iter()
            .filter_map(Listener::into_tcp)
            .collect(),
        echo,
    )?;
    shutdown.await;
    Ok(())
}

/// Prints that we listen, before anybody is served: whoever started us may wait for that line.
fn announce(stdout: &Output, event: &Event<'_>) {
    stdout.line(event);
    stdout.flush(PATIENCE);
}

/// Raises the soft limit of descriptors to the hard one. Returns the limit.
fn raise_descriptor_limit() -> u64 {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = rustix::process::Rlimit {
            current: limit.maximum,
            ..limit
        };
        if setrlimit(Resource::Nofile, raised).is_ok() {
            limit.current = limit.maximum;
        }
    }
    limit.current.unwrap_or(u64::MAX)
}
