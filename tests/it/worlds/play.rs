//! Plays a world on the test clock, in memory.

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::rc::Rc;

use futures_lite::future::yield_now;
use futures_lite::{FutureExt, StreamExt};
use smol::channel;
use tinyloop::testing::{self, Connector};
use tinyloop::{
    CloseReason, Connection, Event, EventLoop, Listener, OnPanic, Server, Task, TaskGroup,
    WhenFull, sleep, spawn, timeout,
};

use super::handlers::{compute, handle, panic_at_once};
use super::peers::{self, Target};
use super::plan::{Beside, End, Happening, LISTENERS, Step, World};
use super::stage::{Stage, counted, counted_tasks, reset_polls, waits, wakers, watched};
use super::trace::{Reason, Trace, What, millis};

/// What happens in a world.
pub(super) fn play(world: &World) -> Trace {
    reset_polls();
    let event_loop = match world.is_real {
        true => EventLoop::new().unwrap(),
        false => EventLoop::with_test_clock().unwrap(),
    };
    let stage = event_loop.run(async { Rc::new(Stage::new(world.clone())) });
    event_loop.run(perform(stage.clone()));
    drop(event_loop);
    let mut trace = stage.with_trace(std::mem::take);
    // smol's thread may hold one for a moment, to wake it.
    let patience = if world.is_real { 1_000 } else { 0 };
    for _ in 0..patience {
        if wakers() == 0 {
            break;
        }
        std::thread::sleep(millis(1));
    }
    trace.outlive = (stage.alive.get(), Rc::strong_count(&stage) - 1, wakers());
    trace.waits = waits();
    trace
}

async fn perform(stage: Rc<Stage>) {
    let (server, targets, connectors) = open(&stage.world);
    let (upstream, ask_upstream) = testing::server();
    let upstream = spawn(upstream.serve(async |connection| tinyloop::echo(connection, b"").await));
    let server = configure(&stage, server);

    let mut visits = TaskGroup::new();
    for peer in 0..stage.world.peers.len() {
        let target = targets[peer % targets.len()].clone();
        let visit = peers::visit(stage.clone(), peer, target);
        visits.spawn(counted(visit)).await;
    }
    for &(at, beside) in &stage.world.beside {
        spawn(counted(beside_others(stage.clone(), at, beside))).detach();
    }
    for &(at, happening) in &stage.world.happenings {
        spawn(counted(happens(
            stage.clone(),
            connectors.clone(),
            at,
            happening,
        )))
        .detach();
    }
    drop((targets, connectors));
    if stage.world.settings.set_up > 0 {
        sleep(millis(1)).await;
        compute(&stage, stage.world.settings.set_up);
    }
    let serving = spawn(counted(serve(stage.clone(), server, ask_upstream)));
    end(&stage, serving).await;
    if stage.world.end.1 != End::DropLoop {
        let all = async { while visits.next().await.is_some() {} };
        let patience = if stage.world.is_real {
            3_000
        } else {
            2_000_000
        };
        timeout(millis(patience), all).await.ok();
        drop(visits);
        upstream.cancel().await;
        stage.tell(None, What::Ends);
        leave(&stage).await;
    }
}

/// Waits for the tasks of the world's own, and notes what is left then.
async fn leave(stage: &Stage) {
    let mut patience = if stage.world.is_real { 100 } else { 10_000 };
    while counted_tasks() > 0 && patience > 0 {
        sleep(millis(50)).await;
        patience -= 1;
    }
    // Whoever was cancelled is dropped in a turn. The main future is one of them.
    while testing::tasks() > 1 && patience > 0 {
        sleep(millis(1)).await;
        patience -= 1;
    }
    stage.with_trace(|trace| trace.left = (testing::tasks() - 1, testing::timers()));
}

fn in_memory<const N: usize>() -> (Server, Vec<Connector>) {
    let (server, connectors) = testing::server_on::<N>();
    (server, connectors.into())
}

/// A server with its listeners, whom to connect to, and where accepts can be made to fail.
fn open(world: &World) -> (Server, Vec<Target>, Vec<Connector>) {
    let count = world.settings.listeners;
    if !world.is_real {
        let (server, connectors) = match count {
            1 => in_memory::<1>(),
            2 => in_memory::<2>(),
            _ => in_memory::<LISTENERS>(),
        };
        let targets = connectors.iter().cloned().map(Target::Memory).collect();
        return (server, targets, connectors);
    }
    let mut listeners = vec![Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap()];
    if count > 1 {
        let name = format!("tinyloop-world-{}-{}", std::process::id(), world.seed);
        listeners.push(Listener::bind_unix(std::env::temp_dir().join(name)).unwrap());
    }
    let server = Server::from_listeners(listeners).unwrap();
    let addrs = server.local_addrs().iter();
    let targets = addrs.cloned().map(Target::Socket).collect();
    (server, targets, Vec::new())
}

/// Ends the world as its plan has it, and returns when the server has ended.
async fn end(stage: &Rc<Stage>, serving: Task<()>) {
    let (at, end) = stage.world.end;
    match end {
        End::ShutDown => serving.await,
        End::SecondSignal(later) => {
            let mut serving = serving;
            if timeout(millis(at + later), &mut serving).await.is_err() {
                stage.tell(None, What::DropsServe);
                serving.cancel().await;
            }
        }
        End::DropServe => {
            sleep(millis(at)).await;
            stage.tell(None, What::DropsServe);
            serving.cancel().await;
        }
        End::DropLoop => {
            sleep(millis(at)).await;
            stage.tell(None, What::DropsLoop);
            serving.detach();
        }
    }
}

fn configure(stage: &Rc<Stage>, mut server: Server) -> Server {
    let settings = &stage.world.settings;
    if let Some(limit) = settings.limit {
        server = server.max_connections(limit);
    }
    if let Some(time) = settings.idle {
        server = server.idle_timeout(millis(time));
    }
    if let Some(time) = settings.stall {
        server = server.stall_timeout(millis(time));
    }
    if settings.reject {
        server = server.when_full(WhenFull::Reject);
    }
    if settings.propagate {
        server = server.on_panic(OnPanic::Propagate);
    }
    let (observed, ended) = (stage.clone(), stage.clone());
    let (at, end) = stage.world.end;
    let shutdown = matches!(end, End::ShutDown | End::SecondSignal(_));
    let due = sleep(millis(at));
    if shutdown {
        server = server.shutdown_on(async move {
            due.await;
            ended.tell(None, What::ShutsDown);
        });
    }
    server
        .drain(millis(settings.drain))
        .observe(move |event| observe(&observed, event))
}

async fn serve(stage: Rc<Stage>, server: Server, upstream: Connector) {
    let handlers = stage.clone();
    stage.tell(None, What::Serves);
    let serving = server.serve(move |connection: Connection| {
        let (stage, upstream) = (handlers.clone(), upstream.clone());
        let visit = stage.visit(connection.id()).expect("was told of");
        if stage.peer_of(visit).handler.first() == Some(&Step::PanicAtOnce) {
            panic_at_once(&stage, visit, connection);
        }
        watched(async move { handle(&stage, &upstream, visit, connection).await })
    });
    match AssertUnwindSafe(serving).catch_unwind().await {
        Ok(report) => {
            stage.tell(None, What::ServeReturns);
            stage.with_trace(|trace| trace.report = Some(report.unwrap()));
        }
        Err(payload) => {
            stage.tell(None, What::ServePanics);
            // A failed assertion of ours, or of the library's, is no plan.
            if !stage.world.settings.propagate {
                resume_unwind(payload);
            }
        }
    }
}

fn observe(stage: &Stage, event: &Event<'_>) {
    let (visit, what) = match event {
        Event::Connected { id, peer_addr } => {
            (stage.accepted(Some(*id), peer_addr), What::Connected)
        }
        Event::Rejected { peer_addr, .. } => (stage.accepted(None, peer_addr), What::Rejected),
        Event::Closed {
            id,
            reason,
            bytes_in,
            bytes_out,
            duration,
            ..
        } => {
            let reason = match reason {
                CloseReason::Completed => Reason::Completed,
                CloseReason::Failed(_) => Reason::Failed,
                CloseReason::TimedOut => Reason::TimedOut,
                CloseReason::Panicked => Reason::Panicked,
                _ => Reason::Aborted,
            };
            let closed = What::Closed {
                reason,
                bytes_in: *bytes_in,
                bytes_out: *bytes_out,
                lasted: *duration,
            };
            (stage.visit(*id), closed)
        }
        Event::LimitReached { .. } => (None, What::LimitReached),
        Event::LimitCleared { rejected, .. } => (None, What::LimitCleared(*rejected)),
        Event::AcceptPaused { .. } => (None, What::AcceptPaused),
        Event::AcceptResumed { failures, .. } => (None, What::AcceptResumed(*failures)),
        Event::Draining { connections, .. } => (None, What::Draining(*connections)),
        _ => return,
    };
    stage.tell(visit, what);
}

async fn happens(stage: Rc<Stage>, to: Vec<Connector>, at: u64, happening: Happening) {
    let limit = |most| to.iter().for_each(|to| to.limit_descriptors(most));
    sleep(millis(at)).await;
    match happening {
        Happening::Stop(time) => compute(&stage, time),
        Happening::NoDescriptors(time) => {
            stage.tell(None, What::LacksDescriptors);
            limit(0);
            sleep(millis(time)).await;
            limit(usize::MAX);
            stage.tell(None, What::HasDescriptors);
        }
        // ECONNABORTED.
        Happening::FailedAccepts(count) => {
            stage.tell(None, What::FailAccepts(count));
            to[0].fail_accepts(103, count);
        }
    }
}

async fn beside_others(stage: Rc<Stage>, at: u64, beside: Beside) {
    sleep(millis(at)).await;
    match beside {
        Beside::Yields(polls) => {
            counted(async {
                for _ in 0..polls {
                    yield_now().await;
                }
            })
            .await;
            stage.tell(None, What::Yielded);
        }
        Beside::PingPong(rounds) => {
            let (here, there) = (channel::bounded(1), channel::bounded(1));
            let ball = there.0.clone();
            let other = spawn(counted(async move {
                while let Ok(ball) = here.1.recv().await {
                    if there.0.send(ball).await.is_err() {
                        break;
                    }
                }
            }));
            drop(ball);
            counted(async move {
                for _ in 0..rounds {
                    here.0.send(()).await.unwrap();
                    there.1.recv().await.unwrap();
                }
            })
            .await;
            other.await;
        }
        Beside::Timers(count, within) => {
            let mut rng = fastrand::Rng::with_seed(stage.world.seed ^ at);
            let mut timers = TaskGroup::new();
            for _ in 0..count {
                let sleep = sleep(millis(rng.u64(..=within)));
                let stage = stage.clone();
                let fires = async move {
                    let due = sleep.deadline();
                    sleep.await;
                    let due = tinyloop::now().checked_duration_since(due);
                    stage.tell(None, What::Fires { due });
                };
                timers.spawn(fires).await;
            }
            while timers.next().await.is_some() {}
        }
        Beside::Thread => {
            let mut woken = false;
            std::future::poll_fn(|cx| {
                if woken {
                    return std::task::Poll::Ready(());
                }
                woken = true;
                let waker = cx.waker().clone();
                // Joined here, so that what follows does not depend on how fast it is.
                std::thread::spawn(move || waker.wake()).join().unwrap();
                std::task::Poll::Pending
            })
            .await;
            stage.tell(None, What::Woken);
        }
    }
}
