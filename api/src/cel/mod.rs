//! Expressions of the Common Expression Language (CEL), as rules of custom kinds and admission policies carry.
//!
//! Owns reading, checking and evaluating an expression over the `cel` library, with bounds around it: how long
//! and how deep an expression may be, and what it may cost. The cost is estimated from the values at hand
//! before anything runs (module `estimate`), since the library cannot be stopped; an expression that might cost
//! more than its bound is not run at all. Does not know schemas; [`crate::crd`] makes values from those.

mod estimate;
mod functions;

use std::sync::{Arc, LazyLock};

pub use cel::Value;
use cel::objects::Key;
use cel::parser::PrattParser;
use cel::{Context, Env, IdedExpr};

/// Longest expression.
pub const SOURCE_BYTES_MAX: usize = 16 * 1024;
/// Most nodes of an expression.
const NODES_MAX: usize = 4096;
/// Deepest nesting of an expression, chains such as `a + b + c` counted by link.
const DEPTH_MAX: usize = 128;
/// Deepest nesting that the parser follows.
const PARSER_DEPTH_MAX: u16 = 64;
/// What one evaluation may cost. About one unit per operation, and one for every ten bytes looked at.
pub const EXPRESSION_COST_MAX: u64 = 1_000_000;
/// What all rules together may cost for one object.
pub const OBJECT_COST_MAX: u64 = 4_000_000;

/// Why an expression gave no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It cannot be read, or speaks of what there is not.
    #[error("compilation failed: {0}")]
    Compile(String),
    /// It might cost more than one expression may.
    #[error("call cost exceeds limit")]
    TooCostly,
    /// Together with what ran before it might cost more than all may.
    #[error("validation failed due to running out of cost budget, no further validation rules will be run")]
    OutOfBudget,
    /// It failed while it ran.
    #[error("{0}")]
    Evaluation(String),
}

/// What is left to spend on one object.
#[derive(Debug)]
pub struct Budget {
    left: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { left: OBJECT_COST_MAX }
    }
}

/// A variable and its value.
pub type Variable<'a> = (&'a str, &'a Value);

/// An expression that was read and checked.
#[derive(Debug, Clone)]
pub struct Expression {
    source: String,
    ast: Arc<IdedExpr>,
}

static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib();
    for extension in [cel::extensions::strings, cel::extensions::lists, cel::extensions::math] {
        // Each is added once, to an environment that has none of its names.
        let _ = env.add_extension(extension);
    }
    let _ = env.add_extension(cel::extensions::encoders);
    Arc::new(env)
});

impl Expression {
    /// Reads an expression that may speak of these variables.
    pub fn compile(source: &str, variables: &[&str]) -> Result<Self, Error> {
        let refuse = |why: String| Err(Error::Compile(why));
        if source.trim().is_empty() {
            return refuse("the expression is empty".to_owned());
        }
        if source.len() > SOURCE_BYTES_MAX {
            return refuse(format!("the expression has more than {SOURCE_BYTES_MAX} bytes"));
        }
        let parser = PrattParser::new()
            .max_recursion_depth(PARSER_DEPTH_MAX)
            .max_expression_node_count(NODES_MAX)
            .enable_optional_syntax(true);
        let ast = match parser.parse(source) {
            Ok(ast) => ast,
            Err(errors) => return refuse(errors.to_string().trim().to_owned()),
        };
        if estimate::depth(&ast) > DEPTH_MAX {
            return refuse(format!("the expression is nested more than {DEPTH_MAX} deep"));
        }
        let free = estimate::free_variables(&ast);
        if let Some(name) = free.iter().find(|name| !variables.contains(&name.as_str())) {
            return refuse(format!("undeclared reference to '{name}' (in container '')"));
        }
        Ok(Self { source: source.to_owned(), ast: Arc::new(ast) })
    }

    /// As it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether it speaks of a variable.
    pub fn uses(&self, variable: &str) -> bool {
        estimate::free_variables(&self.ast).contains(variable)
    }

    /// The chains of fields that it reads from a variable: `self.a.b` is `["a", "b"]`.
    pub fn paths(&self, variable: &str) -> Vec<Vec<String>> {
        estimate::paths(&self.ast, variable)
    }

    /// Computes the value, unless that might cost too much.
    pub fn evaluate(&self, variables: &[Variable<'_>], budget: &mut Budget) -> Result<Value, Error> {
        let cost = estimate::cost(&self.ast, variables, EXPRESSION_COST_MAX).ok_or(Error::TooCostly)?;
        budget.left = budget.left.checked_sub(cost).ok_or(Error::OutOfBudget)?;
        let mut context = Context::with_env(ENVIRONMENT.clone());
        functions::add(&mut context);
        for (name, value) in variables {
            context.add_variable_from_value(*name, (*value).clone());
        }
        context.resolve(&self.ast).map_err(|error| Error::Evaluation(error.to_string()))
    }

    /// As [`Expression::evaluate`], for an expression that must be true or false.
    pub fn is_true(&self, variables: &[Variable<'_>], budget: &mut Budget) -> Result<bool, Error> {
        match self.evaluate(variables, budget)? {
            Value::Bool(value) => Ok(value),
            _ => Err(Error::Evaluation("must evaluate to bool".to_owned())),
        }
    }

    /// As [`Expression::evaluate`], for an expression that must be a text. `None`: it is null.
    pub fn text(&self, variables: &[Variable<'_>], budget: &mut Budget) -> Result<Option<String>, Error> {
        match self.evaluate(variables, budget)? {
            Value::String(text) => Ok(Some(text.to_string())),
            Value::Null => Ok(None),
            _ => Err(Error::Evaluation("must evaluate to string".to_owned())),
        }
    }
}

/// JSON as a CEL value: whole numbers are `int`, others `double`.
pub fn from_json(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(value) => Value::Bool(*value),
        serde_json::Value::Number(number) => match number.as_i64() {
            Some(number) => Value::Int(number),
            None => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::String(Arc::new(text.clone())),
        serde_json::Value::Array(items) => list(items.iter().map(from_json).collect()),
        serde_json::Value::Object(members) => {
            map(members.iter().map(|(key, member)| (key.clone(), from_json(member))))
        }
    }
}

/// A CEL list.
pub fn list(items: Vec<Value>) -> Value {
    Value::List(Arc::new(items))
}

/// A CEL map with texts for keys.
pub fn map(members: impl Iterator<Item = (String, Value)>) -> Value {
    let members = members.map(|(key, value)| (Key::String(Arc::new(key)), value));
    Value::Map(cel::objects::Map { map: Arc::new(members.collect()) })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run(source: &str, own: &serde_json::Value) -> Result<Value, Error> {
        let own = from_json(own);
        Expression::compile(source, &["self"])?.evaluate(&[("self", &own)], &mut Budget::default())
    }

    #[test]
    fn expressions_see_their_variables() {
        let own = json!({"a": 3, "list": [1, 2, 3], "s": "xyz", "m": {"k": 1.5}});
        for source in [
            "self.a == 3 && self.a + 1 < 5",
            "self.list.all(x, x > 0) && self.list.exists(x, x == 3)",
            "self.list.map(x, x * 2) == [2, 4, 6]",
            "size(self.s) == 3 && self.s.startsWith('x') && self.s.matches('^[x-z]+$')",
            "has(self.a) && !has(self.b)",
            "self.m.k == 1.5",
            "'xyz' in [self.s]",
            "self.s.upperAscii() == 'XYZ'",
            "self.?b.orValue(7) == 7",
            "self.list.sum() == 6 && self.list.isSorted() && self.list.max() == 3",
            "'a1b22'.find('[0-9]+') == '1' && 'a1b22'.findAll('[0-9]+') == ['1', '22']",
            "duration('1h') > duration('59m')",
        ] {
            assert_eq!(run(source, &own), Ok(Value::Bool(true)), "{source}");
        }
        assert!(matches!(run("self.b == 1", &own), Err(Error::Evaluation(_))));
    }

    #[test]
    fn nonsense_is_refused_when_it_is_read() {
        let deep = format!("{}1{}", "[".repeat(500), "]".repeat(500));
        let chain = vec!["1"; 3000].join(" + ");
        let long = format!("'{}' == ''", "x".repeat(SOURCE_BYTES_MAX));
        for source in ["", "self.", "other == 1", "self.all(x, y)", &deep, &chain, &long] {
            assert!(matches!(Expression::compile(source, &["self"]), Err(Error::Compile(_))), "{source:.40}");
        }
        let error = Expression::compile("other == 1", &["self"]).expect_err("nothing has that name");
        assert_eq!(
            error.to_string(),
            "compilation failed: undeclared reference to 'other' (in container '')"
        );
    }

    #[test]
    fn what_might_never_end_is_not_run() {
        let own = json!({"list": (0..1000).collect::<Vec<i32>>(), "s": "x".repeat(1000)});
        for source in [
            "self.list.all(a, self.list.all(b, self.list.all(c, a + b + c >= 0)))",
            "self.list.map(a, self.list.map(b, self.s + self.s)).size() > 0",
            &format!("[self.s]{}.size() > 0", ".map(x, x + x)".repeat(40)),
        ] {
            assert_eq!(run(source, &own), Err(Error::TooCostly), "{source:.60}");
        }
        assert_eq!(run("self.list.all(a, a < 1000)", &own), Ok(Value::Bool(true)));
        let (mut budget, own) = (Budget::default(), from_json(&own));
        let rule = Expression::compile("self.list.all(a, self.list[a] == a)", &["self"]).expect("a rule");
        let mut runs = 0;
        while rule.evaluate(&[("self", &own)], &mut budget).is_ok() {
            runs += 1;
            assert!(runs < 10_000, "the budget ends some time");
        }
        assert!(runs > 10);
    }

    #[test]
    fn the_deepest_expression_fits_on_a_small_stack() {
        let chain = vec!["1"; DEPTH_MAX - 4].join(" + ");
        let run = std::thread::Builder::new().stack_size(1 << 20).spawn(move || {
            Expression::compile(&chain, &[]).expect("not too deep").evaluate(&[], &mut Budget::default())
        });
        let value = run.expect("a thread").join().expect("no overflow");
        assert_eq!(value, Ok(Value::Int(DEPTH_MAX as i64 - 4)));
    }
}
