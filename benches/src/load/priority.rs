//! A thread of the load generator that runs whenever it can.

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
