//! The public API, compared with the list beside this file, so that a change of it is a decision.

use std::env;
use std::fs;
use std::path::Path;

use crate::tidy::{code, library};

/// Every `pub` item and field of the library, with its file. Each can be reached from outside: rustc warns of a `pub`
/// that cannot. Variants of an enum, macros and implemented traits are not in it.
fn public_items() -> String {
    let mut items = String::new();
    for path in library() {
        let lines = code(&path);
        let mut lines = lines.iter().map(|(_, line)| line.trim());
        while let Some(line) = lines.next() {
            if !line.starts_with("pub ") {
                continue;
            }
            let mut item = line.to_owned();
            while !item.ends_with(['{', ';', ',', '}'])
                || item.matches('(').count() > item.matches(')').count()
            {
                item.push(' ');
                item.push_str(lines.next().expect("the item ends"));
            }
            let item = item.trim_end_matches(['{', ';', ',', ' ']);
            items.push_str(&format!("{}: {item}\n", path.display()));
        }
    }
    items
}

#[test]
fn the_public_api_is_the_one_that_was_decided() {
    let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/public_api.txt");
    let found = public_items();
    if env::var_os("TINYLOOP_RENEW").is_some() {
        fs::write(&list, &found).unwrap();
    }
    let decided = fs::read_to_string(&list).unwrap();
    let only_in = |a: &str, b: &str| -> Vec<String> {
        let other: Vec<&str> = b.lines().collect();
        a.lines()
            .filter(|line| !other.contains(line))
            .map(str::to_owned)
            .collect()
    };
    let (new, gone) = (only_in(&found, &decided), only_in(&decided, &found));
    assert!(
        new.is_empty() && gone.is_empty(),
        "new: {new:#?}, gone: {gone:#?}; if that is meant: TINYLOOP_RENEW=1 cargo test --test it -- public_api"
    );
}
