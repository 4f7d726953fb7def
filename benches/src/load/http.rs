//! HTTP requests, by wrk and h2load: what makes the load is nobody's own.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cases::Metric;
use crate::children::run;
use crate::meter::{Figures, Meter};
use crate::process::Process;

/// How long a tool may take that makes a second's load.
const LIMIT: Duration = Duration::from_secs(20);

pub fn is_there(tool: &str) -> bool {
    // wrk has no option that only prints.
    run(Command::new("which").arg(tool), LIMIT).is_ok()
}

/// A second of HTTP/1.1 on connections that are kept alive, a request outstanding on each.
pub fn over_1(server: &Process, connections: usize) -> Result<Figures> {
    let connections = format!("-c{connections}");
    let printed = load(server, "wrk", &["-t1", "-d1s", &connections])?;
    for trouble in ["Socket errors", "Non-2xx"] {
        ensure!(!printed.text.contains(trouble), "{}", printed.text);
    }
    // `  12345 requests in 1.00s, 1.23MB read`
    printed.figures("requests in")
}

/// A second of HTTP/2 on one connection, with ten requests outstanding.
pub fn over_2(server: &Process) -> Result<Figures> {
    let printed = load(server, "h2load", &["-c1", "-m10", "-D1"])?;
    ensure!(
        printed.text.contains(" 0 failed, 0 errored, 0 timeout"),
        "{}",
        printed.text
    );
    // `requests: 12345 total, ...`
    printed.figures("total,")
}

/// What a tool printed, and what the server used meanwhile.
struct Printed {
    text: String,
    usage: crate::meter::Usage,
}

fn load(server: &Process, tool: &str, options: &[&str]) -> Result<Printed> {
    let url = format!("http://{}/", server.address);
    let meter = Meter::start(server)?;
    let text = run(Command::new(tool).args(options).arg(url), LIMIT)?;
    let usage = meter.stop(server)?;
    Ok(Printed { text, usage })
}

impl Printed {
    /// The figures, of as many requests as the number before `words` says.
    fn figures(&self, words: &str) -> Result<Figures> {
        let requests = self.text.split_once(words);
        let requests = requests.and_then(|(before, _)| before.split_whitespace().next_back());
        let requests = requests.and_then(|number| number.parse::<f64>().ok());
        let requests = requests.with_context(|| format!("no `{words}` in: {}", self.text))?;
        let (rate, cpu) = (Metric::MessagesPerSecond, Metric::CpuPerMessage);
        Ok(self.usage.figures(requests, rate, cpu))
    }
}
