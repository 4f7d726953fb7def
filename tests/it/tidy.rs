//! What the repository says of itself, compared with what it is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The text of a file of the repository.
fn text(path: impl AsRef<Path>) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files below `directory`, with names that end in `ending`, as paths in the repository.
fn files(directory: &str, ending: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut directories = vec![root.join(directory)];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.to_str().unwrap().ends_with(ending) {
                found.push(path.strip_prefix(root).unwrap().to_owned());
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "{directory}");
    found
}

/// The files of the library, which are those of src but the program's.
pub(crate) fn library() -> impl Iterator<Item = PathBuf> {
    let is_program = |path: &Path| path.starts_with("src/cli") || path.ends_with("main.rs");
    let files = files("src", ".rs").into_iter();
    files.filter(move |path| !is_program(path) && !path.ends_with("cli.rs"))
}

/// The lines of a file that are no comments, with their numbers.
pub(crate) fn code(path: &Path) -> Vec<(usize, String)> {
    let lines = text(path);
    let lines = lines.lines().zip(1..);
    lines
        .filter(|(line, _)| !line.trim_start().starts_with("//"))
        .map(|(line, number)| (number, line.to_owned()))
        .collect()
}

/// The long options in a text, such as `--drain`.
fn options(text: &str) -> BTreeSet<&str> {
    let is_part = |c: char| c == '-' || c.is_ascii_lowercase();
    let words = text.split(|c: char| !is_part(c));
    let words = words.map(|word| word.trim_end_matches('-'));
    words
        .filter(|word| word.starts_with("--") && word.len() > 2)
        .collect()
}

#[test]
fn the_readme_tells_of_every_option_of_the_program_and_of_no_other() {
    let help = Command::new(env!("CARGO_BIN_EXE_tinyloop"))
        .arg("--help")
        .output()
        .unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let readme = text("README.md");
    let (_, section) = readme.split_once("## Options of the program").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let missing: Vec<_> = options(&help)
        .difference(&options(section))
        .cloned()
        .collect();
    assert!(missing.is_empty(), "the README says nothing of {missing:?}");
    let unknown: Vec<_> = options(section)
        .difference(&options(&help))
        .cloned()
        .collect();
    assert!(unknown.is_empty(), "the program has no {unknown:?}");
}

#[test]
fn the_library_neither_prints_nor_ends_the_process_nor_reads_arguments() {
    let forbidden = [
        "print!(",
        "println!(",
        "dbg!(",
        "stdout()",
        "stderr()",
        "process::exit",
        "process::abort",
        "env::",
    ];
    for path in library() {
        // The environment says which sockets were passed on.
        let reads_environment = path.ends_with("src/inherited.rs");
        for (number, line) in code(&path) {
            for word in forbidden {
                if word == "env::" && reads_environment {
                    continue;
                }
                assert!(!line.contains(word), "{}:{number}: {line}", path.display());
            }
        }
    }
}

/// The files of the library from the ground up: a file uses what stands above it here, and nothing below.
const ORDER: &[&str] = &[
    "platform.rs",
    "io_error.rs",
    "address.rs",
    "report.rs",
    "health.rs",
    "time.rs",
    "time/interval.rs",
    "executor.rs",
    "task_table.rs",
    "event_loop/alarm.rs",
    "event_loop/main_future.rs",
    "event_loop/reactor.rs",
    "event_loop/spin.rs",
    "event_loop/turn.rs",
    "event_loop.rs",
    "unblock.rs",
    "endpoint.rs",
    "task_group.rs",
    "signal.rs",
    "connection/wire.rs",
    "connection/ends.rs",
    "connection/pipe.rs",
    "connection/state.rs",
    "connection/proxy_header.rs",
    "connection/stream.rs",
    "connection/terms.rs",
    "connection/direction.rs",
    "connection/activity.rs",
    "connection/rare.rs",
    "connection/link.rs",
    "connection.rs",
    "connection/chunk.rs",
    "connection/connect.rs",
    "connection/copy.rs",
    "faults/fault.rs",
    "faults/plan.rs",
    "faults/faulty.rs",
    "faults.rs",
    "echo.rs",
    "server/listener.rs",
    "server/listener/bind.rs",
    "server/accept.rs",
    "server/trouble.rs",
    "server/ending.rs",
    "server/event.rs",
    "server/farewell.rs",
    "server/look.rs",
    "server/candidate.rs",
    "server/proxy_protocol.rs",
    "server/incoming.rs",
    "server/connections.rs",
    "server/steps.rs",
    "server.rs",
    "inherited.rs",
    "monitor/line.rs",
    "monitor/request.rs",
    "monitor/text.rs",
    "monitor/json.rs",
    "monitor/health.rs",
    "monitor/http.rs",
    "monitor.rs",
    "testing.rs",
    "lib.rs",
    // Tests, which may use what they test.
    "executor/tests.rs",
    "executor/tests/order.rs",
];

/// The files of the library that `path` names: `crate::a::b`, `super::a` and, of its own folder, `a::b` and `self::a`.
fn used(path: &Path) -> BTreeSet<&'static str> {
    let own = path.strip_prefix("src").unwrap().to_str().unwrap();
    let own_folder = own.trim_end_matches(".rs");
    let parent_folder = own_folder.rsplit_once('/').map_or("", |(parent, _)| parent);
    let lines = code(path);
    // Whatever stands behind the last `#[cfg(test)]` are the file's own tests.
    let text: String = lines.iter().map(|(_, line)| format!("{line}\n")).collect();
    let text = text.split("#[cfg(test)]").next().unwrap();
    let mut found = BTreeSet::new();
    for &candidate in ORDER {
        let module = candidate.trim_end_matches(".rs");
        let (folder, name) = module.rsplit_once('/').unwrap_or(("", module));
        let mut ways = vec![format!("crate::{}", module.replace('/', "::"))];
        if folder == parent_folder && !folder.is_empty() {
            ways.push(format!("super::{name}"));
        }
        if folder == own_folder {
            ways.push(format!("use {name}::"));
            ways.push(format!("use self::{name}::"));
        }
        let is_used = ways.iter().any(|way| {
            text.match_indices(way.as_str()).any(|(at, _)| {
                let rest = &text[at + way.len()..];
                !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_')
            })
        });
        if is_used && candidate != own {
            found.insert(candidate);
        }
    }
    // An item of the module above: `super::Item`, `super::{...}`.
    let of_parent = text.contains("super::{")
        || text
            .split("super::")
            .skip(1)
            .any(|rest| rest.starts_with(char::is_uppercase));
    if of_parent && !parent_folder.is_empty() {
        found.extend(
            ORDER
                .iter()
                .find(|file| file.trim_end_matches(".rs") == parent_folder),
        );
    }
    found
}

#[test]
fn no_file_of_the_library_uses_one_that_stands_below_it() {
    let place = |file: &str| ORDER.iter().position(|&placed| placed == file);
    let mut checked = 0;
    for path in library() {
        let file = path.strip_prefix("src").unwrap().to_str().unwrap();
        let own_place = place(file).unwrap_or_else(|| panic!("{file} has no place in the order"));
        if file.contains("tests") || file == "lib.rs" {
            continue;
        }
        for used in used(&path) {
            assert!(
                place(used).unwrap() < own_place,
                "{file} uses {used}, which stands below it"
            );
            checked += 1;
        }
    }
    assert!(checked > 40, "{checked} arrows were found");
}

#[test]
fn no_file_of_the_sources_is_longer_than_450_lines() {
    for path in files("src", ".rs") {
        let lines = text(&path).lines().count();
        assert!(lines <= 450, "{}: {lines} lines", path.display());
    }
}

#[test]
fn every_source_file_opens_with_what_lives_there() {
    for directory in ["src", "tests", "examples", "benches/src"] {
        for path in files(directory, ".rs") {
            let opens_well = text(&path).starts_with("//! ");
            assert!(opens_well, "{}", path.display());
        }
    }
}

/// The sections of the README and the docs, each with the heading that it stands under.
fn sections() -> Vec<String> {
    let mut paths = files("docs", ".md");
    paths.push("README.md".into());
    let texts: Vec<String> = paths.iter().map(text).collect();
    let sections = texts.iter().flat_map(|text| text.split("\n## "));
    sections.map(str::to_owned).collect()
}

/// Whether `word` is a measured figure: a number with a decimal point, and no version or address.
fn is_figure(word: &str) -> bool {
    let number = word.trim_start_matches('*');
    let number = number.trim_end_matches(|c: char| !c.is_ascii_digit());
    let (whole, fraction) = number.split_once('.').unwrap_or_default();
    let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    is_number(whole) && is_number(fraction)
}

#[test]
fn a_section_with_measured_figures_names_the_command_that_made_them() {
    for section in sections() {
        let without_code = section.split("```").step_by(2).collect::<String>();
        let figure = without_code
            .split([' ', '(', '–', '|', '\n'])
            .find(|word| is_figure(word));
        let names_command = section.contains("just ");
        assert!(
            figure.is_none() || names_command,
            "{figure:?} comes from nowhere in: {}",
            section.lines().next().unwrap_or_default()
        );
    }
}

#[test]
fn the_ratios_in_the_docs_are_those_of_the_results() {
    let results = text("benches/results/results.csv");
    let is_ratio = |line: &str, ratio: &str| {
        let of_tinyloop = line.contains(",tinyloop,");
        let round = |field: &str| field.parse::<f64>().map(|value| format!("{value:.2}"));
        of_tinyloop
            && line
                .rsplit(',')
                .take(2)
                .any(|field| round(field).is_ok_and(|found| found == ratio))
    };
    let benchmarks = text("docs/benchmarks.md");
    let rows = benchmarks
        .lines()
        .filter(|line| line.starts_with("| ") && line.contains('–'));
    let mut checked = 0;
    for row in rows {
        for words in row.split([' ', '|', ',']).collect::<Vec<_>>().windows(2) {
            let ratio = words[0].trim_matches('*');
            if is_figure(ratio) && words[1].starts_with('(') {
                let found = results.lines().any(|line| is_ratio(line, ratio));
                assert!(found, "{ratio} is in no result: {row}");
                checked += 1;
            }
        }
    }
    assert!(checked > 10, "there is a table of ratios");
}

/// The rows of two columns in the tables of a text.
fn rows(text: &str) -> BTreeMap<&str, &str> {
    let lines = text
        .lines()
        .filter(|line| !line.starts_with("| situation |"));
    let cells = lines.filter_map(|line| {
        line.strip_prefix("| ")?
            .strip_suffix(" |")?
            .split_once(" | ")
    });
    cells.collect()
}

#[test]
fn each_promise_names_tests_that_are_there() {
    let tests: String = ["src", "tests", "benches/src"]
        .iter()
        .flat_map(|directory| files(directory, ".rs"))
        .map(text)
        .collect();
    let promises = text("docs/promises.md");
    let (guarantees, shown_by) = promises.split_once("\n## Tests\n").unwrap();
    let shown_by = rows(shown_by);
    for (situation, _) in rows(guarantees) {
        let names = shown_by.get(situation).copied().unwrap_or_default();
        let names: Vec<&str> = names.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "no test shows it: {situation}");
        for name in names {
            let name = name.rsplit("::").next().unwrap();
            assert!(
                tests.contains(&format!("fn {name}(")),
                "there is no test {name}"
            );
        }
    }
}
