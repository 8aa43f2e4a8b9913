//! What an expression might cost, from above, before it runs.
//!
//! Follows the expression over the values at hand: a chain of fields leads to the very value, so that loops
//! over fields are counted exactly; anything computed is bounded by its weight (every member, item and byte of
//! text counts one). Promises that an expression whose estimate stays under the bound takes time and memory
//! in proportion to it. Pure.

use std::collections::BTreeSet;

use cel::common::ast::{ComprehensionExpr, EntryExpr, Expr, LiteralValue};
use cel::objects::Key;
use cel::{IdedExpr, Value};

use super::Variable;

/// What is known of a value.
#[derive(Debug, Clone, Copy)]
enum Known<'v> {
    /// All of it.
    Value(&'v Value),
    /// At most this heavy, and, if a list, at most so long.
    Bound { weight: u64, length: u64 },
}

struct Estimate<'v> {
    cost: u64,
    known: Known<'v>,
}

/// The cost is above the bound.
struct Exceeded;

struct Estimator<'v, 'e> {
    bound: u64,
    /// What estimating itself has cost.
    work: u64,
    scope: Vec<(&'e str, Known<'v>)>,
}

/// The cost of an expression; `None`: it is above the bound.
pub(super) fn cost(ast: &IdedExpr, variables: &[Variable<'_>], bound: u64) -> Option<u64> {
    let scope = variables.iter().map(|(name, value)| (*name, Known::Value(value))).collect();
    let mut estimator = Estimator { bound, work: 0, scope };
    estimator.expression(ast).ok().map(|estimate| estimate.cost)
}

/// Functions and operators that only say yes or no, or give a number.
const SMALL_RESULTS: &[&str] = &[
    "_==_",
    "_!=_",
    "_<_",
    "_<=_",
    "_>_",
    "_>=_",
    "!_",
    "_&&_",
    "_||_",
    "@in",
    "@not_strictly_false",
    "size",
    "matches",
    "contains",
    "startsWith",
    "endsWith",
    "has",
    "int",
    "double",
    "uint",
    "bool",
    "isSorted",
    "isIP",
    "isQuantity",
    "indexOf",
    "lastIndexOf",
    "duration",
    "timestamp",
];
/// Operators that only pass on what they are given, without looking at it.
const CHEAP: &[&str] =
    &["_&&_", "_||_", "!_", "_?_:_", "@not_strictly_false", "_[_]", "_[?_]", "_?._", "size"];

impl<'v, 'e> Estimator<'v, 'e> {
    fn charge(&mut self, work: u64) -> Result<(), Exceeded> {
        self.work = self.work.saturating_add(work);
        if self.work > self.bound { Err(Exceeded) } else { Ok(()) }
    }

    fn weight(&mut self, known: Known<'v>) -> Result<u64, Exceeded> {
        match known {
            Known::Bound { weight, .. } => Ok(weight),
            Known::Value(value) => {
                let weight = weight(value);
                // Looking is much cheaper than evaluating.
                self.charge(weight / 64)?;
                Ok(weight)
            }
        }
    }

    fn expression(&mut self, node: &'e IdedExpr) -> Result<Estimate<'v>, Exceeded> {
        self.charge(1)?;
        let estimate = match &node.expr {
            Expr::Unspecified => Estimate { cost: 1, known: bound(1) },
            Expr::Literal(literal) => Estimate { cost: 1, known: bound(literal_weight(literal)) },
            Expr::Ident(name) => {
                let found = self.scope.iter().rev().find(|(own, _)| own == name).map(|(_, known)| *known);
                Estimate { cost: 1, known: found.unwrap_or(bound(1)) }
            }
            Expr::Select(select) => {
                let operand = self.expression(&select.operand)?;
                let known = match operand.known {
                    _ if select.test => bound(1),
                    Known::Value(Value::Map(map)) => {
                        let key = Key::String(std::sync::Arc::new(select.field.clone()));
                        map.map.get(&key).map_or(bound(1), Known::Value)
                    }
                    Known::Value(_) => bound(1),
                    other => other,
                };
                Estimate { cost: operand.cost.saturating_add(1), known }
            }
            Expr::List(list) => {
                let total = self.all(list.elements.iter())?;
                let length = list.elements.len() as u64;
                Estimate { cost: total.0, known: Known::Bound { weight: total.1, length } }
            }
            Expr::Map(map) => self.entries(&map.entries)?,
            Expr::Struct(fields) => self.entries(&fields.entries)?,
            Expr::Call(call) => {
                let arguments = call.target.as_deref().into_iter().chain(&call.args);
                self.call(&call.func_name, arguments)?
            }
            Expr::Comprehension(comprehension) => self.comprehension(comprehension)?,
        };
        if estimate.cost > self.bound { Err(Exceeded) } else { Ok(estimate) }
    }

    /// Cost and weight of several together.
    fn all(&mut self, nodes: impl Iterator<Item = &'e IdedExpr>) -> Result<(u64, u64), Exceeded> {
        let (mut cost, mut weight) = (1_u64, 1_u64);
        for node in nodes {
            let estimate = self.expression(node)?;
            cost = cost.saturating_add(estimate.cost);
            weight = weight.saturating_add(self.weight(estimate.known)?);
        }
        Ok((cost, weight))
    }

    fn entries(&mut self, entries: &'e [cel::common::ast::IdedEntryExpr]) -> Result<Estimate<'v>, Exceeded> {
        let nodes = entries.iter().flat_map(|entry| match &entry.expr {
            EntryExpr::StructField(field) => vec![&field.value],
            EntryExpr::MapEntry(entry) => vec![&entry.key, &entry.value],
        });
        let (cost, weight) = self.all(nodes)?;
        Ok(Estimate { cost, known: bound(weight) })
    }

    fn call(
        &mut self,
        name: &str,
        arguments: impl Iterator<Item = &'e IdedExpr>,
    ) -> Result<Estimate<'v>, Exceeded> {
        let (mut cost, mut weights, mut length) = (1_u64, Vec::new(), 0_u64);
        for argument in arguments {
            let estimate = self.expression(argument)?;
            cost = cost.saturating_add(estimate.cost);
            length = length.saturating_add(length_of(estimate.known));
            let weight = if name == "size" { 1 } else { self.weight(estimate.known)? };
            weights.push(weight);
        }
        let total = weights.iter().fold(0_u64, |sum, weight| sum.saturating_add(*weight));
        if !CHEAP.contains(&name) {
            cost = cost.saturating_add(total / 10);
        }
        let weight = match name {
            "_?_:_" | "_[_]" => weights.iter().copied().max().unwrap_or(1),
            // Every place where nothing stands may become the replacement.
            "replace" | "join" | "format" => total.saturating_mul(total.min(1 << 20)),
            name if SMALL_RESULTS.contains(&name) => 1,
            _ => total.saturating_add(1),
        };
        if weight > self.bound.saturating_mul(10) {
            return Err(Exceeded);
        }
        let length = if name == "_+_" { length.min(weight) } else { weight };
        Ok(Estimate { cost, known: Known::Bound { weight, length } })
    }

    fn comprehension(&mut self, loops: &'e ComprehensionExpr) -> Result<Estimate<'v>, Exceeded> {
        let range = self.expression(&loops.iter_range)?;
        let turns = length_of(range.known);
        let item = match range.known {
            Known::Value(value) => {
                self.charge(weight(value) / 64)?;
                bound(heaviest(value))
            }
            Known::Bound { weight, .. } => bound(weight),
        };
        let start = self.expression(&loops.accu_init)?;
        let depth = self.scope.len();
        self.scope.push((&loops.iter_var, item));
        if let Some(second) = &loops.iter_var2 {
            self.scope.push((second, item));
        }
        self.scope.push((&loops.accu_var, start.known));
        let condition = self.expression(&loops.loop_cond)?;
        let step = self.expression(&loops.loop_step)?;
        let (begun, grown) = (self.weight(start.known)?, self.weight(step.known)?);
        let weight = begun.saturating_add(turns.saturating_mul(grown));
        let accumulated = Known::Bound { weight, length: turns.min(weight) };
        if let Some(last) = self.scope.last_mut() {
            last.1 = accumulated;
        }
        let result = self.expression(&loops.result)?;
        self.scope.truncate(depth);
        // A list that grows may be copied at every turn.
        let copies = if grown > 2 { turns.saturating_mul(turns) / 16 } else { 0 };
        let turn = condition.cost.saturating_add(step.cost);
        let cost = [range.cost, start.cost, turns.saturating_mul(turn), copies, result.cost]
            .into_iter()
            .fold(0_u64, u64::saturating_add);
        Ok(Estimate { cost, known: result.known })
    }
}

fn bound<'v>(weight: u64) -> Known<'v> {
    Known::Bound { weight, length: weight }
}

fn literal_weight(literal: &LiteralValue) -> u64 {
    match literal {
        LiteralValue::String(text) => text.inner().len() as u64 + 1,
        LiteralValue::Bytes(bytes) => bytes.inner().len() as u64 + 1,
        _ => 1,
    }
}

/// How many turns a loop over the value takes at most.
fn length_of(known: Known<'_>) -> u64 {
    match known {
        Known::Value(Value::List(items)) => items.len() as u64,
        Known::Value(Value::Map(members)) => members.map.len() as u64,
        Known::Value(_) => 1,
        Known::Bound { length, .. } => length,
    }
}

fn weight(value: &Value) -> u64 {
    match value {
        Value::String(text) => text.len() as u64 + 1,
        Value::Bytes(bytes) => bytes.len() as u64 + 1,
        Value::List(items) => 1 + items.iter().map(weight).sum::<u64>(),
        Value::Map(members) => {
            1 + members.map.iter().map(|(key, member)| key_weight(key) + weight(member)).sum::<u64>()
        }
        _ => 1,
    }
}

fn key_weight(key: &Key) -> u64 {
    match key {
        Key::String(text) => text.len() as u64 + 1,
        _ => 1,
    }
}

/// The weight of the heaviest item, or key, that a loop over the value gives.
fn heaviest(value: &Value) -> u64 {
    match value {
        Value::List(items) => items.iter().map(weight).max().unwrap_or(1),
        Value::Map(members) => {
            members.map.iter().map(|(key, member)| key_weight(key).max(weight(member))).max().unwrap_or(1)
        }
        _ => 1,
    }
}

fn children(node: &IdedExpr) -> Vec<&IdedExpr> {
    match &node.expr {
        Expr::Unspecified | Expr::Literal(_) | Expr::Ident(_) => Vec::new(),
        Expr::Select(select) => vec![&select.operand],
        Expr::List(list) => list.elements.iter().collect(),
        Expr::Call(call) => call.target.as_deref().into_iter().chain(&call.args).collect(),
        Expr::Map(map) => map.entries.iter().flat_map(entry).collect(),
        Expr::Struct(fields) => fields.entries.iter().flat_map(entry).collect(),
        Expr::Comprehension(loops) => {
            vec![&loops.iter_range, &loops.accu_init, &loops.loop_cond, &loops.loop_step, &loops.result]
        }
    }
}

fn entry(entry: &cel::common::ast::IdedEntryExpr) -> Vec<&IdedExpr> {
    match &entry.expr {
        EntryExpr::StructField(field) => vec![&field.value],
        EntryExpr::MapEntry(entry) => vec![&entry.key, &entry.value],
    }
}

/// How deep the expression is nested.
pub(super) fn depth(root: &IdedExpr) -> usize {
    let mut deepest = 0;
    let mut open = vec![(root, 1)];
    while let Some((node, depth)) = open.pop() {
        deepest = deepest.max(depth);
        open.extend(children(node).into_iter().map(|child| (child, depth + 1)));
    }
    deepest
}

/// The names that the expression takes from outside.
pub(super) fn free_variables(root: &IdedExpr) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    collect(root, &mut Vec::new(), &mut names);
    names
}

fn collect<'e>(node: &'e IdedExpr, bound: &mut Vec<&'e str>, names: &mut BTreeSet<String>) {
    match &node.expr {
        Expr::Ident(name) => {
            let is_type = matches!(
                name.as_str(),
                "int"
                    | "uint"
                    | "double"
                    | "bool"
                    | "string"
                    | "bytes"
                    | "list"
                    | "map"
                    | "null_type"
                    | "type"
            );
            if !is_type && !bound.contains(&name.as_str()) {
                names.insert(name.clone());
            }
        }
        // Names of function libraries: `math.ceil(x)`, `optional.of(x)`.
        Expr::Call(call) => {
            let library = |target: &IdedExpr| matches!(&target.expr, Expr::Ident(name) if matches!(name.as_str(), "math" | "optional" | "base64" | "strings"));
            for child in
                call.target.as_deref().filter(|target| !library(target)).into_iter().chain(&call.args)
            {
                collect(child, bound, names);
            }
        }
        Expr::Comprehension(loops) => {
            collect(&loops.iter_range, bound, names);
            collect(&loops.accu_init, bound, names);
            let depth = bound.len();
            bound.push(&loops.iter_var);
            bound.extend(loops.iter_var2.as_deref());
            bound.push(&loops.accu_var);
            for inner in [&loops.loop_cond, &loops.loop_step, &loops.result] {
                collect(inner, bound, names);
            }
            bound.truncate(depth);
        }
        _ => children(node).into_iter().for_each(|child| collect(child, bound, names)),
    }
}

/// The chains of fields that are read from a variable.
pub(super) fn paths(root: &IdedExpr, variable: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut open = vec![root];
    while let Some(node) = open.pop() {
        match chain(node, variable) {
            Some(path) if !path.is_empty() => found.push(path),
            _ => open.extend(children(node)),
        }
    }
    found
}

fn chain(node: &IdedExpr, variable: &str) -> Option<Vec<String>> {
    match &node.expr {
        Expr::Ident(name) => (name == variable).then(Vec::new),
        Expr::Select(select) => {
            let mut path = chain(&select.operand, variable)?;
            path.push(select.field.clone());
            Some(path)
        }
        _ => None,
    }
}
