//! The PROXY protocol: the client's address from the header, and not a byte of the payload lost.

mod model;
mod program;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::Duration;

use fastrand::Rng;
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use tinyloop::testing::{Connector, Faults, server};
use tinyloop::{Connection, Listener, Report, Server, WhenFull, sleep, spawn, task_table};

use self::model::{Expected, expected};
use crate::server::incoming;
use crate::support::{Served, TempDir, connect, hang_up, run_on_test_clock};

const TIMEOUT: Duration = Duration::from_secs(3);
const PAYLOAD: &[u8] = b"PROXY is payload here\r\n";

fn v4() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 7], 40_001))
}

fn v6() -> SocketAddr {
    SocketAddr::new("2001:db8::7".parse().unwrap(), 40_002)
}

fn version_1(client: SocketAddr) -> Vec<u8> {
    let (family, target) = match client.ip() {
        IpAddr::V4(_) => ("TCP4", IpAddr::V4(Ipv4Addr::LOCALHOST)),
        IpAddr::V6(_) => ("TCP6", IpAddr::V6(Ipv6Addr::LOCALHOST)),
    };
    let (ip, port) = (client.ip(), client.port());
    format!("PROXY {family} {ip} {target} {port} 80\r\n").into_bytes()
}

/// A header of version 2, of which `addresses` are followed by `extensions`.
fn version_2(command: u8, family: u8, addresses: &[u8], extensions: &[u8]) -> Vec<u8> {
    let length = u16::try_from(addresses.len() + extensions.len()).unwrap();
    let start = [
        b"\r\n\r\n\0\r\nQUIT\n".as_slice(),
        &[command, family],
        &length.to_be_bytes(),
    ];
    [&start.concat(), addresses, extensions].concat()
}

/// A client's address in version 2, and its own as that of the server.
fn addresses(client: SocketAddr) -> Vec<u8> {
    let ip = match client.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let port = client.port().to_be_bytes();
    [&ip, &ip, port.as_slice(), &port].concat()
}

/// An extension (TLV) that makes the addresses of `before` bytes and itself `length` bytes long.
fn extension(before: usize, length: usize) -> Vec<u8> {
    let value = length - before - 3;
    let mut extension = vec![0x04];
    extension.extend(u16::try_from(value).unwrap().to_be_bytes());
    // Looks like a header, to whoever looks there.
    extension.extend(b"PROXY UNKNOWN\r\n".iter().cycle().take(value));
    extension
}

/// Headers of all kinds, with the client's address if they have one.
fn headers() -> Vec<(&'static str, Vec<u8>, Option<SocketAddr>)> {
    let longest_line = format!("PROXY UNKNOWN {}\r\n", "f".repeat(107 - 16));
    assert_eq!(longest_line.len(), 107);
    let (of_4, of_6) = (addresses(v4()), addresses(v6()));
    vec![
        ("v1 TCP4", version_1(v4()), Some(v4())),
        ("v1 TCP6", version_1(v6()), Some(v6())),
        ("v1 UNKNOWN", b"PROXY UNKNOWN\r\n".to_vec(), None),
        ("v1 longest", longest_line.into_bytes(), None),
        ("v2 TCP4", version_2(0x21, 0x11, &of_4, &[]), Some(v4())),
        ("v2 TCP6", version_2(0x21, 0x21, &of_6, &[]), Some(v6())),
        ("v2 LOCAL", version_2(0x20, 0x00, &[], &[]), None),
        (
            "v2 LOCAL with a family",
            version_2(0x20, 0x11, &[], &[]),
            None,
        ),
        ("v2 UDP", version_2(0x21, 0x12, &of_4, &[]), None),
        ("v2 Unix", version_2(0x21, 0x31, &[b'/'; 216], &[]), None),
        (
            "v2 with an extension",
            version_2(0x21, 0x11, &of_4, &extension(12, 300)),
            Some(v4()),
        ),
    ]
}

/// With as many bytes of extensions as there may be.
fn longest() -> Vec<u8> {
    version_2(0x21, 0x21, &addresses(v6()), &extension(36, 65_535))
}

/// Answers with the peer's address, and then with what it reads.
async fn introduce(mut connection: Connection) -> std::io::Result<()> {
    let peer_addr = format!("{}\n", connection.peer_addr());
    connection.write_all(peer_addr.as_bytes()).await?;
    let mut chunk = [0; 100];
    loop {
        match connection.read(&mut chunk).await? {
            0 => return Ok(()),
            n => connection.write_all(&chunk[..n]).await?,
        }
    }
}

/// What [`introduce`] answers to [`PAYLOAD`].
fn introduction(peer_addr: impl ToString) -> String {
    format!("{}\n{}", peer_addr.to_string(), PAYLOAD.escape_ascii())
}

fn text(bytes: &[u8]) -> String {
    let line = bytes
        .iter()
        .position(|&byte| byte == b'\n')
        .map_or(0, |at| at + 1);
    let (line, rest) = bytes.split_at(line);
    format!("{}{}", String::from_utf8_lossy(line), rest.escape_ascii())
}

#[test]
fn the_address_in_the_header_is_the_peers_and_the_payload_behind_it_is_whole() {
    let served = Served::start(|server| server.proxy_protocol(TIMEOUT), introduce);
    let longest = ("v2 longest", longest(), Some(v6()));
    for (name, header, client) in headers().into_iter().chain([longest]) {
        for in_one in [true, false] {
            let mut stream = connect(served.addr);
            let own = stream.local_addr().unwrap();
            if in_one {
                let segment = [header.as_slice(), PAYLOAD].concat();
                stream.write_all(&segment).unwrap();
            } else {
                // Single bytes, as far as that is no matter of minutes.
                let (single, rest) = header.split_at(header.len().min(400));
                for byte in single {
                    stream.write_all(&[*byte]).unwrap();
                }
                stream.write_all(rest).unwrap();
                stream.write_all(PAYLOAD).unwrap();
            }
            let answer = text(&hang_up(stream));
            assert_eq!(
                answer,
                introduction(client.unwrap_or(own)),
                "{name}, {in_one}"
            );
        }
    }
    let report = served.stop().unwrap();
    assert_eq!((report.accepted, report.rejected), (24, 0));
    let payload = 24 * PAYLOAD.len() as u64;
    assert_eq!(report.bytes_in, payload, "headers do not count");
}

#[test]
fn a_unix_socket_takes_the_address_in_the_header_too() {
    let dir = TempDir::new("proxy-protocol");
    let path = dir.path("socket");
    let listener = Listener::bind_unix(&path).unwrap();
    let running = incoming::run([listener], async |server: Server| {
        server.proxy_protocol(TIMEOUT).serve(introduce).await
    });
    for (name, header, client) in headers() {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream
            .write_all(&[header.as_slice(), PAYLOAD].concat())
            .unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let peer_addr = client.map_or("unix:unnamed".to_owned(), |client| client.to_string());
        assert_eq!(text(&answer), introduction(peer_addr), "{name}");
    }
    assert_eq!(incoming::stop(running).rejected, 0);
}

/// Serves `handler` in memory, on the clock that jumps, while `visit` connects. Returns the report and all lines.
fn in_memory(
    configure: impl FnOnce(Server) -> Server + Send + 'static,
    visit: impl AsyncFnOnce(Connector, smol::channel::Sender<()>) + Send + 'static,
) -> (Report, Vec<String>) {
    run_on_test_clock(async || {
        let (server, connector) = server();
        let (shutdown, shut_down) = smol::channel::bounded::<()>(1);
        let lines = Rc::new(RefCell::new(Vec::new()));
        let observed = lines.clone();
        let server = configure(server.proxy_protocol(TIMEOUT))
            .shutdown_on(async move { shut_down.recv().await.unwrap_or_default() })
            .observe(move |event| observed.borrow_mut().push(event.to_string()));
        let serving = spawn(server.serve(introduce));
        visit(connector, shutdown.clone()).await;
        shutdown.close();
        let report = serving.await.unwrap();
        (report, lines.take())
    })
}

/// Sends pieces, each when the server has had time for those before it. Reads to the end.
async fn say(mut peer: Connection, pieces: &[&[u8]]) -> std::io::Result<Vec<u8>> {
    for piece in pieces {
        peer.write_all(piece).await?;
        sleep(Duration::from_millis(1)).await;
    }
    peer.close().await?;
    let mut answer = Vec::new();
    peer.read_to_end(&mut answer).await?;
    Ok(answer)
}

#[test]
fn a_header_may_be_cut_at_every_position() {
    let (report, _) = in_memory(
        |server| server,
        async |connector, _| {
            let mut seed = 0;
            for (name, header, client) in headers() {
                let whole = [header.as_slice(), PAYLOAD].concat();
                for cut in 0..=header.len() {
                    seed += 1;
                    let (first, rest) = whole.split_at(cut);
                    // With a server whose reads are short, interrupted and late.
                    let peer = connector.connect(Faults::from_seed(seed)).unwrap();
                    let answer = say(peer, &[first, rest]).await.unwrap();
                    let peer_addr = client.map_or("unknown".to_owned(), |addr| addr.to_string());
                    assert_eq!(text(&answer), introduction(peer_addr), "{name}, {cut}");
                }
            }
        },
    );
    assert_eq!(report.rejected, 0);
    assert!(report.completed > 700, "{report}");
}

#[test]
fn extensions_of_any_length_are_skipped_and_no_more() {
    in_memory(
        |server| server,
        async |connector, _| {
            for length in (16..=700).chain([4_095, 4_096, 65_534, 65_535]) {
                let header = version_2(0x21, 0x11, &addresses(v4()), &extension(12, length));
                let (first, rest) = header.split_at(header.len() / 2);
                let faults = Faults::from_seed(length as u64);
                let peer = connector.connect(faults).unwrap();
                let answer = say(peer, &[first, rest, PAYLOAD]).await.unwrap();
                assert_eq!(text(&answer), introduction(v4()), "{length}");
            }
        },
    );
}

/// A header with some of its bytes changed, doubled or left out, or bytes that were none; and payload behind it.
fn garbage(rng: &mut Rng) -> Vec<u8> {
    let mut bytes = match rng.u8(0..10) {
        0 => {
            let length = rng.usize(0..300);
            std::iter::repeat_with(|| rng.u8(..)).take(length).collect()
        }
        _ => rng.choice(headers()).unwrap().1,
    };
    for _ in 0..rng.usize(0..4) {
        if bytes.is_empty() {
            break;
        }
        let at = rng.usize(..bytes.len());
        match rng.u8(0..4) {
            0 => bytes[at] ^= 1 << rng.u8(0..8),
            1 => bytes[at] = *rng.choice(b"PROXY \r\n0123456789.:".iter()).unwrap(),
            2 => bytes.insert(at, bytes[at]),
            _ => drop(bytes.remove(at)),
        }
    }
    bytes.extend(PAYLOAD);
    bytes
}

#[test]
fn of_10000_seeds_of_garbage_each_is_served_or_refused_as_its_bytes_say() {
    let (mut accepted, mut rejected) = (0, 0);
    let mut reasons = BTreeSet::new();
    // In parts, each within the deadline.
    for first in (0..10_000).step_by(1_000) {
        let (report, lines) = in_memory(
            |server| server,
            async move |connector, _| {
                for seed in first..first + 1_000 {
                    serve_garbage(&connector, seed).await;
                }
            },
        );
        accepted += report.accepted;
        rejected += report.rejected;
        let of_rejected = lines
            .iter()
            .filter_map(|line| line.strip_prefix("rejected unknown: "));
        reasons.extend(of_rejected.map(str::to_owned));
    }
    assert_eq!(accepted + rejected, 10_000);
    assert!(
        accepted > 2_000 && rejected > 2_000,
        "{accepted}, {rejected}"
    );
    let all = [
        "it closed before its PROXY header",
        "its PROXY header is wrong",
        "no PROXY header",
    ];
    assert!(reasons.iter().eq(all), "{reasons:?}");
}

/// Sends a seed's garbage in pieces, and compares the answer with the model's.
async fn serve_garbage(connector: &Connector, seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let sent = garbage(&mut rng);
    let mut pieces = Vec::new();
    let mut rest = sent.as_slice();
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rng.usize(1..=rest.len()));
        pieces.push(piece);
        rest = after;
    }
    let peer = connector.connect(Faults::from_seed(seed)).unwrap();
    let answer = say(peer, &pieces).await;
    match expected(&sent) {
        Expected::Header(length, client) if length <= sent.len() => {
            let peer_addr = client.map_or("unknown".to_owned(), |client| client.to_string());
            let payload = sent[length..].escape_ascii();
            let answer = text(&answer.unwrap());
            assert_eq!(answer, format!("{peer_addr}\n{payload}"), "{seed}");
        }
        // Its connection is closed, with or without a reset.
        _ => assert_eq!(answer.unwrap_or_default(), b"", "{seed}"),
    }
}

#[test]
fn a_header_that_is_late_closes_the_connection_when_its_time_is_over() {
    let (report, lines) = in_memory(
        |server| server,
        async |connector, _| {
            for sent in [&b""[..], b"PROXY TCP4 192.0.2.7", &longest()[..60_000]] {
                let start = tinyloop::now();
                let mut peer = connector.connect(Faults::none()).unwrap();
                peer.write_all(sent).await.unwrap();
                let ended = peer.read(&mut [0]).await;
                assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
                assert_eq!((tinyloop::now() - start), TIMEOUT);
            }
            // A millisecond less is early enough.
            let mut peer = connector.connect(Faults::none()).unwrap();
            sleep(TIMEOUT - Duration::from_millis(1)).await;
            peer.write_all(&version_1(v4())).await.unwrap();
            assert_eq!(
                text(&say(peer, &[PAYLOAD]).await.unwrap()),
                introduction(v4())
            );
        },
    );
    assert_eq!((report.accepted, report.rejected), (1, 3));
    let late = "rejected unknown: no PROXY header within 3s";
    assert_eq!(lines.iter().filter(|line| *line == late).count(), 3);
}

#[test]
fn a_header_that_cannot_become_one_is_refused_before_its_time_is_over() {
    let (report, _) = in_memory(
        |server| server,
        async |connector, _| {
            let endless = [b"PROXY TCP4 ".as_slice(), &[b'1'; 96]].concat();
            let unix = version_2(0x21, 0x31, b"/short", &[]);
            for sent in [endless.as_slice(), b"PRIXY", &unix] {
                let start = tinyloop::now();
                let mut peer = connector.connect(Faults::none()).unwrap();
                peer.write_all(sent).await.unwrap();
                let ended = peer.read(&mut [0]).await;
                assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
                assert!(tinyloop::now() - start < TIMEOUT, "{sent:?}");
            }
        },
    );
    assert_eq!(report.rejected, 3);
}

#[test]
fn who_has_sent_no_header_holds_a_place_and_keeps_nobody_from_being_accepted() {
    in_memory(
        |server| server.max_connections(101),
        async |connector, _| {
            let silent: Vec<_> = (0..100)
                .map(|_| connector.connect(Faults::none()).unwrap())
                .collect();
            let start = tinyloop::now();
            let served = connector.connect(Faults::none()).unwrap();
            let answer = say(served, &[&version_1(v4()), PAYLOAD]).await.unwrap();
            assert_eq!(text(&answer), introduction(v4()));
            assert!((tinyloop::now() - start) < TIMEOUT / 2);
            // The house is full: one more waits until the time of those is over.
            let held = connector.connect(Faults::none()).unwrap();
            sleep(Duration::from_millis(1)).await;
            let late = connector.connect(Faults::none()).unwrap();
            let answer = say(late, &[&version_1(v6()), PAYLOAD]).await.unwrap();
            assert_eq!(text(&answer), introduction(v6()));
            assert_eq!((tinyloop::now() - start).as_secs(), TIMEOUT.as_secs());
            drop((silent, held));
        },
    );
}

#[test]
fn a_full_server_rejects_who_comes_behind_one_whose_header_is_awaited() {
    let (report, lines) = in_memory(
        |server| server.max_connections(1).when_full(WhenFull::Reject),
        async |connector, _| {
            let first = connector.connect(Faults::none()).unwrap();
            sleep(Duration::from_millis(1)).await;
            let second = connector.connect(Faults::none()).unwrap();
            assert_eq!(say(second, &[]).await.unwrap_or_default(), b"");
            let answer = say(first, &[&version_1(v4()), PAYLOAD]).await.unwrap();
            assert_eq!(text(&answer), introduction(v4()));
        },
    );
    assert_eq!((report.accepted, report.rejected), (1, 1));
    assert!(lines.contains(&"rejected unknown: the server is full".to_owned()));
}

#[test]
fn a_header_may_still_come_during_the_drain_and_is_given_up_at_its_end() {
    let (report, lines) = in_memory(
        |server| server.drain(Duration::from_secs(2)),
        async |connector, shutdown| {
            let early = connector.connect(Faults::none()).unwrap();
            // In the queue when the shutdown comes, and accepted for all that.
            let mut never = connector.connect(Faults::none()).unwrap();
            sleep(Duration::from_millis(1)).await;
            shutdown.close();
            sleep(Duration::from_secs(1)).await;
            let refused = connector.connect(Faults::none()).map(drop);
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
            let answer = say(early, &[&version_1(v4()), PAYLOAD]).await.unwrap();
            assert_eq!(text(&answer), introduction(v4()));
            let start = tinyloop::now();
            let ended = never.read(&mut [0]).await;
            assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
            assert!((tinyloop::now() - start) < Duration::from_secs(1));
        },
    );
    assert_eq!((report.completed, report.rejected), (1, 1));
    assert!(
        lines[0].starts_with("draining for at most 2.0s, open connections: 2"),
        "{lines:?}"
    );
    assert_eq!(
        *lines.last().unwrap(),
        "rejected unknown: no PROXY header before the server ended"
    );
}

#[test]
fn nothing_is_left_of_the_wait_for_a_header() {
    in_memory(
        |server| server,
        async |connector, _| {
            let table = task_table();
            let waiting = || {
                table
                    .tasks()
                    .into_iter()
                    .filter(|task| task.name.as_deref() == Some("PROXY header"))
                    .count()
            };
            let mut peer = connector.connect(Faults::none()).unwrap();
            sleep(Duration::from_millis(1)).await;
            assert_eq!(waiting(), 1);
            peer.write_all(&version_1(v4())).await.unwrap();
            sleep(Duration::from_millis(1)).await;
            assert_eq!(waiting(), 0);
            let shown = table.tasks().into_iter().find_map(|task| task.connection);
            assert_eq!(shown.unwrap().peer_addr, v4().to_string());
        },
    );
}
