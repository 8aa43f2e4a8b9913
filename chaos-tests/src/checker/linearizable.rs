//! Linearizability of histories of one object, by linearizing just in time.
//!
//! Wing and Gong's search in Lowe's order: the history is walked once, and at each return the set of
//! *configurations* (a state of the model, and which of the open calls it already holds) is extended by
//! just the calls that the return needs. Equal configurations fall together, which is the memoisation; nothing is ever
//! walked back. Memory is that of one moment, not of the whole history.
//!
//! Calls that ended *info* may take effect at any later time or never. They stay open until the end, so their number
//! bounds what can be decided ([`OPEN_MAX`], [`CONFIGURATIONS_MAX`]); beyond it the answer is *unknown*. A caller that can tell
//! by when such a call must have taken effect, if it has at all, says so in [`Call::ret`].

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;

/// Calls that may be open at one time.
pub const OPEN_MAX: usize = 128;
/// Configurations at one time.
pub const CONFIGURATIONS_MAX: usize = 400_000;

/// What is right, one operation after another.
pub trait Model {
    /// All that later operations depend on.
    type State: Clone + Eq + Hash + Debug;
    /// An operation with what was told.
    type Op;

    /// Before the first operation.
    fn initial(&self) -> Self::State;
    /// The state after the operation; none if it cannot have gone so.
    fn step(&self, state: &Self::State, op: &Self::Op) -> Option<Self::State>;
}

/// One call on the object.
#[derive(Debug, Clone)]
pub struct Call<Op> {
    /// What was asked and told.
    pub op: Op,
    /// Position of its beginning.
    pub call: usize,
    /// Position by which it must have taken effect; none if it need not.
    pub ret: Option<usize>,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found<State> {
    /// There is an order.
    Linearizable,
    /// There is none.
    Not {
        /// The call (its number) that fits nowhere.
        call: usize,
        /// The calls that were open then.
        open: Vec<usize>,
        /// States that were possible before it ended, a few of them.
        states: Vec<State>,
    },
    /// A bound was reached.
    Unknown(String),
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Configuration<State> {
    state: State,
    /// Which slots' calls it already holds.
    holds: u128,
}

/// Looks for an order in which every call did what it told.
pub fn check<M: Model>(model: &M, calls: &[Call<M::Op>]) -> Found<M::State> {
    let mut moments: Vec<(usize, bool, usize)> = Vec::with_capacity(calls.len() * 2);
    for (number, call) in calls.iter().enumerate() {
        moments.push((call.call, false, number));
        moments.extend(call.ret.map(|ret| (ret, true, number)));
    }
    moments.sort_unstable();
    let mut search = Search::new(model, calls);
    for (_, is_return, number) in moments {
        let ended = if is_return { search.returned(number) } else { search.called(number) };
        if let Err(found) = ended {
            return found;
        }
    }
    Found::Linearizable
}

struct Search<'a, M: Model> {
    model: &'a M,
    calls: &'a [Call<M::Op>],
    slots: Vec<Option<usize>>,
    configurations: HashSet<Configuration<M::State>>,
}

impl<'a, M: Model> Search<'a, M> {
    fn new(model: &'a M, calls: &'a [Call<M::Op>]) -> Self {
        let first = Configuration { state: model.initial(), holds: 0 };
        Self { model, calls, slots: Vec::new(), configurations: HashSet::from([first]) }
    }

    fn called(&mut self, number: usize) -> Result<(), Found<M::State>> {
        if let Some(free) = self.slots.iter_mut().find(|slot| slot.is_none()) {
            *free = Some(number);
        } else if self.slots.len() < OPEN_MAX {
            self.slots.push(Some(number));
        } else {
            return Err(Found::Unknown(format!("more than {OPEN_MAX} calls are open at one time")));
        }
        Ok(())
    }

    /// Extends each configuration until it holds the call, and forgets the call.
    fn returned(&mut self, number: usize) -> Result<(), Found<M::State>> {
        let slot = self.slots.iter().position(|slot| *slot == Some(number)).expect("it was called");
        let bit = 1_u128 << slot;
        let mut next = HashSet::new();
        let mut seen: HashSet<Configuration<M::State>> = HashSet::new();
        let mut ahead: Vec<Configuration<M::State>> = self.configurations.iter().cloned().collect();
        while let Some(configuration) = ahead.pop() {
            if configuration.holds & bit != 0 {
                next.insert(Configuration { holds: configuration.holds & !bit, ..configuration });
                continue;
            }
            for (slot, open) in self.slots.iter().enumerate() {
                let Some(open) = open.filter(|_| configuration.holds & (1 << slot) == 0) else { continue };
                let Some(state) = self.model.step(&configuration.state, &self.calls[open].op) else {
                    continue;
                };
                let longer = Configuration { state, holds: configuration.holds | 1 << slot };
                if seen.insert(longer.clone()) {
                    ahead.push(longer);
                }
            }
            if seen.len() > CONFIGURATIONS_MAX {
                let reason = format!("more than {CONFIGURATIONS_MAX} configurations at one time");
                return Err(Found::Unknown(reason));
            }
        }
        if next.is_empty() {
            return Err(self.nowhere(number));
        }
        self.slots[slot] = None;
        self.configurations = next;
        Ok(())
    }

    fn nowhere(&self, number: usize) -> Found<M::State> {
        let mut states: Vec<M::State> = Vec::new();
        for configuration in &self.configurations {
            if states.len() < 4 && !states.contains(&configuration.state) {
                states.push(configuration.state.clone());
            }
        }
        let open = self.slots.iter().flatten().copied().filter(|open| *open != number).collect();
        Found::Not { call: number, open, states }
    }
}
