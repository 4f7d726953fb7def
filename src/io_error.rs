//! System errors with a description of the failed action.

use std::fmt::Display;
use std::io;

/// Adds `what` to an error and keeps its kind, for example `cannot listen on [::1]:80: permission denied`.
pub(crate) fn explain(what: impl Display, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {}", in_plain_words(error)))
}

/// The system's words as part of a sentence: without the error number and in lower case.
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
