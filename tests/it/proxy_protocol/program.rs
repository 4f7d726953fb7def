//! `--proxy-protocol`, with the program.

use std::io::Write;

use crate::support::{Program, ask, connect, read_to_end};

#[test]
fn the_program_prints_the_clients_address_and_why_it_rejects() {
    let program = Program::start(&["--listen", "127.0.0.1:0", "--proxy-protocol"]);
    let mut client = program.connect();
    client
        .write_all(b"PROXY TCP4 192.0.2.7 192.0.2.1 40001 80\r\n")
        .unwrap();
    assert_eq!(ask(&client, "hello"), "Got: hello");
    assert_eq!(program.stdout_line(), "Connection from 192.0.2.7:40001");
    drop(client);
    let closed = program.stdout_line();
    assert!(
        closed.starts_with(
            "Connection closed 192.0.2.7:40001: completed, bytes in 5, bytes out 10, "
        ),
        "{closed}"
    );

    let stranger = connect(program.addr());
    let own = stranger.local_addr().unwrap();
    (&stranger).write_all(b"hello").unwrap();
    let line = format!("rejected {own}: no PROXY header");
    assert_eq!(program.stderr_line(), line);
    let silent = connect(program.addr());
    silent.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&silent), b"");
    let (_, stderr) = program.stop();
    let report = stderr.last().unwrap();
    assert!(report.starts_with("accepted 1, completed 1, "), "{report}");
    assert!(report.contains("rejected 2"), "{report}");
}
