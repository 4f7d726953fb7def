//! The monitor over HTTP: the page in a real browser, its JSON, and who may read them.

use std::future::pending;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Instant;

use tinyloop::spawn_named;

use crate::monitor::{Monitored, get};
use crate::support::{DEADLINE, Program, TempDir, ask, connect, next, read_to_end};

fn status(monitored: &Monitored, request: &str) -> String {
    get(monitored.addr, request).0
}

#[test]
fn a_host_that_somebody_else_may_own_is_refused() {
    let monitored = Monitored::start(async || {});
    for path in ["/", "/tasks.json", "/stats.json", "/metrics"] {
        let with = |host: &str| {
            status(
                &monitored,
                &format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n"),
            )
        };
        assert_eq!(with("127.0.0.1:25001"), "HTTP/1.1 200 OK");
        assert_eq!(with("[::1]:25001"), "HTTP/1.1 200 OK");
        assert_eq!(with("localhost"), "HTTP/1.1 200 OK");
        assert_eq!(with("rebound.example:25001"), "HTTP/1.1 403 Forbidden");
        assert_eq!(
            with("localhost\r\nHost: rebound.example"),
            "HTTP/1.1 403 Forbidden"
        );
    }
}

#[test]
fn only_get_and_head_are_answered_and_head_without_a_body() {
    let monitored = Monitored::start(async || {});
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let request = format!("{method} / HTTP/1.1\r\nContent-Length: 3\r\n\r\nps\n");
        assert_eq!(
            status(&monitored, &request),
            "HTTP/1.1 405 Method Not Allowed"
        );
    }
    let mut stream = connect(monitored.addr);
    stream.write_all(b"HEAD / HTTP/1.0\r\n\r\n").unwrap();
    let answer = String::from_utf8(read_to_end(&stream)).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
}

#[test]
fn the_page_takes_nothing_from_elsewhere_and_its_answers_are_what_they_say() {
    let monitored = Monitored::start(async || {});
    let (_, headers, body) = get(monitored.addr, "GET / HTTP/1.0\r\n\r\n");
    assert_eq!(headers["content-type"], "text/html; charset=utf-8");
    assert_eq!(headers["x-content-type-options"], "nosniff");
    let policy = &headers["content-security-policy"];
    assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"));
    assert!(
        !policy.contains("http") && !policy.contains('*'),
        "{policy}"
    );
    assert!(body.len() <= 16 * 1024 && body.lines().count() <= 300);
}

#[test]
fn json_quotes_the_names_of_strangers() {
    let monitored = Monitored::start(async || {
        spawn_named("</script>\"\\\n", pending::<()>()).detach();
    });
    let (_, headers, body) = get(monitored.addr, "GET /tasks.json HTTP/1.0\r\n\r\n");
    assert_eq!(headers["content-type"], "application/json");
    assert!(
        body.contains(r#""name":"\u003c/script\u003e\"\\\u000a""#),
        "{body}"
    );
    let (_, _, body) = get(monitored.addr, "GET /stats.json HTTP/1.0\r\n\r\n");
    assert_eq!(body, "[]\n");
}

#[test]
fn http_keeps_the_connection_open_for_the_next_request() {
    let monitored = Monitored::start(async || {});
    let stream = connect(monitored.addr);
    let mut reader = BufReader::new(&stream);
    for _ in 0..3 {
        let request = "GET /stats.json HTTP/1.1\r\nHost: localhost\r\n\r\n";
        (&stream).write_all(request.as_bytes()).unwrap();
        let mut lines = reader.by_ref().lines().map(Result::unwrap);
        let head: Vec<String> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
        assert!(
            head.contains(&"Connection: keep-alive".to_owned()),
            "{head:?}"
        );
        assert_eq!(lines.next().unwrap(), "[]");
    }
    let request = "GET /stats.json HTTP/1.1\r\nConnection: close\r\n\r\n";
    (&stream).write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    reader.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("Connection: close"), "{answer}");
}

#[test]
fn a_request_that_is_not_whole_after_five_seconds_is_cut_off_and_silence_is_not() {
    let monitored = Monitored::start(async || {});
    let thinks = connect(monitored.addr);
    for begun in ["GET / HTTP/1.1\r\nHost: local", "p"] {
        let start = Instant::now();
        let mut slow = connect(monitored.addr);
        slow.write_all(begun.as_bytes()).unwrap();
        assert_eq!(slow.read(&mut [0]).unwrap_or(0), 0);
        assert!(start.elapsed().as_secs() >= 4, "not at once");
    }
    (&thinks).write_all(b"stats\nquit\n").unwrap();
    assert_eq!(read_to_end(&thinks), b"no server is running\n");
}

/// Chromium without a window, by its debugging pipe.
struct Browser {
    child: Child,
    requests: ChildStdin,
    answers: Receiver<String>,
    session: String,
    last_id: u32,
    /// Errors and lines on the console.
    complaints: Vec<String>,
    _profile: TempDir,
}

/// The text behind `"key":"` in an answer.
fn field(answer: &str, key: &str) -> String {
    let (_, rest) = answer.split_once(&format!("\"{key}\":\"")).expect(answer);
    rest.split('"').next().unwrap().to_owned()
}

impl Browser {
    fn start(test: &str) -> Browser {
        let profile = TempDir::new(test);
        // It reads from descriptor 3 and writes to 4.
        let script = "exec chromium --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run \
                      --user-data-dir=\"$0\" --remote-debugging-pipe 3<&0 4>&1 >/dev/null 2>&1";
        let mut child = Command::new("sh")
            .args(["-c", script])
            .arg(profile.path("chromium"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, answers) = mpsc::channel();
        thread::spawn(move || {
            for answer in output.split(0).map_while(Result::ok) {
                sender
                    .send(String::from_utf8_lossy(&answer).into_owned())
                    .ok();
            }
        });
        let mut browser = Browser {
            requests: child.stdin.take().unwrap(),
            child,
            answers,
            session: String::new(),
            last_id: 0,
            complaints: Vec::new(),
            _profile: profile,
        };
        let target = browser.call("Target.createTarget", r#"{"url":"about:blank"}"#);
        let target = field(&target, "targetId");
        let attach = format!(r#"{{"targetId":"{target}","flatten":true}}"#);
        let session = browser.call("Target.attachToTarget", &attach);
        browser.session = format!(",\"sessionId\":\"{}\"", field(&session, "sessionId"));
        browser.call("Runtime.enable", "{}");
        browser.call("Log.enable", "{}");
        browser
    }

    fn call(&mut self, method: &str, params: &str) -> String {
        self.last_id += 1;
        let (id, session) = (self.last_id, &self.session);
        let call =
            format!("{{\"id\":{id},\"method\":\"{method}\",\"params\":{params}{session}}}\0");
        self.requests.write_all(call.as_bytes()).unwrap();
        loop {
            let answer = next(&self.answers);
            if answer.starts_with(&format!("{{\"id\":{id},")) {
                return answer;
            }
            let complains = [
                "Runtime.exceptionThrown",
                "Runtime.consoleAPICalled",
                "Log.entryAdded",
            ];
            if complains.iter().any(|event| answer.contains(event)) {
                self.complaints.push(answer);
            }
        }
    }

    fn open(&mut self, url: &str) {
        self.call("Page.navigate", &format!(r#"{{"url":"{url}"}}"#));
    }

    /// Waits until `condition` holds in the page.
    fn until(&mut self, condition: &str) {
        let start = Instant::now();
        let params = format!(r#"{{"expression":"!!({condition})"}}"#);
        while !self
            .call("Runtime.evaluate", &params)
            .contains("\"value\":true")
        {
            let text = r#"{"expression":"document.body.innerText"}"#;
            assert!(
                start.elapsed() < DEADLINE,
                "{condition}: {}",
                self.call("Runtime.evaluate", text)
            );
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
#[ignore = "needs chromium"]
fn the_page_shows_connections_and_goes_on_after_a_restart() {
    let start = |monitor: &str| {
        let program = Program::start(&["--listen", "127.0.0.1:0", "--monitor", monitor]);
        let line = program.stdout_line();
        let addr = line.strip_prefix("monitor on ").unwrap().to_owned();
        (program, addr)
    };
    let (program, addr) = start("0");
    let client = program.connect();
    ask(&client, "hello");
    let mut browser = Browser::start("page");
    browser.open(&format!("http://{addr}/"));
    let peer = client.local_addr().unwrap();
    let shows =
        |text: &str| format!("document.getElementById('tasks').innerText.includes('{text}')");
    browser.until(&shows(&peer.to_string()));
    browser.until("document.querySelector('#charts b').textContent === '1'");
    browser.until("document.querySelector('#state').textContent.includes('The loop runs')");
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
    drop(client);
    program.stop();
    browser.until("document.querySelector('#state').textContent.includes('No answer')");
    let (program, _) = start(&addr);
    let client = program.connect();
    ask(&client, "hello");
    browser.until(&shows(&client.local_addr().unwrap().to_string()));
}

#[test]
#[ignore = "needs chromium"]
fn the_page_marks_a_task_that_blocks_the_loop() {
    let (release, released) = mpsc::channel();
    let monitored = Monitored::start(async move || {
        let block = async move { next::<()>(&released) };
        spawn_named("<b>blocker</b>", block).detach();
    });
    let mut browser = Browser::start("blocked");
    browser.open(&format!("http://{}/", monitored.addr));
    browser.until("document.querySelector('#state.bad')?.textContent.includes('<b>blocker</b>')");
    browser.until("document.querySelector('tr.running').innerText.includes('<b>blocker</b>')");
    release.send(()).unwrap();
    browser.until("!document.querySelector('#state.bad, tr.running')");
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
}
