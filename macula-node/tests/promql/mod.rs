//! The names of metrics in an expression of PromQL.

/// Functions and operators that the deployment's files may use. Any other word is taken for a metric.
const WORDS: [&str; 9] = [
    "and",
    "by",
    "histogram_quantile",
    "increase",
    "max",
    "min",
    "on",
    "rate",
    "sum",
];

/// Each metric that the expression names. Strings, label matchers, groupings and ranges hold none.
pub(crate) fn metrics(expression: &str) -> Vec<&str> {
    let (mut names, mut rest) = (Vec::new(), expression);
    // Whether the next parenthesis is a list of labels.
    let mut labels = false;
    while let Some(first) = rest.chars().next() {
        let end_of = |close: char| rest.find(close).unwrap_or_else(|| panic!("{expression}: no {close}")) + 1;
        let taken = match first {
            '{' => end_of('}'),
            '[' => end_of(']'),
            '(' if labels => end_of(')'),
            'a'..='z' | 'A'..='Z' | '_' => {
                let is_inner = |char: char| char.is_ascii_alphanumeric() || char == '_' || char == ':';
                rest.find(|char| !is_inner(char)).unwrap_or(rest.len())
            }
            '0'..='9' => rest
                .find(|char: char| !char.is_ascii_alphanumeric() && char != '.')
                .unwrap_or(rest.len()),
            first => first.len_utf8(),
        };
        let word = &rest[..taken];
        if first.is_ascii_alphabetic() || first == '_' {
            labels = ["by", "on", "without", "ignoring"].contains(&word);
            if !WORDS.contains(&word) {
                names.push(word);
            }
        } else if !first.is_whitespace() {
            labels = false;
        }
        rest = &rest[taken..];
    }
    names
}
