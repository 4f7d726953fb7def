//! What comes with the library when somebody depends on it: how many crates, from where, and on what terms.

use std::collections::BTreeSet;
use std::process::Command;

/// How many crates are linked into a program that uses the library without its own program, the library included.
const CRATES_MAX: usize = 34;

/// Those crates and their licences, with the crates that their build scripts use, too, if `edges` says so.
fn crates(edges: &str) -> BTreeSet<(String, String)> {
    let mut command = Command::new(env!("CARGO"));
    command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["tree", "--locked", "--offline", "--no-default-features"])
        .args(["--edges", edges, "--prefix", "none", "--format", "{p}|{l}"]);
    let tree = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&tree.stderr);
    assert!(tree.status.success(), "{stderr}");
    String::from_utf8(tree.stdout)
        .unwrap()
        .lines()
        // A crate that was shown before has a mark.
        .map(|line| line.trim_end_matches(" (*)"))
        .map(|line| line.split_once('|').unwrap())
        .map(|(package, licence)| (package.to_owned(), licence.to_owned()))
        .collect()
}

#[test]
fn a_user_of_the_library_links_no_more_crates_than_the_readme_says() {
    let linked = crates("normal");
    assert!(
        linked.len() <= CRATES_MAX,
        "{} crates: {linked:#?}",
        linked.len()
    );
    let readme = include_str!("../../README.md");
    assert!(readme.contains(&format!("{CRATES_MAX} crates, including tinyloop")));
}

#[test]
fn no_crate_comes_twice_or_from_elsewhere_than_crates_io_and_all_may_be_had_under_mit() {
    let crates = crates("normal,build");
    let mut names = BTreeSet::new();
    for (package, licence) in &crates {
        let (name, version) = package.split_once(' ').unwrap();
        assert!(names.insert(name), "{name} comes twice: {crates:#?}");
        // Behind the version stands where a package is from, unless that is crates.io.
        let source = version.trim_end_matches(" (proc-macro)");
        assert!(
            name == "tinyloop" || !source.contains(' '),
            "{package}: not from crates.io"
        );
        assert!(
            licence.split(" OR ").any(|choice| choice == "MIT"),
            "{package}: {licence}"
        );
    }
}
