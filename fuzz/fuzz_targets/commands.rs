//! A log of arbitrary entries: each decodes to a command or an error, each command applies to an outcome, two
//! members that apply the same are equal, and what came of it survives being handed on as a snapshot.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use state_machine::{Command, Outcome, Position, StateMachine};

fuzz_target!(|entries: Vec<Vec<u8>>| {
    let (mut one, mut other) = (StateMachine::new(), StateMachine::new());
    for (log_index, entry) in (1..).zip(entries) {
        let Ok(command) = Command::decode(Bytes::from(entry)) else { continue };
        let again = Command::decode(command.encode()).expect("what was encoded can be decoded");
        assert_eq!(again, command);
        let position = Position { log_index, term: 1 };
        let outcome = one.apply(position, &command);
        assert_eq!(outcome, other.apply(position, &again));
        assert_eq!(Outcome::decode(outcome.encode()).expect("what was encoded can be decoded"), outcome);
    }
    assert_eq!(one.state_hash(), other.state_hash());
    let snapshot = one.snapshot().write_all(&one, Vec::new()).expect("a Vec takes everything");
    let restored = StateMachine::restore(snapshot.as_slice()).expect("a whole snapshot");
    assert_eq!(restored.header(), one.header());
});
