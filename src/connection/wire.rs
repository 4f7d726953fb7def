//! One direction of a connection in memory: its buffers, its window, and what travels when.
//!
//! It is a model of our own and no TCP stack such as smoltcp: a stack is true to the RFCs, but what surprises a server
//! is Linux's (what a close does to unread input, when a buffer has room, which call gets which error), and a byte of a
//! stack costs a packet, a header and a checksum.

use std::collections::VecDeque;
use std::time::Duration;

/// The longest segment that was seen, before there was one.
const FIRST_SEGMENT: usize = 536;

/// What an in-memory connection goes over: the kind of its sockets, the sizes of their buffers, and how fast bytes get
/// from one to the other. Both directions are alike, unless [`back`](Wire::back) says how the other is.
///
/// The model is one of Linux's sockets, and a test runs the same random scripts of system calls on both. These
/// differences are on purpose:
///
/// | on Linux | here |
/// |---|---|
/// | A buffer counts what the kernel allocates: a byte that is sent alone may take 2 KiB. It takes one write more than it has room for. | A buffer counts bytes, and takes as many as it has room for. |
/// | A receive buffer that is full is packed, and has room for a little more. | It is full. |
/// | Buffers of a socket grow with its traffic. | They have the sizes that the wire says, or [`Server::socket_buffers`](crate::Server::socket_buffers). |
/// | A segment that does not fit into a small window waits for a timer of 200 ms or more. | What fits is sent at once. |
/// | `TCP_USER_TIMEOUT` is over at the first probe after its time, up to a third later. | It is over on time. |
/// | Slow start, congestion, lost packets and retransmissions; Nagle's algorithm and delayed acknowledgements. | A packet arrives after its time, in order. `TCP_NODELAY` is set. |
/// | What is dropped with a socket's descriptor goes to a thread of the kernel, an address is busy for a minute (`TIME_WAIT`), an orphan ends after a minute (`FIN_WAIT2`). | They are gone. |
/// | A connect to a full queue of a TCP listener is tried again after a second. | A `Connector` fails at once (`WouldBlock`), as a Unix socket does. [`Connection::connect`](crate::Connection::connect) tries again after 5 ms. |
/// | Urgent data. | There is none. |
#[derive(Clone, Debug)]
pub struct Wire {
    pub(super) is_unix: bool,
    pub(super) send: usize,
    pub(super) receive: usize,
    pub(super) segment: usize,
    pub(super) latency: u64,
    /// Nanoseconds that a mebibyte takes.
    pub(super) mebibyte_takes: u64,
    /// The other direction's.
    pub(super) back: Option<Box<Wire>>,
}

impl Wire {
    /// TCP over loopback: a send buffer of 16 KiB, a receive buffer of 64 KiB, segments of up to 64 KiB, no latency.
    /// Linux gives a new socket buffers of these sizes.
    pub fn tcp() -> Wire {
        Wire {
            is_unix: false,
            send: 16 * 1024,
            receive: 64 * 1024,
            segment: 64 * 1024,
            latency: 0,
            mebibyte_takes: 0,
            back: None,
        }
    }

    /// A Unix socket, which has one buffer in each direction, of 64 KiB. It knows no segments, latency and rate.
    pub fn unix() -> Wire {
        Wire {
            is_unix: true,
            send: 64 * 1024,
            ..Wire::tcp()
        }
    }

    /// The sizes of each socket's buffers, in bytes. At least 1; a Unix socket has the first.
    #[must_use]
    pub fn buffers(mut self, send: usize, receive: usize) -> Wire {
        (self.send, self.receive) = (send.max(1), receive.max(1));
        self
    }

    /// The most bytes that travel together. At least 1.
    #[must_use]
    pub fn segment(mut self, bytes: usize) -> Wire {
        self.segment = bytes.max(1);
        self
    }

    /// How long everything takes from one end to the other, on the loop's clock.
    #[must_use]
    pub fn latency(mut self, latency: Duration) -> Wire {
        self.latency = nanos(latency);
        self
    }

    /// How many bytes a second go over the wire, in each direction. 0 is no limit.
    #[must_use]
    pub fn rate(mut self, bytes_per_second: u64) -> Wire {
        let mebibyte_takes = (1_000_000_000u64 << 20).checked_div(bytes_per_second);
        self.mebibyte_takes = mebibyte_takes.unwrap_or(0);
        self
    }

    /// Another wire for what the peer sends: this one then carries what the connection sends, in [`pipe_over`], or the
    /// server's end, in [`connect_over`]. It is of the same kind.
    ///
    /// [`pipe_over`]: crate::testing::pipe_over
    /// [`connect_over`]: crate::testing::Connector::connect_over
    #[must_use]
    pub fn back(mut self, back: Wire) -> Wire {
        let is_unix = self.is_unix;
        self.back = Some(Box::new(Wire { is_unix, ..back }));
        self
    }

    /// Whether what is sent arrives later.
    pub(super) fn is_timed(&self) -> bool {
        !self.is_unix && (self.latency > 0 || self.mebibyte_takes > 0)
    }
}

pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 4)
}

/// What travels.
#[derive(Clone, Copy)]
pub(super) enum Packet {
    Data(usize),
    Fin,
    Reset,
    /// The receiver has so many bytes, takes more up to `edge`, and has seen the end. All count from the start.
    Ack {
        received: u64,
        edge: u64,
        fin: bool,
    },
}

/// One direction. Its bytes stand in one queue: first those that have arrived, then those under way, then the unsent.
pub(super) struct Flow {
    bytes: VecDeque<u8>,
    arrived: usize,
    under_way: usize,
    /// How many bytes were sent, and how many of them the sender knows to have arrived. Both count from the start.
    sent: u64,
    acked: u64,
    /// Up to where the receiver takes bytes, as the sender knows, and as the receiver has told.
    edge: u64,
    told_edge: u64,
    /// The longest segment that arrived: a window opens by no less.
    longest: usize,
    /// The sender's buffer, and the receiver's.
    pub(super) send: usize,
    pub(super) receive: usize,
    /// What the sender's system has sent, and when it arrives.
    packets: VecDeque<(u64, Packet)>,
    /// When the last byte has left.
    busy_until: u64,
    wire: Wire,
}

impl Flow {
    pub(super) fn new(wire: Wire) -> Flow {
        Flow {
            bytes: VecDeque::new(),
            arrived: 0,
            under_way: 0,
            sent: 0,
            acked: 0,
            edge: wire.receive as u64,
            told_edge: wire.receive as u64,
            longest: FIRST_SEGMENT.min(wire.segment),
            send: wire.send,
            receive: wire.receive,
            packets: VecDeque::new(),
            busy_until: 0,
            wire,
        }
    }

    fn unsent(&self) -> usize {
        self.bytes.len() - self.arrived - self.under_way
    }

    /// How many bytes stand in the sender's buffer.
    pub(super) fn held(&self) -> usize {
        if self.wire.is_unix {
            return self.arrived;
        }
        self.unsent() + (self.sent - self.acked) as usize
    }

    /// How many bytes have arrived and were not read.
    pub(super) fn arrived(&self) -> usize {
        self.arrived
    }

    pub(super) fn has_unsent(&self) -> bool {
        self.unsent() > 0
    }

    /// As `poll` tells: TCP when a third is free, a Unix socket when three quarters are.
    pub(super) fn has_room(&self) -> bool {
        let held = self.held();
        if self.wire.is_unix {
            held * 4 <= self.send
        } else {
            held < self.send && self.send - held >= held / 2
        }
    }

    /// Puts into the sender's buffer what it has room for.
    pub(super) fn put(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.send.saturating_sub(self.held()));
        self.bytes.extend(&bytes[..count]);
        if self.wire.is_unix {
            self.arrived += count;
        }
        count
    }

    /// Sends what fits into the window.
    pub(super) fn send_more(&mut self, now: u64) {
        loop {
            let window = self.edge.saturating_sub(self.sent) as usize;
            let count = self.unsent().min(window).min(self.wire.segment);
            if count == 0 {
                return;
            }
            self.under_way += count;
            self.sent += count as u64;
            self.travel(now, count, Packet::Data(count));
        }
    }

    /// Sends a packet that is no data.
    pub(super) fn post(&mut self, now: u64, packet: Packet) {
        self.travel(now, 0, packet);
    }

    fn travel(&mut self, now: u64, count: usize, packet: Packet) {
        if !self.wire.is_timed() {
            self.packets.push_back((0, packet));
            return;
        }
        let takes = (count as u128 * u128::from(self.wire.mebibyte_takes)) >> 20;
        self.busy_until = self.busy_until.max(now).saturating_add(takes as u64);
        let at = self.busy_until.saturating_add(self.wire.latency);
        self.packets.push_back((at, packet));
    }

    /// When the next packet arrives.
    pub(super) fn next_arrival(&self) -> Option<u64> {
        self.packets.front().map(|(at, _)| *at)
    }

    pub(super) fn next_packet(&mut self) -> Option<Packet> {
        self.packets.pop_front().map(|(_, packet)| packet)
    }

    /// A segment has arrived.
    pub(super) fn arrive(&mut self, count: usize) {
        self.under_way -= count;
        self.arrived += count;
        self.longest = self.longest.max(count);
        self.told_edge = self.told_edge.max(self.received() + self.window());
    }

    /// A segment has arrived for nobody.
    pub(super) fn lose(&mut self, count: usize) {
        self.under_way -= count;
        self.bytes.drain(self.arrived..self.arrived + count);
    }

    /// What the receiver tells the sender.
    pub(super) fn ack(&self, fin: bool) -> Packet {
        Packet::Ack {
            received: self.received(),
            edge: self.told_edge,
            fin,
        }
    }

    /// The sender is told that. Returns whether it is news.
    pub(super) fn acked(&mut self, received: u64, edge: u64) -> bool {
        let is_news = received > self.acked || edge > self.edge;
        self.acked = received;
        self.edge = self.edge.max(edge);
        is_news
    }

    fn received(&self) -> u64 {
        self.sent - self.under_way as u64
    }

    /// The window that a receiver would tell of: none, before there is room for a long segment.
    fn window(&self) -> u64 {
        let free = self.receive.saturating_sub(self.arrived);
        let is_small = free < self.receive / 2;
        if is_small && (free < self.receive / 16 || free < self.longest.min(self.receive)) {
            return 0;
        }
        free as u64
    }

    /// Copies what has arrived, and leaves it there.
    pub(super) fn peek(&self, buffer: &mut [u8]) -> usize {
        let count = self.arrived.min(buffer.len());
        let (front, back) = self.bytes.as_slices();
        let split = count.min(front.len());
        buffer[..split].copy_from_slice(&front[..split]);
        buffer[split..count].copy_from_slice(&back[..count - split]);
        count
    }

    /// Takes what has arrived.
    pub(super) fn take(&mut self, buffer: &mut [u8]) -> usize {
        let count = self.peek(buffer);
        self.bytes.drain(..count);
        self.arrived -= count;
        count
    }

    /// After [`Flow::take`]: whether the receiver tells of a larger window, which is to be twice as large.
    pub(super) fn opens(&mut self) -> bool {
        let told = self.told_edge - self.received();
        if 2 * told > self.receive as u64 {
            return false;
        }
        let window = self.window();
        let opens = window > 0 && window >= 2 * told;
        if opens {
            self.told_edge = self.received() + window;
        }
        opens
    }

    /// The receiver throws away what has arrived.
    pub(super) fn forget_arrived(&mut self) {
        self.bytes.drain(..self.arrived);
        self.arrived = 0;
    }

    /// The sender throws away what is unsent, and what it holds to send again.
    pub(super) fn forget_unsent(&mut self) {
        self.bytes.truncate(self.arrived + self.under_way);
        self.acked = self.sent;
    }
}
