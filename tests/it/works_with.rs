//! What docs/works-with.md says: which crates run on the loop, and which do not.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::thread;

use futures_lite::{AsyncReadExt, AsyncWriteExt, FutureExt};
use futures_util::stream::{FuturesUnordered, StreamExt};
use smol::{Async, channel, fs, lock, net, process};
use tinyloop::testing::{Faults, pipe};
use tinyloop::{sleep, spawn, yield_now};

use crate::support::{TempDir, run};

const PAGE: &str = include_str!("../../docs/works-with.md");

#[test]
fn smols_sockets_and_descriptors_work_on_the_loop() {
    run(async || {
        let here = net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let there = net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let addr = there.local_addr().unwrap();
        here.send_to(b"hello", addr).await.unwrap();
        let mut received = [0; 16];
        let (length, _) = there.recv_from(&mut received).await.unwrap();
        assert_eq!(&received[..length], b"hello");

        let (mut writer, reader) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut reader = Async::new(reader).unwrap();
        let reading = spawn(async move { reader.read(&mut [0; 8]).await });
        yield_now().await;
        writer.write_all(b"x").unwrap();
        assert_eq!(reading.await.unwrap(), 1);
    });
}

#[test]
fn smols_processes_work_on_the_loop() {
    run(async || {
        let output = process::Command::new("echo").arg("hello").output();
        assert_eq!(output.await.unwrap().stdout, b"hello\n");
    });
}

#[test]
fn smols_files_work_on_the_loop() {
    let directory = TempDir::new("works-with");
    run(async move || {
        let path = directory.path("file");
        fs::write(&path, b"hello").await.unwrap();
        assert_eq!(fs::read(&path).await.unwrap(), b"hello");
    });
}

#[test]
fn smols_locks_and_channels_work_on_the_loop_and_between_threads() {
    run(async || {
        let (sender, receiver) = channel::bounded(1);
        let sending =
            thread::spawn(move || (0..100).for_each(|n| sender.send_blocking(n).unwrap()));
        let sum = Rc::new(lock::Mutex::new(0));
        let adds: Vec<_> = (0..4)
            .map(|_| {
                let (receiver, sum) = (receiver.clone(), sum.clone());
                spawn(async move {
                    while let Ok(n) = receiver.recv().await {
                        let mut sum = sum.lock().await;
                        yield_now().await;
                        *sum += n;
                    }
                })
            })
            .collect();
        for add in adds {
            add.await;
        }
        assert_eq!(*sum.lock().await, 4950);
        sending.join().unwrap();
    });
}

#[test]
fn the_combinators_of_futures_work_on_the_loop() {
    run(async || {
        let naps = (1..=3).rev().map(|n| async move {
            sleep(std::time::Duration::from_millis(10 * n)).await;
            n
        });
        let order: Vec<u64> = naps.collect::<FuturesUnordered<_>>().collect().await;
        assert_eq!(order, [1, 2, 3]);
        let (one, two) = futures_util::future::join(async { 1 }, async { 2 }).await;
        assert_eq!((one, two), (1, 2));
    });
}

#[test]
fn a_parser_of_bytes_works_on_what_a_connection_reads() {
    run(async || {
        let (connection, mut peer) = pipe(Faults::from_seed(7));
        peer.write_all(b"GET /path HTTP/1.1\r\nHost: test\r\n\r\n")
            .await
            .unwrap();
        let mut head = Vec::new();
        loop {
            head.extend_from_slice(&connection.read_chunk().await.unwrap());
            let mut headers = [httparse::EMPTY_HEADER; 16];
            let mut request = httparse::Request::new(&mut headers);
            if request.parse(&head).unwrap().is_complete() {
                assert_eq!(request.path, Some("/path"));
                break;
            }
        }
    });
}

#[test]
fn what_needs_tokios_reactor_panics_and_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    run(async move || {
        let connecting = AssertUnwindSafe(tokio::net::TcpStream::connect(addr)).catch_unwind();
        let payload = connecting.await.expect_err("panics");
        let message = payload
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned());
        let message = message
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap();
        let words = "there is no reactor running";
        assert!(message.contains(words) && PAGE.contains(words), "{message}");
    });
}

#[test]
fn a_tokio_runtime_on_a_thread_of_its_own_serves_futures_on_the_loop() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .unwrap();
    let handle = runtime.handle().clone();
    let (end, ended) = channel::bounded::<()>(1);
    let reactor = thread::spawn(move || runtime.block_on(ended.recv()));
    run(async move || {
        let _entered = handle.enter();
        let stream = tokio::net::TcpStream::connect(addr).await.unwrap();
        let (mut peer, _): (TcpStream, _) = listener.accept().unwrap();
        peer.write_all(b"x").unwrap();
        stream.readable().await.unwrap();
        assert_eq!(stream.try_read(&mut [0; 8]).unwrap(), 1);
    });
    drop(end);
    reactor.join().unwrap().unwrap_err();
}

#[test]
fn each_line_of_the_page_names_a_test_or_an_example_that_is_there() {
    let tests = include_str!("works_with.rs");
    let rows = PAGE.split("## Crates that need a").next().unwrap();
    let rows = rows.lines().filter(|line| line.starts_with("| ["));
    for row in rows {
        let shown_by = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        let names: Vec<&str> = shown_by.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "no test shows it: {row}");
        for name in names {
            let is_example = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
                .join(name)
                .is_file();
            assert!(
                is_example || tests.contains(&format!("fn {name}(")),
                "{name}"
            );
        }
    }
}
