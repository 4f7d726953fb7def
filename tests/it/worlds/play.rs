//! Plays a world on the test clock, in memory.

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::rc::Rc;

use futures_lite::future::yield_now;
use futures_lite::{FutureExt, StreamExt};
use smol::channel;
use tinyloop::testing::{self, Connector};
use tinyloop::{
    Address, CloseReason, Event, EventLoop, Listener, OnPanic, Server, Task, TaskGroup, WhenFull,
    sleep, spawn, timeout,
};

use super::handlers::{compute, handle};
use super::peers::{self, Target};
use super::plan::{Beside, End, Happening, World};
use super::stage::{Stage, counted, reset_polls, waits};
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
    trace.left = stage.alive.get();
    trace.waits = waits();
    trace
}

async fn perform(stage: Rc<Stage>) {
    let (mut server, connector) = testing::server();
    let mut target = Target::Memory(connector.clone());
    if stage.world.is_real {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        server = Server::from_listener(listener).unwrap();
        if let Address::Tcp(addr) = server.local_addrs()[0] {
            target = Target::Loopback(addr);
        }
    }
    let (upstream, ask_upstream) = testing::server();
    // Lives as long as the loop.
    spawn(upstream.serve(async |connection| tinyloop::echo(connection, b"").await)).detach();
    let server = configure(&stage, server);

    let mut visits = TaskGroup::new();
    for peer in 0..stage.world.peers.len() {
        let visit = peers::visit(stage.clone(), peer, target.clone());
        visits.spawn(counted(visit)).await;
    }
    for &(at, beside) in &stage.world.beside {
        spawn(beside_others(stage.clone(), at, beside)).detach();
    }
    for &(at, happening) in &stage.world.happenings {
        spawn(happens(stage.clone(), connector.clone(), at, happening)).detach();
    }
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
    }
    stage.tell(None, What::Ends);
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
    let serving =
        server.serve(async move |connection| handle(&handlers, &upstream, connection).await);
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

async fn happens(stage: Rc<Stage>, connector: Connector, at: u64, happening: Happening) {
    sleep(millis(at)).await;
    match happening {
        Happening::Stop(time) => compute(&stage, time),
        Happening::NoDescriptors(time) => {
            stage.tell(None, What::LacksDescriptors);
            connector.limit_descriptors(0);
            sleep(millis(time)).await;
            connector.limit_descriptors(usize::MAX);
            stage.tell(None, What::HasDescriptors);
        }
        // ECONNABORTED.
        Happening::FailedAccepts(count) => {
            stage.tell(None, What::FailAccepts);
            connector.fail_accepts(103, count);
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
                    let due = tinyloop::now() - due;
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
