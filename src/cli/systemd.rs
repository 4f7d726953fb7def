//! What systemd is told of the program (`Type=notify`): that it is ready, how it does, and that its loop comes round.

use std::env;
use std::time::Duration;

use futures_lite::StreamExt;
use sd_notify::NotifyState;
use tinyloop::Report;

/// How often the status is told, if it has changed. The watchdog may make it more often.
const STATUS_PERIOD: Duration = Duration::from_secs(5);

/// The variable that says where systemd listens.
pub(crate) const SOCKET: &str = "NOTIFY_SOCKET";

/// Tells that the program accepts connections, and from now on how it does: the text that `status` returns.
///
/// Where systemd runs a watchdog, it is told that the loop comes round, twice in its time. A task that blocks the loop for
/// longer brings about a restart.
pub(crate) fn ready(status: impl Fn() -> String + 'static) {
    if env::var_os(SOCKET).is_none() {
        return;
    }
    tell(&[NotifyState::Ready]);
    let watchdog = watchdog();
    let period = watchdog.map_or(STATUS_PERIOD, |limit| STATUS_PERIOD.min(limit / 2));
    let mut ticks = tinyloop::interval(period.max(Duration::from_millis(1)));
    let watch = async move {
        let mut told = String::new();
        loop {
            let status = status();
            let mut states = Vec::from_iter(watchdog.map(|_| NotifyState::Watchdog));
            if status != told {
                states.push(NotifyState::Status(&status));
            }
            if !states.is_empty() {
                tell(&states);
            }
            told = status;
            ticks.next().await;
        }
    };
    tinyloop::spawn_named("systemd", watch).detach();
}

/// The time after which systemd's watchdog restarts a service that is silent, if it runs one.
pub(crate) fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero())
}

/// Tells that the shutdown begins.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// How a server does, in a few words.
pub(crate) fn status(report: &Report) -> String {
    format!(
        "{} connections open, {} accepted",
        report.open(),
        report.accepted
    )
}

/// Nobody has to listen.
fn tell(states: &[NotifyState<'_>]) {
    sd_notify::notify(states).ok();
}
