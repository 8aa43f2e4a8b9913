//! Numbers for what tables name by number.

/// Gives them out from 1 on; what is given back is given out again first.
#[derive(Debug, Default)]
pub(super) struct Ids {
    free: Vec<u32>,
    last: u32,
}

impl Ids {
    pub(super) fn take(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.last += 1;
            self.last
        })
    }

    pub(super) fn give_back(&mut self, id: u32) {
        self.free.push(id);
    }

    /// What was given back.
    #[cfg(test)]
    pub(super) fn free(&self) -> &[u32] {
        &self.free
    }
}
