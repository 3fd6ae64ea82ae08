#![no_main]

#[path = "../../backend-etcd/tests/fuzzed/targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = targets::run("native", data);
});
