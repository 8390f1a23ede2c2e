//! The document's picture with measured numbers: of each model's connections, how many were still open
//! after a wave, and how many the next one has to open again.

use plotters::{
    element::Rectangle,
    style::{Color as _, RGBColor, text_anchor::HPos},
};

use super::{Area, FAINT, INK, KEPT, LINE, REOPENED, anchored, failed, page, text};
use crate::seed::{
    SeedError,
    plan::{Contestant, Plan, Shape},
    report::{Report, Run},
};

const WIDTH: i32 = 860;
const MARGIN: i32 = 24;
const HEAD: i32 = 92;
const ROW: i32 = 24;
const BAR: i32 = 15;
const PANEL_HEAD: i32 = 34;
const PANEL_FOOT: i32 = 18;
const BAR_LEFT: i32 = 110;
const BAR_RIGHT: i32 = 640;

/// The pools of all contestants.
pub(crate) fn draw(report: &Report) -> Result<String, SeedError> {
    let runs: Vec<_> = Contestant::ALL
        .into_iter()
        .filter_map(|who| report.run(who, Shape::Waves))
        .collect();
    let models = i32::try_from(report.plan.models).unwrap_or(i32::MAX);
    let panel = PANEL_HEAD + ROW * models + PANEL_FOOT;
    let panels = i32::try_from(runs.len()).unwrap_or_default();
    let height = HEAD + panel * panels + MARGIN / 2;
    let size = (WIDTH.unsigned_abs(), height.unsigned_abs());
    page(size, |area| {
        head(area, &report.plan)?;
        for (n, run) in (0..).zip(&runs) {
            contestant(area, HEAD + panel * n, run, &report.plan)?;
        }
        Ok(())
    })
}

fn head(area: &Area<'_>, plan: &Plan) -> Result<(), SeedError> {
    let title = format!(
        "After waves of {} requests: connections kept, of {} per model",
        plan.size(),
        plan.max_concurrent
    );
    write(
        area,
        &title,
        (MARGIN, 26),
        &Style(18, INK, true, HPos::Left),
    )?;
    let legend = [
        (KEPT, "kept alive", MARGIN),
        (
            REOPENED,
            "closed, and opened again by the next wave",
            MARGIN + 130,
        ),
    ];
    for (color, label, x) in legend {
        bar(area, (x, 48), (x + 14, 62), color)?;
        write(
            area,
            label,
            (x + 21, 56),
            &Style(13, FAINT, false, HPos::Left),
        )?;
    }
    Ok(())
}

fn contestant(area: &Area<'_>, top: i32, run: &Run, plan: &Plan) -> Result<(), SeedError> {
    let kept: u64 = run.kept.iter().sum();
    let coverage = 100.0 * kept as f64 / plan.size() as f64;
    let name = run.contestant.title(plan);
    write(
        area,
        &name,
        (MARGIN, top + 12),
        &Style(15, INK, true, HPos::Left),
    )?;
    let kept_of = format!("{kept} of {} kept, coverage {coverage:.1} %", plan.size());
    write(
        area,
        &kept_of,
        (WIDTH - MARGIN, top + 12),
        &Style(14, INK, false, HPos::Right),
    )?;
    for (n, kept) in run.kept.iter().enumerate() {
        let row = i32::try_from(n).unwrap_or_default();
        model(
            area,
            top + PANEL_HEAD + ROW * row,
            &plan.model(n),
            *kept,
            plan,
        )?;
    }
    let foot = top + PANEL_HEAD + ROW * i32::try_from(run.kept.len()).unwrap_or_default() + 6;
    bar(area, (MARGIN, foot), (WIDTH - MARGIN, foot + 1), LINE)
}

fn model(area: &Area<'_>, top: i32, name: &str, kept: u64, plan: &Plan) -> Result<(), SeedError> {
    let size = plan.max_concurrent as f64;
    let share = (kept as f64 / size).clamp(0.0, 1.0);
    let middle = BAR_LEFT + (share * f64::from(BAR_RIGHT - BAR_LEFT)).round() as i32;
    let centre = top + BAR / 2;
    write(
        area,
        name,
        (MARGIN, centre),
        &Style(13, FAINT, false, HPos::Left),
    )?;
    bar(area, (BAR_LEFT, top), (middle, top + BAR), KEPT)?;
    bar(area, (middle, top), (BAR_RIGHT, top + BAR), REOPENED)?;
    let closed = (plan.max_concurrent as u64).saturating_sub(kept);
    let numbers = match closed {
        0 => format!("{kept} kept"),
        closed => format!("{kept} kept, {closed} closed"),
    };
    write(
        area,
        &numbers,
        (BAR_RIGHT + 14, centre),
        &Style(13, INK, false, HPos::Left),
    )
}

/// Size, colour, weight, side.
struct Style(u32, RGBColor, bool, HPos);

fn write(area: &Area<'_>, words: &str, at: (i32, i32), style: &Style) -> Result<(), SeedError> {
    let Style(size, color, bold, side) = style;
    let style = anchored(&text(*size, *color, *bold), *side);
    area.draw_text(words, &style, at).map_err(failed)
}

fn bar(
    area: &Area<'_>,
    from: (i32, i32),
    to: (i32, i32),
    color: RGBColor,
) -> Result<(), SeedError> {
    if from.0 >= to.0 {
        return Ok(());
    }
    area.draw(&Rectangle::new([from, to], color.filled()))
        .map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::tables::tests::a_report;

    #[test]
    fn every_contestant_and_model_is_in_the_picture() {
        let svg = draw(&a_report()).unwrap();
        for label in [
            "keepalive 100 of 150",
            "Forebay",
            "model-c",
            "33 kept, 17 closed",
            "66.7 %",
        ] {
            assert!(svg.contains(label), "{label}: {svg}");
        }
        assert_eq!(svg.matches("model-b").count(), 4);
        assert!(svg.contains("prefers-color-scheme: dark"));
    }
}
