//! Directed graphs with reasons at their edges: strongly connected parts, and the shortest cycle of a kind.

use std::collections::{HashMap, VecDeque};

/// Why one transaction must come before another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Because {
    /// It wrote what the other overwrote.
    WriteWrite,
    /// It wrote what the other read.
    WriteRead,
    /// It read what the other overwrote.
    ReadWrite,
    /// It ended before the other began.
    Realtime,
}

/// A graph over numbered nodes.
#[derive(Debug, Default)]
pub(super) struct Graph {
    edges: Vec<HashMap<usize, Vec<Because>>>,
}

/// A node, and how many special edges led there.
type Place = (usize, u8);
/// From where each place was first reached.
type Before = HashMap<Place, (Place, Because)>;

/// A closed way: each node with the reason of the edge to the next.
pub(super) type Cycle = Vec<(usize, Because)>;

impl Graph {
    pub(super) fn new(nodes: usize) -> Self {
        Self { edges: vec![HashMap::new(); nodes] }
    }

    pub(super) fn add(&mut self, from: usize, to: usize, because: Because) {
        if from == to {
            return;
        }
        let reasons = self.edges[from].entry(to).or_default();
        if !reasons.contains(&because) {
            reasons.push(because);
            reasons.sort_unstable();
        }
    }

    /// Parts of more than one node in which each node leads to each other (Tarjan, without recursion).
    pub(super) fn components(&self) -> Vec<Vec<usize>> {
        let mut tarjan = Tarjan::new(self.edges.len());
        let successors: Vec<Vec<usize>> =
            self.edges.iter().map(|edges| edges.keys().copied().collect()).collect();
        for node in 0..successors.len() {
            if tarjan.index[node] == UNSEEN {
                tarjan.visit(node, &successors);
            }
        }
        tarjan.components
    }

    /// The shortest cycle within `component` that uses only edges of `allowed`, and of those in `special` exactly
    /// `count` (none: at least one, or any number if `special` is empty).
    pub(super) fn shortest_cycle(&self, component: &[usize], kind: &Kind) -> Option<Cycle> {
        let inside: HashMap<usize, ()> = component.iter().map(|node| (*node, ())).collect();
        let mut best: Option<Cycle> = None;
        for start in component.iter().take(STARTS_MAX) {
            let found = self.cycle_from(*start, &inside, kind);
            if let Some(found) = found
                && best.as_ref().is_none_or(|best| found.len() < best.len())
            {
                best = Some(found);
            }
        }
        best
    }

    fn cycle_from(&self, start: usize, inside: &HashMap<usize, ()>, kind: &Kind) -> Option<Cycle> {
        // A place is a node and how many special edges led there, counted up to two.
        let mut before: Before = HashMap::new();
        let mut ahead = VecDeque::from([(start, 0_u8)]);
        while let Some(place) = ahead.pop_front() {
            let (node, specials) = place;
            let mut nexts: Vec<_> =
                self.edges[node].iter().filter(|(next, _)| inside.contains_key(next)).collect();
            nexts.sort_unstable_by_key(|(next, _)| **next);
            for (next, reasons) in nexts {
                for reason in reasons.iter().filter(|reason| kind.allowed.contains(reason)) {
                    let special = u8::from(kind.special == Some(*reason));
                    let there = (*next, (specials + special).min(2));
                    if *next == start && kind.accepts(there.1) {
                        return Some(walk_back(&before, (start, 0), place, *reason));
                    }
                    if there.1 <= kind.specials_max && there != (start, 0) && !before.contains_key(&there) {
                        before.insert(there, (place, *reason));
                        ahead.push_back(there);
                    }
                }
            }
        }
        None
    }
}

/// Nodes of one component from which cycles are looked for.
const STARTS_MAX: usize = 400;

/// What a cycle must be made of.
pub(super) struct Kind {
    /// Edges that may be used.
    pub(super) allowed: &'static [Because],
    /// An edge of which there must be some.
    pub(super) special: Option<Because>,
    /// So many at least…
    pub(super) specials_min: u8,
    /// …and at most; two stands for any number.
    pub(super) specials_max: u8,
}

impl Kind {
    fn accepts(&self, specials: u8) -> bool {
        (self.specials_min..=self.specials_max).contains(&specials)
    }
}

fn walk_back(before: &Before, start: (usize, u8), mut place: (usize, u8), last: Because) -> Cycle {
    let mut cycle = vec![(place.0, last)];
    while place != start {
        let (previous, reason) = before[&place];
        cycle.push((previous.0, reason));
        place = previous;
    }
    cycle.reverse();
    cycle
}

const UNSEEN: usize = usize::MAX;

struct Tarjan {
    index: Vec<usize>,
    low: Vec<usize>,
    on_stack: Vec<bool>,
    stack: Vec<usize>,
    next: usize,
    components: Vec<Vec<usize>>,
}

impl Tarjan {
    fn new(nodes: usize) -> Self {
        Self {
            index: vec![UNSEEN; nodes],
            low: vec![0; nodes],
            on_stack: vec![false; nodes],
            stack: Vec::new(),
            next: 0,
            components: Vec::new(),
        }
    }

    fn enter(&mut self, node: usize) {
        (self.index[node], self.low[node]) = (self.next, self.next);
        self.next += 1;
        self.stack.push(node);
        self.on_stack[node] = true;
    }

    fn visit(&mut self, root: usize, successors: &[Vec<usize>]) {
        let mut path = vec![(root, 0)];
        self.enter(root);
        while let Some((node, at)) = path.last_mut() {
            let node = *node;
            if let Some(next) = successors[node].get(*at) {
                *at += 1;
                if self.index[*next] == UNSEEN {
                    self.enter(*next);
                    path.push((*next, 0));
                } else if self.on_stack[*next] {
                    self.low[node] = self.low[node].min(self.index[*next]);
                }
                continue;
            }
            path.pop();
            if let Some((parent, _)) = path.last() {
                self.low[*parent] = self.low[*parent].min(self.low[node]);
            }
            if self.low[node] == self.index[node] {
                self.leave(node);
            }
        }
    }

    fn leave(&mut self, root: usize) {
        let mut component = Vec::new();
        while let Some(node) = self.stack.pop() {
            self.on_stack[node] = false;
            component.push(node);
            if node == root {
                break;
            }
        }
        if component.len() > 1 {
            component.sort_unstable();
            self.components.push(component);
        }
    }
}
