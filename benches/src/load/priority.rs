//! Threads of the load generator that run before all others on their CPU.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadPriorityValue, ThreadSchedulePolicy,
};

/// Lets this thread run before all ordinary ones on its CPU. A refusal is no error, because only root may ask for it:
/// the figures then hold some of the wait for the CPU, for all servers alike.
pub fn outrank_all_others() {
    let Ok(value) = ThreadPriorityValue::try_from(50) else {
        return;
    };
    let _ = thread_priority::set_thread_priority_and_policy(
        thread_priority::thread_native_id(),
        ThreadPriority::Crossplatform(value),
        ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo),
    );
}

/// How long [`brake`] runs, and then pauses. Short enough that the load generator, if it is as fast as the server,
/// keeps a lead through the pause; long, so that few of a server's turns are cut in two.
const BRAKE: Duration = Duration::from_millis(5);

/// Takes half of the CPU that this thread is on, while `is_needed`.
pub fn brake(is_needed: &AtomicBool) {
    outrank_all_others();
    while is_needed.load(Ordering::Relaxed) {
        let end = Instant::now() + BRAKE;
        while Instant::now() < end {}
        thread::sleep(BRAKE);
    }
}
