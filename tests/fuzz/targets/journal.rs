//! The store's journal: files of anything, and files that were written and then damaged or torn.
#![no_main]

use ketch_store::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&[u8], Vec<Vec<Vec<u8>>>, u16, u8)| {
    let (bytes, frames, at, damage) = input;
    fuzzing::anything(bytes);
    fuzzing::torn(&frames, usize::from(at), damage);
});
