//! The pictures of a report as SVG: the layout of the pools, and the distribution of latencies. They say
//! what the report says and measure nothing.
//!
//! Colours are drawn for a light page; a style sheet in each picture exchanges them where the reader
//! prefers a dark one.

mod latency;
mod pools;

use plotters::{
    backend::SVGBackend,
    coord::Shift,
    drawing::{DrawingArea, IntoDrawingArea as _},
    style::{
        Color as _, FontFamily, FontStyle, RGBColor, TextStyle,
        text_anchor::{HPos, Pos, VPos},
    },
};

pub(crate) use self::{
    latency::{draw as latency, file as latency_file},
    pools::draw as pools,
};
use super::SeedError;

const PAPER: RGBColor = RGBColor(0xff, 0xff, 0xff);
const INK: RGBColor = RGBColor(0x1f, 0x29, 0x33);
const FAINT: RGBColor = RGBColor(0x5f, 0x6b, 0x7a);
const LINE: RGBColor = RGBColor(0xd5, 0xdb, 0xe3);
const KEPT: RGBColor = RGBColor(0x1f, 0x77, 0x8d);
const REOPENED: RGBColor = RGBColor(0xd9, 0x6b, 0x27);

/// Each colour for light pages and its counterpart for dark ones.
const DARK: [(RGBColor, &str); 6] = [
    (PAPER, "#14181d"),
    (INK, "#e6eaef"),
    (FAINT, "#a3afbd"),
    (LINE, "#39424d"),
    (KEPT, "#4fb3cb"),
    (REOPENED, "#f0924f"),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws on a page of this size and makes it fit for dark pages.
fn page(
    size: (u32, u32),
    draw: impl FnOnce(&Area<'_>) -> Result<(), SeedError>,
) -> Result<String, SeedError> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&PAPER).map_err(failed)?;
        draw(&area)?;
        area.present().map_err(failed)?;
    }
    Ok(with_style(&svg))
}

/// Puts the style sheet behind the opening tag.
fn with_style(svg: &str) -> String {
    let rules = DARK.map(|(light, dark)| {
        let RGBColor(red, green, blue) = light;
        let light = format!("#{red:02X}{green:02X}{blue:02X}");
        format!("[fill=\"{light}\"]{{fill:{dark}}}[stroke=\"{light}\"]{{stroke:{dark}}}")
    });
    let style = format!(
        "<style>@media (prefers-color-scheme: dark){{{}}}</style>",
        rules.concat()
    );
    match svg.find('>') {
        Some(end) => {
            let (tag, rest) = svg.split_at(end + 1);
            format!("{tag}\n{style}{rest}\n")
        }
        None => svg.to_owned(),
    }
}

fn failed(error: impl std::fmt::Display) -> SeedError {
    SeedError::Draw(error.to_string())
}

fn text(size: u32, color: RGBColor, bold: bool) -> TextStyle<'static> {
    let style = if bold {
        FontStyle::Bold
    } else {
        FontStyle::Normal
    };
    let mut style = TextStyle::from((FontFamily::SansSerif, size, style));
    style.color = color.to_backend_color();
    style
}

fn anchored(style: &TextStyle<'static>, horizontal: HPos) -> TextStyle<'static> {
    style.pos(Pos::new(horizontal, VPos::Center))
}
