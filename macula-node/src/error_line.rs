//! Errors as text.

use std::error::Error;

/// An error and its causes in one line, for a log or a person.
#[must_use]
pub fn error_line(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        // Transparent errors repeat their source.
        if !line.ends_with(&text) {
            line = format!("{line}: {text}");
        }
        source = cause.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Outer {
        #[error("the file cannot be read")]
        Read(#[source] std::io::Error),
        #[error(transparent)]
        Other(std::io::Error),
    }

    #[test]
    fn causes_follow_in_the_same_line_and_none_stands_twice() {
        let full = || std::io::Error::other("the disk is full");
        assert_eq!(
            error_line(&Outer::Read(full())),
            "the file cannot be read: the disk is full"
        );
        assert_eq!(error_line(&Outer::Other(full())), "the disk is full");
    }
}
