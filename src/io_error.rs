//! Errors of the system, with the noun that they lack.

use std::fmt::Display;
use std::io;

/// `error` with its kind kept, as `what: the system's words`, such as `cannot listen on [::1]:80: permission denied`.
pub(crate) fn explain(what: impl Display, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {}", in_plain_words(error)))
}

/// The system's words as part of a sentence: without their number, and not as if a sentence began.
pub(crate) fn in_plain_words(error: &io::Error) -> String {
    let text = error.to_string();
    let words = match error.raw_os_error() {
        Some(_) => text.split(" (os error").next().unwrap_or(&text),
        None => return text,
    };
    let mut letters = words.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_lowercase().chain(letters).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_system_reads_as_part_of_a_sentence() {
        let error = explain(
            "cannot listen on 127.0.0.1:80",
            &io::Error::from_raw_os_error(13),
        );
        assert_eq!(
            error.to_string(),
            "cannot listen on 127.0.0.1:80: permission denied"
        );
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(
            in_plain_words(&io::Error::other("Our own words")),
            "Our own words"
        );
    }
}
