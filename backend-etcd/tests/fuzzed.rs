//! Runs every decoder on mutated fixtures, for a bounded time on the stable toolchain. `fuzz/` runs the same functions
//! with libFuzzer.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod fixture;
#[path = "fuzzed/targets.rs"]
mod targets;

use std::{fs, path::Path};

use fixture::{bytes, cases};
use serde_json::Value;
use targets::{TARGETS, run};

/// Number of inputs per target.
const TIMES: usize = 20_000;

/// Returns the input of a target: a byte with the length of the key's suffix, that suffix, the value.
fn input(tail: &[u8], value: &[u8]) -> Vec<u8> {
    let tail = &tail[..tail.len().min(255)];
    [&[u8::try_from(tail.len()).unwrap()], tail, value].concat()
}

/// Returns the pairs of a fixture, and a few additional ones.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let mut corpus = vec![
        input(b"", b""),
        input(b"1", b"{}"),
        input(b"1", b"null"),
        input(b"a/b", b"h:1"),
        input(b"1", b"[::1]:80"),
    ];
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(format!("{target}.json"));
    if let Ok(text) = fs::read_to_string(path) {
        let fixture: Value = serde_json::from_str(&text).unwrap();
        for list in ["write", "read"].into_iter().filter(|list| fixture[list].is_array()) {
            for case in cases(&fixture, list) {
                if let (Some(key), true) = (case["key"].as_str(), case["value_base64"].is_string()) {
                    let tail = key.rsplit('/').next().unwrap();
                    corpus.push(input(tail.as_bytes(), &bytes(case)));
                }
            }
        }
    }
    corpus.push(input(
        b"a",
        concat!(
            r#"{"v":1,"id":"a","endpoints":["grpc://10.0.0.1:8080"],"weight":7,"version":"1","zone":"z","#,
            r#""health":"draining","metadata":{"k":"v"},"owner":"o"}"#,
        )
        .as_bytes(),
    ));
    corpus.push(input(b"000000000000001f-0000000000000abc", br#"{"v":1,"mode":"shared","holder":"h:1"}"#));
    corpus.push(input(b"x", "grpc://[::1]:80".as_bytes()));
    corpus
}

/// Applies one random change to an input.
fn mutate(input: &mut Vec<u8>, other: &[u8], random: &mut fastrand::Rng) {
    const WORDS: [&str; 12] =
        ["null", "-1", "99999999999999999999", "\"\"", "{", "}", "[", "\\u0000", "\u{2028}", "%2F", "/", "\u{fe}"];
    let at = random.usize(..=input.len());
    match random.u8(..7) {
        0 if at < input.len() => input[at] = random.u8(..),
        1 if at < input.len() => input[at] ^= 1 << random.u8(..8),
        2 => input.truncate(at),
        3 => input.insert(at, random.u8(..)),
        4 => {
            let end = random.usize(at..=input.len());
            input.drain(at..end);
        }
        5 => {
            let word = WORDS[random.usize(..WORDS.len())];
            input.splice(at..at, word.bytes());
        }
        _ => {
            let from = random.usize(..=other.len());
            input.splice(at.., other[from..].iter().copied());
        }
    }
}

#[test]
fn no_decoder_panics_or_loses_data() {
    let given = std::env::var("ENLIST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| fastrand::u64(..));
    println!("repeat with ENLIST_SEED={seed}");
    for (target, _, _) in TARGETS {
        let mut random = fastrand::Rng::with_seed(seed);
        let corpus = corpus(target);
        let whole = corpus.iter().filter(|input| run(target, input)).count();
        assert!(whole > 0, "{target}: nothing of the corpus is read");
        let mut read = 0;
        for _ in 0..TIMES {
            let (one, other) = (&corpus[random.usize(..corpus.len())], &corpus[random.usize(..corpus.len())]);
            let mut input = one.clone();
            for _ in 0..random.u8(1..4) {
                mutate(&mut input, other, &mut random);
            }
            read += usize::from(run(target, &input));
        }
        println!("{target}: {whole} of {} seeds and {read} of {TIMES} mutants are read", corpus.len());
        assert!(read > 0, "{target}: all mutants are refused, so nothing behind the first check was tried");
    }
}

/// Writes the initial corpus of `cargo fuzz`: `cargo test -p enlist-etcd --test fuzzed -- --ignored`.
#[test]
#[ignore = "writes files for cargo-fuzz"]
fn write_the_corpus() {
    for (target, _, _) in TARGETS {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
        fs::create_dir_all(&directory).unwrap();
        for (number, input) in corpus(target).iter().enumerate() {
            fs::write(directory.join(format!("fixture-{number:02}")), input).unwrap();
        }
    }
}
