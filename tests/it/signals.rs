//! Signals as futures. They are the process's, so each test has a process of its own.

use std::io::ErrorKind;

use futures_lite::StreamExt;
use futures_lite::future::{poll_once, yield_now, zip};
use rustix::process::{Signal as Kill, getpid, kill_process};
use tinyloop::signal::{self, Signal, Signals};
use tinyloop::spawn;

use crate::support::{in_a_process_of_its_own, run};

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
            drop(signal::shutdown().unwrap());
            raise(Kill::TERM);
            raise(Kill::INT);
            look_around().await;
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
