//! The command line: the options.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::time::Duration;

use argh::{ArgsInfo, FlagInfoKind, FromArgs};
use tinyloop::faults::Fault;
use tinyloop::{Endpoint, Framing, WhenFull};

use super::values::{
    LogFormat, Model, connections, framing, log_format, model, monitor, prefix, seconds, seed,
    when_full, workers,
};

/// The text before each chunk of a reply, unless the option sets another.
const PREFIX: &str = "Got: ";

/// The longest part of a word that an error line shows, in characters.
const WORD_MAX: usize = 60;

/// An echo server. For each chunk of bytes that it receives, it sends a prefix and the chunk.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(help_triggers("-h", "--help"))]
pub(crate) struct Options {
    /// address to listen on: PORT (loopback), :PORT (all interfaces), IP:PORT, NAME:PORT or unix:PATH; repeatable
    /// (default: the sockets from systemd, or 25000)
    #[argh(option, short = 'l', arg_name = "addr")]
    pub(crate) listen: Vec<Endpoint>,

    /// text before each chunk, up to 1,024 bytes (default "Got: ")
    #[argh(
        option,
        short = 'p',
        default = "PREFIX.to_owned()",
        from_str_fn(prefix)
    )]
    pub(crate) prefix: String,

    /// server model: async (default), threaded or sequential
    #[argh(option, short = 'm', default = "Model::Async", from_str_fn(model))]
    pub(crate) model: Model,

    /// unit that gets a prefix: chunk (default) or line
    #[argh(option, default = "Framing::Chunk", from_str_fn(framing))]
    pub(crate) framing: Framing,

    /// maximum number of open connections, of all workers together (default for each: file descriptor limit minus 32,
    /// at most 10,000)
    #[argh(option, arg_name = "n", from_str_fn(connections))]
    pub(crate) max_connections: Option<usize>,

    /// connections over the limit: wait (default) or reject
    #[argh(option, from_str_fn(when_full))]
    pub(crate) when_full: Option<WhenFull>,

    /// close a connection after this many seconds without traffic (default: never)
    #[argh(option, arg_name = "seconds", from_str_fn(seconds))]
    pub(crate) idle_timeout: Option<Duration>,

    /// close a connection if its client reads nothing of a waiting reply for this many seconds (default 60)
    #[argh(option, arg_name = "seconds", from_str_fn(seconds))]
    pub(crate) stall_timeout: Option<Duration>,

    /// after SIGINT or SIGTERM, accept connections for this many more seconds; /health answers 503 (default 0)
    #[argh(option, arg_name = "seconds", from_str_fn(seconds))]
    pub(crate) lame_duck: Option<Duration>,

    /// seconds for a graceful shutdown after SIGINT or SIGTERM (default 5); a second signal exits at once
    #[argh(option, arg_name = "seconds", from_str_fn(seconds))]
    pub(crate) drain: Option<Duration>,

    /// number of processes, with one event loop each: auto (one for each core) or up to 1,024; SIGHUP replaces the
    /// processes one after another
    #[argh(option, arg_name = "n", from_str_fn(workers))]
    pub(crate) workers: Option<usize>,

    /// every connection must start with a PROXY header (v1 or v2), which has the client's address
    #[argh(switch)]
    pub(crate) proxy_protocol: bool,

    /// address of the monitor (tasks, counters) for nc, browsers and Prometheus: PORT (127.0.0.1), IP:PORT or
    /// [IP6]:PORT
    #[argh(option, arg_name = "addr", from_str_fn(monitor))]
    pub(crate) monitor: Option<SocketAddr>,

    /// misbehave on purpose, to test clients: KIND=VALUE[@SHARE], such as delay=100ms or reset-after=5000@5%
    /// (of the connections); repeatable (all kinds: man tinyloop)
    #[argh(option)]
    pub(crate) fault: Vec<Fault>,

    /// number that decides the faults: the same number gives the same faults (default: random, and printed)
    #[argh(option, arg_name = "n", from_str_fn(seed))]
    pub(crate) seed: Option<u64>,

    /// format of stdout: text (default) or json (one object a line)
    #[argh(option, from_str_fn(log_format))]
    pub(crate) log: Option<LogFormat>,

    /// put the time before each line of text
    #[argh(switch)]
    pub(crate) timestamps: bool,

    /// do not print lines for connections
    #[argh(switch, short = 'q')]
    pub(crate) quiet: bool,

    /// print the version
    #[argh(switch)]
    pub(crate) version: bool,
}

/// Text to print instead of serving.
#[derive(Debug)]
pub(crate) enum Early {
    /// For stdout: the user asked for it.
    Answer(String),
    /// For stderr: one line about a mistake on the command line.
    Usage(String),
}

impl Options {
    /// Reads the arguments after the program's name.
    pub(crate) fn parse(args: impl Iterator<Item = OsString>) -> Result<Options, Early> {
        let args = args
            .map(|arg| {
                arg.into_string()
                    .map_err(|arg| Early::Usage(format!("not valid UTF-8: {arg:?}")))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let args = split_values(args);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let options =
            Options::from_args(&["tinyloop"], &args).map_err(|early| match early.status {
                Ok(()) => Early::Answer(early.output.trim_end().to_owned()),
                Err(()) => Early::Usage(on_one_line(&early.output)),
            })?;
        if options.version {
            return Err(Early::Answer(format!(
                "tinyloop {}",
                env!("CARGO_PKG_VERSION")
            )));
        }
        options.check_model()?;
        if options.seed.is_some() && options.fault.is_empty() {
            return Err(Early::Usage("--seed works only with --fault".to_owned()));
        }
        if let (Some(workers), Some(most)) = (options.workers, options.max_connections)
            && most < workers
        {
            return Err(Early::Usage(format!(
                "--max-connections {most} leaves nothing for some of {workers} workers"
            )));
        }
        Ok(options)
    }

    /// The teaching models serve TCP and have no limits.
    fn check_model(&self) -> Result<(), Early> {
        let unix = self
            .listen
            .iter()
            .any(|addr| matches!(addr, Endpoint::Unix(_)));
        let for_async = [
            ("--listen unix:PATH", unix),
            ("--max-connections", self.max_connections.is_some()),
            ("--when-full", self.when_full.is_some()),
            ("--idle-timeout", self.idle_timeout.is_some()),
            ("--stall-timeout", self.stall_timeout.is_some()),
            ("--lame-duck", self.lame_duck.is_some()),
            ("--drain", self.drain.is_some()),
            ("--workers", self.workers.is_some()),
            ("--proxy-protocol", self.proxy_protocol),
            ("--monitor", self.monitor.is_some()),
            ("--fault", !self.fault.is_empty()),
            ("--log", self.log.is_some()),
            ("--timestamps", self.timestamps),
        ];
        match for_async.iter().find(|(_, given)| *given) {
            Some((option, _)) if self.model != Model::Async => Err(Early::Usage(format!(
                "{option} works only with --model async"
            ))),
            _ => Ok(()),
        }
    }
}

/// Splits `--key=value` in two, as argh expects it. An option's value that contains `=` is not split.
fn split_values(args: Vec<String>) -> Vec<String> {
    let info = Options::get_args_info();
    let takes_value = |arg: &str| {
        info.flags.iter().any(|flag| {
            matches!(flag.kind, FlagInfoKind::Option { .. })
                && (flag.long == arg || flag.short.is_some_and(|short| arg == format!("-{short}")))
        })
    };
    let mut split = Vec::new();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        match arg.split_once('=') {
            Some((key, value)) if takes_value(key) => {
                split.extend([key.to_owned(), value.to_owned()])
            }
            _ if takes_value(&arg) => {
                split.push(arg);
                split.extend(args.next());
            }
            _ => split.push(arg),
        }
    }
    split
}

/// Puts argh's message on one line, shortens its long words and adds a guess at the option that the user meant.
fn on_one_line(text: &str) -> String {
    let words: Vec<String> = text.split_whitespace().map(shortened).collect();
    let line = words.join(" ");
    let unknown = line.strip_prefix("Unrecognized argument: ");
    match unknown.and_then(meant) {
        Some(option) => format!("{line}; did you mean {option}?"),
        None => format!("{line}; see tinyloop --help"),
    }
}

/// The word, or its beginning if it is long.
fn shortened(word: &str) -> String {
    match word.char_indices().nth(WORD_MAX) {
        Some((end, _)) => format!("{}…", &word[..end]),
        None => word.to_owned(),
    }
}

/// The option that is most like an unknown word.
fn meant(word: &str) -> Option<&'static str> {
    let word = word.split('=').next().unwrap_or_default();
    let likeness = |option: &str| strsim::jaro_winkler(word, option);
    let flags = Options::get_args_info().flags;
    let options = flags.iter().map(|flag| (likeness(flag.long), flag.long));
    let (likeness, option) = options.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (word.starts_with("--") && likeness > 0.85).then_some(option)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Options, Early> {
        Options::parse(args.iter().map(OsString::from))
    }

    fn usage_error(args: &[&str]) -> String {
        match parse(args) {
            Err(Early::Usage(line)) => line,
            other => panic!("{args:?} gave {other:?}"),
        }
    }

    #[test]
    fn a_value_may_follow_an_equals_sign() {
        let options = parse(&[
            "--listen=7",
            "--listen",
            ":8",
            "--prefix==",
            "--model=threaded",
        ])
        .unwrap();
        assert_eq!(options.listen, [Endpoint::Loopback(7), Endpoint::All(8)]);
        assert_eq!(options.prefix, "=");
        assert_eq!(options.model, Model::Threaded);
    }

    #[test]
    fn a_value_that_looks_like_an_option_is_a_value() {
        assert_eq!(parse(&["-p", "--listen=7"]).unwrap().prefix, "--listen=7");
    }

    #[test]
    fn wrong_usage_says_what_is_accepted() {
        assert!(usage_error(&["--model", "forked"]).contains("async or threaded or sequential"));
        for workers in ["0", "1025", "-1", "many", ""] {
            assert!(
                usage_error(&["--workers", workers])
                    .contains("auto or a whole number from 1 to 1024")
            );
        }
        assert!(usage_error(&["--workers=3", "--max-connections=2"]).contains("of 3 workers"));
        assert!(usage_error(&["--framing", "word"]).contains("chunk or line"));
        assert!(usage_error(&["--max-connections", "0"]).contains("of 1 or more"));
        assert!(usage_error(&["--when-full", "no"]).contains("wait or reject"));
        assert!(usage_error(&["--prefix", &"p".repeat(1025)]).contains("at most 1024 bytes"));
        for seconds in [
            "-1",
            "+1",
            "five",
            "nan",
            "",
            ".",
            "1.",
            ".5",
            "1.-5",
            "1e3",
            "99999999999999999999",
        ] {
            assert!(
                usage_error(&["--idle-timeout", seconds]).contains("such as 5 or 0.5"),
                "{seconds}"
            );
        }
        assert!(usage_error(&["--colour"]).contains("--colour"));
        assert!(usage_error(&["stray"]).contains("stray"));
        for line in [usage_error(&["--listen"]), usage_error(&["-m", "forked"])] {
            assert!(!line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn options_of_the_async_model_go_with_no_other() {
        for option in [
            "--max-connections=5",
            "--when-full=reject",
            "--idle-timeout=1",
            "--drain=1",
            "--workers=2",
            "-lunix:/x",
        ] {
            let option = option.replace("-lunix:/x", "--listen=unix:/x");
            assert!(
                usage_error(&["--model=sequential", &option]).contains("only with --model async"),
                "{option}"
            );
            assert!(parse(&[option.as_str()]).is_ok(), "{option}");
        }
    }

    #[test]
    fn the_monitor_is_on_loopback_unless_an_address_is_given_in_full() {
        let monitor = |text| {
            parse(&["--monitor", text])
                .unwrap()
                .monitor
                .unwrap()
                .to_string()
        };
        assert_eq!(monitor("25001"), "127.0.0.1:25001");
        assert_eq!(monitor("0.0.0.0:25001"), "0.0.0.0:25001");
        assert_eq!(monitor("[::1]:25001"), "[::1]:25001");
        for text in [":25001", "unix:/x", "localhost:1", "65536"] {
            assert!(usage_error(&["--monitor", text]).contains("PORT, IP:PORT or [IP6]:PORT"));
        }
    }

    #[test]
    fn seconds_may_have_a_fraction() {
        let drain = |text| parse(&["--drain", text]).unwrap().drain.unwrap();
        assert_eq!(drain("0.25"), Duration::from_millis(250));
        assert_eq!(drain("60"), Duration::from_secs(60));
        assert_eq!(
            drain("1.0000000019"),
            Duration::new(1, 1),
            "below a nanosecond there is nothing"
        );
    }
}
