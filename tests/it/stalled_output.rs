//! Output that nobody reads, or that cannot grow: nobody waits for it, neither at the start nor at the end.

use std::fs;
use std::io::{self, ErrorKind, PipeReader, PipeWriter, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};

use rustix::io::ioctl_fionbio;
use rustix::process::Signal;

use crate::binary::{own_addr, wait_for_listener};
use crate::process::handles;
use crate::support::{Program, TempDir, ask, connect, hang_up, wait_for};

const BINARY: &str = env!("CARGO_BIN_EXE_tinyloop");

/// A pipe that takes no more. It is so until the reader reads.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = io::pipe().unwrap();
    ioctl_fionbio(&writer, true).unwrap();
    let mut piece = 4096;
    while piece > 0 {
        match writer.write(&vec![b'\n'; piece]) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => piece /= 2,
            Err(error) => panic!("{error}"),
        }
    }
    ioctl_fionbio(&writer, false).unwrap();
    (reader, writer)
}

/// A command whose two streams are a pipe that takes no more.
fn unread(command: &Command, pipe: PipeWriter) -> Command {
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "exec \"$0\" \"$@\" 2>&1"])
        .arg(command.get_program())
        .args(command.get_args())
        .stdout(pipe);
    shell
}

#[test]
fn a_start_that_fails_does_not_wait_for_a_reader_of_stderr() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let cases: [(&[&str], i32); 5] = [
        (&["--colour"], 2),
        (&["-l", &addr], 1),
        (&["-m", "threaded", "-l", &addr], 1),
        (&["-l", "127.0.0.1:0", "--monitor", &addr], 1),
        (&["-l", "127.0.0.1:0", "-l", &addr], 1),
    ];
    for (args, code) in cases {
        let (_reader, writer) = full_pipe();
        let (status, ..) =
            Program::spawn(&mut unread(Program::command().args(args), writer)).wait();
        assert_eq!(status.code(), Some(code), "{args:?}");
    }
}

#[test]
fn a_server_starts_and_serves_and_ends_though_nobody_reads_its_output() {
    for (port, model) in [(25030, "async"), (25031, "threaded"), (25032, "sequential")] {
        let addr = own_addr(port);
        let mut command = Program::command();
        command.args(["-m", model, "-l", &addr.to_string()]);
        let (_reader, writer) = full_pipe();
        let program = Program::spawn(&mut unread(&command, writer));
        wait_for_listener(addr);
        for _ in 0..3 {
            let client = connect(addr);
            assert_eq!(ask(&client, "x"), "Got: x", "{model}");
            hang_up(client);
        }
        program.stop();
    }
}

#[test]
fn a_file_that_may_not_grow_is_like_a_full_disk() {
    let directory = TempDir::new("file-limit");
    let file = directory.path("output");
    // Files of four kilobytes at most; both streams in one.
    let script = "ulimit -f 8; exec \"$0\" \"$@\" >\"$OUTPUT\"";
    for model in ["async", "threaded"] {
        fs::write(&file, "").unwrap();
        let mut shell = Command::new("sh");
        shell
            .args(["-c", script, BINARY, "-m", model, "-l", "127.0.0.1:0"])
            .env("OUTPUT", &file)
            .stdout(Stdio::null());
        let mut program = Program::spawn(&mut shell);
        let line = wait_for("the first line", || {
            let printed = fs::read_to_string(&file).unwrap();
            printed.split_once('\n').map(|(line, _)| line.to_owned())
        });
        program.listens_on(&line);
        // A client's two lines have more than 70 bytes.
        for _ in 0..200 {
            let client = program.connect();
            assert_eq!(ask(&client, "x"), "Got: x", "{model}");
            hang_up(client);
        }
        let (_, stderr) = program.stop();
        let last = stderr.last().unwrap();
        assert!(
            last.starts_with("lines of output lost: "),
            "{model}: {last}"
        );
        assert!(fs::metadata(&file).unwrap().len() <= 8192);
    }
}

#[test]
fn the_periodic_tool_ends_though_nobody_reads_its_output() {
    let (_reader, writer) = full_pipe();
    let mut command = Program::example("periodic");
    let program = Program::spawn(command.arg("0.01").stdout(writer));
    wait_for("the handler", || {
        handles(program.pid(), Signal::USR1).then_some(())
    });
    for _ in 0..400 {
        program.signal(Signal::USR1);
    }
    program.signal(Signal::TERM);
    let (status, _, stderr) = program.wait();
    assert_eq!(status.code(), Some(0), "{stderr:?}");
}
