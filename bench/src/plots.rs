//! Plots of the results of `bench peers --json`, as SVG.

use std::{collections::BTreeMap, fs, path::Path};

use plotters::prelude::{
    BLACK, ChartBuilder, Color, IntoDrawingArea, IntoLogRange, LineSeries, PathElement, RGBColor, SVGBackend,
    SeriesLabelPosition, WHITE,
};
use serde_json::Value;

use crate::measure::{Result, Spread};

/// Colours that readers with a colour deficiency can distinguish (Okabe and Ito).
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
    RGBColor(140, 140, 140),
];

/// Size of a plot in pixels.
const SIZE: (u32, u32) = (760, 460);

/// Name of this library in the legends.
const OURS: &str = "enlist";

/// A plot with two logarithmic axes.
struct Plot {
    file: &'static str,
    title: &'static str,
    x: &'static str,
    y: &'static str,
    /// Reads size, name of the reference, and an addition to both names, from the case of a measurement.
    point: fn(&str) -> Option<(f64, &str, &str)>,
    scenario: &'static str,
    /// A place without data.
    legend: SeriesLabelPosition,
    /// Converts a measured value into the unit of the axis.
    value: fn(f64) -> f64,
}

const PLOTS: [Plot; 4] = [
    Plot {
        file: "change-by-size.svg",
        title: "From a change to the view, by the size of the service",
        x: "instances",
        y: "ms",
        scenario: "change",
        legend: SeriesLabelPosition::MiddleLeft,
        point: |case| {
            let (size, peer) = change(case)?;
            Some((size, name(peer)?, ""))
        },
        value: |micros| micros / 1e3,
    },
    Plot {
        file: "change-processor-by-size.svg",
        title: "Processor time of a process for a change, by the size of the service",
        x: "instances",
        y: "ms",
        scenario: "change",
        legend: SeriesLabelPosition::UpperLeft,
        point: |case| {
            let (size, peer) = change(case)?;
            Some((size, peer.strip_suffix(": processor")?, ""))
        },
        value: |micros| micros / 1e3,
    },
    Plot {
        file: "grant-by-contenders.svg",
        title: "Time of a grant of a lock, by the number of contenders",
        x: "contending sessions",
        y: "ms",
        scenario: "contended",
        legend: SeriesLabelPosition::LowerLeft,
        point: |case| {
            let (sessions, rest) = case.split_once(" sessions")?;
            let (busy, peer) = rest.split_once(", beside ")?;
            Some((sessions.parse().ok()?, name(peer)?, busy))
        },
        value: |per_second| 1e3 / per_second,
    },
    Plot {
        file: "latency-by-load.svg",
        title: "99 % of the latencies of a call to three servers, by load",
        x: "concurrent calls",
        y: "ms",
        scenario: "calls",
        legend: SeriesLabelPosition::UpperLeft,
        point: |case| {
            let (callers, rest) = case.split_once(" callers, 0 KiB, beside ")?;
            Some((callers.parse().ok()?, rest.strip_suffix(": 99 %")?, ""))
        },
        value: |micros| micros / 1e3,
    },
];

/// Returns the size of the service, and the name of the library with what follows it.
fn change(case: &str) -> Option<(f64, &str)> {
    let (size, peer) = case.strip_prefix("one instance of ")?.split_once(" changes, beside ")?;
    Some((size.parse().ok()?, peer))
}

/// Returns the name of a library. What follows a colon is another measurement of the same case.
fn name(text: &str) -> Option<&str> {
    (!text.contains(':')).then_some(text)
}

/// Points by the name of a library: the values of all runs by size.
type Lines = BTreeMap<String, Vec<(f64, Vec<f64>)>>;

/// Draws all plots of the measurements in the JSON lines `texts`, one for each run, into `folder`.
///
/// # Errors
///
/// If a line is no JSON, a plot has no data, or a file cannot be written. Without data for each plot, none is written.
pub fn draw(texts: &[String], folder: &Path) -> Result {
    let mut rows = Vec::new();
    for line in texts.iter().flat_map(|text| text.lines()) {
        rows.push(serde_json::from_str(line)?);
    }
    let mut drawn = Vec::new();
    for plot in &PLOTS {
        let lines = lines(plot, &rows);
        if lines.is_empty() {
            return Err(format!("no data for {}", plot.file).into());
        }
        drawn.push((plot.file, svg(plot, &lines)?));
    }
    fs::create_dir_all(folder)?;
    for (file, text) in drawn {
        fs::write(folder.join(file), text)?;
    }
    Ok(())
}

/// Collects the points of a plot.
fn lines(plot: &Plot, rows: &[Value]) -> Lines {
    let mut lines = Lines::new();
    for row in rows.iter().filter(|row| row["scenario"] == plot.scenario) {
        let Some((size, peer, addition)) = row["case"].as_str().and_then(plot.point) else { continue };
        for (name, side) in [(OURS, &row["ours"]), (peer, &row["reference"])] {
            let Some(value) = side["median"].as_f64().map(plot.value) else { continue };
            let line = lines.entry(format!("{name}{addition}")).or_default();
            match line.iter_mut().find(|(known, _)| known.total_cmp(&size).is_eq()) {
                Some((_, values)) => values.push(value),
                None => line.push((size, vec![value])),
            }
        }
    }
    for line in lines.values_mut() {
        line.retain(|(_, values)| is_drawable(median(values)));
        line.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    }
    lines.retain(|_, line| !line.is_empty());
    lines
}

fn median(values: &[f64]) -> f64 {
    Spread::of(values.iter().copied()).median
}

/// Returns `true` if a logarithmic axis has the value: a rate of zero is an infinite time.
fn is_drawable(value: f64) -> bool {
    value.is_finite() && value > 0.0
}

/// Returns the least and the largest value.
fn extent(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, 0.0), |(least, most), value| (least.min(value), most.max(value)))
}

/// Returns the text at a line of an axis, whose value may be inexact.
fn tick(value: f64) -> String {
    ((value * 1e3).round() / 1e3).to_string()
}

fn svg(plot: &Plot, lines: &Lines) -> Result<String> {
    let points = |line: &[(f64, Vec<f64>)]| -> Vec<(f64, f64)> {
        line.iter().map(|(size, values)| (*size, median(values))).collect()
    };
    let all: Vec<(f64, f64)> = lines.values().flat_map(|line| points(line)).collect();
    let (x, y) = (extent(all.iter().map(|point| point.0)), extent(all.iter().map(|point| point.1)));
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(plot.title, ("sans-serif", 20))
            .margin(14)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d((x.0 / 1.2..x.1 * 1.2).log_scale(), (y.0 / 1.5..y.1 * 1.5).log_scale())?;
        let mut mesh = chart.configure_mesh();
        let label = |value: &f64| tick(*value);
        mesh.x_desc(plot.x).x_label_formatter(&label).y_desc(plot.y).y_label_formatter(&label);
        mesh.light_line_style(WHITE).draw()?;
        let (ours, others): (Vec<_>, Vec<_>) = lines.iter().partition(|(name, _)| name.starts_with(OURS));
        for ((name, line), colour) in ours.into_iter().chain(others).zip(COLOURS.iter().cycle()) {
            // Those of this library have the same colours in all plots, and are bolder.
            let style = colour.stroke_width(if name.starts_with(OURS) { 3 } else { 1 });
            let drawn = chart.draw_series(LineSeries::new(points(line), style).point_size(3))?;
            drawn.label(name).legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], style));
        }
        chart
            .configure_series_labels()
            .position(plot.legend.clone())
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.2))
            .draw()?;
        root.present()?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(scenario: &str, case: &str, ours: f64, reference: f64) -> Value {
        json!({ "scenario": scenario, "case": case, "ours": { "median": ours }, "reference": { "median": reference } })
    }

    #[test]
    fn points_are_read_from_their_cases() {
        let read = |plot: &Plot, case| (plot.point)(case);
        let [change, processor, grant, call] = &PLOTS;
        let (latency, time) =
            ("one instance of 10 changes, beside kratos", "one instance of 10 changes, beside kratos: processor");
        let point = Some((10.0, "kratos", ""));
        assert_eq!([read(change, latency), read(change, time)], [point, None]);
        assert_eq!([read(processor, latency), read(processor, time)], [None, point]);
        let busy = "5 sessions, 500 puts/s, beside concurrency";
        assert_eq!(read(grant, busy), Some((5.0, "concurrency", ", 500 puts/s")));
        assert_eq!(read(call, "64 callers, 0 KiB, beside tonic: 99 %"), Some((64.0, "tonic", "")));
        assert_eq!(read(call, "64 callers, 0 KiB, beside tonic: median"), None);
    }

    #[test]
    fn several_runs_are_one_median() {
        let case = "one instance of 100 changes, beside go-kit";
        let rows = [1000.0, 3000.0, 2000.0].map(|micros| row("change", case, micros, 4000.0));
        let lines = lines(&PLOTS[0], &rows);
        assert_eq!(lines[OURS], [(100.0, vec![1.0, 3.0, 2.0])]);
        assert_eq!(lines["go-kit"], [(100.0, vec![4.0; 3])]);
    }

    #[test]
    fn what_no_axis_has_is_left_out() {
        let rates = |rates: [f64; 3]| rates.map(|rate| row("contended", "5 sessions, beside concurrency", rate, 10.0));
        assert!(!lines(&PLOTS[2], &rates([0.0, 0.0, 20.0])).contains_key(OURS), "most have no rate");
        assert_eq!(lines(&PLOTS[2], &rates([0.0, 10.0, 20.0]))[OURS][0].1.len(), 3, "the median has one");
    }

    #[test]
    fn without_all_data_no_file_is_written() {
        let folder = std::env::temp_dir().join(format!("enlist-plots-{}", std::process::id()));
        let text = row("change", "one instance of 100 changes, beside go-kit", 1.0, 4.0).to_string();
        assert!(draw(&[text], &folder).is_err() && !folder.exists());
    }

    #[test]
    fn a_plot_names_its_lines() {
        let rows = [
            row("change", "one instance of 1000 changes, beside go-kit", 1100.0, 9000.0),
            row("change", "one instance of 100 changes, beside go-kit", 1000.0, 4000.0),
        ];
        let drawn = svg(&PLOTS[0], &lines(&PLOTS[0], &rows)).unwrap();
        assert!(drawn.starts_with("<svg") && ["enlist", "go-kit", "instances"].iter().all(|text| drawn.contains(text)));
    }
}
