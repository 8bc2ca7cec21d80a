//! Words that make a sentence hard to read: old pronouns and phrases that a plain noun or verb replaces.
//!
//! They are looked for in whole files, because errors are read as often as comments.

use std::sync::LazyLock;

use regex::Regex;

use crate::finding::Finding;
use crate::source::{matches, pattern};

/// The words of `text` that have a plainer form.
pub(crate) fn contorted(path: &str, text: &str) -> Vec<Finding> {
    static WORDS: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
        [
            (
                r"\bwho(?:ever|m(?:ever)?|soever)\b",
                "name the caller, the provider or the reader",
            ),
            (
                r"\b(?:no|some|any|every)body\b",
                "name the caller, the peer or the node, or say “no one”",
            ),
            (r"\bto\W+be\W+had\b", "say that it is missing, used up or unavailable"),
            (r"\bthat\W+which\b", "use the noun"),
            (r"\banew\b", "say “again”"),
        ]
        .into_iter()
        .map(|(words, mend)| (pattern(&format!("(?i){words}")), mend))
        .collect()
    });
    let found = WORDS.iter().flat_map(|(words, mend)| {
        matches(text, words).map(move |(line, word)| {
            let word: Vec<_> = word
                .split(|c: char| !c.is_alphanumeric())
                .filter(|it| !it.is_empty())
                .collect();
            Finding::new(format!("{path}:{line}"), format!("“{}”", word.join(" ")), *mend)
        })
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str) -> Vec<String> {
        contorted("a", text).into_iter().map(|it| it.wrong).collect()
    }

    #[test]
    fn contorted_words_are_found_in_any_case_and_over_a_line_break() {
        let body = "body";
        assert_eq!(
            wrong(&format!("// No{body} asks who{}.", "ever")),
            [format!("“who{}”", "ever"), format!("“No{body}”")]
        );
        assert_eq!(
            wrong(&format!("/// is not to be\n/// ha{}", "d")),
            [format!("“to be ha{}”", "d")]
        );
        let places = contorted("a", &format!("x\nto who{}", "m"));
        assert_eq!(places[0].place, "a:2");
    }

    #[test]
    fn words_that_only_look_alike_are_fine() {
        let text =
            "who runs a body of one, the whole; some body_count; fn no_body() {} to be handed over; that is which";
        assert_eq!(wrong(text), [""; 0]);
    }
}
