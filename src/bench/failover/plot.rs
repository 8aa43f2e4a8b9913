//! How many outages ended within which time, as an SVG picture: a curve for writes, one for bindings.

use std::path::Path;

use anyhow::Context as _;
use plotters::prelude::*;

use super::report::Report;
use crate::bench::plot::drawing;
use crate::bench::report::duration;

const SIZE: (u32, u32) = (800, 420);
const MARGIN: u32 = 12;
const LABEL_AREA: u32 = 50;
const FONT: (&str, u32) = ("sans-serif", 16);
const COLORS: [RGBColor; 2] = [RGBColor(30, 100, 180), RGBColor(200, 90, 40)];
/// No curve begins at nothing on a logarithmic axis.
const SECONDS_MIN: f64 = 1e-4;

/// Writes the picture.
pub(crate) fn write(report: &Report, path: &Path) -> anyhow::Result<()> {
    if report.write_seconds.is_empty() {
        return Ok(());
    }
    let text = draw(report).context("cannot draw the plot")?;
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn draw(report: &Report) -> anyhow::Result<String> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(drawing)?;
        let all = || report.series().into_iter().flat_map(|(_, seconds)| seconds.iter().copied());
        let (low, high) = (all().fold(f64::MAX, f64::min), all().fold(0.0, f64::max));
        let times = low.max(SECONDS_MIN) / 1.5..high.max(SECONDS_MIN) * 1.5;
        let mut chart = ChartBuilder::on(&area)
            .caption(
                format!(
                    "{} leaders killed: outages that were over within a time",
                    report.write_seconds.len()
                ),
                FONT,
            )
            .margin(MARGIN)
            .x_label_area_size(LABEL_AREA)
            .y_label_area_size(LABEL_AREA)
            .build_cartesian_2d(times.log_scale(), 0.0..100.0)
            .map_err(drawing)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .x_desc("time since the kill")
            .y_desc("% of the kills")
            .x_label_formatter(&|seconds| duration(*seconds))
            .draw()
            .map_err(drawing)?;
        for ((name, seconds), color) in report.series().into_iter().zip(COLORS) {
            let mut sorted = seconds.to_vec();
            sorted.sort_by(f64::total_cmp);
            let share = |number: usize| 100.0 * (number + 1) as f64 / seconds.len() as f64;
            let points = sorted.iter().enumerate().map(|(number, at)| (at.max(SECONDS_MIN), share(number)));
            chart
                .draw_series(LineSeries::new(points, color.stroke_width(2)))
                .map_err(drawing)?
                .label(name)
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], color.stroke_width(2)));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK)
            .draw()
            .map_err(drawing)?;
        area.present().map_err(drawing)?;
    }
    Ok(text)
}
