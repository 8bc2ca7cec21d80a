//! Rust source without comments and literals, so that a search for words finds only code.
//!
//! Invariant: blanking replaces each byte by a space and keeps every line break, so offsets and line numbers stay true.
//! Left out: parsing. Macros, paths behind `use … as`, and code built by macros are not understood.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use anyhow::{Context as _, Result};
use regex::Regex;

use crate::workspace::display;

/// Marks a generated file.
const GENERATED: &str = "// @generated";

#[expect(clippy::unwrap_used, reason = "constant patterns, and the tests compile every one")]
pub(crate) fn pattern(text: &str) -> Regex {
    Regex::new(text).unwrap()
}

/// One Rust file, read and blanked.
#[derive(Debug)]
pub(crate) struct Source {
    /// The path as messages show it.
    pub(crate) path: String,
    pub(crate) text: String,
    /// The text without comments and literals.
    pub(crate) code: String,
    /// [`Source::code`] without the items that only a test build compiles; blank when that is the whole file.
    pub(crate) shipped: String,
}

impl Source {
    pub(crate) fn new(path: impl Into<String>, text: impl Into<String>) -> Self {
        let text = text.into();
        let code = blank(&text);
        let shipped = without_tests(&code);
        Source {
            path: path.into(),
            text,
            code,
            shipped,
        }
    }

    /// The lines of the module's documentation, without their `//!`.
    pub(crate) fn module_docs(&self) -> impl Iterator<Item = &str> {
        let lines = self.text.lines().map(str::trim_start);
        let head = lines.take_while(|line| line.is_empty() || line.starts_with("//") || line.starts_with("#!["));
        head.filter_map(|line| line.strip_prefix("//!")).map(str::trim)
    }

    pub(crate) fn is_generated(&self) -> bool {
        self.text.starts_with(GENERATED)
    }

    /// In a `tests` folder of a package: compiled for tests only, on the public surface.
    pub(crate) fn is_integration_test(&self) -> bool {
        self.path.split('/').any(|part| part == "tests") && !self.path.contains("/src/")
    }
}

/// Reads every Rust file of `paths`; a module file that its parent declares under `#[cfg(test)]` ships nothing.
///
/// # Errors
///
/// A file cannot be read.
pub(crate) fn read(paths: &[PathBuf]) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    let mut test_only = BTreeSet::new();
    for path in paths {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", display(path)))?;
        let source = Source::new(display(path), text);
        test_only.extend(test_modules(path, &source));
        sources.push((path, source));
    }
    let is_test = |path: &Path| {
        let whole = path.with_extension("");
        whole.ancestors().any(|it| test_only.contains(it))
    };
    let blanked = sources.into_iter().map(|(path, mut source)| {
        if is_test(path) {
            source.shipped = erase(&source.code);
        }
        source
    });
    Ok(blanked.collect())
}

/// The lines, counted from one, and the text of every match.
pub(crate) fn matches<'a>(code: &'a str, pattern: &'a Regex) -> impl Iterator<Item = (usize, &'a str)> {
    pattern.find_iter(code).map(|found| {
        let line = code[..found.start()].matches('\n').count() + 1;
        (line, found.as_str())
    })
}

/// The files, without extension, of the modules that the source at `path` declares for test builds only.
fn test_modules(path: &Path, source: &Source) -> Vec<PathBuf> {
    static DECLARED: LazyLock<Regex> = LazyLock::new(|| {
        pattern(
            r"#\[cfg\((?:all\()?\s*test\b[^\]]*\]\s*(?:#\[path\s*=(\s*)\]\s*)?(?:pub(?:\([^)]*\))?\s+)?mod\s+(\w+)\s*;",
        )
    });
    let parent = path.parent().unwrap_or(Path::new(""));
    let stem = path.file_stem().unwrap_or_default();
    let owns_folder = ["lib", "main", "mod"].iter().any(|it| stem == *it);
    let folder = if owns_folder {
        parent.to_path_buf()
    } else {
        parent.join(stem)
    };
    let declared = DECLARED.captures_iter(&source.code);
    let files = declared.filter_map(|found| match found.get(1) {
        // The name is a literal, so only the text still has it.
        Some(literal) => {
            let name = source.text.get(literal.range())?.trim().trim_matches('"');
            Some(parent.join(name).with_extension(""))
        }
        None => Some(folder.join(found.get(2)?.as_str())),
    });
    files.collect()
}

fn erase(text: &str) -> String {
    let mut erased = String::with_capacity(text.len());
    text.chars().for_each(|c| erase_into(&mut erased, c));
    erased
}

fn erase_into(erased: &mut String, c: char) {
    if c == '\n' {
        erased.push(c);
    } else {
        erased.extend(std::iter::repeat_n(' ', c.len_utf8()));
    }
}

/// Blanks the item that follows each `#[cfg(test)]`.
fn without_tests(code: &str) -> String {
    static MARK: LazyLock<Regex> = LazyLock::new(|| pattern(r"#\[cfg\((?:all\()?\s*test\b[^\]]*\]"));
    let mut shipped = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(mark) = MARK.find(rest) {
        let end = mark.end() + item_length(&rest[mark.end()..]);
        shipped.push_str(&rest[..mark.start()]);
        shipped.push_str(&erase(&rest[mark.start()..end]));
        rest = &rest[end..];
    }
    shipped.push_str(rest);
    shipped
}

/// The length of the first item of `code`, up to its closing brace or its semicolon.
fn item_length(code: &str) -> usize {
    let mut depth = 0_usize;
    for (at, c) in code.char_indices() {
        match c {
            '{' | '(' | '[' => depth += 1,
            '}' | ')' | ']' => {
                let Some(outer) = depth.checked_sub(1) else { return at };
                depth = outer;
                if depth == 0 && c == '}' {
                    return at + c.len_utf8();
                }
            }
            ';' if depth == 0 => return at + c.len_utf8(),
            _ => {}
        }
    }
    code.len()
}

/// Blanks comments, strings and character literals.
fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = literal_end(&chars, at);
        if end > at {
            chars[at..end].iter().for_each(|c| erase_into(&mut code, *c));
            at = end;
        } else {
            code.push(chars[at]);
            at += 1;
        }
    }
    code
}

/// The end of the comment or literal that starts at `at`; `at` itself when none starts there.
fn literal_end(chars: &[char], at: usize) -> usize {
    let peek = |n: usize| chars.get(at + n).copied();
    match chars[at] {
        '/' if peek(1) == Some('/') => line_end(chars, at),
        '/' if peek(1) == Some('*') => block_comment_end(chars, at),
        '"' => string_end(chars, at + 1),
        'r' if !in_word(chars, at) => raw_string_end(chars, at),
        '\'' if peek(1) == Some('\\') || (peek(2) == Some('\'') && peek(1) != Some('\'')) => char_end(chars, at),
        _ => at,
    }
}

/// Whether the character at `at` continues a word; the prefixes `b` and `c` of raw strings do not count.
fn in_word(chars: &[char], at: usize) -> bool {
    let word = |it: usize| chars[it].is_alphanumeric() || chars[it] == '_';
    match at.checked_sub(1) {
        Some(before) if matches!(chars[before], 'b' | 'c') => before.checked_sub(1).is_some_and(word),
        Some(before) => word(before),
        None => false,
    }
}

fn line_end(chars: &[char], at: usize) -> usize {
    let rest = chars[at..].iter().position(|c| *c == '\n');
    rest.map_or(chars.len(), |n| at + n)
}

fn block_comment_end(chars: &[char], mut at: usize) -> usize {
    let mut depth = 0_usize;
    while at < chars.len() {
        match (chars[at], chars.get(at + 1)) {
            ('/', Some('*')) => {
                depth += 1;
                at += 2;
            }
            ('*', Some('/')) => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    at
}

fn string_end(chars: &[char], mut at: usize) -> usize {
    while at < chars.len() {
        match chars[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    chars.len()
}

fn raw_string_end(chars: &[char], at: usize) -> usize {
    let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
    let open = at + 1 + hashes;
    if chars.get(open) != Some(&'"') {
        return at;
    }
    let closes =
        |it: usize| chars[it] == '"' && chars[it + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes;
    let close = (open + 1..chars.len()).find(|it| closes(*it));
    close.map_or(chars.len(), |it| it + 1 + hashes)
}

fn char_end(chars: &[char], at: usize) -> usize {
    let mut it = at + 1;
    while it < chars.len() {
        match chars[it] {
            '\\' => it += 2,
            '\'' => return it + 1,
            _ => it += 1,
        }
    }
    chars.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blank_and_lines_stay() {
        let text = "a // xα\nb /* x /* x */ \n x */ c \"x\\\" x\" r#\"x\" x\"# br\"x\" 'x' '\\'' d";
        let code = blank(text);
        assert!(!code.contains('x'), "{code}");
        for kept in ["a", "b", "c", "d"] {
            assert!(code.contains(kept), "{kept} is gone from {code}");
        }
        assert_eq!(code.matches('\n').count(), text.matches('\n').count());
        assert_eq!(code.len(), text.len());
    }

    #[test]
    fn lifetimes_raw_identifiers_and_words_ending_in_r_are_code() {
        let code = "fn f<'a>(x: &'a str, r#type: char) -> for_r { 'outer: loop {} }";
        assert_eq!(blank(code), code);
    }

    #[test]
    fn an_unfinished_literal_ends_with_the_file() {
        for text in ["\"x", "r#\"x", "/* x", "'\\", "\"\\"] {
            assert!(!blank(text).contains('x'));
        }
    }

    #[test]
    fn test_items_do_not_ship() {
        let source = Source::new(
            "a/src/lib.rs",
            "use a;\n#[cfg(test)]\nmod tests {\n  fn x() { [{}] }\n}\n#[cfg(test)]\nuse x;\n#[cfg(not(test))]\nuse kept;",
        );
        assert!(source.code.contains('x'));
        assert!(!source.shipped.contains('x'), "{}", source.shipped);
        assert!(source.shipped.contains("use a;") && source.shipped.contains("use kept;"));
        assert_eq!(source.shipped.matches('\n').count(), source.text.matches('\n').count());
    }

    #[test]
    fn files_of_test_modules_are_found_beside_their_parent() {
        let text = "#[cfg(test)]\nmod tests;\nmod real;\n#[cfg(all(test, unix))]\npub(crate) mod model;";
        let source = Source::new("", text);
        let found = test_modules(Path::new("c/src/lib.rs"), &source);
        assert_eq!(found, [Path::new("c/src/tests"), Path::new("c/src/model")]);
        let found = test_modules(Path::new("c/src/pool.rs"), &source);
        assert_eq!(found, [Path::new("c/src/pool/tests"), Path::new("c/src/pool/model")]);
    }

    #[test]
    fn a_test_module_may_name_its_file() {
        let source = Source::new("", "// α\n#[cfg(test)]\n#[path = \"pool_tests.rs\"]\nmod tests;\n");
        let found = test_modules(Path::new("c/src/pool.rs"), &source);
        assert_eq!(found, [Path::new("c/src/pool_tests")]);
    }

    #[test]
    fn a_test_module_in_its_own_file_ships_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            path
        };
        let paths = [
            write("lib.rs", "#[cfg(test)]\nmod model;\nfn a() {}"),
            write("model.rs", "mod deep; fn b() {}"),
            write("model/deep.rs", "fn c() {}"),
        ];
        let sources = read(&paths).unwrap();
        assert!(sources[0].shipped.contains("fn a()"));
        assert_eq!(sources[1].shipped.trim(), "");
        assert_eq!(sources[2].shipped.trim(), "");
    }

    #[test]
    fn matches_carry_their_line() {
        let letter = pattern("a");
        let found: Vec<_> = matches("a\nb a\n", &letter).collect();
        assert_eq!(found, [(1, "a"), (2, "a")]);
    }

    #[test]
    fn integration_tests_are_those_outside_src() {
        assert!(Source::new("c/tests/x.rs", "").is_integration_test());
        assert!(!Source::new("c/src/pool/tests/x.rs", "").is_integration_test());
    }
}
