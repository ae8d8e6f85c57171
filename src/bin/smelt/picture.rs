//! The blocks of a plan as a picture: sequences from top to bottom, branches side by side, values in columns.

use std::fmt::Write as _;

use smelt::plan::{Plan, PlannedBlock, Row, ranges};
use smelt::spec::Tree;

use crate::show::shape;

/// Pixels of a character of the monospaced font, and of a line of text.
const CHAR: f64 = 6.7;
const LINE: f64 = 15.0;
/// Pixels around the text of a block, and between blocks, branches and values.
const PAD: f64 = 8.0;
const GAP: f64 = 18.0;
const SIDE: f64 = 24.0;
const COLUMN: f64 = 48.0;
/// Radius of the circle in which branches meet.
const CIRCLE: f64 = 9.0;

/// A block, or a combinator with what is in it.
enum Part {
    Block {
        lines: Vec<String>,
        is_source: bool,
    },
    Residual(Vec<Part>),
    /// Branches that are added or multiplied.
    Join {
        sign: &'static str,
        branches: Vec<Vec<Part>>,
    },
    Frame {
        label: String,
        body: Vec<Part>,
    },
}

/// An SVG of a plan whose blocks are told by `rows`.
pub fn svg(plan: &Plan, rows: &[Row]) -> String {
    let values = rows.chunk_by(|a, b| plan.blocks[a.block].value == plan.blocks[b.block].value);
    let columns = values.map(|rows| {
        let name = plan.blocks[rows[0].block].value.as_str();
        let body = parts(plan, rows, 0);
        let output = plan.outputs.iter().find(|(_, id)| plan.values[id.0].name == name);
        (name, body, output.map(|(output, _)| output.as_str()))
    });
    let mut drawing = Drawing::default();
    let mut left = COLUMN / 2.0;
    let mut height: f64 = 0.0;
    for (name, body, output) in columns {
        let size = sequence_size(&body);
        let title = text_width(name).max(output.map_or(0.0, text_width));
        let width = size.width.max(title);
        let (x, top) = (left + width / 2.0, 40.0);
        drawing.text(x, 24.0, "title", name);
        let bottom = drawing.sequence(&body, x, top);
        drawing.line(x, bottom, x, bottom + GAP);
        drawing.text(x, bottom + GAP + LINE, "title", output.unwrap_or(name));
        height = height.max(bottom + GAP + 2.0 * LINE);
        left += width + COLUMN;
    }
    let width = left - COLUMN / 2.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {width:.0} {height:.0}\">\n<title>{}</title>\n<style>{STYLE}</style>\n\
         <rect width=\"100%\" height=\"100%\" class=\"paper\"/>\n{}</svg>\n",
        escaped(&plan.name),
        drawing.0,
    )
}

const STYLE: &str = "text{font:11px ui-monospace,monospace;text-anchor:middle;fill:#222}\
    .title{font-weight:bold;font-size:13px}.name{font-weight:bold}.label{text-anchor:end;fill:#666}\
    rect{fill:#eef4fb;stroke:#5b7da8}.paper{fill:#fff;stroke:none}.frame{fill:none;stroke:#aaa;stroke-dasharray:5 3}\
    path,circle{fill:none;stroke:#555}circle{fill:#fff}";

/// Rows with the same combinators around them up to `depth`, by the combinators at `depth`.
fn parts(plan: &Plan, rows: &[Row], depth: usize) -> Vec<Part> {
    let around = |row: &Row| plan.blocks[row.block].within.get(depth).map(|within| (within.kind, within.id));
    let mut found = Vec::new();
    for group in rows.chunk_by(|a, b| around(a).is_some() && around(a) == around(b)) {
        match around(&group[0]) {
            None => found.push(block(&plan.blocks[group[0].block], &group[0])),
            Some(("residual", _)) => found.push(Part::Residual(parts(plan, group, depth + 1))),
            Some(("repeat", _)) => {
                // Layers that are made of other things have a frame of their own.
                for kind in group.chunk_by(|a, b| a.layers == b.layers) {
                    let label = match &kind[0].layers[..] {
                        [] => String::new(),
                        [one] => format!("layer {one}"),
                        many => format!("layers {} (×{})", ranges(many), many.len()),
                    };
                    found.push(Part::Frame { label, body: parts(plan, kind, depth + 1) });
                }
            }
            Some((kind, _)) => {
                let branch = |row: &Row| plan.blocks[row.block].within[depth].branch;
                let branches = group.chunk_by(|a, b| branch(a) == branch(b));
                let branches = branches.map(|rows| parts(plan, rows, depth + 1)).collect();
                found.push(Part::Join { sign: if kind == "product" { "×" } else { "+" }, branches });
            }
        }
    }
    found
}

fn block(block: &PlannedBlock, row: &Row) -> Part {
    let mut lines = vec![block.name.to_owned()];
    lines.extend(Some(row.path.clone()).filter(|path| !path.is_empty()));
    lines.push(shape(block.output));
    let words = [
        "of", "heads", "kv_heads", "head_dim", "causal", "window", "inner", "act", "experts", "chosen",
        "factor",
    ];
    let told = block.settings.iter().filter(|(name, _)| words.contains(&name.as_str()));
    let told = told.filter_map(|(name, value)| match value {
        Tree::Bool(given) => given.then(|| name.clone()),
        Tree::Int(1) if name == "factor" => None,
        value => Some(format!("{name} {value}")),
    });
    let told: Vec<String> = told.collect();
    lines.extend(Some(told.join(", ")).filter(|told| !told.is_empty()));
    lines.extend(block.reads.as_ref().map(|(value, _)| format!("reads {value}")));
    Part::Block { lines, is_source: block.input.is_none() }
}

#[derive(Clone, Copy)]
struct Size {
    width: f64,
    height: f64,
}

fn text_width(text: &str) -> f64 {
    text.chars().count() as f64 * CHAR
}

fn size(part: &Part) -> Size {
    match part {
        Part::Block { lines, .. } => Size {
            width: lines.iter().map(|line| text_width(line)).fold(0.0, f64::max) + 2.0 * PAD,
            height: lines.len() as f64 * LINE + PAD,
        },
        Part::Residual(body) => {
            let size = sequence_size(body);
            Size { width: size.width + 2.0 * SIDE, height: size.height + 2.0 * GAP + 2.0 * CIRCLE }
        }
        Part::Join { branches, .. } => {
            let sizes: Vec<Size> = branches.iter().map(|branch| sequence_size(branch)).collect();
            let width: f64 = sizes.iter().map(|size| size.width).sum();
            let height = sizes.iter().map(|size| size.height).fold(0.0, f64::max);
            Size {
                width: width + SIDE * sizes.len().saturating_sub(1) as f64,
                height: fork(branches) + height + 1.5 * GAP + 2.0 * CIRCLE,
            }
        }
        Part::Frame { label, body } => {
            let size = sequence_size(body);
            Size {
                width: size.width.max(text_width(label)) + 2.0 * SIDE,
                height: size.height + 2.0 * GAP + LINE,
            }
        }
    }
}

fn sequence_size(parts: &[Part]) -> Size {
    let sizes: Vec<Size> = parts.iter().map(size).collect();
    Size {
        width: sizes.iter().map(|size| size.width).fold(0.0, f64::max),
        height: sizes.iter().map(|size| size.height).sum::<f64>()
            + GAP * sizes.len().saturating_sub(1) as f64,
    }
}

/// Pixels above branches, for the lines that lead into them.
fn fork(branches: &[Vec<Part>]) -> f64 {
    if branches.iter().all(|branch| begins(branch)) { 0.0 } else { 2.0 * GAP }
}

/// Whether parts begin without an input.
fn begins(parts: &[Part]) -> bool {
    match parts.first() {
        Some(Part::Block { is_source, .. }) => *is_source,
        Some(Part::Residual(body) | Part::Frame { body, .. }) => begins(body),
        Some(Part::Join { branches, .. }) => branches.iter().all(|branch| begins(branch)),
        None => false,
    }
}

/// The elements of an SVG.
#[derive(Default)]
struct Drawing(String);

impl Drawing {
    fn text(&mut self, x: f64, y: f64, class: &str, text: &str) {
        let _ =
            writeln!(self.0, "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\">{}</text>", escaped(text));
    }

    fn line(&mut self, x: f64, y: f64, to_x: f64, to_y: f64) {
        let _ = writeln!(self.0, "<path d=\"M{x:.1} {y:.1}L{to_x:.1} {to_y:.1}\"/>");
    }

    /// Draws parts below each other around the axis `x`, from `y` on; returns where they end.
    fn sequence(&mut self, parts: &[Part], x: f64, y: f64) -> f64 {
        let mut y = y;
        for (i, part) in parts.iter().enumerate() {
            if i > 0 {
                // What begins by itself takes nothing from above.
                if !begins(&parts[i..=i]) {
                    self.line(x, y, x, y + GAP);
                }
                y += GAP;
            }
            y = self.part(part, x, y);
        }
        y
    }

    fn part(&mut self, part: &Part, x: f64, y: f64) -> f64 {
        let Size { width, height } = size(part);
        let bottom = y + height;
        match part {
            Part::Block { lines, .. } => {
                self.rectangle(x - width / 2.0, y, width, height, "block");
                for (i, line) in lines.iter().enumerate() {
                    let class = if i == 0 { "name" } else { "detail" };
                    self.text(x, y + (i as f64 + 0.9) * LINE, class, line);
                }
            }
            Part::Residual(body) => {
                let side = x - width / 2.0 + SIDE / 3.0;
                let end = self.sequence(body, x, y + GAP);
                self.line(x, y, x, y + GAP);
                self.line(x, end, x, end + GAP);
                self.circle(x, bottom - CIRCLE, "+");
                let (from, to) = (y + GAP / 2.0, bottom - CIRCLE);
                let path = format!("M{x:.1} {from:.1}H{side:.1}V{to:.1}H{:.1}", x - CIRCLE);
                let _ = writeln!(self.0, "<path d=\"{path}\"/>");
            }
            Part::Join { sign, branches } => {
                let (top, base) = (y + fork(branches), bottom - 2.0 * CIRCLE - GAP);
                let mut left = x - width / 2.0;
                for branch in branches {
                    let size = sequence_size(branch);
                    let axis = left + size.width / 2.0;
                    if !begins(branch) {
                        let path = format!("M{x:.1} {y:.1}V{:.1}H{axis:.1}V{top:.1}", y + GAP);
                        let _ = writeln!(self.0, "<path d=\"{path}\"/>");
                    }
                    let end = self.sequence(branch, axis, top);
                    let path = format!("M{axis:.1} {end:.1}V{base:.1}H{x:.1}");
                    let _ = writeln!(self.0, "<path d=\"{path}\"/>");
                    left += size.width + SIDE;
                }
                self.line(x, base, x, base + GAP);
                self.circle(x, bottom - CIRCLE, sign);
            }
            Part::Frame { label, body } => {
                self.rectangle(x - width / 2.0, y, width, height, "frame");
                self.text(x + width / 2.0 - PAD, y + LINE, "label", label);
                let start = y + LINE + GAP;
                if !begins(body) {
                    self.line(x, y, x, start);
                }
                let end = self.sequence(body, x, start);
                self.line(x, end, x, bottom);
            }
        }
        bottom
    }

    fn rectangle(&mut self, x: f64, y: f64, width: f64, height: f64, class: &str) {
        let _ = writeln!(
            self.0,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"4\" class=\"{class}\"/>"
        );
    }

    fn circle(&mut self, x: f64, y: f64, sign: &str) {
        let _ = writeln!(self.0, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{CIRCLE}\"/>");
        self.text(x, y + 4.0, "sign", sign);
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
