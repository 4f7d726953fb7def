//! What a run ends with: tables in Markdown, a CSV file and a chart.

pub mod chart;
pub mod csv;
pub mod goals;
pub mod ratios;
pub mod tables;

use std::fmt::Write;

use crate::facts::Facts;
use crate::results::Results;
use crate::servers::{Fleet, Server};

/// All tables, what they were measured with, and what a reader has to know of them.
pub fn text(fleet: &Fleet, results: &Results, facts: Option<&Facts>) -> String {
    let mut text = format!("Medians:\n\n{}\n", tables::figures(results));
    if fleet.has(Server::Tinyloop) {
        let _ = writeln!(
            text,
            "tinyloop's figures over the other server's, medians of the ratios in the same turns with their quartiles. \
             **Bold**: tinyloop is worse. –: not measured.\n\n{}",
            ratios::table(results)
        );
        let _ = writeln!(text, "Goals:\n\n{}", goals::table(results, facts));
    }
    if !fleet.versions.is_empty() {
        let _ = writeln!(text, "- with {}", fleet.versions.join(", "));
    }
    for note in &fleet.notes {
        let _ = writeln!(text, "- {note}");
    }
    for failure in &results.failures {
        let _ = writeln!(text, "- failed: {failure}");
    }
    text
}

/// A figure with about three digits that mean something.
fn short(figure: f64) -> String {
    let digits = match figure.abs() {
        size if size.fract() == 0.0 => 0,
        size if size < 10.0 => 2,
        size if size < 100.0 => 1,
        _ => 0,
    };
    grouped(&format!("{figure:.digits$}"))
}

/// A decimal number with a comma between thousands.
fn grouped(number: &str) -> String {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let (sign, digits) = match whole.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", whole),
    };
    let mut text = String::from(sign);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if !fraction.is_empty() {
        text.push('.');
        text.push_str(fraction);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        assert_eq!(short(0.0), "0");
        assert_eq!(short(4.0), "4");
        assert_eq!(short(2.046), "2.05");
        assert_eq!(short(47.25), "47.2");
        assert_eq!(short(999.6), "1,000");
        assert_eq!(short(1_234_567.0), "1,234,567");
        assert_eq!(short(-123.0), "-123");
    }
}
