//! Each kind of fault over a connection in memory, to the byte and to the millisecond of the test clock.

use std::io::ErrorKind;
use std::time::Duration;

use futures_lite::future::poll_once;
use futures_lite::io::Cursor;
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use tinyloop::faults::Faulty;
use tinyloop::testing::{Faults, for_each_seed, pipe};
use tinyloop::{Connection, now, sleep, spawn};

use super::plan;
use crate::support::run_on_test_clock;

const HOUR: Duration = Duration::from_secs(3600);

/// A connection that the first draw of these faults befalls, and its peer.
fn faulty(faults: &[&str]) -> (Faulty<Connection>, Connection) {
    let (connection, peer) = pipe(Faults::none());
    (
        Faulty::connection(connection, plan(7, faults).draw(1)),
        peer,
    )
}

/// What a peer saw.
#[derive(Debug)]
struct Seen {
    /// Each piece with the milliseconds that it came after.
    pieces: Vec<(u64, Vec<u8>)>,
    /// When the input ended, and with which error.
    end: (u64, Option<ErrorKind>),
}

impl Seen {
    fn times(&self) -> Vec<u64> {
        self.pieces.iter().map(|(time, _)| *time).collect()
    }

    fn lengths(&self) -> Vec<usize> {
        self.pieces.iter().map(|(_, bytes)| bytes.len()).collect()
    }

    fn bytes(&self) -> Vec<u8> {
        let pieces = self.pieces.iter().map(|(_, bytes)| &bytes[..]);
        pieces.collect::<Vec<_>>().concat()
    }
}

/// What the peer sees when a handler writes these replies, one after another, and closes.
fn seen(faults: &'static [&str], replies: Vec<Vec<u8>>) -> Seen {
    run_on_test_clock(async move || {
        let (mut faulty, mut peer) = faulty(faults);
        let start = now();
        let peer = spawn(async move {
            let mut pieces = Vec::new();
            let mut buffer = vec![0; 100_000];
            loop {
                let read = peer.read(&mut buffer).await;
                let time = (now() - start).as_millis() as u64;
                match read {
                    Ok(0) => {
                        return Seen {
                            pieces,
                            end: (time, None),
                        };
                    }
                    Ok(length) => pieces.push((time, buffer[..length].to_vec())),
                    Err(error) => {
                        let end = (time, Some(error.kind()));
                        return Seen { pieces, end };
                    }
                }
            }
        });
        for reply in replies {
            if faulty.write_all(&reply).await.is_err() {
                break;
            }
        }
        faulty.close().await.ok();
        peer.await
    })
}

fn replies<const N: usize>(replies: [&str; N]) -> Vec<Vec<u8>> {
    replies.map(|reply| reply.as_bytes().to_vec()).to_vec()
}

#[test]
fn a_delay_holds_each_reply_and_keeps_their_order() {
    let seen = seen(&["delay=100ms"], replies(["one", "two", "three"]));
    assert_eq!(seen.times(), [100, 200, 300]);
    assert_eq!(seen.bytes(), b"onetwothree");
    assert_eq!(seen.end, (300, None));
}

#[test]
fn a_delay_of_a_range_is_another_for_each_reply() {
    let seen = seen(&["delay=50ms..200ms"], vec![b"reply".to_vec(); 200]);
    let mut before = 0;
    let mut delays: Vec<u64> = seen
        .times()
        .iter()
        .map(|time| time - std::mem::replace(&mut before, *time))
        .collect();
    delays.sort_unstable();
    assert!(
        (50..60).contains(&delays[0]) && (190..=200).contains(&delays[199]),
        "{delays:?}"
    );
}

#[test]
fn a_reply_that_the_peer_takes_in_parts_is_delayed_once() {
    let seen = seen(&["delay=100ms"], vec![vec![b'x'; 500_000]; 2]);
    assert_eq!(seen.bytes().len(), 1_000_000);
    assert!(
        seen.times().iter().all(|time| [100, 200].contains(time)),
        "{:?}",
        seen.times()
    );
}

#[test]
fn a_rate_lets_a_reply_trickle() {
    let trickle = seen(&["rate=10kB"], vec![vec![b'x'; 1000]; 2]);
    assert_eq!(trickle.lengths(), [100; 20]);
    assert_eq!(
        trickle.times(),
        (1..=20).map(|n| n * 10).collect::<Vec<_>>()
    );
    let drops = seen(&["rate=8"], replies(["abc"]));
    assert_eq!(drops.lengths(), [1, 1, 1]);
    assert_eq!(drops.times(), [125, 250, 375]);
    let ten_minutes = seen(&["rate=100"], vec![vec![b'x'; 60_000]]);
    assert_eq!(ten_minutes.end, (600_000, None));
}

#[test]
fn slices_are_of_the_lengths_and_with_the_pauses_that_were_asked_for() {
    let slices = seen(&["slice=1..7/10ms"], vec![b"0123456789".repeat(100); 2]);
    assert_eq!(slices.bytes(), b"0123456789".repeat(200));
    let lengths = slices.lengths();
    assert!(lengths.contains(&1) && lengths.contains(&7), "{lengths:?}");
    let whole = vec![b"0123456789".to_vec(); 2];
    let of_three = seen(&["slice=3/10ms"], whole.clone());
    // The first slice of the second reply comes with the last of the first: no pause is between replies.
    assert_eq!(of_three.times(), [0, 10, 20, 30, 40, 50, 60]);
    assert_eq!(of_three.lengths(), [3, 3, 3, 4, 3, 3, 1]);
    let of_a_rate = seen(&["slice=3/10ms", "rate=100", "delay=1s"], whole);
    assert_eq!(
        of_a_rate.times(),
        [1030, 1070, 1110, 1130, 2160, 2200, 2240, 2260]
    );
}

#[test]
fn a_close_comes_after_its_bytes_in_the_middle_of_a_reply() {
    let closed = seen(&["close-after=5000"], vec![vec![b'x'; 3000]; 5]);
    assert_eq!(closed.bytes().len(), 5000);
    assert_eq!(closed.end, (0, None));
    let late = seen(
        &["close-after=5000", "close-delay=2s"],
        vec![vec![b'x'; 3000]; 5],
    );
    assert_eq!((late.bytes().len(), late.end), (5000, (2000, None)));

    run_on_test_clock(async || {
        let (mut faulty, mut peer) = faulty(&["close-after=3"]);
        peer.write_all(b"request").await.unwrap();
        faulty.write_all(b"hello").await.unwrap();
        let read = faulty.read(&mut [0; 10]).await.unwrap();
        assert_eq!(read, 0, "the handler is to end, too");
        let mut reply = Vec::new();
        peer.read_to_end(&mut reply).await.unwrap();
        assert_eq!(reply, b"hel");
    });
}

#[test]
fn a_reset_comes_after_its_bytes_and_fails_the_handler() {
    let reset = seen(&["reset-after=5000"], vec![vec![b'x'; 3000]; 5]);
    assert_eq!(reset.bytes().len(), 5000);
    assert_eq!(reset.end, (0, Some(ErrorKind::ConnectionReset)));
    run_on_test_clock(async || {
        let (mut faulty, _peer) = faulty(&["reset-after=5"]);
        faulty.write_all(b"hello").await.unwrap();
        for _ in 0..2 {
            let error = faulty.read(&mut [0]).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            let error = faulty.write(b"x").await.unwrap_err();
            assert_eq!(error.to_string(), "reset on purpose");
        }
    });
}

#[test]
fn a_refused_connection_is_reset_before_its_first_byte() {
    let refused = seen(&["refuse"], replies(["hello"]));
    assert_eq!(refused.bytes(), b"");
    assert_eq!(refused.end, (0, Some(ErrorKind::ConnectionReset)));
}

#[test]
fn a_silent_connection_reads_on_and_never_answers() {
    run_on_test_clock(async || {
        let (mut faulty, mut peer) = faulty(&["silent-after=3"]);
        faulty.write_all(b"hello").await.unwrap();
        let mut reply = [0; 3];
        peer.read_exact(&mut reply).await.unwrap();
        assert_eq!(&reply, b"hel");
        for _ in 0..3 {
            peer.write_all(&[b'x'; 50_000]).await.unwrap();
            faulty.read_exact(&mut vec![0; 50_000]).await.unwrap();
            faulty.write_all(b"answer").await.unwrap();
            sleep(HOUR).await;
            assert!(poll_once(peer.read(&mut reply)).await.is_none());
        }
        peer.close().await.unwrap();
        assert_eq!(faulty.read(&mut reply).await.unwrap(), 0);
        faulty.close().await.unwrap();
        assert_eq!(peer.read(&mut reply).await.unwrap(), 0);
    });
}

#[test]
fn a_stalled_connection_neither_reads_nor_answers_nor_ends() {
    run_on_test_clock(async || {
        let (mut faulty, mut peer) = faulty(&["stall-after=3"]);
        assert_eq!(faulty.write(b"hello").await.unwrap(), 3);
        peer.write_all(b"x").await.unwrap();
        peer.close().await.unwrap();
        let mut reply = [0; 3];
        peer.read_exact(&mut reply).await.unwrap();
        for _ in 0..3 {
            assert!(poll_once(faulty.read(&mut [0])).await.is_none());
            assert!(poll_once(faulty.write(b"lo")).await.is_none());
            assert!(poll_once(faulty.close()).await.is_none());
            assert!(poll_once(peer.read(&mut reply)).await.is_none());
            sleep(HOUR).await;
        }
    });
}

#[test]
fn the_end_comes_late() {
    let late = seen(&["close-delay=2s"], replies(["hello"]));
    assert_eq!((late.times(), late.end), (vec![0], (2000, None)));
}

#[test]
fn corrupted_bytes_have_one_flipped_bit_wherever_the_writes_are_cut() {
    let text: Vec<u8> = b"0123456789".repeat(10_000);
    let corrupted = seen(&["corrupt=10"], vec![text.clone()]).bytes();
    let flips: Vec<u8> = text
        .iter()
        .zip(&corrupted)
        .map(|(a, b)| a ^ b)
        .filter(|flip| *flip != 0)
        .collect();
    // A thousand, give or take five standard deviations.
    assert!((843..=1157).contains(&flips.len()), "{}", flips.len());
    assert!(flips.iter().all(|flip| flip.count_ones() == 1));
    assert_eq!(corrupted.len(), text.len());
    let pieces = text.chunks(7).map(<[u8]>::to_vec).collect();
    assert_eq!(seen(&["corrupt=10"], pieces).bytes(), corrupted);
    assert_eq!(
        seen(&["corrupt=10", "slice=1..100"], vec![text.clone()]).bytes(),
        corrupted
    );
    assert_eq!(seen(&["corrupt=0"], vec![text.clone()]).bytes(), text);
}

#[test]
fn the_first_of_several_ends_counts() {
    let end = |faults| {
        let seen = seen(faults, replies(["hello"]));
        (seen.bytes().len(), seen.end.1)
    };
    assert_eq!(end(&["reset-after=4", "close-after=3"]), (3, None));
    let reset = Some(ErrorKind::ConnectionReset);
    assert_eq!(end(&["reset-after=3", "close-after=4"]), (3, reset));
    assert_eq!(end(&["stall-after=9", "refuse"]), (0, reset));
}

#[test]
fn nothing_befalls_a_connection_that_nothing_was_drawn_for() {
    let untouched = seen(&["refuse@0%"], replies(["hello", "there"]));
    assert_eq!(
        (untouched.bytes(), untouched.end),
        (b"hellothere".to_vec(), (0, None))
    );
}

#[test]
fn a_stream_of_any_kind_may_have_faults() {
    run_on_test_clock(async || {
        let mut faulty = Faulty::new(Cursor::new(Vec::new()), plan(7, &["reset-after=3"]).draw(1));
        let error = faulty.write_all(b"hello").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert_eq!(faulty.get_ref().get_ref(), b"hel");
    });
}

#[test]
fn bytes_are_the_same_over_a_pipe_that_fails_from_the_same_seed() {
    for_each_seed(0..50, |seed| {
        run_on_test_clock(async move || {
            let (connection, mut peer) = pipe(Faults::from_seed(seed));
            let plan = plan(
                seed,
                &["slice=1..100", "delay=1ms..1s", "close-after=100..9000"],
            );
            let drawn = plan.draw(1);
            let line = drawn.to_string();
            let most: usize = line.rsplit('=').next().unwrap().parse().unwrap();
            let mut faulty = Faulty::connection(connection, drawn);
            let handler = spawn(async move { faulty.write_all(&[b'x'; 10_000]).await });
            let mut reply = Vec::new();
            peer.read_to_end(&mut reply).await.unwrap();
            assert_eq!(reply.len(), most, "{line}");
            handler.await.unwrap();
        });
    });
}
