//! Configuration: values by path, written in guarded transactions. Begin with `values.rs`.

mod values;
