//! A counter-example as a space-time diagram: a line a process, a bar a call, an arrow a *must come before*.
//!
//! Distances are by order, not by time: what matters is what ended before what began.

use std::fmt::Write as _;

use super::escape;
use crate::checker::CounterExample;
use crate::history::{End, Operation};

const LEFT: usize = 110;
const STEP: usize = 74;
const ROW: usize = 64;
const TOP: usize = 34;
const BAR: usize = 16;
/// Characters of a label.
const LABEL_MAX: usize = 34;

/// Draws it.
pub fn draw(example: &CounterExample) -> String {
    let operations = &example.operations;
    let mut processes: Vec<i64> = operations.iter().map(|operation| operation.process).collect();
    processes.sort_unstable();
    processes.dedup();
    let mut moments: Vec<usize> =
        operations.iter().flat_map(|operation| [Some(operation.call), operation.ret]).flatten().collect();
    moments.sort_unstable();
    moments.dedup();
    let width = LEFT + (moments.len() + 1) * STEP;
    let height = TOP + processes.len() * ROW + 20;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" role=\"img\" \
         font-family=\"sans-serif\" font-size=\"12\"><defs><marker id=\"head\" markerWidth=\"8\" markerHeight=\"8\" \
         refX=\"7\" refY=\"3\" orient=\"auto\"><path d=\"M0,0 L7,3 L0,6 z\" fill=\"#c02d2d\"/></marker></defs>\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n"
    );
    for (row, process) in processes.iter().enumerate() {
        let y = TOP + row * ROW + ROW / 2;
        let _ = writeln!(
            text,
            "<text x=\"8\" y=\"{}\" fill=\"#333\">process {process}</text><line x1=\"{LEFT}\" y1=\"{y}\" x2=\"{width}\" \
             y2=\"{y}\" stroke=\"#ddd\"/>",
            y + 4
        );
    }
    let x = |moment: usize| LEFT + moments.binary_search(&moment).unwrap_or(0) * STEP + STEP / 3;
    let place = |operation: &Operation| {
        let row = processes.binary_search(&operation.process).unwrap_or(0);
        let from = x(operation.call);
        let to = operation.ret.map_or(width - 6, x);
        (from, to.max(from + 10), TOP + row * ROW + ROW / 2)
    };
    for (number, operation) in operations.iter().enumerate() {
        bar(&mut text, number, operation, place(operation));
    }
    for edge in &example.edges {
        if let (Some(from), Some(to)) = (operations.get(edge.from), operations.get(edge.to)) {
            arrow(&mut text, place(from), place(to), &edge.label);
        }
    }
    text + "</svg>\n"
}

fn bar(text: &mut String, number: usize, operation: &Operation, (from, to, y): (usize, usize, usize)) {
    let (color, dash) = match operation.end {
        End::Ok => ("#3465a4", ""),
        End::Fail => ("#888", ""),
        End::Info => ("#c17d11", " stroke-dasharray=\"4 3\""),
    };
    let label = format!("T{} {} {}", number + 1, operation.f, operation.told);
    let short: String = if label.chars().count() > LABEL_MAX {
        label.chars().take(LABEL_MAX - 1).chain(['…']).collect()
    } else {
        label.clone()
    };
    let asked = format!("{label}\nasked: {}\n{:?}", operation.asked, operation.end);
    let _ = writeln!(
        text,
        "<g><title>{}</title><rect x=\"{from}\" y=\"{}\" width=\"{}\" height=\"{BAR}\" rx=\"3\" fill=\"{color}\" \
         fill-opacity=\".25\" stroke=\"{color}\"{dash}/><text x=\"{from}\" y=\"{}\" fill=\"#111\">{}</text></g>",
        escape(&asked),
        y - BAR / 2,
        to - from,
        // Labels of neighbours stand above and below in turns.
        if number.is_multiple_of(2) { y - BAR / 2 - 4 } else { y + BAR + 6 },
        escape(&short)
    );
}

type Place = (usize, usize, usize);

fn arrow(text: &mut String, from: Place, to: Place, label: &str) {
    let (x1, y1, x2, y2) = ((from.0 + from.1) / 2, from.2, (to.0 + to.1) / 2, to.2);
    // On one line, over the bars.
    let (middle_x, middle_y) = ((x1 + x2) / 2, if y1 == y2 { y1.saturating_sub(46) } else { (y1 + y2) / 2 });
    let _ = writeln!(
        text,
        "<path d=\"M{x1},{y1} Q{middle_x},{middle_y} {x2},{y2}\" fill=\"none\" stroke=\"#c02d2d\" \
         marker-end=\"url(#head)\"/><text x=\"{middle_x}\" y=\"{}\" fill=\"#c02d2d\" font-size=\"11\">{}</text>",
        middle_y.saturating_sub(3),
        escape(label)
    );
}
