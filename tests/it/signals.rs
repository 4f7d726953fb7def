//! Signals as futures. They are the process's, so each test has a process of its own.

use std::env;
use std::io::ErrorKind;
use std::process::{Command, Stdio};
use std::thread;

use futures_lite::StreamExt;
use futures_lite::future::{poll_once, yield_now, zip};
use rustix::process::{Signal as Kill, getpid, kill_process};
use tinyloop::signal::{self, Signal, Signals};
use tinyloop::spawn;

use crate::support::{DEADLINE, Program, in_a_process_of_its_own, run, test_alone};

fn raise(signal: Kill) {
    kill_process(getpid(), signal).unwrap();
}

/// Lets the loop look at what is there, several times.
async fn look_around() {
    for _ in 0..100 {
        yield_now().await;
    }
}

async fn is_silent(signals: &mut Signals) -> bool {
    look_around().await;
    poll_once(signals.next()).await.is_none()
}

#[test]
fn shutdown_resolves_at_sigint_and_at_sigterm() {
    in_a_process_of_its_own(|| {
        run(async || {
            for signal in [Kill::INT, Kill::TERM] {
                let mut shutdown = spawn(signal::shutdown().unwrap());
                look_around().await;
                assert!(poll_once(&mut shutdown).await.is_none());
                raise(signal);
                shutdown.await;
            }
        });
    });
}

#[test]
fn a_second_signal_ends_the_process_though_a_task_blocks_the_loop_and_nobody_waits_for_it() {
    /// Whether the process of its own keeps the future.
    const KEEPS: &str = "TINYLOOP_TEST_KEEPS";
    fn test_of<F: FnOnce()>(_: &F) -> Command {
        test_alone::<F>()
    }
    let block = || {
        tinyloop::run(async {
            let shutdown = spawn(signal::shutdown().unwrap());
            look_around().await;
            let kept = (env::var_os(KEEPS).unwrap() == "yes").then_some(shutdown);
            println!("blocked");
            thread::sleep(2 * DEADLINE);
            drop(kept);
        });
    };
    if env::var_os(KEEPS).is_some() {
        return block();
    }
    for (signal, keeps) in [(Kill::INT, "yes"), (Kill::TERM, "yes"), (Kill::TERM, "no")] {
        let mut command = test_of(&block);
        let program = Program::spawn(command.env(KEEPS, keeps).stdout(Stdio::piped()));
        while !program.stdout_line().ends_with("blocked") {}
        let status = program.signal_until_end(signal);
        assert_eq!(status.code(), Some(128 + signal.as_raw()), "{status}");
    }
}

#[test]
fn a_shutdown_does_not_resolve_at_a_signal_of_the_past() {
    in_a_process_of_its_own(|| {
        run(async || {
            let mut witness = signal::signals([Signal::Term]).unwrap();
            raise(Kill::TERM);
            witness.next().await;
            let mut shutdown = spawn(signal::shutdown().unwrap());
            look_around().await;
            assert!(poll_once(&mut shutdown).await.is_none());
        });
    });
}

#[test]
fn a_shutdown_that_was_not_polled_yet_sees_the_signal() {
    in_a_process_of_its_own(|| {
        run(async || {
            let shutdown = signal::shutdown().unwrap();
            raise(Kill::TERM);
            shutdown.await;
        });
    });
}

#[test]
fn a_repeated_signal_is_seen_again() {
    in_a_process_of_its_own(|| {
        run(async || {
            let mut signals = signal::signals([Signal::Usr1, Signal::Usr2]).unwrap();
            for _ in 0..100 {
                raise(Kill::USR1);
                assert_eq!(signals.next().await, Some(Signal::Usr1));
                raise(Kill::USR2);
                assert_eq!(signals.next().await, Some(Signal::Usr2));
            }
            assert!(is_silent(&mut signals).await, "each is seen once");
        });
    });
}

/// Takes what the stream has, until it has been silent for a while.
async fn take_all(signals: &mut Signals) -> Vec<Signal> {
    let mut taken = Vec::new();
    loop {
        look_around().await;
        match poll_once(signals.next()).await {
            Some(signal) => taken.extend(signal),
            None => return taken,
        }
    }
}

#[test]
fn a_signal_is_seen_however_many_of_another_nobody_has_taken() {
    in_a_process_of_its_own(|| {
        run(async || {
            let mut signals = signal::signals([Signal::Hup, Signal::Term]).unwrap();
            let mut witness = signal::signals([Signal::Hup, Signal::Term]).unwrap();
            for _ in 0..3 {
                for _ in 0..300 {
                    raise(Kill::HUP);
                    assert_eq!(witness.next().await, Some(Signal::Hup));
                }
                raise(Kill::TERM);
                assert_eq!(witness.next().await, Some(Signal::Term));
                let mut taken = take_all(&mut signals).await;
                taken.sort();
                assert_eq!(taken, [Signal::Hup, Signal::Term], "repetitions fold");
            }
        });
    });
}

#[test]
fn a_flood_of_one_signal_hides_no_other() {
    in_a_process_of_its_own(|| {
        run(async || {
            let mut signals = signal::signals([Signal::Hup, Signal::Usr1, Signal::Term]).unwrap();
            for late in [Kill::USR1, Kill::TERM] {
                raise(Kill::HUP);
                assert_eq!(signals.next().await, Some(Signal::Hup));
                raise(late);
                // One that was never taken is always there.
                for turn in 0.. {
                    assert!(turn < 10, "{late:?} has its turn");
                    raise(Kill::HUP);
                    if signals.next().await != Some(Signal::Hup) {
                        break;
                    }
                }
                take_all(&mut signals).await;
            }
        });
    });
}

#[test]
fn a_signal_that_is_given_twice_is_seen_once() {
    in_a_process_of_its_own(|| {
        run(async || {
            let mut signals = signal::signals([Signal::Usr1, Signal::Usr1]).unwrap();
            raise(Kill::USR1);
            assert_eq!(signals.next().await, Some(Signal::Usr1));
            assert!(is_silent(&mut signals).await);
        });
    });
}

#[test]
fn two_streams_see_each_signal_and_each_sees_its_own_only() {
    in_a_process_of_its_own(|| {
        run(async || {
            let mut first = signal::signals([Signal::Usr1, Signal::Hup]).unwrap();
            let mut second = signal::signals([Signal::Usr1, Signal::Usr2]).unwrap();
            for _ in 0..10 {
                raise(Kill::USR1);
                let both = zip(first.next(), second.next()).await;
                assert_eq!(both, (Some(Signal::Usr1), Some(Signal::Usr1)));
            }
            raise(Kill::USR2);
            assert_eq!(second.next().await, Some(Signal::Usr2));
            assert!(is_silent(&mut first).await);
            raise(Kill::HUP);
            assert_eq!(first.next().await, Some(Signal::Hup));
            assert!(is_silent(&mut second).await);

            drop(second);
            raise(Kill::USR1);
            assert_eq!(first.next().await, Some(Signal::Usr1));
        });
    });
}

#[test]
fn a_signal_does_not_end_the_process_once_its_stream_is_dropped() {
    in_a_process_of_its_own(|| {
        run(async || {
            drop(signal::signals([Signal::Int, Signal::Term]).unwrap());
            for signal in [Kill::TERM, Kill::INT, Kill::TERM, Kill::INT] {
                raise(signal);
                look_around().await;
            }
        });
    });
}

#[test]
fn a_signal_that_cannot_be_handled_is_refused() {
    in_a_process_of_its_own(|| {
        run(async || {
            for signal in [Signal::Kill, Signal::Stop, Signal::Segv] {
                let error = signal::signals([Signal::Usr1, signal]).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::InvalidInput);
                assert_eq!(error.to_string(), "cannot handle signals: invalid argument");
            }
        });
    });
}

#[test]
fn a_stream_of_signals_outlives_its_loop() {
    in_a_process_of_its_own(|| {
        let mut signals = signal::signals([Signal::Usr1]).unwrap();
        for _ in 0..3 {
            signals = run(async move || {
                raise(Kill::USR1);
                assert_eq!(signals.next().await, Some(Signal::Usr1));
                signals
            });
            raise(Kill::USR1);
            signals = run(async move || {
                assert_eq!(signals.next().await, Some(Signal::Usr1));
                signals
            });
        }
    });
}
