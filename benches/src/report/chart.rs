//! The chart: messages per second over connections.
//!
//! It has no background, and colours of a middle tone, so that it can be read on white and on
//! near-black.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::short;
use crate::cases::{Metric, SMALL_ROUND_TRIPS, small};
use crate::results::Results;
use crate::servers::Server;

const SIZE: (u32, u32) = (900, 480);
const TEXT_COLOUR: RGBColor = RGBColor(0x76, 0x7c, 0x85);
/// Room for the names behind the lines' ends.
const NAMES_WIDTH: u32 = 150;
/// The least distance between two names.
const NAME_HEIGHT: i32 = 17;

/// A server's figures.
struct Line {
    server: Server,
    points: Vec<(f64, f64)>,
}

/// Draws the chart. Returns false, and draws nothing, where no server has at least two points.
pub fn draw(results: &Results, path: &Path) -> Result<bool> {
    let lines = lines(results);
    if lines.is_empty() {
        return Ok(false);
    }
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    // plotters' errors borrow from the backend.
    draw_lines(&root, &lines).map_err(|error| anyhow!("cannot draw the chart: {error}"))?;
    root.present()?;
    Ok(true)
}

fn lines(results: &Results) -> Vec<Line> {
    let mut lines = Vec::new();
    for &server in &results.servers {
        let points: Vec<(f64, f64)> = SMALL_ROUND_TRIPS
            .into_iter()
            .filter_map(|connections| {
                let summary =
                    results.summary(small(connections), server, Metric::MessagesPerSecond)?;
                Some((connections as f64, summary.median))
            })
            .collect();
        if points.len() > 1 {
            lines.push(Line { server, points });
        }
    }
    lines
}

fn draw_lines<B: DrawingBackend>(
    root: &DrawingArea<B, Shift>,
    lines: &[Line],
) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
    let all = || lines.iter().flat_map(|line| &line.points);
    let most = all().map(|&(_, rate)| rate).fold(1.0, f64::max);
    let widest = all()
        .map(|&(connections, _)| connections)
        .fold(10.0, f64::max);

    let ticks = SMALL_ROUND_TRIPS
        .map(|connections| connections as f64)
        .into_iter()
        .filter(|&connections| connections <= widest)
        .collect();

    let mut chart = ChartBuilder::on(root)
        .margin(12)
        .margin_right(NAMES_WIDTH)
        .caption(
            "64 B round trips: messages per second over connections",
            ("sans-serif", 20).into_font().color(&TEXT_COLOUR),
        )
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(
            (1.0..widest).log_scale().with_key_points(ticks),
            0.0..most * 1.05,
        )?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(TEXT_COLOUR.mix(0.3))
        .axis_style(TEXT_COLOUR.mix(0.6))
        .label_style(("sans-serif", 16).into_font().color(&TEXT_COLOUR))
        .x_desc("connections (each with one message outstanding)")
        .x_label_formatter(&|connections| short(*connections))
        .y_label_formatter(&|rate| short(*rate))
        .draw()?;

    let mut names = Vec::new();
    for line in lines {
        let colour = colour(line.server);
        let width = if line.server == Server::Tinyloop {
            3
        } else {
            2
        };
        chart.draw_series(LineSeries::new(
            line.points.iter().copied(),
            colour.stroke_width(width),
        ))?;
        chart.draw_series(
            line.points
                .iter()
                .map(|&point| Circle::new(point, width, colour.filled())),
        )?;
        if let Some(end) = line.points.last() {
            names.push((chart.backend_coord(end), line.server));
        }
    }

    let heights: Vec<i32> = names.iter().map(|((_, height), _)| *height).collect();
    for (((x, _), server), y) in names.iter().zip(spread_out(&heights)) {
        let style = ("sans-serif", 17)
            .into_font()
            .color(&colour(*server))
            .pos(Pos::new(HPos::Left, VPos::Center));
        root.draw(&Text::new(server.name(), (x + 10, y), style))?;
    }
    Ok(())
}

/// Moves heights apart where they are too close for a name each, and keeps their order.
fn spread_out(heights: &[i32]) -> Vec<i32> {
    let mut order: Vec<usize> = (0..heights.len()).collect();
    order.sort_by_key(|&index| heights[index]);
    let mut moved = heights.to_vec();
    // A little at a time, half of it up and half of it down, so that a group stays where it was.
    for _ in 0..1000 {
        let mut settled = true;
        for pair in order.windows(2) {
            let overlap = NAME_HEIGHT - (moved[pair[1]] - moved[pair[0]]);
            if overlap > 0 {
                moved[pair[0]] -= (overlap + 1) / 2;
                moved[pair[1]] += (overlap + 1) / 2;
                settled = false;
            }
        }
        if settled {
            break;
        }
    }
    moved
}

/// Colours whose contrast is at least 3 : 1 both on white and on near-black.
fn colour(server: Server) -> RGBColor {
    match server {
        Server::Tinyloop => RGBColor(0xd9, 0x48, 0x0f),
        Server::Threaded => RGBColor(0xb8, 0x86, 0x0b),
        Server::Sequential => RGBColor(0x8d, 0x6e, 0x63),
        Server::Tokio => RGBColor(0x1f, 0x7a, 0xe0),
        Server::Epoll => RGBColor(0x7d, 0x85, 0x90),
        Server::Smol => RGBColor(0x2f, 0x9e, 0x44),
        Server::Asyncio => RGBColor(0x9c, 0x5c, 0xd6),
        Server::Uvloop => RGBColor(0xd6, 0x40, 0x9f),
        Server::Go => RGBColor(0x10, 0x98, 0xad),
        // They have no line: their cases are others.
        Server::OneWorker | Server::TwoWorkers | Server::FourWorkers | Server::TwoThreads => {
            TEXT_COLOUR
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_overlap() {
        let moved = spread_out(&[100, 102, 101, 300]);
        assert_eq!(moved[3], 300);
        assert!(moved[2] - moved[0] >= NAME_HEIGHT);
        assert!(moved[1] - moved[2] >= NAME_HEIGHT);
    }

    #[test]
    fn colours_have_contrast_on_white_and_on_black() {
        for server in Server::ALL {
            let RGBColor(red, green, blue) = colour(server);
            let linear = |part: u8| (f64::from(part) / 255.0).powf(2.2);
            let luminance = 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue);
            assert!(1.05 / (luminance + 0.05) >= 3.0, "{server} on white");
            assert!((luminance + 0.05) / 0.056 >= 3.0, "{server} on black");
        }
    }
}
