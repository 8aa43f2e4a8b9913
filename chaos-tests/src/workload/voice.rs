//! One client's voice in a history: what it asked, what it was told, and under which name it goes on.

use serde_json::Value;

use super::Failure;
use crate::history::Recorder;

/// See the module.
pub(super) struct Voice {
    recorder: Recorder,
    process: i64,
}

impl Voice {
    pub(super) fn new(recorder: Recorder, process: i64) -> Self {
        Self { recorder, process }
    }

    /// A call begins.
    pub(super) fn invoke(&self, f: &str, value: Value) {
        self.recorder.invoke(self.process, f, value);
    }

    /// It was done.
    pub(super) fn ok(&self, f: &str, value: Value) {
        self.recorder.ok(self.process, f, value);
    }

    /// It was certainly not done.
    pub(super) fn fail(&self, f: &str, value: Value, why: &str) {
        self.recorder.fail(self.process, f, value, why);
    }

    /// It was not done, or nobody knows: then it may still be done, and the client goes on under a new name.
    pub(super) fn failed(&mut self, f: &str, value: Value, failure: Failure) {
        match failure {
            Failure::NotDone(text) => self.fail(f, value, &text),
            Failure::Unknown(text) => {
                self.recorder.info(self.process, f, value, Some(text));
                self.process += 1;
            }
        }
    }
}
