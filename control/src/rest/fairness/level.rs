//! One priority level: seats, and a queue for each flow (mostly: each user) whose requests wait for one.
//!
//! ```text
//!   request ──seat free, flow below its bound──► seat ──dropped──► the next flow in turn gets it
//!      └──otherwise──► the flow's queue ──full, or too long──► refused
//! ```
//!
//! Promises: never more seats than there are; flows whose requests wait get seats in turn, whichever has more
//! requests; no flow of many holds more than its bound, so that one whose requests never end does not end the others'.
//! Memory is bounded by the bound on what waits and the seats.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

/// How long a request waits for a seat.
const WAIT_MAX: Duration = Duration::from_secs(15);

/// Why a request gets no seat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Refused {
    /// As many wait already as may.
    QueueFull,
    /// There are no queues, and no seat.
    NoSeat,
    /// It waited as long as requests do.
    TimeOut,
}

impl Refused {
    /// As metrics name it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue-full",
            Self::NoSeat => "concurrency-limit",
            Self::TimeOut => "time-out",
        }
    }
}

/// How large a level is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Limits {
    /// Requests handled at once.
    pub(super) seats: usize,
    /// Requests of one flow that wait; 0: none does.
    pub(super) flow_waiting_max: usize,
    /// And of all.
    pub(super) waiting_max: usize,
}

impl Limits {
    /// No flow of many gets more than three quarters of the seats.
    fn flow_seats(self, is_one_of_many: bool) -> usize {
        match is_one_of_many {
            true => (self.seats * 3 / 4).max(1),
            false => self.seats,
        }
    }
}

#[derive(Debug)]
pub(super) struct Level {
    name: String,
    wait_max: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    limits: Limits,
    executing: usize,
    waiting: usize,
    flows: HashMap<Arc<str>, Flow>,
    /// Users whose requests wait, in the order of their turns.
    turns: VecDeque<Arc<str>>,
    dispatched: u64,
    rejected: BTreeMap<Refused, u64>,
}

#[derive(Debug, Default)]
struct Flow {
    is_one_of_many: bool,
    executing: usize,
    waiting: VecDeque<oneshot::Sender<Seat>>,
}

/// A level's numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LevelCounts {
    pub(super) seats: usize,
    pub(super) executing: usize,
    pub(super) waiting: usize,
    pub(super) dispatched: u64,
    pub(super) rejected: Vec<(&'static str, u64)>,
}

/// The right to be handled now; dropped, it goes to the next in turn.
#[derive(Debug)]
pub(in crate::rest) struct Seat {
    level: Arc<Level>,
    flow: Arc<str>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.level.release(&self.flow);
    }
}

impl Level {
    pub(super) fn new(name: &str, limits: Limits) -> Self {
        let state = Mutex::new(State { limits, ..State::default() });
        Self { name: name.to_owned(), wait_max: WAIT_MAX, state }
    }

    /// Makes the level larger or smaller. Whoever has a seat keeps it; whoever gets one now that there are more, gets
    /// it at once.
    pub(super) fn limit(self: &Arc<Self>, limits: Limits) {
        let mut guard = self.lock();
        if guard.limits == limits {
            return;
        }
        guard.limits = limits;
        let given = self.give(&mut guard);
        drop(guard);
        send(given);
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn counts(&self) -> LevelCounts {
        let state = self.lock();
        LevelCounts {
            seats: state.limits.seats,
            executing: state.executing,
            waiting: state.waiting,
            dispatched: state.dispatched,
            rejected: state.rejected.iter().map(|(why, count)| (why.as_str(), *count)).collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A seat for a request of a flow, when its turn has come.
    pub(super) async fn seat(self: Arc<Self>, flow: &str, is_one_of_many: bool) -> Result<Seat, Refused> {
        let flow: Arc<str> = Arc::from(flow);
        let turn = match self.enter(&flow, is_one_of_many) {
            Ok(Entered::Seated) => return Ok(Seat { level: self, flow }),
            Ok(Entered::Waits(turn)) => turn,
            Err(refused) => return Err(self.count(refused)),
        };
        match tokio::time::timeout(self.wait_max, turn).await {
            Ok(Ok(seat)) => Ok(seat),
            _ => Err(self.count(Refused::TimeOut)),
        }
    }

    fn enter(self: &Arc<Self>, user: &Arc<str>, is_one_of_many: bool) -> Result<Entered, Refused> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let limits = state.limits;
        let is_free = state.executing < limits.seats;
        let flow = state.flows.entry(user.clone()).or_default();
        flow.is_one_of_many = is_one_of_many;
        // Whoever waits while a seat is free has all that one flow gets.
        if is_free && flow.executing < limits.flow_seats(is_one_of_many) {
            flow.executing += 1;
            state.executing += 1;
            state.dispatched += 1;
            return Ok(Entered::Seated);
        }
        if flow.waiting.len() >= limits.flow_waiting_max {
            let before = flow.waiting.len();
            flow.waiting.retain(|turn| !turn.is_closed());
            let left = flow.waiting.len();
            state.waiting -= before - left;
            if left >= limits.flow_waiting_max {
                state.forget(user);
                return Err(if limits.flow_waiting_max == 0 { Refused::NoSeat } else { Refused::QueueFull });
            }
        }
        if state.waiting >= limits.waiting_max {
            state.forget(user);
            return Err(Refused::QueueFull);
        }
        let (sender, turn) = oneshot::channel();
        let flow = state.flows.entry(user.clone()).or_default();
        let is_first = flow.waiting.is_empty();
        flow.waiting.push_back(sender);
        state.waiting += 1;
        if is_first && !state.turns.contains(user) {
            state.turns.push_back(user.clone());
        }
        Ok(Entered::Waits(turn))
    }

    fn count(&self, refused: Refused) -> Refused {
        *self.lock().rejected.entry(refused).or_default() += 1;
        refused
    }

    fn release(self: &Arc<Self>, user: &Arc<str>) {
        let mut guard = self.lock();
        let state = &mut *guard;
        state.executing -= 1;
        if let Some(flow) = state.flows.get_mut(user) {
            flow.executing -= 1;
        }
        state.forget(user);
        let given = self.give(state);
        drop(guard);
        send(given);
    }

    /// Gives the free seats to those whose turns have come.
    fn give(self: &Arc<Self>, state: &mut State) -> Vec<(oneshot::Sender<Seat>, Seat)> {
        let mut given = Vec::new();
        while state.executing < state.limits.seats
            && let Some((user, turn)) = state.next()
        {
            given.push((turn, Seat { level: self.clone(), flow: user }));
        }
        given
    }
}

/// Hands seats over, outside of the lock: one that nobody takes any more comes back at once.
fn send(given: Vec<(oneshot::Sender<Seat>, Seat)>) {
    for (turn, seat) in given {
        drop(turn.send(seat));
    }
}

enum Entered {
    Seated,
    Waits(oneshot::Receiver<Seat>),
}

impl State {
    /// Whose turn it is: the next user below his bound whose request still waits. Counts the seat as taken.
    fn next(&mut self) -> Option<(Arc<str>, oneshot::Sender<Seat>)> {
        for _ in 0..self.turns.len() {
            let user = self.turns.pop_front()?;
            let Some(flow) = self.flows.get_mut(&user) else { continue };
            let flow_seats = self.limits.flow_seats(flow.is_one_of_many);
            let mut found = None;
            while flow.executing < flow_seats
                && found.is_none()
                && let Some(turn) = flow.waiting.pop_front()
            {
                self.waiting -= 1;
                found = Some(turn).filter(|turn| !turn.is_closed());
            }
            if found.is_some() {
                flow.executing += 1;
                self.executing += 1;
                self.dispatched += 1;
            }
            if !flow.waiting.is_empty() {
                self.turns.push_back(user.clone());
            }
            match found {
                Some(turn) => return Some((user, turn)),
                None => self.forget(&user),
            }
        }
        None
    }

    /// Forgets a user of whom nothing is here any more.
    fn forget(&mut self, user: &Arc<str>) {
        if self.flows.get(user).is_some_and(|flow| flow.executing == 0 && flow.waiting.is_empty()) {
            self.flows.remove(user);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::poll;

    use super::*;

    fn level(seats: usize) -> Arc<Level> {
        Arc::new(Level::new("test", Limits { seats, flow_waiting_max: 50, waiting_max: 100 }))
    }

    #[tokio::test]
    async fn users_take_turns_whoever_asks_more() {
        let level = level(4);
        // Two users have all seats; of those that wait, one has asked ten times as often.
        let first = level.clone().seat("first", true).await.unwrap();
        let mut held = vec![first];
        for _ in 0..3 {
            held.push(level.clone().seat("second", true).await.unwrap());
        }
        let mut waiting = Vec::new();
        for number in 0..22 {
            let user = if number % 11 == 10 { "quiet" } else { "loud" };
            let mut turn = Box::pin(level.clone().seat(user, true));
            assert!(poll!(turn.as_mut()).is_pending());
            waiting.push((user, turn));
        }
        assert_eq!(level.counts().waiting, 22);
        let mut order = Vec::new();
        for _ in 0..6 {
            held.remove(0);
            for (user, mut turn) in std::mem::take(&mut waiting) {
                match poll!(turn.as_mut()) {
                    std::task::Poll::Ready(seat) => {
                        order.push(user);
                        held.push(seat.unwrap());
                    }
                    std::task::Poll::Pending => waiting.push((user, turn)),
                }
            }
        }
        assert_eq!(order, ["loud", "quiet", "loud", "quiet", "loud", "loud"]);
        drop(held);
        drop(waiting);
        // Whoever went away while waiting takes no seat.
        let counts = level.counts();
        assert_eq!((counts.executing, level.lock().flows.len()), (0, 0), "{counts:?}");
    }

    #[tokio::test]
    async fn one_user_never_has_all_and_queues_are_bounded() {
        let level = level(4);
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(level.clone().seat("bad", true).await.unwrap());
        }
        let mut waiting = Vec::new();
        for _ in 0..50 {
            let mut turn = Box::pin(level.clone().seat("bad", true));
            assert!(poll!(turn.as_mut()).is_pending(), "a seat is free, and not for him");
            waiting.push(turn);
        }
        assert_eq!(level.clone().seat("bad", true).await.unwrap_err(), Refused::QueueFull);
        for _ in 0..20 {
            drop(level.clone().seat("good", true).await.unwrap());
        }
        let counts = level.counts();
        assert_eq!((counts.executing, counts.waiting, counts.rejected), (3, 50, vec![("queue-full", 1)]));
        // Those who gave up make room for others.
        waiting.truncate(10);
        let mut turn = Box::pin(level.clone().seat("bad", true));
        assert!(poll!(turn.as_mut()).is_pending());
        assert_eq!(level.counts().waiting, 11);
        drop((held, waiting, turn));
        assert_eq!(level.counts().executing, 0);
    }

    #[tokio::test]
    async fn without_queues_there_is_a_seat_or_not() {
        let level = Arc::new(Level::new("test", Limits { seats: 2, ..Limits::default() }));
        let held =
            (level.clone().seat("a", false).await.unwrap(), level.clone().seat("a", false).await.unwrap());
        assert_eq!(level.clone().seat("b", true).await.unwrap_err(), Refused::NoSeat);
        drop(held);
        level.clone().seat("b", true).await.unwrap();
    }

    #[tokio::test]
    async fn nobody_waits_for_ever() {
        let level = Level::new("test", Limits { seats: 1, flow_waiting_max: 1, waiting_max: 1 });
        let level = Arc::new(Level { wait_max: Duration::from_millis(10), ..level });
        let _held = level.clone().seat("a", true).await.unwrap();
        assert_eq!(level.clone().seat("b", true).await.unwrap_err(), Refused::TimeOut);
    }

    #[tokio::test]
    async fn a_level_grows_and_shrinks_under_those_who_wait() {
        let level = level(1);
        let held = level.clone().seat("a", true).await.unwrap();
        let (mut second, mut third) =
            (Box::pin(level.clone().seat("b", true)), Box::pin(level.clone().seat("c", true)));
        assert!(poll!(second.as_mut()).is_pending() && poll!(third.as_mut()).is_pending());
        level.limit(Limits { seats: 2, flow_waiting_max: 50, waiting_max: 100 });
        let second = second.await.unwrap();
        assert!(poll!(third.as_mut()).is_pending());
        level.limit(Limits { seats: 1, ..Limits::default() });
        drop(held);
        assert!(poll!(third.as_mut()).is_pending(), "one seat is left, and it is taken");
        assert_eq!(level.clone().seat("d", true).await.unwrap_err(), Refused::NoSeat);
        drop(second);
        drop(third.await.unwrap());
        assert_eq!(level.counts().executing, 0);
    }
}
