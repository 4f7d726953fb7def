//! The two ends of a connection in memory: which call gets what, as on Linux's TCP and Unix sockets.
//!
//! Names of states are those of TCP, where they help: an end is in `CLOSE_WAIT` when its peer has closed its half, in
//! `LAST_ACK` when it then closes its own. The comments name functions of Linux.

use std::io;
use std::task::Waker;
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::io::Errno;

use super::wire::{Flow, Packet, Wire, nanos};

/// The smallest send buffer (`SOCK_MIN_SNDBUF`), of which the kernel's overhead takes a half.
const LEAST_SEND: usize = 2304;

/// Both ends, and the flow from each.
pub(super) struct Ends {
    is_unix: bool,
    /// What is sent arrives later.
    is_timed: bool,
    ends: [End; 2],
    /// The first goes from the first end.
    flows: [Flow; 2],
    /// In nanoseconds since the connection was made. Stands still where nothing needs the time.
    now: u64,
}

/// What the system knows of one end.
#[derive(Default)]
struct End {
    /// `sk_err`: told once, by the next call.
    error: Option<Errno>,
    /// Nothing more can be written, and the peer is told, or will be behind what is unsent.
    shut_write: bool,
    fin_sent: bool,
    fin_acked: bool,
    /// Nothing more is to be read.
    shut_read: bool,
    /// The peer has closed its half (`SOCK_DONE`).
    is_done: bool,
    /// The state is `CLOSE`: there is no connection any more.
    is_closed: bool,
    /// Its descriptor is closed. The system may still deliver.
    is_orphan: bool,
    /// `TCP_USER_TIMEOUT`.
    user_timeout: Option<u64>,
    /// When the peer last acknowledged something, or opened its window, or was first waited for.
    progress: u64,
    /// Who waits to read, and to write.
    wakers: [Option<Waker>; 2],
    /// When the timers of those who wait go off.
    armed: u64,
}

pub(super) const READING: usize = 0;
pub(super) const WRITING: usize = 1;

impl Ends {
    pub(super) fn new(mut wire: Wire) -> Ends {
        let back = wire.back.take().map_or_else(|| wire.clone(), |back| *back);
        Ends {
            is_unix: wire.is_unix,
            is_timed: wire.is_timed() || back.is_timed(),
            ends: [End::default(), End::default()],
            flows: [Flow::new(wire), Flow::new(back)],
            now: 0,
        }
    }

    pub(super) fn read(&mut self, me: usize, buffer: &mut [u8]) -> io::Result<usize> {
        let flow = &mut self.flows[1 - me];
        if flow.arrived() > 0 {
            let count = flow.take(buffer);
            if !self.is_unix && !self.ends[me].shut_read && flow.opens() {
                self.tell_window(me);
                self.settle(self.now);
            }
            return Ok(count);
        }
        let end = &mut self.ends[me];
        // Behind the end of the peer's half, a read tells of no error (tcp_recvmsg).
        if end.is_done {
            return Ok(0);
        }
        if let Some(error) = end.error.take() {
            return Err(error.into());
        }
        if end.shut_read {
            return Ok(0);
        }
        Err(if end.is_closed {
            Errno::NOTCONN.into()
        } else {
            Errno::AGAIN.into()
        })
    }

    /// As with `MSG_PEEK`: what has arrived stays there, but an error is told once.
    #[cfg(feature = "proxy-protocol")]
    pub(super) fn peek(&mut self, me: usize, buffer: &mut [u8]) -> io::Result<usize> {
        match self.flows[1 - me].peek(buffer) {
            0 => self.read(me, buffer),
            count => Ok(count),
        }
    }

    pub(super) fn write(&mut self, me: usize, bytes: &[u8]) -> io::Result<usize> {
        let end = &mut self.ends[me];
        if end.shut_write || end.is_closed {
            // On a Unix socket only a read tells (unix_stream_sendmsg).
            let error = end.error.take_if(|_| !self.is_unix);
            return Err(error.unwrap_or(Errno::PIPE).into());
        }
        self.begin_progress(me);
        let mut written = 0;
        loop {
            let count = self.flows[me].put(&bytes[written..]);
            written += count;
            if written == bytes.len() || count == 0 {
                break;
            }
            self.send_more(me);
            self.settle(self.now);
        }
        self.send_more(me);
        self.settle(self.now);
        if written == 0 && !bytes.is_empty() {
            return Err(Errno::AGAIN.into());
        }
        Ok(written)
    }

    pub(super) fn shutdown_write(&mut self, me: usize) -> io::Result<()> {
        if self.ends[me].is_closed {
            return Err(Errno::NOTCONN.into());
        }
        self.begin_progress(me);
        self.ends[me].shut_write = true;
        if self.is_unix {
            self.ends[1 - me].shut_read = true;
        } else {
            self.send_more(me);
            self.settle(self.now);
        }
        Ok(())
    }

    /// Closes the descriptor of an end.
    pub(super) fn close(&mut self, me: usize) {
        let has_unread = self.flows[1 - me].arrived() > 0;
        self.flows[1 - me].forget_arrived();
        self.ends[me].is_orphan = true;
        if self.is_unix {
            self.close_unix(me, has_unread);
        } else if has_unread && !self.ends[me].is_closed {
            self.flows[me].post(self.now, Packet::Reset);
            self.end(me);
        } else if !self.ends[me].is_closed {
            self.begin_progress(me);
            self.ends[me].shut_write = true;
            self.ends[me].shut_read = true;
            self.send_more(me);
        }
        self.settle(self.now);
    }

    /// `unix_release_sock`: the peer can read what has arrived, and is told of a reset then, if there was unread input.
    fn close_unix(&mut self, me: usize, has_unread: bool) {
        let peer = &mut self.ends[1 - me];
        (peer.shut_read, peer.shut_write) = (true, true);
        if has_unread {
            peer.error = Some(Errno::CONNRESET);
        }
    }

    /// `connect` to an address of no family (`tcp_disconnect`). Unix sockets know no reset: both halves are shut down.
    pub(super) fn reset(&mut self, me: usize) {
        if self.is_unix {
            for end in &mut self.ends {
                (end.shut_read, end.shut_write) = (true, true);
            }
            return;
        }
        self.flows[1 - me].forget_arrived();
        let end = &self.ends[me];
        let is_last_ack = end.is_done && end.shut_write;
        let resets = !end.is_closed && (!is_last_ack || self.flows[me].has_unsent());
        if resets {
            self.flows[me].post(self.now, Packet::Reset);
        }
        self.end(me);
        let end = &mut self.ends[me];
        (end.shut_read, end.shut_write, end.is_done) = (false, false, false);
        if resets {
            end.error = Some(Errno::CONNRESET);
        }
        self.settle(self.now);
    }

    /// The listener closes before it has accepted this connection.
    pub(super) fn abandon(&mut self, me: usize) {
        match self.is_unix {
            true => self.close_unix(me, true),
            false => self.reset(me),
        }
    }

    /// Whether smol tells that a call of `direction` would not wait.
    pub(super) fn is_ready(&self, me: usize, direction: usize) -> bool {
        let ready = [PollFlags::IN, PollFlags::OUT][direction];
        let broken = PollFlags::HUP | PollFlags::ERR;
        self.events(me).intersects(ready | broken)
    }

    /// What `poll` tells (`tcp_poll`, `unix_poll`).
    pub(super) fn events(&self, me: usize) -> PollFlags {
        let end = &self.ends[me];
        let mut events = PollFlags::empty();
        events.set(PollFlags::ERR, end.error.is_some());
        let is_hung_up = end.is_closed || (end.shut_read && end.shut_write);
        events.set(PollFlags::HUP, is_hung_up);
        events.set(crate::platform::RDHUP, end.shut_read);
        let has_input = self.flows[1 - me].arrived() > 0;
        events.set(PollFlags::IN, has_input || end.shut_read);
        let is_shut = end.shut_write && !self.is_unix;
        events.set(PollFlags::OUT, is_shut || self.flows[me].has_room());
        events
    }

    /// After [`Ends::prepare_end`]: whether the peer's system has nearly all. None if it does not yet.
    pub(super) fn taken(&mut self, me: usize) -> Option<io::Result<()>> {
        if self.is_unix {
            return Some(Ok(()));
        }
        let broken = self.take_error(me).map(Err);
        broken.or_else(|| self.is_ready(me, WRITING).then_some(Ok(())))
    }

    pub(super) fn take_error(&mut self, me: usize) -> Option<io::Error> {
        self.ends[me].error.take().map(io::Error::from)
    }

    pub(super) fn is_unix(&self) -> bool {
        self.is_unix
    }

    pub(super) fn prepare_end(&mut self, me: usize, user_timeout: Duration) {
        self.set_user_timeout(me, user_timeout);
        self.flows[me].send = self.flows[me].send.min(LEAST_SEND);
    }

    pub(super) fn set_user_timeout(&mut self, me: usize, timeout: Duration) {
        let end = &mut self.ends[me];
        if end.user_timeout.is_none() {
            end.progress = self.now;
        }
        end.user_timeout = Some(nanos(timeout));
    }

    pub(super) fn set_buffers(&mut self, me: usize, bytes: usize) {
        self.flows[me].send = bytes.max(LEAST_SEND);
        self.flows[1 - me].receive = bytes.max(LEAST_SEND);
    }

    /// Sends what the peer's window has room for, and the end of it when all is sent.
    fn send_more(&mut self, me: usize) {
        if self.is_unix || self.ends[me].is_closed {
            return;
        }
        self.flows[me].send_more(self.now);
        let end = &mut self.ends[me];
        if end.shut_write && !end.fin_sent && !self.flows[me].has_unsent() {
            end.fin_sent = true;
            self.flows[me].post(self.now, Packet::Fin);
        }
    }

    fn tell_window(&mut self, me: usize) {
        let ack = self.flows[1 - me].ack(self.ends[me].is_done);
        self.flows[me].post(self.now, ack);
    }

    /// Before something is sent: if nothing is outstanding, the peer is waited for from now on.
    fn begin_progress(&mut self, me: usize) {
        if !self.is_outstanding(me) {
            self.ends[me].progress = self.now;
        }
    }

    /// Whether bytes or the end are unsent, or not acknowledged.
    fn is_outstanding(&self, me: usize) -> bool {
        let end = &self.ends[me];
        self.flows[me].held() > 0 || (end.shut_write && !end.fin_acked)
    }

    /// When an end gives its peer up.
    fn gives_up_at(&self, me: usize) -> Option<u64> {
        let end = &self.ends[me];
        let timeout = end.user_timeout?;
        (!end.is_closed && self.is_outstanding(me)).then(|| end.progress.saturating_add(timeout))
    }

    /// When something happens by itself, and which: a packet from an end arrives, or the end gives up.
    fn next_event(&self) -> Option<(u64, usize, bool)> {
        let mut next: Option<(u64, usize, bool)> = None;
        for (me, arrives) in [(0, true), (1, true), (0, false), (1, false)] {
            let at = match arrives {
                true => self.flows[me].next_arrival(),
                false => self.gives_up_at(me),
            };
            if let Some(at) = at
                && next.is_none_or(|(earliest, ..)| at < earliest)
            {
                next = Some((at, me, arrives));
            }
        }
        next
    }

    /// Lets happen what happens until `now`.
    pub(super) fn settle(&mut self, now: u64) {
        while let Some((at, from, arrives)) = self.next_event()
            && at <= now
        {
            self.now = self.now.max(at);
            if !arrives {
                self.give_up(from);
            } else if let Some(packet) = self.flows[from].next_packet() {
                self.receive(1 - from, packet);
            }
        }
        self.now = self.now.max(now);
    }

    /// The time is over in which the peer should have taken something (`tcp_write_err`). The peer hears of it when its
    /// system sends something: at the latest when a read opens its window.
    fn give_up(&mut self, me: usize) {
        self.end(me);
        self.ends[me].error = Some(Errno::TIMEDOUT);
    }

    /// There is no connection for this end any more (`tcp_done`).
    fn end(&mut self, me: usize) {
        let end = &mut self.ends[me];
        (end.is_closed, end.shut_read, end.shut_write) = (true, true, true);
        self.flows[me].forget_unsent();
    }

    /// A packet arrives.
    fn receive(&mut self, me: usize, packet: Packet) {
        let end = &mut self.ends[me];
        if let Packet::Reset = packet {
            self.receive_reset(me);
        } else if end.is_closed || (end.is_orphan && matches!(packet, Packet::Data(_))) {
            if let Packet::Data(count) = packet {
                self.flows[1 - me].lose(count);
            }
            self.end(me);
            self.flows[me].post(self.now, Packet::Reset);
        } else {
            match packet {
                Packet::Data(count) => {
                    self.flows[1 - me].arrive(count);
                    self.tell_window(me);
                }
                Packet::Fin => {
                    (end.is_done, end.shut_read) = (true, true);
                    self.tell_window(me);
                }
                Packet::Ack {
                    received,
                    edge,
                    fin,
                } => {
                    end.fin_acked |= fin;
                    if self.flows[me].acked(received, edge) {
                        end.progress = self.now;
                    }
                    self.send_more(me);
                }
                Packet::Reset => {}
            }
            if self.ends[me].is_done && self.ends[me].fin_acked {
                self.end(me);
            }
        }
    }

    /// `tcp_reset`.
    fn receive_reset(&mut self, me: usize) {
        let end = &mut self.ends[me];
        if end.is_closed {
            return;
        }
        let is_close_wait = end.is_done && !end.shut_write;
        end.error = Some(if is_close_wait {
            Errno::PIPE
        } else {
            Errno::CONNRESET
        });
        self.end(me);
    }

    /// Waits in the place of whoever waits there, who is returned to be woken, as in smol's reactor.
    pub(super) fn wait(&mut self, me: usize, direction: usize, waker: &Waker) -> Option<Waker> {
        let place = &mut self.ends[me].wakers[direction];
        if place.as_ref().is_some_and(|before| before.will_wake(waker)) {
            return None;
        }
        place.replace(waker.clone())
    }

    /// When those who wait at this end have to look again. They are woken if that comes to be earlier.
    pub(super) fn arm(&mut self, me: usize) -> Option<u64> {
        let at = self.next_event().map(|(at, ..)| at);
        self.ends[me].armed = at.unwrap_or(u64::MAX);
        at
    }

    /// Takes out the wakers of those who wait for nothing any more.
    pub(super) fn take_woken(&mut self) -> [Option<Waker>; 4] {
        let mut woken = [const { None }; 4];
        if self
            .ends
            .iter()
            .all(|end| end.wakers[READING].is_none() && end.wakers[WRITING].is_none())
        {
            return woken;
        }
        let next = self.next_event().map_or(u64::MAX, |(at, ..)| at);
        for (index, woken) in woken.iter_mut().enumerate() {
            let (me, direction) = (index / 2, index % 2);
            if self.ends[me].wakers[direction].is_some()
                && (next < self.ends[me].armed || self.is_ready(me, direction))
            {
                *woken = self.ends[me].wakers[direction].take();
            }
        }
        woken
    }

    /// Whether something of it depends on the time.
    pub(super) fn needs_clock(&self) -> bool {
        self.is_timed || self.ends.iter().any(|end| end.user_timeout.is_some())
    }
}
