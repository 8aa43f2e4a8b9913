//! Throughput and latency over time, with the faults shaded.

use std::collections::BTreeMap;
use std::time::Duration;

use plotters::coord::ranged1d::Ranged;
use plotters::prelude::*;

use super::operations;
use crate::experiment::Run;
use crate::history::End;

const SIZE: (u32, u32) = (1000, 280);
const FONT: (&str, u32) = ("sans-serif", 14);
/// How much time one point stands for.
const BUCKET_SECONDS: f64 = 0.1;
/// Operations drawn one by one at most; of more, every so many.
const POINTS_MAX: usize = 6000;
/// The shortest latency drawn.
const LATENCY_MIN: f64 = 1e-4;

/// The longest time in which nothing was acknowledged.
pub(super) fn longest_pause(run: &Run) -> Duration {
    let mut ends: Vec<u64> = operations(run)
        .filter(|operation| operation.end == End::Ok)
        .filter_map(|operation| operation.ret_ns)
        .collect();
    ends.sort_unstable();
    let longest = ends.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
    Duration::from_nanos(longest)
}

fn end_seconds(run: &Run) -> f64 {
    let ends = run.workloads.iter().map(|workload| workload.history.end_ns());
    ends.max().unwrap_or(0).max(run.healed_ns) as f64 / 1e9
}

/// From when to when each fault was under way.
fn shaded(run: &Run) -> Vec<(f64, f64)> {
    let mut open: BTreeMap<u64, f64> = BTreeMap::new();
    let mut spans = Vec::new();
    for event in &run.faults.events {
        let (number, at) = (event.value["number"].as_u64().unwrap_or(0), event.time as f64 / 1e9);
        if event.value["phase"] == "begin" {
            open.entry(number).or_insert(at);
        } else if let Some(from) = open.remove(&number) {
            spans.push((from, at.max(from + 0.02)));
        }
    }
    spans
}

/// Operations that were done, for each moment.
pub(super) fn throughput(run: &Run) -> anyhow::Result<String> {
    let buckets = (end_seconds(run) / BUCKET_SECONDS) as usize + 1;
    let mut done = vec![0_u32; buckets];
    for operation in operations(run).filter(|operation| operation.end == End::Ok) {
        let at = operation.ret_ns.unwrap_or_default() as f64 / 1e9 / BUCKET_SECONDS;
        done[(at as usize).min(buckets - 1)] += 1;
    }
    let rate = |count: u32| f64::from(count) / BUCKET_SECONDS;
    let highest = done.iter().copied().map(rate).fold(1.0, f64::max);
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .margin(8)
            .x_label_area_size(30)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..end_seconds(run), 0.0..highest * 1.05)
            .map_err(drawing)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .x_desc("s")
            .label_style(FONT)
            .draw()
            .map_err(drawing)?;
        mark(chart.plotting_area(), run, (0.0, highest * 1.05))?;
        let points = done.iter().enumerate().map(|(at, count)| (at as f64 * BUCKET_SECONDS, rate(*count)));
        chart.draw_series(LineSeries::new(points, BLUE.stroke_width(2))).map_err(drawing)?;
        area.present().map_err(drawing)?;
    }
    Ok(text)
}

/// The latency of each operation: blue if it was done, grey if refused, red if there was no answer.
pub(super) fn latency(run: &Run) -> anyhow::Result<String> {
    let points: Vec<(f64, f64, End)> = operations(run)
        .filter_map(|operation| {
            let took = operation.ret_ns?.saturating_sub(operation.call_ns) as f64 / 1e9;
            Some((operation.call_ns as f64 / 1e9, took.max(LATENCY_MIN), operation.end))
        })
        .collect();
    let highest = points.iter().map(|(_, took, _)| *took).fold(LATENCY_MIN * 10.0, f64::max) * 1.5;
    let step = points.len().div_ceil(POINTS_MAX).max(1);
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .margin(8)
            .x_label_area_size(30)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..end_seconds(run), (LATENCY_MIN..highest).log_scale())
            .map_err(drawing)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .x_desc("s")
            .y_label_formatter(&|seconds| format!("{} ms", seconds * 1e3))
            .label_style(FONT)
            .draw()
            .map_err(drawing)?;
        mark(chart.plotting_area(), run, (LATENCY_MIN, highest))?;
        let dots = points.iter().enumerate().filter(|(at, (.., end))| *end == End::Info || at % step == 0);
        let dots = dots.map(|(_, (at, took, end))| {
            let color = match end {
                End::Ok => BLUE.mix(0.5),
                End::Fail => BLACK.mix(0.3),
                End::Info => RED.mix(0.8),
            };
            Circle::new((*at, *took), 2, color.filled())
        });
        chart.draw_series(dots).map_err(drawing)?;
        area.present().map_err(drawing)?;
    }
    Ok(text)
}

/// Shades faults, and marks changes of the leader and the moment of healing.
fn mark<X, Y>(
    area: &DrawingArea<SVGBackend<'_>, Cartesian2d<X, Y>>,
    run: &Run,
    (low, high): (f64, f64),
) -> anyhow::Result<()>
where
    X: Ranged<ValueType = f64>,
    Y: Ranged<ValueType = f64>,
{
    for (from, to) in shaded(run) {
        let shade = Rectangle::new([(from, low), (to, high)], RGBColor(240, 120, 40).mix(0.2).filled());
        area.draw(&shade).map_err(drawing)?;
    }
    let steps = 24;
    for (at, _) in run.leaders.iter().skip(1) {
        let at = *at as f64 / 1e9;
        for step in (0..steps).step_by(2) {
            let y = |step: i32| low * (high / low.max(high * 1e-9)).powf(f64::from(step) / f64::from(steps));
            let (from, to) = if low > 0.0 {
                (y(step), y(step + 1))
            } else {
                let part = high / f64::from(steps);
                (part * f64::from(step), part * f64::from(step + 1))
            };
            area.draw(&PathElement::new(vec![(at, from), (at, to)], BLACK.mix(0.6))).map_err(drawing)?;
        }
    }
    let healed = run.healed_ns as f64 / 1e9;
    let line = PathElement::new(vec![(healed, low), (healed, high)], RGBColor(42, 125, 63).stroke_width(2));
    area.draw(&line).map_err(drawing)
}

fn drawing(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow::anyhow!("cannot draw: {error}")
}
