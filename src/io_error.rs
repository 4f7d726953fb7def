//! System errors with a description of the failed action.

use std::error::Error;
use std::fmt::{self, Display};
use std::io;

/// Adds `what` to an error, for example `cannot listen on [::1]:80: permission denied`. Keeps its kind, and the error
/// itself as the source.
pub(crate) fn explain(what: impl Display, error: io::Error) -> io::Error {
    let text = format!("{what}: {}", in_plain_words(&error));
    io::Error::new(error.kind(), Explained(text, error))
}

/// The text, and the source.
struct Explained(String, io::Error);

impl fmt::Debug for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Explained {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.1)
    }
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
            io::Error::from_raw_os_error(13),
        );
        assert_eq!(
            error.to_string(),
            "cannot listen on 127.0.0.1:80: permission denied"
        );
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        let source = error.source().and_then(<dyn Error>::downcast_ref);
        assert_eq!(source.and_then(io::Error::raw_os_error), Some(13));
        assert_eq!(
            in_plain_words(&io::Error::other("Our own words")),
            "Our own words"
        );
    }
}
