//! The functions that Kubernetes adds to CEL and the library does not have: lists and regular expressions.

use std::cmp::Ordering;
use std::sync::Arc;

use cel::extractors::This;
use cel::{Context, ExecutionError, Value};
use regex::Regex;

type Outcome = Result<Value, ExecutionError>;

/// Adds them to a context. Those that the library already has are left to it.
pub(super) fn add(context: &mut Context<'_, '_>) {
    let _ = context.add_function("isSorted", is_sorted);
    let _ = context.add_function("sum", sum);
    let _ = context.add_function("min", |This(list): This<Arc<Vec<Value>>>| extreme(&list, Ordering::Less));
    let _ =
        context.add_function("max", |This(list): This<Arc<Vec<Value>>>| extreme(&list, Ordering::Greater));
    let _ = context.add_function("find", find);
    let _ = context.add_function("findAll", find_all);
    let _ = context.add_function("isIP", |text: Arc<String>| text.parse::<std::net::IpAddr>().is_ok());
    let _ = context.add_function("isQuantity", |text: Arc<String>| crate::Quantity::parse(&text).is_ok());
}

fn compare(left: &Value, right: &Value) -> Result<Ordering, ExecutionError> {
    let order = match (left, right) {
        (Value::Int(left), Value::Int(right)) => Some(left.cmp(right)),
        (Value::UInt(left), Value::UInt(right)) => Some(left.cmp(right)),
        (Value::Float(left), Value::Float(right)) => left.partial_cmp(right),
        (Value::String(left), Value::String(right)) => Some(left.cmp(right)),
        (Value::Bool(left), Value::Bool(right)) => Some(left.cmp(right)),
        (Value::Duration(left), Value::Duration(right)) => Some(left.cmp(right)),
        (Value::Timestamp(left), Value::Timestamp(right)) => Some(left.cmp(right)),
        _ => None,
    };
    order.ok_or_else(|| ExecutionError::ValuesNotComparable(left.clone(), right.clone()))
}

fn is_sorted(This(list): This<Arc<Vec<Value>>>) -> Outcome {
    for pair in list.windows(2) {
        if compare(&pair[0], &pair[1])? == Ordering::Greater {
            return Ok(Value::Bool(false));
        }
    }
    Ok(Value::Bool(true))
}

fn sum(This(list): This<Arc<Vec<Value>>>) -> Outcome {
    let refuse = |why: &str| ExecutionError::function_error("sum", why);
    let mut total = match list.first() {
        None => return Ok(Value::Int(0)),
        Some(first) => first.clone(),
    };
    for item in &list[1..] {
        total = match (&total, item) {
            (Value::Int(total), Value::Int(item)) => {
                Value::Int(total.checked_add(*item).ok_or_else(|| refuse("integer overflow"))?)
            }
            (Value::UInt(total), Value::UInt(item)) => {
                Value::UInt(total.checked_add(*item).ok_or_else(|| refuse("unsigned integer overflow"))?)
            }
            (Value::Float(total), Value::Float(item)) => Value::Float(total + item),
            _ => return Err(refuse("the list holds values that cannot be added")),
        };
    }
    Ok(total)
}

fn extreme(list: &[Value], wanted: Ordering) -> Outcome {
    let mut items = list.iter();
    let Some(mut best) = items.next() else {
        return Err(ExecutionError::function_error("min", "min/max called on empty list"));
    };
    for item in items {
        if compare(item, best)? == wanted {
            best = item;
        }
    }
    Ok(best.clone())
}

fn regex(pattern: &str) -> Result<Regex, ExecutionError> {
    Regex::new(pattern).map_err(|error| ExecutionError::function_error("find", error))
}

fn find(This(text): This<Arc<String>>, pattern: Arc<String>) -> Outcome {
    let found = regex(&pattern)?.find(&text).map_or("", |found| found.as_str());
    Ok(Value::from(found))
}

fn find_all(This(text): This<Arc<String>>, pattern: Arc<String>) -> Outcome {
    let regex = regex(&pattern)?;
    Ok(super::list(regex.find_iter(&text).map(|found| Value::from(found.as_str())).collect()))
}
