//! Clients as people write them, against a server that misbehaves.

use std::io::{self, Read, Write};
use std::process::{Command, Stdio};

use super::plan;
use crate::support::{Program, connect};

/// What `nc` prints of a server with this fault, to which it sends `hello`.
fn nc(fault: &str) -> String {
    let program = Program::start(&["-l", "127.0.0.1:0", "--fault", fault]);
    let port = program.addr().port();
    let script = format!("printf hello | nc -N -w 1 127.0.0.1 {port}");
    let output = Command::new("sh")
        .args(["-c", &script])
        .stderr(Stdio::null())
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
#[ignore = "needs nc"]
fn nc_gets_as_much_as_it_is_to_get() {
    for (fault, seen) in [
        ("close-after=3", "Got"),
        ("silent-after=3", "Got"),
        ("stall-after=0", ""),
        ("refuse", ""),
        ("slice=1..3/10ms", "Got: hello"),
        ("delay=50ms", "Got: hello"),
        ("close-delay=50ms", "Got: hello"),
    ] {
        assert_eq!(nc(fault), seen, "{fault}");
    }
    // nc drops what it has not read yet when it hears of the reset.
    let seen = nc("reset-after=3");
    assert!(["Got", ""].contains(&&*seen), "{seen}");
}

/// One try of a small client.
fn request(program: &Program) -> io::Result<String> {
    let mut stream = connect(program.addr());
    stream.write_all(b"hello")?;
    let mut reply = [0; 10];
    stream.read_exact(&mut reply)?;
    Ok(String::from_utf8_lossy(&reply).into_owned())
}

#[test]
fn a_client_that_tries_again_needs_as_many_tries_as_the_seed_says() {
    let faults = ["reset-after=1..9@40%", "close-after=1..9@40%"];
    let args = [
        "-l",
        "127.0.0.1:0",
        "--seed",
        "7",
        "--fault",
        faults[0],
        "--fault",
        faults[1],
    ];
    let program = Program::start(&args);
    let plan = plan(7, &faults);
    let mut connections = 0;
    for _ in 0..20 {
        let first = connections + 1;
        let reply = loop {
            connections += 1;
            if let Ok(reply) = request(&program) {
                break reply;
            }
        };
        assert_eq!(reply, "Got: hello");
        let expected = (first..).find(|&n| plan.draw(n).is_empty()).unwrap();
        assert_eq!(connections, expected);
    }
    assert!(connections > 30, "without another try it would have failed");
}
