//! Throughput and latency by clients as an SVG picture: a row of two panels for each work.

use std::path::Path;

use anyhow::Context as _;
use plotters::prelude::*;

use super::report::{Cell, Report, duration};

const WIDTH: u32 = 1000;
const ROW_HEIGHT: u32 = 300;
const MARGIN: u32 = 12;
const LABEL_AREA: u32 = 60;
const FONT: (&str, u32) = ("sans-serif", 16);
/// The colours of systems, in their order.
const COLORS: [RGBColor; 2] = [RGBColor(200, 90, 40), RGBColor(30, 100, 180)];

/// Writes the picture.
pub(crate) fn write(report: &Report, path: &Path) -> anyhow::Result<()> {
    let mut works: Vec<&str> = report.cells.iter().map(|cell| cell.work).collect();
    works.dedup();
    if works.is_empty() {
        return Ok(());
    }
    let text = draw(report, &works).context("cannot draw the plot")?;
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn draw(report: &Report, works: &[&str]) -> anyhow::Result<String> {
    let mut text = String::new();
    {
        let height = ROW_HEIGHT * works.len() as u32;
        let area = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
        area.fill(&WHITE).map_err(drawing)?;
        for (work, row) in works.iter().zip(area.split_evenly((works.len(), 1))) {
            let cells: Vec<&Cell> = report.cells.iter().filter(|cell| cell.work == *work).collect();
            let panels = row.split_evenly((1, 2));
            let rates: Series<'_> = &[("", &|cell| cell.operations_per_second)];
            panel(&panels[0], &format!("{work}: operations per second"), &cells, rates)?;
            let latencies: Series<'_> =
                &[("p50", &|cell| cell.p50_seconds), ("p99", &|cell| cell.p99_seconds)];
            panel(&panels[1], &format!("{work}: latency"), &cells, latencies)?;
        }
        area.present().map_err(drawing)?;
    }
    Ok(text)
}

/// Curves of one panel: a name each, and what of a cell they show.
type Series<'a> = &'a [(&'a str, &'a dyn Fn(&Cell) -> f64)];
type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn panel(area: &Area<'_>, title: &str, cells: &[&Cell], series: Series<'_>) -> anyhow::Result<()> {
    let latency = series.len() > 1;
    let values = || cells.iter().flat_map(|cell| series.iter().map(|(_, value)| value(cell).max(1e-6)));
    let (low, high) = (values().fold(f64::MAX, f64::min), values().fold(0.0, f64::max));
    let clients_max = cells.iter().map(|cell| cell.clients).max().unwrap_or(1) as f64;
    let mut chart = ChartBuilder::on(area)
        .caption(title, FONT)
        .margin(MARGIN)
        .x_label_area_size(LABEL_AREA / 2)
        .y_label_area_size(LABEL_AREA)
        .build_cartesian_2d(
            (0.8..clients_max.max(2.0) * 1.3).log_scale(),
            (low / 1.5..high.max(1e-6) * 1.5).log_scale(),
        )
        .map_err(drawing)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc("clients")
        .y_label_formatter(&|value| if latency { duration(*value) } else { format!("{value:.0}") })
        .draw()
        .map_err(drawing)?;
    let mut systems: Vec<&str> = cells.iter().map(|cell| cell.system).collect();
    systems.sort_unstable();
    systems.dedup();
    systems.reverse();
    // etcd comes first wherever it takes part, and "given" stands alone.
    systems.sort_by_key(|system| *system != "etcd");
    for (system, color) in systems.iter().zip(COLORS) {
        for (number, (name, value)) in series.iter().enumerate() {
            let points: Vec<(f64, f64)> = cells
                .iter()
                .filter(|cell| cell.system == *system)
                .map(|cell| (cell.clients as f64, value(cell).max(1e-6)))
                .collect();
            let style = color.mix(if number == 0 { 1.0 } else { 0.5 }).stroke_width(2);
            let dots = points.clone().into_iter().map(|at| Circle::new(at, 3, style.filled()));
            chart
                .draw_series(LineSeries::new(points, style))
                .map_err(drawing)?
                .label(format!("{system} {name}"))
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], style));
            chart.draw_series(dots).map_err(drawing)?;
        }
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()
        .map_err(drawing)
}

/// What went wrong while a picture was drawn.
pub(crate) fn drawing(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow::anyhow!("{error}")
}
