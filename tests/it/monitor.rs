//! The monitor and the task table: what they show of a loop and its servers, and that they answer while it is blocked.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::pending;
use std::hint;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::panic;
use std::process::Stdio;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use futures_lite::future::yield_now;
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use smol::channel;
use tinyloop::testing::{self, Faults};
use tinyloop::{
    EventLoop, SLOW_POLL, Server, SlowPoll, TaskInfo, TaskState, TaskTable, monitor, on_slow_poll,
    sleep, spawn, spawn_named, task_table, unblock,
};

use crate::support::{
    DEADLINE, Program, TellDrop, ask, connect, echo, hold, next, read_to_end, run,
};

/// A loop with a monitor, in a thread of its own.
pub(crate) struct Monitored {
    pub(crate) addr: SocketAddr,
    end: channel::Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Monitored {
    /// Runs `main`, and then goes on until this is dropped. Returns when `main` has ended.
    pub(crate) fn start(main: impl AsyncFnOnce() + Send + 'static) -> Monitored {
        let (end, has_ended) = channel::bounded::<()>(1);
        let (tell_addr, addr) = mpsc::channel();
        let thread = thread::spawn(move || {
            tinyloop::run(async {
                let monitor = monitor::serve((Ipv4Addr::LOCALHOST, 0)).unwrap();
                main().await;
                tell_addr.send(monitor.local_addr()).unwrap();
                has_ended.recv().await.unwrap_err();
            });
        });
        Monitored {
            addr: next(&addr),
            end,
            thread: Some(thread),
        }
    }

    pub(crate) fn ask(&self, request: &str) -> String {
        ask_monitor(self.addr, request)
    }

    /// The line of the task with this name, when it looks as `expected` says.
    fn ps_until(
        &self,
        name: &str,
        expected: impl Fn(&HashMap<String, String>) -> bool,
    ) -> HashMap<String, String> {
        ps_until(self.addr, name, expected)
    }
}

impl Drop for Monitored {
    fn drop(&mut self) {
        self.end.close();
        if let Err(payload) = self.thread.take().unwrap().join()
            && !thread::panicking()
        {
            panic::resume_unwind(payload);
        }
    }
}

/// Sends a request and `quit`, and reads the answer to the end.
pub(crate) fn ask_monitor(addr: SocketAddr, request: &str) -> String {
    let mut stream = connect(addr);
    stream
        .write_all(format!("{request}\nquit\n").as_bytes())
        .unwrap();
    String::from_utf8(read_to_end(&stream)).unwrap()
}

/// The lines of `ps`, each as a map from its columns' names to their cells.
fn table(ps: &str) -> Vec<HashMap<String, String>> {
    let (header, lines) = ps.split_once('\n').unwrap();
    let names = [
        "ID",
        "STATE",
        "AGE",
        "POLLS",
        "BUSY",
        "LONGEST",
        "NAME",
        "PEER",
        "IN",
        "OUT",
        "SPAWNED AT",
    ];
    let mut starts: Vec<usize> = names
        .iter()
        .map(|name| {
            header
                .find(&format!("{name} "))
                .or(header.find(name))
                .unwrap()
        })
        .collect();
    assert!(starts.is_sorted(), "{header}");
    starts.push(usize::MAX);
    let cells = |line: &str| {
        let line: Vec<char> = line.chars().collect();
        let cell = |n: usize| {
            let end = starts[n + 1].min(line.len());
            let cell: String = line[starts[n]..end].iter().collect();
            // Aligned: no cell begins before its column or runs into the next one.
            assert!(!cell.starts_with(' '), "{ps}");
            assert!(end == line.len() || cell.ends_with("  "), "{ps}");
            (names[n].to_owned(), cell.trim_end().to_owned())
        };
        (0..names.len()).map(cell).collect()
    };
    lines.lines().map(cells).collect()
}

/// Asks for `ps` until the task with this name is there and looks as expected.
fn ps_until(
    addr: SocketAddr,
    name: &str,
    expected: impl Fn(&HashMap<String, String>) -> bool,
) -> HashMap<String, String> {
    let start = Instant::now();
    loop {
        let ps = ask_monitor(addr, "ps");
        let mut lines = table(&ps).into_iter();
        if let Some(line) = lines.find(|line| line["NAME"] == name && expected(line)) {
            return line;
        }
        assert!(start.elapsed() < DEADLINE, "{ps}");
    }
}

#[test]
fn the_program_says_where_its_monitor_listens_and_the_monitor_shows_its_connections() {
    let program = Program::start(&["--listen", "127.0.0.1:0", "--monitor", "0"]);
    let line = program.stdout_line();
    let addr = line.strip_prefix("monitor on ").expect(&line);
    let addr: SocketAddr = addr.parse().unwrap();
    assert!(addr.ip().is_loopback());

    let client = program.connect();
    ask(&client, "hello");
    let peer = client.local_addr().unwrap().to_string();
    let line = ps_until(addr, "connection", |line| line["STATE"] == "waiting");
    assert_eq!(line["PEER"], peer);
    assert_eq!((&*line["IN"], &*line["OUT"]), ("5", "10"));
    let stats = ask_monitor(addr, "stats");
    assert!(
        stats.starts_with(&format!("server {}\n", program.addr())),
        "{stats}"
    );
    for count in [
        "accepted          1\n",
        "open              1\n",
        "completed         0\n",
    ] {
        assert!(stats.contains(count), "{stats}");
    }
    drop(client);
    program.stop();
    assert!(TcpStream::connect(addr).is_err());
}

#[test]
fn the_program_says_so_when_others_can_read_its_monitor() {
    let program = Program::start(&["--listen", "127.0.0.1:0", "--monitor", "0.0.0.0:0"]);
    assert_eq!(
        program.stderr_line(),
        "the monitor has no password: anybody who reaches its address can read it"
    );
}

#[test]
fn a_monitor_that_cannot_listen_is_an_error() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let error = run(async move || monitor::serve(addr).unwrap_err());
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    let message = format!("cannot monitor on {addr}: address already in use");
    assert_eq!(error.to_string(), message);

    let mut command = Program::command();
    command.args(["--listen", "127.0.0.1:0", "--monitor", &addr.to_string()]);
    let (status, _, stderr) = Program::spawn(command.stdout(Stdio::piped())).wait();
    assert_eq!(status.code(), Some(1));
    let advice = "another server uses it; choose another port with --monitor";
    assert_eq!(stderr, [format!("{message}; {advice}")]);
}

#[test]
fn one_connection_may_ask_many_things() {
    let monitored = Monitored::start(async || {});
    let stream = connect(monitored.addr);
    let mut lines = BufReader::new(&stream).lines().map(Result::unwrap);
    let send = |request: &str| (&stream).write_all(request.as_bytes()).unwrap();
    let help = |lines: &mut dyn Iterator<Item = String>| {
        let words: Vec<String> = lines
            .take(6)
            .map(|line| line.split(' ').next().unwrap().to_owned())
            .collect();
        assert_eq!(words, ["ps", "stats", "health", "help", "quit", "GET"]);
    };
    send("help\n");
    help(&mut lines);
    send("\r\n");
    help(&mut lines);
    send("p");
    send("s\nstats\n");
    assert!(lines.next().unwrap().starts_with("ID"));
    assert!(lines.next().unwrap().starts_with("0 "), "main alone");
    assert_eq!(lines.next().unwrap(), "no server is running");
    send("what?\n");
    assert_eq!(lines.next().unwrap(), "unknown request; try help");
    send("help");
    stream.shutdown(Shutdown::Write).unwrap();
    help(&mut lines);
    assert_eq!(lines.next(), None);
}

#[test]
fn quit_closes_the_connection() {
    let monitored = Monitored::start(async || {});
    assert_eq!(monitored.ask("quit"), "");
}

#[test]
fn what_is_no_short_line_of_text_is_refused_and_closed() {
    let monitored = Monitored::start(async || {});
    let requests: [&[u8]; 5] = [
        &[b'p'; 300],
        b"\x16\x03\x01\x02\x00\x01\x00\n",
        b"ps\0\n",
        b"\x1b[2J\n",
        "pß\n".as_bytes(),
    ];
    for request in requests {
        let mut stream = connect(monitored.addr);
        stream.write_all(request).unwrap();
        let mut answer = String::new();
        // What was sent beyond the refusal may reset the connection.
        stream.read_to_string(&mut answer).ok();
        assert_eq!(
            answer,
            "refused: a request is a line of text of at most 255 bytes\n"
        );
    }
    // The longest that is not.
    let request = "x".repeat(255 - 1);
    assert_eq!(monitored.ask(&request), "unknown request; try help\n");
}

#[test]
fn at_most_eight_are_connected_and_the_one_that_has_been_silent_longest_gives_way() {
    let monitored = Monitored::start(async || {});
    let is_answered = |mut stream: &TcpStream| {
        stream.write_all(b"stats\n").is_ok()
            && BufReader::new(stream)
                .read_line(&mut String::new())
                .is_ok_and(|length| length > 0)
    };
    let streams: Vec<TcpStream> = (0..8).map(|_| connect(monitored.addr)).collect();
    // The first has spoken last.
    assert!(streams.iter().rev().all(is_answered));
    let ninth = connect(monitored.addr);
    assert!(is_answered(&ninth));
    assert_eq!((&streams[7]).read(&mut [0]).unwrap(), 0, "gave way");
    assert!(streams[..7].iter().all(is_answered));
    // A place that is left is free: nobody has to give way.
    (&ninth).write_all(b"quit\n").unwrap();
    assert_eq!(read_to_end(&ninth), b"");
    assert!(is_answered(&connect(monitored.addr)));
    assert!(streams[1..7].iter().all(is_answered));
}

/// Sends an HTTP request, and returns the status line, the headers and the body.
pub(crate) fn get(addr: SocketAddr, request: &str) -> (String, HashMap<String, String>, String) {
    let mut stream = connect(addr);
    stream.write_all(request.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let answer = String::from_utf8(read_to_end(&stream)).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let (status, headers) = head.split_once("\r\n").unwrap();
    let header = |line: &str| {
        let (name, value) = line.split_once(": ").unwrap();
        (name.to_lowercase(), value.to_owned())
    };
    let headers: HashMap<_, _> = headers.split("\r\n").map(header).collect();
    let length: usize = headers["content-length"].parse().unwrap();
    assert_eq!(length, body.len());
    (status.to_owned(), headers, body.to_owned())
}

#[test]
fn metrics_are_in_the_text_format_of_prometheus() {
    let monitored = Monitored::start(async || {
        let server = Server::bind("127.0.0.1:0").await.unwrap();
        spawn(server.serve(echo)).detach();
        let server = Server::bind("[::1]:0").await.unwrap();
        spawn(server.serve(echo)).detach();
        while task_table().servers().len() < 2 {
            yield_now().await;
        }
        spawn(pending::<()>()).detach();
    });
    let (status, headers, body) = get(
        monitored.addr,
        "GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n",
    );
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert_eq!(
        headers["content-type"],
        "text/plain; version=0.0.4; charset=utf-8"
    );

    // Each metric has its help, its type, and then its samples, once; every line ends.
    assert!(body.ends_with('\n'));
    let is_name = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
    };
    let mut types: HashMap<&str, &str> = HashMap::new();
    let mut samples: HashMap<&str, f64> = HashMap::new();
    let mut lines = body.lines().peekable();
    while let Some(line) = lines.next() {
        let help = line.strip_prefix("# HELP ").expect(line);
        let (metric, text) = help.split_once(' ').unwrap();
        assert!(is_name(metric) && metric.starts_with("tinyloop_"), "{line}");
        assert!(!text.is_empty() && !text.contains('\\'));
        let line = lines.next().unwrap();
        let kind = line.strip_prefix(&format!("# TYPE {metric} ")).expect(line);
        assert_eq!(kind == "counter", metric.ends_with("_total"), "{line}");
        assert!(kind == "counter" || kind == "gauge", "{line}");
        assert_eq!(types.insert(metric, kind), None, "once");
        while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let labels = series.strip_prefix(metric).expect(line);
            if !labels.is_empty() {
                let label = labels
                    .strip_prefix('{')
                    .unwrap()
                    .strip_suffix("\"}")
                    .unwrap();
                let (label, value) = label.split_once("=\"").unwrap();
                assert!(is_name(label), "{line}");
                assert!(!value.contains(['"', '\\']), "{line}");
            }
            let value: f64 = value.parse().expect(line);
            assert!(value >= 0.0 && value.is_finite());
            assert_eq!(samples.insert(series, value), None, "once");
        }
    }
    let states = ["running", "ready", "waiting"];
    let tasks = states.map(|state| samples[&*format!("tinyloop_tasks{{state=\"{state}\"}}")]);
    assert_eq!(tasks.iter().sum::<f64>(), 4.0, "{tasks:?}");
    assert_eq!(types["tinyloop_bytes_in_total"], "counter");
    assert_eq!(types["tinyloop_open"], "gauge");
    let of_servers = samples
        .keys()
        .filter(|series| series.starts_with("tinyloop_accepted_total{"));
    assert_eq!(of_servers.count(), 2);
}

#[test]
fn headers_that_fill_many_reads_do_not_cost_the_answer() {
    let monitored = Monitored::start(async || {});
    let cookie = "x".repeat(12_000);
    let request = format!("GET /metrics HTTP/1.1\r\nCookie: {cookie}\r\n\r\n");
    assert_eq!(get(monitored.addr, &request).0, "HTTP/1.1 200 OK");
}

#[test]
fn any_other_page_is_not_found() {
    let monitored = Monitored::start(async || {});
    for path in ["/page.html", "/metrics/", "/favicon.ico", "metrics"] {
        let (status, _, body) = get(monitored.addr, &format!("GET {path} HTTP/1.0\r\n\r\n"));
        assert_eq!(status, "HTTP/1.1 404 Not Found");
        assert_eq!(
            body,
            "there are /, /health, /metrics, /stats.json and /tasks.json\n"
        );
    }
}

#[test]
fn ps_is_aligned_and_fits_a_wide_terminal() {
    let monitored = Monitored::start(async || {
        for name in [
            "short",
            "a name that is much longer than the column for it",
            "tab\t\x1b[2J",
        ] {
            spawn_named(name, pending::<()>()).detach();
        }
        for _ in 0..200 {
            spawn(pending::<()>()).detach();
        }
        yield_now().await;
    });
    let ps = monitored.ask("ps");
    assert!(!ps.contains(|c: char| c.is_control() && c != '\n'));
    let lines = table(&ps);
    assert_eq!(lines.len(), 204);
    let widest = ps.lines().map(str::len).max().unwrap();
    assert!(widest <= 150, "{widest} columns");
    for line in &lines {
        assert!(line["SPAWNED AT"].contains("monitor.rs:"), "{line:?}");
    }
    let names: Vec<&str> = lines.iter().map(|line| line["NAME"].as_str()).collect();
    for name in ["main", "short", "the column for it", "-"] {
        assert!(
            names
                .iter()
                .any(|shown| name.ends_with(shown) && !shown.is_empty()),
            "{name}"
        );
    }
}

#[test]
fn a_task_that_blocks_the_loop_is_shown_while_it_does() {
    let (release, released) = mpsc::channel();
    let monitored = Monitored::start(async move || {
        let block = async move { next::<()>(&released) };
        spawn_named("blocker", block).detach();
        spawn_named("bystander", async {
            loop {
                yield_now().await;
            }
        })
        .detach();
    });
    monitored.ps_until("blocker", |line| line["STATE"] == "running");
    let waits = monitored.ps_until("bystander", |_| true);
    assert_eq!(waits["STATE"], "ready", "it could run, if it were let");
    // Its poll goes on, and so becomes the longest, which comes first.
    let start = Instant::now();
    while table(&monitored.ask("ps"))[0]["NAME"] != "blocker" {
        assert!(start.elapsed() < DEADLINE);
    }
    let (status, ..) = get(monitored.addr, "GET /metrics HTTP/1.1\r\n\r\n");
    assert_eq!(status, "HTTP/1.1 200 OK");
    release.send(()).unwrap();
    monitored.ps_until("bystander", |line| {
        line["STATE"] != "ready" || line["POLLS"] != waits["POLLS"]
    });
}

#[test]
fn a_task_is_ready_running_or_waiting() {
    let find = |table: &TaskTable, name: &str| -> TaskInfo {
        let mut tasks = table.tasks().into_iter();
        tasks
            .find(|task| task.name.as_deref() == Some(name))
            .unwrap()
    };
    run(async move || {
        let table = task_table();
        let (wake, woken) = channel::unbounded::<()>();
        let its_table = table.clone();
        let task = spawn_named("subject", async move {
            while woken.recv().await.is_ok() {
                assert_eq!(find(&its_table, "subject").state, TaskState::Running);
            }
        });
        let look = || {
            let task = find(&table, "subject");
            (task.state, task.polls)
        };
        assert_eq!(look(), (TaskState::Ready, 0), "spawned");
        yield_now().await;
        assert_eq!(look(), (TaskState::Waiting, 1));
        wake.try_send(()).unwrap();
        assert_eq!(look(), (TaskState::Ready, 1));
        yield_now().await;
        assert_eq!(look(), (TaskState::Waiting, 2));
        drop(wake);
        task.await;
        let mut tasks = table.tasks().into_iter();
        assert!(
            tasks.all(|task| task.name.as_deref() != Some("subject")),
            "it is gone"
        );
    });
}

#[test]
fn a_task_that_wakes_itself_is_ready_after_its_poll() {
    run(async || {
        let table = task_table();
        let task = spawn_named("restless", async {
            loop {
                yield_now().await;
            }
        });
        sleep(Duration::from_millis(1)).await;
        let mut tasks = table.tasks().into_iter();
        let restless = tasks.find(|task| task.name.as_deref() == Some("restless"));
        let restless = restless.unwrap();
        assert_eq!(restless.state, TaskState::Ready);
        assert!(restless.polls > 1);
        drop(task);
    });
}

#[test]
fn a_task_is_known_by_its_name_its_place_and_a_number_of_its_own() {
    run(async || {
        let table = task_table();
        let named = spawn_named("named", pending::<()>());
        let place = line!() - 1;
        let unnamed = spawn(pending::<()>());
        let mut tasks = table.tasks();
        tasks.sort_by_key(|task| task.id);
        let names: Vec<_> = tasks.iter().map(|task| task.name.as_deref()).collect();
        assert_eq!(names, [Some("main"), Some("named"), None]);
        assert_eq!(tasks[1].place.line(), place);
        assert!(tasks[1].place.file().ends_with("monitor.rs"));
        assert_eq!(tasks[2].place.line(), place + 2);
        assert_eq!(
            tasks.iter().map(|task| task.id).collect::<Vec<_>>(),
            [0, 1, 2]
        );
        drop((named, unnamed));
    });
}

#[test]
fn the_table_knows_what_was_started_since_it_is_on_and_nothing_before() {
    run(async || {
        let before = spawn_named("before", pending::<()>());
        let table = task_table();
        let after = spawn_named("after", pending::<()>());
        let names: Vec<_> = table
            .tasks()
            .into_iter()
            .map(|task| task.name.unwrap())
            .collect();
        assert_eq!(names, ["main", "after"]);
        drop((before, after));
    });
}

#[test]
fn the_main_future_is_known_from_the_moment_the_table_is_on() {
    run(async || {
        let reports = Rc::new(RefCell::new(Vec::new()));
        let told = reports.clone();
        on_slow_poll(Duration::from_millis(10), move |slow| {
            told.borrow_mut().push(slow.task.id);
        });
        let table = task_table();
        let main = move || table.tasks().into_iter().find(|task| task.id == 0);
        assert_eq!(main().unwrap().state, TaskState::Running);
        block_for(Duration::from_millis(20));
        assert!(main().unwrap().longest_poll >= Duration::from_millis(20));
        let state = spawn(async move { main().unwrap().state }).await;
        assert_eq!(state, TaskState::Waiting);
        assert_eq!(*reports.borrow(), [0]);
    });
}

#[test]
fn a_task_may_turn_the_table_on_while_the_main_future_waits() {
    run(async || {
        let tasks = spawn(async { task_table().tasks() }).await;
        assert_eq!(tasks.len(), 1);
        assert_eq!(tasks[0].name.as_deref(), Some("main"));
        assert_ne!(tasks[0].state, TaskState::Running);
    });
}

#[test]
fn a_loop_whose_table_is_off_has_nothing_in_it() {
    let event_loop = EventLoop::new().unwrap();
    event_loop.spawn(pending::<()>()).detach();
    event_loop.run(async {
        spawn_named("unseen", pending::<()>()).detach();
        yield_now().await;
    });
    // On from here, it is as empty as at the start.
    let table = event_loop.run(async { task_table() });
    assert!(table.tasks().is_empty());
    assert!(table.servers().is_empty());
}

#[test]
fn a_table_outlives_its_loop_and_is_empty_then() {
    let (table, dropped) = {
        let (held, dropped) = TellDrop::new();
        let event_loop = EventLoop::new().unwrap();
        let table = event_loop.run(async {
            let table = task_table();
            spawn(hold(held)).detach();
            table
        });
        assert_eq!(table.tasks().len(), 1, "a task that waits for the next run");
        (table, dropped)
    };
    assert!(dropped.try_recv().is_ok());
    assert!(table.tasks().is_empty());
}

#[test]
fn a_slow_poll_is_reported_with_the_name_and_the_place_of_its_task() {
    run(async || {
        const THRESHOLD: Duration = Duration::from_millis(10);
        let reports = Rc::new(RefCell::new(Vec::new()));
        let kept = reports.clone();
        on_slow_poll(THRESHOLD, move |slow_poll| {
            kept.borrow_mut().push(slow_poll.clone());
        });
        let slow = spawn_named("slow", async { block_for(THRESHOLD) });
        let place = line!() - 1;
        slow.await;
        let is_slow = |slow_poll: &SlowPoll| slow_poll.task.name.as_deref() == Some("slow");
        // On a busy machine others may be slow, too.
        let report = reports.take().into_iter().find(is_slow).unwrap();
        assert!(report.duration >= THRESHOLD);
        assert_eq!(report.task.place.line(), place);
        assert!(report.task.longest_poll >= report.duration);
        assert_eq!(
            report.to_string(),
            format!(
                "task {} (slow, spawned at tests/it/monitor.rs:{place}:20) blocked the event loop for {:.1?}",
                report.task.id, report.duration
            )
        );

        // A later call replaces an earlier one, and what is quick enough is not reported.
        let kept = reports.clone();
        on_slow_poll(2 * DEADLINE, move |slow_poll| {
            kept.borrow_mut().push(slow_poll.clone())
        });
        spawn(async { block_for(THRESHOLD) }).await;
        assert!(reports.borrow().is_empty());
        assert_eq!(SLOW_POLL, Duration::from_millis(100), "as in asyncio");
    });
}

#[test]
fn a_slow_poll_of_the_main_future_and_one_that_panics_are_reported_too() {
    run(async || {
        let reports = Rc::new(RefCell::new(Vec::new()));
        let kept = reports.clone();
        on_slow_poll(Duration::from_millis(10), move |slow_poll| {
            kept.borrow_mut()
                .push(slow_poll.task.name.clone().unwrap_or_default());
        });
        yield_now().await;
        block_for(Duration::from_millis(10));
        yield_now().await;
        assert!(reports.borrow().contains(&"main".into()));
        let panics = spawn_named("panics", async {
            block_for(Duration::from_millis(10));
            panic!("late")
        });
        while !panics.is_finished() {
            yield_now().await;
        }
        assert!(reports.borrow().contains(&"panics".into()));
    });
}

#[test]
fn a_report_of_slow_polls_may_set_another_and_its_panic_is_no_tasks() {
    run(async || {
        let slow = || {
            spawn(async {
                block_for(Duration::from_millis(10));
                "finished"
            })
        };
        let reports = Rc::new(Cell::new(0));
        let kept = reports.clone();
        on_slow_poll(Duration::from_millis(10), move |_| {
            let kept = kept.clone();
            on_slow_poll(Duration::from_millis(10), move |_| {
                kept.set(kept.get() + 1);
                panic!("cannot report");
            });
        });
        for _ in 0..3 {
            assert_eq!(slow().await, "finished");
        }
        assert_eq!(
            reports.get(),
            1,
            "the second, and not again after its panic"
        );
    });
}

/// Works for so long without a pause.
fn block_for(duration: Duration) {
    let start = Instant::now();
    while start.elapsed() < duration {
        hint::spin_loop();
    }
}

#[test]
fn a_connections_task_shows_its_peer_and_its_bytes() {
    run(async || {
        let table = task_table();
        let server = Server::bind("127.0.0.1:0").await.unwrap();
        let addr = server.local_addrs()[0].tcp().unwrap();
        let _serving = spawn(server.serve(echo));
        let mut client = async_net::TcpStream::connect(addr).await.unwrap();
        for total in [5, 10, 15] {
            client.write_all(b"hello").await.unwrap();
            client.read_exact(&mut [0; 10]).await.unwrap();
            // The bytes are those of the polls that have ended.
            yield_now().await;
            let connection = table
                .tasks()
                .into_iter()
                .find_map(|task| task.connection)
                .unwrap();
            assert_eq!(
                connection.peer_addr,
                client.local_addr().unwrap().to_string()
            );
            assert_eq!(
                (connection.bytes_in, connection.bytes_out),
                (total, 2 * total)
            );
        }
        let (addrs, report) = table.servers().pop().unwrap();
        assert_eq!(addrs, addr.to_string());
        assert_eq!((report.accepted, report.completed), (1, 0));
        assert_eq!(report.bytes_in, 0, "those of closed connections");
        drop(client);
        while table.tasks().iter().any(|task| task.connection.is_some()) {
            yield_now().await;
        }
    });
}

#[test]
fn ps_shows_a_connection_in_memory_as_well() {
    let monitored = Monitored::start(async || {
        let (server, connector) = testing::server();
        let serving = server.serve(async |mut connection| {
            connection.read_exact(&mut vec![0; 1_500_000]).await?;
            pending().await
        });
        spawn(serving).detach();
        yield_now().await;
        let mut peer = connector.connect(Faults::none()).unwrap();
        peer.write_all(&vec![0; 1_500_000]).await.unwrap();
        spawn(hold(peer)).detach();
    });
    let line = monitored.ps_until("connection", |line| line["IN"] == "1500000");
    assert_eq!((&*line["PEER"], &*line["OUT"]), ("unknown", "0"));
}

#[test]
fn a_server_that_has_ended_is_in_the_counters_no_longer() {
    run(async || {
        let table = task_table();
        let server = Server::bind("127.0.0.1:0").await.unwrap();
        let (shutdown, shut_down) = channel::bounded::<()>(1);
        let shut_down = async move { shut_down.recv().await.unwrap_or_default() };
        let serving = spawn(server.shutdown_on(shut_down).serve(echo));
        yield_now().await;
        assert_eq!(table.servers().len(), 1);
        drop(shutdown);
        serving.await.unwrap();
        assert!(table.servers().is_empty());
    });
}

#[test]
fn dropping_the_monitor_closes_its_port_and_its_connections() {
    run(async || {
        let monitor = monitor::serve((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = monitor.local_addr();
        let silent = connect(addr);
        let mut asking = connect(addr);
        asking.write_all(b"stats\n").unwrap();
        let mut lines = BufReader::new(&asking).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "no server is running");
        drop(monitor);
        assert!(lines.next().is_none());
        // It may have been waiting to be accepted, and is reset then.
        assert_eq!((&silent).read(&mut [0]).unwrap_or(0), 0);
        assert!(TcpStream::connect(addr).is_err());
        // As soon as its thread has ended, another monitor may listen there.
        let start = Instant::now();
        while monitor::serve(addr).is_err() {
            assert!(start.elapsed() < DEADLINE);
        }
    });
}

#[test]
fn two_monitors_may_show_one_loop() {
    run(async || {
        let monitors = [(); 2].map(|()| monitor::serve((Ipv4Addr::LOCALHOST, 0)).unwrap());
        yield_now().await;
        for monitor in &monitors {
            let addr = monitor.local_addr();
            let ps = unblock(move || ask_monitor(addr, "ps")).await;
            assert_eq!(table(&ps)[0]["NAME"], "main");
        }
    });
}
