//! Liveness: after everything is healed, something is acknowledged within a bound.

use std::time::Duration;

use super::Verdict;
use crate::history::{End, Operation};

/// The property's name.
pub const PROPERTY: &str = "alive-after-healing";

/// What was asked after `healed` (the time of the history) and acknowledged first, came within `bound`.
pub fn check(operations: &[Operation], healed_ns: u64, bound: Duration) -> Verdict {
    let answers = operations
        .iter()
        .filter(|operation| {
            operation.end == End::Ok
                && operation.call_ns >= healed_ns
                && !matches!(operation.f.as_str(), "hash" | "pods" | "instances")
        })
        .filter_map(|operation| operation.ret_ns);
    let asked = operations.iter().filter(|operation| operation.call_ns >= healed_ns).count();
    let Some(first) = answers.min() else {
        let explanation = format!("nothing was acknowledged of {asked} operations asked after healing");
        return Verdict::invalid(PROPERTY, asked, explanation);
    };
    let took = Duration::from_nanos(first - healed_ns);
    let explanation = format!("the first answer came {:.3} s after healing", took.as_secs_f64());
    if took > bound {
        let explanation = format!("{explanation}; {:.3} s were allowed", bound.as_secs_f64());
        return Verdict::invalid(PROPERTY, asked, explanation);
    }
    Verdict::valid(PROPERTY, asked, explanation)
}
