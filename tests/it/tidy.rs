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
fn library() -> impl Iterator<Item = PathBuf> {
    let is_program = |path: &Path| path.starts_with("src/cli") || path.ends_with("main.rs");
    let files = files("src", ".rs").into_iter();
    files.filter(move |path| !is_program(path) && !path.ends_with("cli.rs"))
}

/// The lines of a file that are no comments, with their numbers.
fn code(path: &Path) -> Vec<(usize, String)> {
    let lines = text(path);
    let lines = lines.lines().zip(1..);
    lines
        .filter(|(line, _)| !line.trim_start().starts_with("//"))
        .map(|(line, number)| (number, line.to_owned()))
        .collect()
}

#[test]
fn the_readme_shows_the_help_as_it_is() {
    let help = Command::new(env!("CARGO_BIN_EXE_tinyloop"))
        .arg("--help")
        .output()
        .unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let shown = format!("```console\n$ tinyloop --help\n{}\n```\n", help.trim_end());
    assert!(
        text("README.md").contains(&shown),
        "the README should show:\n{shown}"
    );
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
        for (number, line) in code(&path) {
            for word in forbidden {
                assert!(!line.contains(word), "{}:{number}: {line}", path.display());
            }
        }
    }
}

/// What each file of the library uses of the others. Whoever adds to this changes the design.
const USES: [(&str, &[&str]); 19] = [
    ("address.rs", &[]),
    ("connection.rs", &["address", "time", "yielded"]),
    ("connection/stream.rs", &["testing"]),
    ("connection/terms.rs", &["time"]),
    ("echo.rs", &["connection"]),
    (
        "event_loop.rs",
        &["io_error", "task_table", "time", "yielded"],
    ),
    ("io_error.rs", &[]),
    ("lib.rs", &[]),
    (
        "monitor.rs",
        &["event_loop", "io_error", "server", "task_table"],
    ),
    ("monitor/request.rs", &[]),
    (
        "server.rs",
        &[
            "address",
            "connection",
            "event_loop",
            "io_error",
            "task_group",
            "task_table",
            "testing",
            "time",
        ],
    ),
    ("server/event.rs", &["address", "io_error"]),
    (
        "server/listener.rs",
        &["address", "connection", "io_error", "testing"],
    ),
    ("signal.rs", &["io_error"]),
    ("task_group.rs", &["event_loop", "task_table"]),
    // Of connections and servers it knows the figures to show, and nothing else.
    ("task_table.rs", &["connection", "server"]),
    ("testing.rs", &["address", "connection", "server"]),
    ("time.rs", &[]),
    ("yielded.rs", &[]),
];

#[test]
fn each_file_of_the_library_uses_what_the_design_says() {
    let used = |path: &Path| -> BTreeSet<String> {
        let code = code(path).into_iter();
        let modules = code.flat_map(|(_, line)| {
            let uses = line.split("crate::").skip(1);
            let name = |rest: &str| {
                rest.chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect()
            };
            uses.map(name).collect::<Vec<String>>()
        });
        modules.collect()
    };
    let found: BTreeMap<String, BTreeSet<String>> = library()
        .map(|path| {
            let name = path.strip_prefix("src").unwrap().to_str().unwrap();
            (name.to_owned(), used(&path))
        })
        .collect();
    let expected: BTreeMap<String, BTreeSet<String>> = USES
        .iter()
        .map(|(name, uses)| {
            let uses = uses.iter().map(|&name| name.to_owned()).collect();
            ((*name).to_owned(), uses)
        })
        .collect();
    assert_eq!(found, expected);
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
fn the_ratios_in_the_readme_are_those_of_the_results() {
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
    let readme = text("README.md");
    let rows = readme
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
    assert!(checked > 10, "the README has a table of ratios");
}

#[test]
fn each_promise_names_tests_that_are_there() {
    let tests: String = ["src", "tests", "benches/src"]
        .iter()
        .flat_map(|directory| files(directory, ".rs"))
        .map(text)
        .collect();
    let promises = text("docs/promises.md");
    let rows = promises
        .lines()
        .filter(|line| line.starts_with("| ") && !line.ends_with("| shown by |"));
    for row in rows {
        let shown_by = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        let names: Vec<&str> = shown_by.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "no test shows it: {row}");
        for name in names {
            let name = name.rsplit("::").next().unwrap();
            assert!(
                tests.contains(&format!("fn {name}(")),
                "there is no test {name}"
            );
        }
    }
}
