//! A thousand signals, of all the kinds that a process may get.

use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use rustix::process::Signal;
use tinyloop::signal::{self, signals};

use crate::faults::{assert_time, form};
use crate::support::{Program, ask, in_a_process_of_its_own, the_machine, time};

const ROW: &str = "signal storm";

/// Signals that must not end the program. The pair stops and continues it.
const HARMLESS: [&[Signal]; 6] = [
    &[Signal::PIPE],
    &[Signal::URG],
    &[Signal::WINCH],
    &[Signal::CHILD],
    &[Signal::CONT],
    &[Signal::STOP, Signal::CONT],
];

const CLIENTS: usize = 8;

/// Sends signals of `kinds`, drawn from `random`, with a pause of at most `pause` after each.
fn send(program: &Program, kinds: &[&[Signal]], random: &mut Rng, pause: Duration) {
    for &signal in kinds[random.usize(..kinds.len())] {
        program.signal(signal);
        thread::sleep(pause.mul_f64(random.f64()));
    }
}

#[test]
fn a_thousand_signals_harm_no_answer() {
    let seed = fastrand::u64(..);
    let signals = form(1_000, 20_000);
    let program = Program::start(&["-q", "-l", "127.0.0.1:0"]);
    let over = AtomicBool::new(false);
    let answers: usize = thread::scope(|scope| {
        let ask_on = |client| {
            let (connection, over) = (program.connect(), &over);
            scope.spawn(move || {
                let mut asked = 0;
                while !over.load(Ordering::Relaxed) {
                    let message = format!("message {asked} of client {client}");
                    assert_eq!(ask(&connection, &message), format!("Got: {message}"));
                    asked += 1;
                }
                asked
            })
        };
        let clients: Vec<_> = (0..CLIENTS).map(ask_on).collect();
        let mut random = Rng::with_seed(seed);
        for _ in 0..signals {
            send(&program, &HARMLESS, &mut random, Duration::from_millis(2));
        }
        over.store(true, Ordering::Relaxed);
        clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .sum()
    });
    println!("{ROW}: {signals} harmless signals, {answers} right answers meanwhile, seed {seed}");
    let (_, stderr) = program.stop();
    let report = stderr.last().unwrap();
    assert!(report.starts_with("accepted 8, completed 8, "), "{report}");
}

#[test]
fn a_storm_that_is_to_end_the_program_does() {
    let _machine = the_machine();
    let seed = fastrand::u64(..);
    let mut random = Rng::with_seed(seed);
    let mut kinds = HARMLESS.to_vec();
    kinds.extend([&[Signal::INT][..], &[Signal::TERM]]);
    let mut slowest = Duration::ZERO;
    let mut codes = Vec::new();
    for _ in 0..form(20, 500) {
        let program = Program::start(&["-q", "-l", "127.0.0.1:0", "--drain", "3600"]);
        let clients: Vec<_> = (0..CLIENTS).map(|_| program.connect()).collect();
        for client in &clients {
            assert_eq!(ask(client, "x"), "Got: x");
        }
        let mut status = None;
        let took = time(|| {
            for _ in 0..random.usize(0..20) {
                send(&program, &kinds, &mut random, Duration::from_millis(2));
            }
            // One at least, if there was none among those.
            program.signal(Signal::TERM);
            status = Some(program.wait().0);
        });
        let code = status.unwrap().code();
        // After one signal, which they may have been folded into; after a SIGINT; after a SIGTERM.
        assert!(
            matches!(code, Some(0 | 130 | 143)),
            "{status:?}, seed {seed}"
        );
        codes.push(code.unwrap());
        slowest = slowest.max(took);
    }
    let count = |code| codes.iter().filter(|&&other| other == code).count();
    println!(
        "{ROW}: {} programs ended, {} with 0, {} with 130, {} with 143, seed {seed}",
        codes.len(),
        count(0),
        count(130),
        count(143)
    );
    // After a single signal, idle connections end when they were quiet for a second.
    assert_time(
        &format!("{ROW}: the slowest"),
        slowest,
        Duration::from_secs(3),
    );
}

#[test]
fn a_hangup_ends_the_program_as_it_ends_any() {
    in_a_process_of_its_own(|| {
        // A process inherits that a signal is ignored, as nohup does, but not that it is handled: then it has the default.
        let _handled = signals([signal::Signal::Hup]).unwrap();
        let program = Program::start(&["-q", "-l", "127.0.0.1:0"]);
        let client = program.connect();
        assert_eq!(ask(&client, "x"), "Got: x");
        program.signal(Signal::HUP);
        let (status, _, stderr) = program.wait();
        assert_eq!(status.signal(), Some(Signal::HUP.as_raw()), "{stderr:?}");
    });
}
