//! Escaping in logs: names that another client may have chosen are escaped where they are logged.

use super::{
    known::Finding,
    sources::Source,
    tokens::{tokens, without_tests},
};

/// Macros that log, or begin a span.
const MACROS: [&str; 12] = [
    "event",
    "error",
    "warn",
    "info",
    "debug",
    "trace",
    "span",
    "error_span",
    "warn_span",
    "info_span",
    "debug_span",
    "trace_span",
];

/// Fields whose values are names, keys or paths of the store.
const NAMES: [&str; 14] = [
    "service",
    "instance",
    "namespace",
    "scope",
    "lock",
    "election",
    "semaphore",
    "job",
    "key",
    "path",
    "target",
    "node",
    "owner",
    "value",
];

/// Functions that escape.
const ESCAPING: [&str; 2] = ["escaped", "escape_ascii"];

/// Returns the files of libraries and programs that log such a value as it is.
pub(super) fn findings(sources: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in sources {
        let is_code = source.path.iter().any(|part| part == "src") && !source.path.starts_with("xtask");
        if !is_code || source.path.starts_with("testkit") || source.path.starts_with("bench") {
            continue;
        }
        let all = tokens(&source.text);
        let (code, _) = without_tests(&all);
        let raw = raw_fields(&code);
        if let Some(first) = raw.first() {
            let detail = format!("logged values that are not escaped, such as {first}");
            findings.push(Finding::new("logs", source.path.display().to_string(), raw.len(), detail));
        }
    }
    findings
}

/// Returns the names of the fields that are logged by `Display`, without an escaping function.
fn raw_fields<'a>(code: &[&'a str]) -> Vec<&'a str> {
    let mut raw = Vec::new();
    for at in 0..code.len() {
        let [name, "!", "(", ..] = code[at..] else { continue };
        if !MACROS.contains(&name) {
            continue;
        }
        let arguments = &code[at + 3..at + 3 + length_of_group(&code[at + 3..])];
        for field in arguments.split(|token| *token == ",") {
            let assigned = field.iter().position(|token| *token == "=").map(|at| (&field[..at], &field[at + 1..]));
            let (name, value) = match (field, assigned) {
                (["%", shorthand], _) => (*shorthand, binding(&code[..at], shorthand)),
                // The name may have several parts, such as `server.address`.
                (_, Some(([.., name], ["%", value @ ..]))) => (*name, value),
                _ => continue,
            };
            let is_name = |token: &&str| NAMES.contains(token);
            if (is_name(&name) || value.last().is_some_and(is_name))
                && !value.iter().any(|token| *token == "self" && value.len() == 1 || is_escaping(token))
            {
                raw.push(name);
            }
        }
    }
    raw
}

fn is_escaping(token: &str) -> bool {
    ESCAPING.contains(&token)
}

/// Returns the last statement before that binds `name`, or nothing.
fn binding<'a, 'b>(before: &'b [&'a str], name: &str) -> &'b [&'a str] {
    let statement = before.rsplit(|token| matches!(*token, ";" | "{" | "}")).find(|statement| {
        let pattern = statement.split(|token| *token == "=").next().unwrap_or_default();
        statement.first() == Some(&"let") && pattern.contains(&name)
    });
    statement.unwrap_or_default()
}

/// Returns the number of tokens up to the parenthesis that closes the group.
fn length_of_group(tokens: &[&str]) -> usize {
    let mut depth = 1_usize;
    for (at, token) in tokens.iter().enumerate() {
        match *token {
            "(" => depth += 1,
            ")" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    tokens.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Vec<&str> {
        raw_fields(&tokens(text))
    }

    #[test]
    fn names_that_are_not_escaped_are_found() {
        assert_eq!(raw("tracing::warn!(%service, cause = %with_causes(&error), \"stale\");"), ["service"]);
        assert_eq!(raw("tracing::info!(job = %entry.path, %token, \"begun\");"), ["job"]);
        for name in ["event", "span"] {
            assert_eq!(raw(&format!("tracing::{name}!(Level::INFO, key = %key, at = 1)")), ["key"], "{name}");
        }
        assert_eq!(raw("tracing::info_span!(\"call\", server.address = %service, at = 1)"), ["address"]);
        assert_eq!(raw("let lock = name(); tracing::info_span!(\"lock\", %lock, at = 1)"), ["lock"]);
    }

    #[test]
    fn escaped_names_are_allowed() {
        for text in [
            "tracing::warn!(service = %escaped(&self.service), age = %rounded(age), \"stale\");",
            "let (service, cause) = (escaped(service), with_causes(&error)); tracing::warn!(%service, %cause, \"x\");",
            "let key = record.key.escape_ascii(); tracing::warn!(%key, reason, \"malformed\");",
            "tracing::debug!(instance = %self, \"connected\");",
            "tracing::debug!(?service, revision = %revision, \"read\");",
        ] {
            assert!(raw(text).is_empty(), "{text}");
        }
    }
}
