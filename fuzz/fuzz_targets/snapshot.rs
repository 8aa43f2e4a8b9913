//! A snapshot file with any content: it restores to a state that can be handed on, or it is refused.

#![no_main]

use libfuzzer_sys::fuzz_target;
use state_machine::StateMachine;

fuzz_target!(|bytes: &[u8]| {
    let Ok(machine) = StateMachine::restore(bytes) else { return };
    let again = machine.snapshot().write_all(&machine, Vec::new()).expect("a Vec takes everything");
    let again = StateMachine::restore(again.as_slice()).expect("a whole snapshot");
    assert_eq!(again.header(), machine.header());
});
