//! Rust source text as words and punctuation, without comments, literals and tests.

use std::ops::Range;

/// Splits a text into identifiers, `::` and single characters, without comments and literals.
pub(super) fn tokens(text: &str) -> Vec<&str> {
    let (mut found, mut rest) = (Vec::new(), text);
    while let Some(first) = rest.chars().next() {
        let length = if first.is_whitespace() {
            first.len_utf8()
        } else if let Some(length) = skipped(rest) {
            length
        } else {
            let length = match rest.find(|c: char| !is_word(c)).unwrap_or(rest.len()) {
                0 if rest.starts_with("::") => 2,
                0 => first.len_utf8(),
                word => word,
            };
            found.push(&rest[..length]);
            length
        };
        rest = &rest[length..];
    }
    found
}

/// Returns `true` for a character of an identifier.
pub(super) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Returns the length of the comment or literal at the start of `rest`.
fn skipped(rest: &str) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return Some(rest.find("*/").map_or(rest.len(), |end| end + 2));
    }
    let prefix = ["br", "cr", "b", "c", "r", ""].into_iter().find(|prefix| {
        let after = rest.strip_prefix(prefix).map(|rest| rest.trim_start_matches('#'));
        after.is_some_and(|rest| rest.starts_with('"'))
    });
    if let Some(prefix) = prefix {
        return Some(text_length(rest, prefix));
    }
    let quoted = rest.strip_prefix('b').unwrap_or(rest).strip_prefix('\'')?;
    let start = rest.len() - quoted.len();
    // Otherwise it is a lifetime.
    let end = if let Some(escape) = quoted.strip_prefix('\\') {
        let escaped = escape.chars().next()?.len_utf8();
        1 + escaped + escape[escaped..].find('\'')?
    } else {
        let length = quoted.chars().next()?.len_utf8();
        quoted[length..].starts_with('\'').then_some(length)?
    };
    Some(start + end + 1)
}

/// Returns the length of the string literal at the start of `rest`, after `prefix`.
fn text_length(rest: &str, prefix: &str) -> usize {
    let body = &rest[prefix.len()..];
    let opening = body.find('"').unwrap_or(0) + 1;
    let start = prefix.len() + opening;
    if prefix.ends_with('r') {
        let end = format!("\"{}", "#".repeat(opening - 1));
        return rest[start..].find(&end).map_or(rest.len(), |at| start + at + end.len());
    }
    let mut escaped = false;
    for (at, c) in rest[start..].char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return start + at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// Splits off the items for tests. Returns the other tokens, and the names of the modules in files of their own that
/// are only for tests.
pub(super) fn without_tests<'a>(tokens: &[&'a str]) -> (Vec<&'a str>, Vec<&'a str>) {
    let (mut kept, mut at) = (Vec::new(), 0);
    for item in items_of_tests(tokens) {
        kept.extend(without_attributes(&tokens[at..item.start]));
        at = item.end;
    }
    kept.extend(without_attributes(&tokens[at..]));
    (kept, test_modules(tokens))
}

/// Returns the text without the items that are only there for tests, with its literals.
pub(super) fn without_test_text(text: &str) -> String {
    let all = tokens(text);
    let start = |token: &str| token.as_ptr().addr() - text.as_ptr().addr();
    let (mut kept, mut at) = (String::new(), 0);
    for item in items_of_tests(&all) {
        if let [first, .., last] = &all[item] {
            kept.push_str(&text[at..start(first)]);
            at = start(last) + last.len();
        }
    }
    kept.push_str(&text[at..]);
    kept
}

/// Names of the modules in files of their own that are only for tests.
pub(super) fn test_modules<'a>(tokens: &[&'a str]) -> Vec<&'a str> {
    let name = |item: Range<usize>| match tokens[item] {
        [.., "mod", name, ";"] => Some(name),
        _ => None,
    };
    items_of_tests(tokens).into_iter().filter_map(name).collect()
}

/// Positions of the items that are only there for tests, with their attributes.
pub(super) fn items_of_tests(tokens: &[&str]) -> Vec<Range<usize>> {
    let (mut items, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        let start = at;
        let Some(end) = attribute_end(tokens, at) else {
            at += 1;
            continue;
        };
        let attribute = &tokens[at..end];
        at = end;
        if !attribute.contains(&"cfg") || !attribute.contains(&"test") || attribute.contains(&"not") {
            continue;
        }
        while let Some(end) = attribute_end(tokens, at) {
            at = end;
        }
        at = item_end(tokens, at);
        items.push(start..at);
    }
    items
}

fn without_attributes<'a>(tokens: &[&'a str]) -> Vec<&'a str> {
    let (mut kept, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        if let Some(end) = attribute_end(tokens, at) {
            at = end;
        } else {
            kept.push(tokens[at]);
            at += 1;
        }
    }
    kept
}

/// Returns the end of the attribute at `at`, if there is one.
fn attribute_end(tokens: &[&str], at: usize) -> Option<usize> {
    let open = match tokens.get(at..)? {
        ["#", "[", ..] => at + 1,
        ["#", "!", "[", ..] => at + 2,
        _ => return None,
    };
    Some(group_end(tokens, open))
}

/// Returns the end of the group in brackets that opens at `open`.
pub(super) fn group_end(tokens: &[&str], open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match *token {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    tokens.len()
}

/// Returns the end of the item at `at`: its `;` or its block.
fn item_end(tokens: &[&str], mut at: usize) -> usize {
    while let Some(token) = tokens.get(at) {
        match *token {
            ";" => return at + 1,
            "{" if !tokens[..at].ends_with(&["::"]) => return group_end(tokens, at),
            "(" | "[" | "{" => at = group_end(tokens, at),
            _ => at += 1,
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_no_tokens() {
        let text = "use a::b; // use c;\n/* use d; */ let x: &'a str = \"use e; \\\" {\"; let y = b'\\''; \
                    let z = '\"'; r#\"\" {\"#";
        let expected = "use a :: b ; let x : & ' a str = ; let y = ; let z = ;";
        assert_eq!(tokens(text).join(" "), expected);
    }

    #[test]
    fn tests_are_left_out() {
        let text = "#![warn(x)] use a; #[cfg(test)] mod support; #[cfg(all(test, unix))] #[expect(y)] use b::{c, d}; \
                    #[cfg(not(test))] use e; #[cfg(test)] mod tests { use f; fn g() {} } struct H;";
        let tokens = tokens(text);
        let (kept, modules) = without_tests(&tokens);
        assert_eq!((kept.join(" "), modules), ("use a ; use e ; struct H ;".to_owned(), vec!["support"]));
    }
}
