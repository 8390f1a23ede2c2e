//! Latencies as histograms: one peak or two, one panel per contestant, all on the same axes.

use plotters::{
    chart::ChartBuilder,
    element::Rectangle,
    style::{Color as _, text_anchor::HPos},
};

use super::{Area, FAINT, INK, KEPT, LINE, PAPER, REOPENED, anchored, failed, page, text};
use crate::seed::{
    SeedError,
    plan::{Contestant, Shape},
    report::{Report, Run},
};

const SIZE: (u32, u32) = (860, 560);
const HEAD: u32 = 78;
/// Below this share of requests, in percent, the tail is cut off.
const CUT: f64 = 0.1;
const PERCENT: f64 = 100.0;

/// The name of the file.
pub(crate) fn file(shape: Shape) -> String {
    format!("latency-{}.svg", shape.name())
}

/// The latencies of all contestants under one shape of load.
pub(crate) fn draw(report: &Report, shape: Shape) -> Result<String, SeedError> {
    let runs: Vec<_> = Contestant::ALL
        .into_iter()
        .filter_map(|who| report.run(who, shape))
        .collect();
    let axes = Axes::over(&runs);
    page(SIZE, |area| {
        let (head, rest) = area.split_vertically(HEAD);
        let title = format!("Latencies: {}", shape.title());
        let style = anchored(&text(18, INK, true), HPos::Left);
        head.draw_text(&title, &style, (24, 26)).map_err(failed)?;
        legend(&head, report)?;
        for (panel, run) in rest.split_evenly((2, 2)).iter().zip(&runs) {
            histogram(panel, report, run, &axes)?;
        }
        Ok(())
    })
}

/// The same for all panels.
struct Axes {
    from: f64,
    to: f64,
    share: f64,
}

impl Axes {
    fn over(runs: &[&Run]) -> Self {
        let mut axes = Self {
            from: f64::MAX,
            to: 0.0,
            share: 0.0,
        };
        for run in runs {
            let width = run.bins.width;
            for (from, share) in run
                .bins
                .shares()
                .into_iter()
                .filter(|(_, share)| *share >= CUT)
            {
                axes.from = axes.from.min(from - 2.0 * width);
                axes.to = axes.to.max(from + 3.0 * width);
                axes.share = axes.share.max(share);
            }
        }
        match axes.from < axes.to {
            true => Self {
                from: axes.from.max(0.0),
                share: (axes.share * 1.1).min(PERCENT),
                ..axes
            },
            // Nothing was answered: empty axes.
            false => Self {
                from: 0.0,
                to: 1.0,
                share: PERCENT,
            },
        }
    }
}

fn legend(area: &Area<'_>, report: &Report) -> Result<(), SeedError> {
    let (handshake, service) = (report.plan.handshake, report.plan.service_time);
    let fast =
        format!("less than half a handshake ({handshake:?}) above the service time ({service:?})");
    let labels = [
        (KEPT, fast.as_str(), 24),
        (REOPENED, "more: a handshake, or a wait", 500),
    ];
    for (color, label, x) in labels {
        let square = Rectangle::new([(x, 48), (x + 14, 62)], color.filled());
        area.draw(&square).map_err(failed)?;
        let style = anchored(&text(13, FAINT, false), HPos::Left);
        area.draw_text(label, &style, (x + 21, 56))
            .map_err(failed)?;
    }
    Ok(())
}

fn histogram(area: &Area<'_>, report: &Report, run: &Run, axes: &Axes) -> Result<(), SeedError> {
    let handshake = report.plan.handshake.as_secs_f64() * 1_000.0;
    let numbers = format!(
        "p50 {:.0}, p95 {:.0}, p99 {:.0} ms",
        run.latency.p50, run.latency.p95, run.latency.p99
    );
    let title = anchored(&text(14, INK, true), HPos::Left);
    let note = anchored(&text(13, FAINT, false), HPos::Left);
    area.draw_text(&run.contestant.title(&report.plan), &title, (72, 12))
        .map_err(failed)?;
    area.draw_text(&numbers, &note, (72, 30)).map_err(failed)?;
    let mut chart = ChartBuilder::on(area)
        .margin_top(44)
        .margin_left(10)
        .margin_right(22)
        .margin_bottom(8)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(axes.from..axes.to, 0.0..axes.share)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .max_light_lines(1)
        .bold_line_style(LINE)
        .light_line_style(PAPER)
        .axis_style(FAINT)
        .label_style(text(12, FAINT, false))
        .axis_desc_style(text(12, FAINT, false))
        .x_labels(6)
        .y_labels(5)
        .x_label_formatter(&|millis| format!("{millis:.0}"))
        .y_label_formatter(&|share| format!("{share:.0} %"))
        .x_desc("latency in ms")
        .y_desc("requests")
        .draw()
        .map_err(failed)?;
    let service = report.plan.service_time.as_secs_f64() * 1_000.0;
    let slow_from = service + handshake / 2.0;
    let width = run.bins.width;
    let bars = run
        .bins
        .shares()
        .into_iter()
        .filter(|(from, share)| *share > 0.0 && *from >= axes.from && from + width <= axes.to);
    let bars = bars.map(|(from, share)| {
        let slow = handshake > 0.0 && from + width / 2.0 >= slow_from;
        let color = if slow { REOPENED } else { KEPT };
        Rectangle::new([(from, 0.0), (from + width, share)], color.filled())
    });
    chart.draw_series(bars).map_err(failed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::{picture::REOPENED, tables::tests::a_report};

    #[test]
    fn two_peaks_have_two_colours_and_one_has_one() {
        let report = a_report();
        let slow = format!("#{:02X}{:02X}{:02X}", REOPENED.0, REOPENED.1, REOPENED.2);
        // The style sheet names it twice, the legend once; then one bar per panel with a second peak.
        let count = |shape| draw(&report, shape).unwrap().matches(&slow).count();
        assert_eq!(count(Shape::Waves), 3 + 2);
        assert_eq!(count(Shape::Closed), 3 + 1);
        let svg = draw(&report, Shape::Waves).unwrap();
        for label in ["latency in ms", "p50 202, p95 317, p99 317 ms", "Forebay"] {
            assert!(svg.contains(label), "{label}: {svg}");
        }
    }

    #[test]
    fn without_runs_the_picture_is_empty_but_sound() {
        assert!(
            draw(&a_report(), Shape::Poisson)
                .unwrap()
                .contains("</svg>")
        );
    }
}
