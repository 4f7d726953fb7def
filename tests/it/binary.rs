//! The program, as a user runs it.

use crate::support::{Program, ask};

#[test]
fn two_clients_at_once_are_answered() {
    let program = Program::start(&["-l", "127.0.0.1:0"]);
    let (first, second) = (program.connect(), program.connect());
    assert_eq!(ask(&second, "two"), "Got: two");
    assert_eq!(ask(&first, "one"), "Got: one");
    program.stop();
}
