//! The answers of the monitor as JSON. Times are in seconds.

use std::fmt::Write as _;

use crate::report::Report;
use crate::task_table::TaskInfo;

/// The tasks, longest poll first.
pub(super) fn tasks(tasks: &[TaskInfo]) -> String {
    let task = |task: &TaskInfo| {
        let connection = task.connection.as_ref();
        let name = task.name.as_deref().map_or("null".to_owned(), string);
        let peer = connection.map_or("null".to_owned(), |of| string(&of.peer_addr));
        let [bytes_in, bytes_out] = connection.map_or([0, 0], |of| [of.bytes_in, of.bytes_out]);
        format!(
            "{{\"id\":{},\"state\":\"{}\",\"age\":{:.6},\"polls\":{},\"busy\":{:.6},\"longest\":{:.6},\
             \"name\":{name},\"peer\":{peer},\"bytes_in\":{bytes_in},\"bytes_out\":{bytes_out},\"place\":{}}}",
            task.id,
            task.state,
            task.age.as_secs_f64(),
            task.polls,
            task.busy.as_secs_f64(),
            task.longest_poll.as_secs_f64(),
            string(&format!("{}:{}", task.place.file(), task.place.line())),
        )
    };
    list(tasks.iter().map(task))
}

/// The servers' counters so far.
pub(super) fn stats(servers: &[(String, Report)]) -> String {
    let server = |(addrs, report): &(String, Report)| {
        let mut object = format!("{{\"server\":{}", string(addrs));
        for (name, count) in report.counters() {
            let name = string(&name.replace(' ', "_"));
            write!(object, ",{name}:{count}").expect("a String takes everything");
        }
        object + "}"
    };
    list(servers.iter().map(server))
}

fn list(items: impl Iterator<Item = String>) -> String {
    format!("[{}]\n", items.collect::<Vec<_>>().join(",\n"))
}

/// A JSON string, which is harmless inside HTML, too.
fn string(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() || matches!(c, '<' | '>' | '&' | '\u{2028}' | '\u{2029}') => {
                write!(quoted, "\\u{:04x}", c as u32).expect("a String takes everything");
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_of_strangers_is_quoted() {
        assert_eq!(string("plain ß"), "\"plain ß\"");
        let quoted = r#""\"\\\u000a\u001b\u003c/script\u003e\u2028""#;
        assert_eq!(string("\"\\\n\x1b</script>\u{2028}"), quoted);
    }
}
