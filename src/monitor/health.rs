//! Whether the servers of a loop take connections, in a line.

use std::time::Duration;

use crate::task_table::TaskTable;

/// For how long a task may block the loop before its servers count as ill.
const BLOCKED: Duration = Duration::from_secs(5);

/// Ok if all servers that run take connections. Else the reason why not.
pub(super) fn health(table: &TaskTable) -> Result<(), String> {
    // A loop that has not come round has not left this poll.
    if let Some((task, running)) = table.blocked(BLOCKED) {
        let name = task.name.as_deref().unwrap_or("unnamed").escape_debug();
        let (id, place) = (task.id, task.place);
        return Err(format!(
            "task {id} ({name}, spawned at {place}) has blocked the event loop for {running:.1?}"
        ));
    }
    let servers = table.entered_servers().ailments();
    if servers.is_empty() {
        return Err("no server is running".to_owned());
    }
    let ill = servers
        .into_iter()
        .find_map(|(addrs, ailment)| Some((addrs, ailment?)));
    ill.map_or(Ok(()), |(addrs, ailment)| {
        Err(format!("server {addrs} is {ailment}"))
    })
}

/// The line for a person.
pub(super) fn line(health: Result<(), String>) -> String {
    match health {
        Ok(()) => "ok\n".to_owned(),
        Err(reason) => reason + "\n",
    }
}
