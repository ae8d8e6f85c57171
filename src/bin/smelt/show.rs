//! How shapes, counts and tables are shown.

use serde_json::{Value, json};

use smelt::nn::{Rows, Shape, Stream};
use smelt::plan;
use smelt::spec::Tree;

/// `N × 768`: rows and columns of a value.
pub fn shape(shape: Shape) -> String {
    match shape {
        Shape::Matrix { rows, cols } => {
            let rows = match rows {
                Rows::Tokens(Stream::Decoder) => "M".to_owned(),
                Rows::Tokens(_) => "N".to_owned(),
                rows => rows.usual().map_or_else(String::new, |n| n.to_string()),
            };
            format!("{rows} × {cols}")
        }
        Shape::Bias { heads, .. } => format!("bias of {heads} heads"),
        Shape::Pairs { .. } => "1 × 1".to_owned(),
    }
}

/// `1 run`, `2 runs`.
pub fn count(n: usize, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

/// A count for people: `85.1 M`.
pub fn short(n: u64) -> String {
    let x = n as f64;
    match n {
        0 => "-".to_owned(),
        n if n >= 1_000_000_000 => format!("{:.2} G", x / 1e9),
        n if n >= 1_000_000 => format!("{:.1} M", x / 1e6),
        n if n >= 10_000 => format!("{:.1} k", x / 1e3),
        n => n.to_string(),
    }
}

/// A number of bytes for people.
pub fn bytes(n: u64) -> String {
    if n == 0 { "-".to_owned() } else { plan::shown(n) }
}

/// Lines with their columns aligned, those of `right` to the right.
pub fn table(lines: &[Vec<String>], right: &[usize]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |i: usize| {
        // A line of one column is a heading.
        let cells = lines.iter().filter(|line| line.len() > 1).filter_map(|line| line.get(i));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let cells = line.iter().enumerate().map(|(i, cell)| {
            let width = widths[i];
            if right.contains(&i) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// A setting as JSON.
pub fn plain(tree: &Tree) -> Value {
    match tree {
        Tree::Bool(x) => json!(x),
        Tree::Int(x) => json!(x),
        Tree::Float(x) => json!(x),
        other => json!(other.to_string()),
    }
}
