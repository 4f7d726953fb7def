//! What handlers do, step by step.

use std::future::pending;
use std::io;
use std::panic::resume_unwind;
use std::rc::Rc;
use std::thread;

use futures_lite::future::try_zip;
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use smol::channel;
use tinyloop::testing::{self, Connector, Faults};
use tinyloop::{Connection, sleep, spawn, yield_now};

use super::plan::{Millis, Step};
use super::stage::{Held, Stage, counted};
use super::trace::{What, millis};

/// The handler of a visit, as its plan has it.
pub(super) async fn handle(
    stage: &Rc<Stage>,
    upstream: &Connector,
    visit: usize,
    connection: Connection,
) -> io::Result<()> {
    let peer = stage.peer_of(visit).clone();
    let mut life = Life::begin(stage, visit);
    if peer.ends_when_draining {
        connection.end_when_draining();
    }
    let result = if let [Step::LibraryEcho, ..] = peer.handler[..] {
        stage.wrote(visit, super::stage::said(visit), 0, 1 << 40);
        let result = tinyloop::echo(connection, b"").await;
        stage.tell(visit, What::LetsGo);
        result
    } else {
        let held = Rc::new(Held::new(connection, stage.clone(), visit));
        perform(stage, upstream, held, &peer.handler).await
    };
    life.end = match &result {
        Ok(()) => What::Returns,
        Err(_) => What::Fails,
    };
    result
}

/// Panics before there is a future.
pub(super) fn panic_at_once(stage: &Rc<Stage>, visit: usize, connection: Connection) -> ! {
    let _held = Held::new(connection, stage.clone(), visit);
    let _life = Life::begin(stage, visit);
    resume_unwind(Box::new("as planned"))
}

/// The time in which a handler is there. Tells how it ends, however that is.
struct Life {
    stage: Rc<Stage>,
    visit: usize,
    end: What,
}

impl Life {
    fn begin(stage: &Rc<Stage>, visit: usize) -> Life {
        stage.alive.set(stage.alive.get() + 1);
        stage.tell(visit, What::Starts);
        Life {
            stage: stage.clone(),
            visit,
            end: What::IsDropped,
        }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.stage.alive.set(self.stage.alive.get() - 1);
        let end = match thread::panicking() {
            true => What::Panics,
            false => self.end.clone(),
        };
        self.stage.tell(self.visit, end);
    }
}

/// Panics when it is dropped, unless something else panics. Without a message from the panic hook.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        if !thread::panicking() {
            resume_unwind(Box::new("in drop"));
        }
    }
}

async fn perform(
    stage: &Rc<Stage>,
    upstream: &Connector,
    held: Rc<Held>,
    steps: &[Step],
) -> io::Result<()> {
    let mut bomb = None;
    for &step in steps {
        let goes_on = match step {
            Step::LibraryEcho => false,
            Step::Echo => echo(&held).await?,
            Step::Read(most) => held.read_exactly(most).await?,
            Step::Write(len) => held.write(len).await.map(|()| true)?,
            Step::Think(time) => {
                sleep(millis(time)).await;
                true
            }
            Step::Compute(time) => {
                compute(stage, time);
                true
            }
            Step::Serve {
                request,
                think,
                reply,
            } => serve(&held, request, think, reply).await?,
            Step::WriteWhileReading(len) => {
                let write = async {
                    held.write(len).await?;
                    held.half_close().await
                };
                let read = async {
                    while held.read(10_000).await?.1 > 0 {}
                    Ok(())
                };
                try_zip(write, read).await?;
                false
            }
            Step::Ask(request) => ask(&held, upstream, request).await?,
            Step::Feed(lines) => feed(&held, lines).await.map(|()| true)?,
            Step::ReadOrTakeLeave(most) => match held.read_exactly(most).await {
                Ok(goes_on) => goes_on,
                Err(_) => {
                    held.write(10).await?;
                    false
                }
            },
            Step::WaitForever => {
                stage.tell(held.visit, What::WaitsForever);
                pending().await
            }
            Step::PassOn { after, write } => {
                spawn(counted(async move {
                    sleep(millis(after)).await;
                    held.write(write).await.ok();
                }))
                .detach();
                return Ok(());
            }
            Step::HalfClose => held.half_close().await.map(|()| true)?,
            Step::Fail => return Err(io::Error::other("as planned")),
            Step::Panic | Step::PanicAtOnce => resume_unwind(Box::new("as planned")),
            Step::HoldBomb => {
                bomb = Some(Bomb);
                true
            }
        };
        if !goes_on {
            break;
        }
    }
    drop(bomb);
    Ok(())
}

/// Lets time pass within one poll.
pub(super) fn compute(stage: &Stage, time: Millis) {
    match stage.world.is_real {
        true => thread::sleep(millis(time)),
        false => testing::advance(millis(time)),
    }
    stage.tell(None, What::TimePasses(millis(time)));
}

async fn echo(held: &Held) -> io::Result<bool> {
    loop {
        match held.read(10_000).await? {
            (_, 0) => return Ok(false),
            (at, n) => held.write_back(at, n).await?,
        }
    }
}

async fn serve(held: &Held, request: usize, think: Millis, reply: usize) -> io::Result<bool> {
    while held.read_exactly(request).await? {
        if think > 0 {
            sleep(millis(think)).await;
        }
        held.write(reply).await?;
    }
    Ok(false)
}

/// Answers requests with what another server makes of them: the same.
async fn ask(held: &Held, upstream: &Connector, request: usize) -> io::Result<bool> {
    let mut server = upstream.connect(Faults::none())?;
    loop {
        let (at, n) = held.read(request).await?;
        if n == 0 {
            return Ok(false);
        }
        let question = super::stage::bytes(super::stage::said(held.visit), at, n);
        server.write_all(question).await?;
        let mut answer = vec![0; n];
        server.read_exact(&mut answer).await?;
        held.write_back(at, n).await?;
    }
}

/// Writes lines that come from another task, which yields after each. They queue up if the two do not take turns.
async fn feed(held: &Rc<Held>, lines: usize) -> io::Result<()> {
    const LINE: usize = 100;
    let (sender, receiver) = channel::unbounded();
    let feeding = spawn(counted(async move {
        for line in 0..lines {
            sender.send(line).await.ok();
            yield_now().await;
        }
    }));
    let mut most = 0;
    while receiver.recv().await.is_ok() {
        let before = receiver.len();
        held.write(LINE).await?;
        most = most.max(receiver.len().saturating_sub(before));
    }
    feeding.await;
    held.tell_queue(most);
    Ok(())
}
