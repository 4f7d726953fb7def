//! `--workers`: several processes behind the same addresses, and their parent.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_linger;
use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde_json::Value;

use crate::binary::as_nobody;
use crate::process::{ignores, stop};
use crate::support::{DEADLINE, Program, TempDir, ask, connect, hang_up, read_to_end, wait_for};

/// The program with workers, which all accept connections.
fn start(args: &[&str]) -> Program {
    Program::start(&[&["-q", "-l", "127.0.0.1:0"], args].concat())
}

/// What the system says of a process: its state and its parent.
fn state(pid: Pid) -> Option<(char, Pid)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut words = rest.split(' ');
    let state = words.next()?.chars().next()?;
    Some((state, Pid::from_raw(words.next()?.parse().ok()?)?))
}

/// The processes whose parent is `parent`, without those that have ended.
pub(crate) fn children(parent: Pid) -> HashSet<Pid> {
    let entries = fs::read_dir("/proc").unwrap().map_while(Result::ok);
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(Pid::from_raw)
        .filter(|pid| state(*pid).is_some_and(|(state, of)| of == parent && state != 'Z'))
        .collect()
}

/// Scheduling policies, as the kernel numbers them.
const SCHED_OTHER: &str = "0";
const SCHED_BATCH: &str = "3";
const SCHED_IDLE: &str = "5";

/// The scheduling policies of a process's threads, as numbers of the kernel.
fn policies(pid: Pid) -> HashSet<String> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let stat =
        threads.map(|thread| fs::read_to_string(thread.unwrap().path().join("stat")).unwrap());
    stat.map(|stat| {
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        fields.split(' ').nth(38).unwrap().to_owned()
    })
    .collect()
}

fn has_ended(pid: Pid) -> bool {
    state(pid).is_none_or(|(state, _)| state == 'Z')
}

/// Clients that connect, exchange and close, again and again.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<(u64, Vec<io::Error>)>>,
}

impl Load {
    pub(crate) fn start(addr: SocketAddr, clients: usize) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let client = || {
            let stop = stop.clone();
            thread::spawn(move || {
                let (mut exchanges, mut errors) = (0, Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    match try_exchanges(addr, 1 + exchanges as usize % 3) {
                        Ok(()) => exchanges += 1,
                        Err(error) => errors.push(error),
                    }
                }
                (exchanges, errors)
            })
        };
        let clients = (0..clients).map(|_| client()).collect();
        Load { stop, clients }
    }

    /// Ends the clients. Returns how many connections were served, and what failed.
    pub(crate) fn stop(self) -> (u64, Vec<io::Error>) {
        self.stop.store(true, Ordering::Relaxed);
        let (mut connections, mut errors) = (0, Vec::new());
        for client in self.clients {
            let (served, failed) = client.join().unwrap();
            connections += served;
            errors.extend(failed);
        }
        (connections, errors)
    }
}

fn try_exchanges(addr: SocketAddr, exchanges: usize) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&addr, DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    for _ in 0..exchanges {
        stream.write_all(b"x")?;
        let mut reply = [0; 6];
        stream.read_exact(&mut reply)?;
        assert_eq!(&reply, b"Got: x");
    }
    // Without a port in TIME_WAIT.
    set_socket_linger(&stream, Some(Duration::ZERO))?;
    Ok(())
}

#[test]
fn workers_answer_behind_one_address_and_the_report_is_their_sum() {
    let program = start(&["--workers", "3"]);
    assert_eq!(children(program.pid()).len(), 3);
    let clients: Vec<_> = (0..30).map(|_| program.connect()).collect();
    for client in &clients {
        assert_eq!(ask(client, "hello"), "Got: hello");
    }
    for client in clients {
        hang_up(client);
    }
    let (stdout, stderr) = program.stop();
    assert_eq!(stdout, [""; 0], "it says once that it listens");
    assert_eq!(stderr.len(), 1, "{stderr:?}");
    let report = "accepted 30, completed 30, failed 0, panicked 0, timed out 0, rejected 0, aborted 0, \
                  bytes in 150, bytes out 300, peak connections ";
    assert!(stderr[0].starts_with(report), "{stderr:?}");
}

fn policies_of_workers(program: &Program) -> HashSet<String> {
    let workers = children(program.pid());
    workers.into_iter().flat_map(policies).collect()
}

#[test]
fn several_workers_wake_up_without_interrupting_what_runs() {
    let one = start(&["--workers", "1"]);
    assert_eq!(policies_of_workers(&one), [SCHED_OTHER.into()].into());
    let two = start(&["--workers", "2"]);
    assert_eq!(policies(two.pid()), [SCHED_OTHER.into()].into());
    // musl cannot set it.
    let expected = match cfg!(target_env = "musl") {
        true => SCHED_OTHER,
        false => SCHED_BATCH,
    };
    assert_eq!(policies_of_workers(&two), [expected.into()].into());
}

#[test]
#[ignore = "needs chrt"]
fn workers_keep_a_scheduling_policy_that_was_chosen() {
    let mut command = Command::new("chrt");
    command
        .args(["--idle", "0"])
        .arg(Program::command().get_program());
    let program = Program::start_command(command.args(["-l", "127.0.0.1:0", "--workers", "2"]));
    assert_eq!(policies_of_workers(&program), [SCHED_IDLE.into()].into());
}

#[test]
fn workers_share_the_limit_of_connections() {
    let program = start(&["--workers", "3", "--max-connections", "4"]);
    let mut clients: Vec<_> = (0..4).map(|_| program.connect()).collect();
    for client in &clients {
        assert_eq!(ask(client, "x"), "Got: x");
    }
    let waiting = program.connect();
    (&waiting).write_all(b"y").unwrap();
    waiting
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let mut reply = [0; 6];
    (&waiting)
        .read_exact(&mut reply)
        .expect_err("there is no place");
    waiting.set_read_timeout(Some(DEADLINE)).unwrap();
    hang_up(clients.remove(0));
    (&waiting).read_exact(&mut reply).unwrap();
    assert_eq!(&reply, b"Got: y");
    program.stop();
}

#[test]
fn sighup_replaces_the_workers_and_no_exchange_fails() {
    let program = start(&["--workers", "2"]);
    let load = Load::start(program.addr(), 4);
    for _ in 0..5 {
        let old = children(program.pid());
        program.signal(Signal::HUP);
        wait_for("new workers", || {
            let new = children(program.pid());
            (new.len() == 2 && new.is_disjoint(&old)).then_some(())
        });
    }
    let (connections, errors) = load.stop();
    assert!(errors.is_empty(), "of {connections}: {errors:?}");
    let (stdout, stderr) = program.stop();
    assert_eq!(stdout, [""; 0]);
    // Whoever was in the middle of an exchange was drained.
    let report = stderr.last().unwrap();
    assert!(
        report.starts_with(&format!("accepted {connections}, ")),
        "{connections}: {stderr:?}"
    );
}

#[test]
fn a_shutdown_in_the_middle_of_a_restart_drains_the_old_and_the_new_workers() {
    let program = start(&["--workers", "1", "--drain", "10"]);
    let client = program.connect();
    assert_eq!(ask(&client, "x"), "Got: x");
    program.signal(Signal::HUP);
    // The old one has come to its drain, which its connection makes last.
    let line = program.stderr_line();
    assert!(line.starts_with("draining "), "{line}");
    program.signal(Signal::TERM);
    assert_eq!(read_to_end(&client), b"");
    program.ends_well("accepted 1, completed 1, ");
}

#[test]
fn connections_in_the_queue_of_a_killed_worker_are_answered_by_the_next() {
    let program = start(&["--workers", "1"]);
    let worker = *children(program.pid()).iter().next().unwrap();
    // So that it accepts none of them.
    kill_process(worker, Signal::STOP).unwrap();
    wait_for("the stop", || (state(worker)?.0 == 'T').then_some(()));
    let clients: Vec<_> = (0..100).map(|_| program.connect()).collect();
    for client in &clients {
        (&mut &*client).write_all(b"x").unwrap();
    }
    kill_process(worker, Signal::KILL).unwrap();
    for client in clients {
        let mut reply = [0; 6];
        (&client).read_exact(&mut reply).unwrap();
        assert_eq!(&reply, b"Got: x");
        hang_up(client);
    }
    let line = program.stderr_line();
    let begin = format!("worker 1 ({worker}) ended: signal: 9 (SIGKILL); started again as ");
    assert!(line.starts_with(&begin), "{line}");
    program.signal(Signal::TERM);
    program.ends_well("accepted 100, completed 100, ");
}

#[test]
fn while_systemd_runs_a_watchdog_a_worker_that_does_not_answer_is_killed_and_started_again() {
    let mut command = Program::command();
    command.args(["-q", "-l", "127.0.0.1:0", "--workers", "1"]);
    let program = Program::start_command(command.env("WATCHDOG_USEC", "2000000"));
    let worker = *children(program.pid()).iter().next().unwrap();
    let client = program.connect();
    let start = Instant::now();
    // It is asked more often than it may be silent.
    while start.elapsed() < Duration::from_millis(3500) {
        assert_eq!(ask(&client, "x"), "Got: x");
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(program.printed(), [""; 0]);

    kill_process(worker, Signal::STOP).unwrap();
    let killed =
        format!("worker 1 ({worker}) has not answered within the watchdog's time and is killed");
    assert_eq!(program.stderr_line(), killed);
    let again = format!("worker 1 ({worker}) ended: signal: 9 (SIGKILL); started again as ");
    let line = program.stderr_line();
    assert!(line.starts_with(&again), "{line}");
    assert_eq!(ask(&program.connect(), "x"), "Got: x");
    program.stop();
}

#[test]
fn a_killed_worker_fails_only_what_it_had_accepted() {
    const CLIENTS: usize = 4;
    const KILLS: usize = 5;
    let program = start(&["--workers", "2"]);
    let load = Load::start(program.addr(), CLIENTS);
    for _ in 0..KILLS {
        let old = wait_for("two workers", || {
            Some(children(program.pid())).filter(|workers| workers.len() == 2)
        });
        kill_process(*old.iter().next().unwrap(), Signal::KILL).unwrap();
        program.stderr_line();
    }
    let (connections, errors) = load.stop();
    assert!(
        errors.len() <= CLIENTS * KILLS,
        "of {connections}: {errors:?}"
    );
    let refused = errors
        .iter()
        .filter(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    assert_eq!(refused.count(), 0);
    program.stop();
}

#[test]
fn a_worker_that_dies_young_is_started_again_later_each_time() {
    let program = start(&["--workers", "1"]);
    for pause in [100, 200, 400] {
        let worker = wait_for("a worker", || {
            children(program.pid()).iter().next().copied()
        });
        // It has to be ready, or else it counts as one that could not start. Whoever answers is ready.
        assert_eq!(ask(&program.connect(), "x"), "Got: x");
        let killed = Instant::now();
        kill_process(worker, Signal::KILL).unwrap();
        program.stderr_line();
        assert!(
            killed.elapsed() >= Duration::from_millis(pause),
            "{pause} ms: {:?}",
            killed.elapsed()
        );
    }
    program.stop();
}

#[test]
fn workers_end_when_their_parent_is_killed() {
    let program = start(&["--workers", "2", "--drain", "1"]);
    let client = program.connect();
    assert_eq!(ask(&client, "x"), "Got: x");
    let workers = children(program.pid());
    program.signal(Signal::KILL);
    for worker in workers {
        wait_for("the end of a worker", || has_ended(worker).then_some(()));
    }
}

#[test]
fn a_second_signal_ends_the_parent_and_its_workers_at_once() {
    for signal in [Signal::TERM, Signal::INT] {
        let program = start(&[
            "--workers",
            "2",
            "--drain",
            "100",
            "--fault",
            "close-delay=100s",
        ]);
        let client = program.connect();
        assert_eq!(ask(&client, "x"), "Got: x");
        let workers = children(program.pid());
        program.signal(signal);
        // It drains.
        loop {
            if program.stderr_line().starts_with("draining ") {
                break;
            }
        }
        program.signal(signal);
        let (status, ..) = program.wait();
        assert_eq!(status.code(), Some(128 + signal.as_raw()));
        for worker in workers {
            wait_for("the end of a worker", || has_ended(worker).then_some(()));
        }
    }
}

#[test]
fn a_second_signal_right_after_the_first_ends_workers_too_that_are_stopped() {
    for (first, second) in [(Signal::TERM, Signal::INT), (Signal::INT, Signal::TERM)] {
        let program = start(&["--workers", "4", "--drain", "100"]);
        let workers = children(program.pid());
        let stopped = *workers.iter().next().unwrap();
        kill_process(stopped, Signal::STOP).unwrap();
        program.signal(first);
        program.signal(second);
        let (status, ..) = program.wait();
        // The system may report either first.
        let statuses = [first, second].map(|signal| Some(128 + signal.as_raw()));
        assert!(statuses.contains(&status.code()), "{status}");
        for worker in workers {
            wait_for("the end of a worker", || has_ended(worker).then_some(()));
        }
    }
}

#[test]
fn a_worker_that_does_not_end_in_the_drain_is_killed_and_the_report_still_comes() {
    let program = start(&["--workers", "2", "--drain", "0.1"]);
    let client = program.connect();
    assert_eq!(ask(&client, "x"), "Got: x");
    hang_up(client);
    let stopped = *children(program.pid()).iter().next().unwrap();
    kill_process(stopped, Signal::STOP).unwrap();
    program.signal(Signal::TERM);
    let (status, _, stderr) = program.wait();
    assert_eq!(status.code(), Some(1), "{stderr:?}");
    let killed = format!(" ({stopped}) has not ended in time and is killed");
    assert!(stderr[0].ends_with(&killed), "{stderr:?}");
    assert!(stderr[1].starts_with("accepted "), "{stderr:?}");
    assert!(
        stderr[2].ends_with(" ended: signal: 9 (SIGKILL)"),
        "{stderr:?}"
    );
}

#[test]
fn while_the_workers_drain_new_connections_are_refused() {
    // A late reply holds the drain.
    let program = start(&[
        "--workers",
        "2",
        "--drain",
        "3600",
        "--fault",
        "delay=3600s",
    ]);
    let mut client = program.connect();
    client.write_all(b"x").unwrap();
    program.signal(Signal::TERM);
    wait_for("the end of the sockets", || {
        let error = TcpStream::connect(program.addr()).err()?;
        (error.kind() == io::ErrorKind::ConnectionRefused).then_some(())
    });
    assert!(!has_ended(program.pid()), "the drain goes on");
    program.signal(Signal::TERM);
    assert_eq!(program.wait().0.code(), Some(128 + Signal::TERM.as_raw()));
}

#[test]
fn workers_that_are_lame_ducks_accept_on_every_socket() {
    let dir = TempDir::new("lame-ducks");
    let path = dir.path("socket");
    let unix = format!("unix:{}", path.display());
    let program = Program::start(&[
        "-l",
        "127.0.0.1:0",
        "-l",
        &unix,
        "--workers",
        "2",
        "--lame-duck",
        "3600",
    ]);
    program.signal(Signal::TERM);
    for _ in 0..2 {
        let line = program.stderr_line();
        assert!(line.contains("still accepting for 3600.0s"), "{line}");
    }
    for _ in 0..10 {
        assert_eq!(ask(&program.connect(), "x"), "Got: x");
        let client = UnixStream::connect(&path).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        assert_eq!(ask(&client, "y"), "Got: y");
    }
    program.signal(Signal::TERM);
    assert_eq!(program.wait().0.code(), Some(128 + Signal::TERM.as_raw()));
}

#[test]
fn an_old_worker_that_does_not_end_after_a_hangup_is_killed() {
    let program = start(&["--workers", "1", "--drain", "0"]);
    let old = *children(program.pid()).iter().next().unwrap();
    stop(old);
    program.signal(Signal::HUP);
    // Until the parent knows of it, too.
    wait_for("the end of the old worker", || {
        state(old).is_none().then_some(())
    });
    assert_eq!(ask(&program.connect(), "x"), "Got: x");
    let (_, stderr) = program.stop();
    let killed = format!("worker 1 ({old}) has not ended in time and is killed");
    assert_eq!(stderr[0], killed);
}

#[test]
fn a_hangup_that_was_ignored_at_the_start_replaces_no_worker() {
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]);
    let program = Program::command();
    command.arg(program.get_program());
    command.args(["-q", "-l", "127.0.0.1:0", "--workers", "1"]);
    let program = Program::start_command(&mut command);
    let workers = children(program.pid());
    assert!(ignores(program.pid(), Signal::HUP));
    program.signal(Signal::HUP);
    program.signal(Signal::TERM);
    let (status, _, stderr) = program.wait();
    assert_eq!((status.code(), stderr.len()), (Some(0), 1), "{stderr:?}");
    assert_eq!(workers.len(), 1);
}

#[test]
fn with_few_descriptors_the_workers_start_or_the_program_says_why_not() {
    for limit in 8..=30 {
        let mut command = Program::command();
        command.args(["-q", "-l", "127.0.0.1:0", "--workers", "3"]);
        let stderr = starts_or_says_why_not(&mut Program::with_descriptors(limit, &command));
        let panicked = stderr.iter().any(|line| line.contains("panicked"));
        assert!(!panicked, "{limit}: {stderr:?}");
    }
}

/// Starts the program under some limit. Returns what it says if it does not start.
fn starts_or_says_why_not(command: &mut Command) -> Vec<String> {
    let program = Program::spawn(command.stdout(Stdio::piped()));
    if let Some(line) = program.try_stdout_line() {
        assert!(line.starts_with("listening on "), "{command:?}: {line}");
        program.stop();
        return Vec::new();
    }
    let (status, _, stderr) = program.wait();
    assert_eq!(status.code(), Some(1), "{command:?}: {stderr:?}");
    assert!(!stderr.is_empty(), "{command:?}");
    stderr
}

#[test]
#[ignore = "needs prlimit and setpriv"]
fn with_few_threads_the_workers_start_or_the_program_says_why_not() {
    // Whoever is not root may have any number of processes besides this one.
    let limits = if geteuid().is_root() { 0..=20 } else { 0..=0 };
    for limit in limits {
        let runner = as_nobody();
        let mut command = Command::new(runner[0]);
        command
            .args(&runner[1..])
            .args(["prlimit", &format!("--nproc={limit}")])
            .arg(Program::command().get_program())
            .args(["-q", "-l", "127.0.0.1:0", "--workers", "2"]);
        // If two workers want the last thread, smol panics in one of them. The parent does not.
        starts_or_says_why_not(&mut command);
    }
}

#[test]
fn each_worker_draws_its_faults_from_a_seed_of_its_own() {
    let program = start(&["--workers", "2", "--fault", "delay=1ms"]);
    let notice = program.stdout_line();
    let begin = "misbehaving on purpose: --fault delay=1ms --seed ";
    assert!(notice.starts_with(begin), "{notice}");
    assert_eq!(ask(&program.connect(), "x"), "Got: x");
    let (stdout, _) = program.stop();
    assert_eq!(stdout, [""; 0], "one notice for all");
}

#[test]
fn wrong_numbers_of_workers_are_refused_in_one_line() {
    let refuse = |args: &[&str], code, text| {
        let (status, stdout, stderr) =
            Program::spawn(Program::command().args(args).stdout(Stdio::piped())).wait();
        assert_eq!(
            (status.code(), stdout.len(), stderr.len()),
            (Some(code), 0, 1),
            "{stderr:?}"
        );
        assert!(stderr[0].contains(text), "{stderr:?}");
    };
    refuse(&["--workers", "0"], 2, "from 1 to 1024");
    refuse(&["--workers", "1025"], 2, "from 1 to 1024");
    refuse(
        &["--workers", "2", "--model", "threaded"],
        2,
        "--workers works only with --model async",
    );
    refuse(
        &["--workers=2", "--max-connections=1"],
        2,
        "--max-connections 1 leaves nothing",
    );
    let program = start(&["--workers", "1"]);
    let addr = program.addr().to_string();
    refuse(
        &["--workers", "2", "-l", &addr],
        1,
        "another server uses it",
    );
    refuse(
        &["--workers", "2", "-l", "127.0.0.1:0", "--monitor", &addr],
        1,
        "another server uses it",
    );
    program.stop();
}

#[test]
fn the_monitor_of_the_parent_shows_all_workers_and_where_theirs_are() {
    let program = start(&["--workers", "2", "--monitor", "0"]);
    let monitor = program.stdout_line();
    let monitor: SocketAddr = monitor
        .strip_prefix("monitor on ")
        .unwrap()
        .parse()
        .unwrap();
    let ask_monitor = |addr, request: &str| {
        let stream = connect(addr);
        (&stream).write_all(request.as_bytes()).unwrap();
        String::from_utf8(read_to_end(&stream)).unwrap()
    };
    let clients: Vec<_> = (0..6).map(|_| program.connect()).collect();
    for client in &clients {
        assert_eq!(ask(client, "x"), "Got: x");
    }
    let count = |metrics: &str, worker: usize| -> u64 {
        let addr = program.addr();
        let metric = format!("tinyloop_open{{server=\"{addr}\",worker=\"{worker}\"}} ");
        let value = metrics.lines().find_map(|line| line.strip_prefix(&metric));
        value
            .unwrap_or_else(|| panic!("no {metric} in {metrics}"))
            .parse()
            .unwrap()
    };
    // The workers tell once a second.
    wait_for("all connections in the metrics", || {
        let metrics = ask_monitor(monitor, "GET /metrics HTTP/1.0\n\n");
        (count(&metrics, 1) + count(&metrics, 2) == 6).then_some(())
    });
    let stats = ask_monitor(monitor, "stats\nquit\n");
    assert_eq!(stats.matches("server 127.0.0.1:").count(), 2, "{stats}");
    let tasks = ask_monitor(monitor, "GET /tasks.json HTTP/1.0\n\n");
    let (_, tasks) = tasks.split_once("\r\n\r\n").unwrap();
    let tasks: Value = serde_json::from_str(tasks).unwrap();
    let names = tasks
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|task| task["name"].as_str());
    let monitors = names.filter_map(|name| name.strip_prefix("worker ")?.split_once(' '));
    let connections = monitors.map(|(_, monitor)| {
        let tasks = ask_monitor(monitor.parse().unwrap(), "ps\nquit\n");
        tasks.matches(" connection ").count()
    });
    assert_eq!(connections.sum::<usize>(), 6);
    program.stop();
}

#[test]
fn json_lines_name_the_worker_and_the_report_comes_once() {
    let args = ["--workers", "2", "--log", "json", "-l", "127.0.0.1:0"];
    let mut program = Program::spawn(Program::command().args(args).stdout(Stdio::piped()));
    let object = |line: &str| -> Value { serde_json::from_str(line).unwrap() };
    let first = object(&program.stdout_line());
    assert_eq!(
        (&first["event"], &first["worker"]),
        (&"listening".into(), &Value::Null)
    );
    program.listens_on(&format!("listening on {}", first["addr"].as_str().unwrap()));
    hang_up(program.connect());
    for event in ["connected", "closed"] {
        let line = object(&program.stdout_line());
        assert_eq!(line["event"], event);
        assert!([1.into(), 2.into()].contains(&line["worker"]), "{line}");
    }
    let (stdout, stderr) = program.stop();
    assert_eq!(
        (stdout.len(), stderr.len()),
        (1, 0),
        "{stdout:?}, {stderr:?}"
    );
    let report = object(&stdout[0]);
    assert_eq!(
        (&report["event"], &report["accepted"]),
        (&"report".into(), &1.into())
    );
}

#[test]
fn a_restart_whose_new_worker_cannot_start_leaves_the_old_ones() {
    let dir = TempDir::new("workers");
    let path = dir.path("tinyloop");
    fs::copy(env!("CARGO_BIN_EXE_tinyloop"), &path).unwrap();
    let mut command = std::process::Command::new(&path);
    let program =
        Program::start_command(command.args(["-q", "-l", "127.0.0.1:0", "--workers", "2"]));
    let workers = children(program.pid());
    // A new version, which does not work.
    fs::remove_file(&path).unwrap();
    fs::write(&path, "#!/bin/sh\nexit 3\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    program.signal(Signal::HUP);
    let line = program.stderr_line();
    assert!(
        line.starts_with("worker 1 cannot be replaced, so the restart is given up: ("),
        "{line}"
    );
    assert!(line.ends_with(" ended: exit status: 3"), "{line}");
    assert_eq!(children(program.pid()), workers);
    assert_eq!(ask(&program.connect(), "x"), "Got: x");
    // And one that works.
    fs::remove_file(&path).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_tinyloop"), &path).unwrap();
    program.signal(Signal::HUP);
    wait_for("new workers", || {
        let new = children(program.pid());
        (new.len() == 2 && new.is_disjoint(&workers)).then_some(())
    });
    program.stop();
}
