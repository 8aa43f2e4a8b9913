//! The averages beside kube-scheduler's floors as an SVG picture: two bars for each workload.

use std::path::Path;

use anyhow::Context as _;
use plotters::prelude::*;

use super::report::{Report, Row};
use crate::bench::plot::drawing;

const WIDTH: u32 = 1000;
const ROW_HEIGHT: u32 = 40;
const MARGIN: u32 = 12;
const LABEL_AREA: u32 = 260;
const HEAD: u32 = 80;
const FONT: (&str, u32) = ("sans-serif", 16);
const OURS: RGBColor = RGBColor(30, 100, 180);
const FLOOR: RGBColor = RGBColor(200, 90, 40);

/// Writes the picture.
pub(crate) fn write(report: &Report, path: &Path) -> anyhow::Result<()> {
    if report.rows.is_empty() {
        return Ok(());
    }
    let text = draw(&report.rows).context("cannot draw the plot")?;
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn draw(rows: &[Row]) -> anyhow::Result<String> {
    let mut text = String::new();
    {
        let count = rows.len() as f64;
        let height = HEAD + ROW_HEIGHT * rows.len() as u32;
        let area = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
        area.fill(&WHITE).map_err(drawing)?;
        let most = rows.iter().map(|row| row.average.max(floor(row))).fold(1.0, f64::max);
        let mut chart = ChartBuilder::on(&area)
            .caption("pods per second, durably bound; below: kube-scheduler's floor at 5,000 nodes", FONT)
            .margin(MARGIN)
            .x_label_area_size(MARGIN * 2)
            .y_label_area_size(LABEL_AREA)
            .build_cartesian_2d(0.0..most * 1.05, 0.0..count)
            .map_err(drawing)?;
        let label = |at: &f64| {
            let row = rows.len().checked_sub(1 + at.floor() as usize).and_then(|row| rows.get(row));
            row.map_or(String::new(), |row| format!("{}, {} nodes", row.workload, row.nodes))
        };
        chart
            .configure_mesh()
            .disable_y_mesh()
            .light_line_style(TRANSPARENT)
            .y_labels(rows.len())
            .y_label_formatter(&label)
            .x_label_formatter(&|rate| format!("{rate:.0}"))
            .draw()
            .map_err(drawing)?;
        let bars = rows.iter().enumerate().flat_map(|(at, row)| {
            let base = count - 1.0 - at as f64;
            let ours = Rectangle::new([(0.0, base + 0.45), (row.average, base + 0.85)], OURS.filled());
            let theirs = Rectangle::new([(0.0, base + 0.1), (floor(row), base + 0.4)], FLOOR.filled());
            [ours, theirs]
        });
        chart.draw_series(bars).map_err(drawing)?;
        area.present().map_err(drawing)?;
    }
    Ok(text)
}

fn floor(row: &Row) -> f64 {
    f64::from(row.floor_at_5000_nodes.unwrap_or(0))
}
