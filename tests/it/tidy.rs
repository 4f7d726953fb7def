//! What the repository says of itself, compared with what it is.

use std::process::Command;

#[test]
fn the_readme_shows_the_help_as_it_is() {
    let help = Command::new(env!("CARGO_BIN_EXE_tinyloop"))
        .arg("--help")
        .output()
        .unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let shown = format!("```console\n$ tinyloop --help\n{}\n```\n", help.trim_end());
    assert!(
        include_str!("../../README.md").contains(&shown),
        "the README should show:\n{shown}"
    );
}
