//! The systemd unit: what systemd-analyze says of it, and whether the program gets by with what it allows.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Instant;

use crate::support::{DEADLINE, Program, TempDir, ask, connect, read_to_end};

const UNIT: &str = include_str!("../../packaging/tinyloop.service");
const TEMPLATE: &str = include_str!("../../packaging/tinyloop@.service");
const SOCKET: &str = include_str!("../../packaging/tinyloop@.socket");

/// What a line of the unit says of `name`, line by line.
fn settings(name: &str) -> Vec<&'static str> {
    let value = |line: &'static str| line.strip_prefix(name)?.strip_prefix('=');
    UNIT.lines().filter_map(value).collect()
}

/// What systemd-analyze prints, which has to be content.
fn systemd_analyze(args: &[&str]) -> String {
    let output = Command::new("systemd-analyze").args(args).output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stdout}{stderr}");
    assert_eq!(stderr, "", "{args:?}");
    stdout
}

/// The system calls that the unit's filter lets through.
fn allowed_calls() -> BTreeSet<String> {
    let mut allowed = BTreeSet::new();
    for filter in settings("SystemCallFilter") {
        let (refuse, names) = match filter.strip_prefix('~') {
            Some(names) => (true, names),
            None => (false, filter),
        };
        for call in names.split_whitespace().flat_map(calls) {
            if refuse {
                allowed.remove(&call);
            } else {
                allowed.insert(call);
            }
        }
    }
    allowed
}

/// The system calls of a set such as `@system-service`, or the one call that `name` is.
fn calls(name: &str) -> Vec<String> {
    if !name.starts_with('@') {
        return vec![name.to_owned()];
    }
    let set = systemd_analyze(&["syscall-filter", "--no-pager", name]);
    set.lines()
        .skip(1)
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .flat_map(calls)
        .collect()
}

/// The files of packaging, with the program where it is, in a directory of their own.
fn installed(dir: &TempDir) {
    let files = [
        ("tinyloop.service", UNIT),
        ("tinyloop@.service", TEMPLATE),
        ("tinyloop@.socket", SOCKET),
    ];
    for (file, text) in files {
        let text = text.replace("/usr/bin/tinyloop", env!("CARGO_BIN_EXE_tinyloop"));
        fs::write(dir.path(file), text).unwrap();
    }
}

#[test]
#[ignore = "needs systemd-analyze"]
fn the_units_are_valid_and_leave_little_exposed() {
    let dir = TempDir::new("unit");
    installed(&dir);
    // An instance is verified as such.
    for unit in [
        "tinyloop.service",
        "tinyloop@25000.service",
        "tinyloop@25000.socket",
    ] {
        let template = unit.replace("25000", "");
        if template != unit {
            fs::copy(dir.path(&template), dir.path(unit)).unwrap();
        }
        let path = dir.path(unit);
        let path = path.to_str().unwrap();
        systemd_analyze(&["verify", "--man=no", "--recursive-errors=no", path]);
    }
    for unit in ["tinyloop.service", "tinyloop@25000.service"] {
        let path = dir.path(unit);
        let path = path.to_str().unwrap();
        // The threshold is in tenths: 1.5 of 10.
        let analysis = systemd_analyze(&[
            "security",
            "--offline=true",
            "--threshold=15",
            "--no-pager",
            path,
        ]);
        println!("{}", analysis.trim().lines().last().unwrap());
    }
}

#[test]
fn the_unit_behind_a_socket_differs_in_what_it_listens_on_only() {
    let lines = |unit: &'static str| -> Vec<&str> {
        unit.lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty())
            .collect()
    };
    let (unit, template) = (lines(UNIT), lines(TEMPLATE));
    let of_unit = unit.iter().filter(|line| !template.contains(line));
    let of_template = template.iter().filter(|line| !unit.contains(line));
    let keys = |line: &&&'static str| line.split_once('=').unwrap().0;
    let of_unit: Vec<&str> = of_unit.map(|line| keys(&line)).collect();
    let of_template: Vec<&str> = of_template.map(|line| keys(&line)).collect();
    assert_eq!(of_unit, ["Description", "After", "ExecStart", "WantedBy"]);
    assert_eq!(
        of_template,
        ["Description", "Requires", "After", "ExecStart", "Also"]
    );
}

#[test]
#[ignore = "needs strace and systemd-analyze"]
fn the_program_needs_nothing_that_the_unit_refuses() {
    let dir = TempDir::new("unit-trace");
    let path = dir.path("trace");
    let mut command = Command::new("strace");
    command.args(["-D", "-f", "-qq", "-o"]).arg(&path);
    command.arg(env!("CARGO_BIN_EXE_tinyloop"));
    let program = Program::start_command(command.args(["--listen", ":0", "--monitor", "0"]));
    let monitor = loop {
        if let Some(addr) = program.stdout_line().strip_prefix("monitor on ") {
            break addr.parse().unwrap();
        }
    };
    // All threads at once: the monitor takes eight connections.
    let watchers = [(); 8].map(|()| connect(monitor));
    let connections = [(); 20].map(|()| connect(([127, 0, 0, 1], program.addr().port()).into()));
    for connection in &connections {
        assert_eq!(ask(connection, "hello"), "Got: hello");
    }
    for mut watcher in watchers {
        watcher.write_all(b"ps\nstats\nquit\n").unwrap();
        assert!(!read_to_end(&watcher).is_empty());
    }
    // Drains, with connections open.
    program.stop();

    let trace = whole_trace(&path);
    let threads: BTreeSet<&str> = trace
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(thread, _)| thread)
        .collect();
    let tasks_max: usize = settings("TasksMax")[0].parse().unwrap();
    println!("threads: {} (at most {tasks_max})", threads.len());
    assert!(threads.len() <= tasks_max);

    // A line is a thread, and then `call(arguments) = result`, the end of a call, or a signal.
    let calls = trace
        .lines()
        .filter_map(|line| line.split_once(' ')?.1.trim_start().split_once('('));
    let families = settings("RestrictAddressFamilies").join(" ");
    let mut made = BTreeSet::new();
    for (call, arguments) in calls.filter(|(call, _)| !call.contains(' ')) {
        made.insert(call.to_owned());
        let executes_data = arguments.contains("PROT_WRITE") && arguments.contains("PROT_EXEC");
        assert!(!executes_data, "{call}({arguments}");
        if let "socket" | "socketpair" = call {
            let (family, _) = arguments.split_once(',').unwrap();
            assert!(
                families.split(' ').any(|allowed| allowed == family),
                "{call}({arguments}"
            );
        }
    }
    assert!(
        made.contains("epoll_ctl") && made.contains("clone3"),
        "{made:?}"
    );
    let refused: Vec<_> = made.difference(&allowed_calls()).cloned().collect();
    assert_eq!(refused, [""; 0]);
}

/// The trace of a program that has ended, when the tracer has ended, too.
fn whole_trace(path: &Path) -> String {
    let start = Instant::now();
    loop {
        let trace = fs::read_to_string(path).unwrap();
        if trace.contains(" exit_group(") {
            return trace;
        }
        assert!(start.elapsed() < DEADLINE, "{trace}");
        thread::yield_now();
    }
}
