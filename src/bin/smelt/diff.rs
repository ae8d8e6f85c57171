//! `smelt explain --diff`: in what two descriptions differ on the same checkpoint.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use smelt::plan::{Cost, PlannedBlock, Row, Use};

use crate::explained::Explained;
use crate::show::{bytes, plain, shape, short, table};

/// A block that one of them has, or that both have with differences.
enum Change<'e> {
    Removed(&'e Row),
    Added(&'e Row),
    /// Both rows, and what of them differs: the name, before, after.
    Changed(&'e Row, &'e Row, Vec<(String, String, String)>),
}

/// A stored tensor with what each of them uses it as.
struct Moved<'e> {
    name: &'e str,
    before: String,
    after: String,
}

/// In what two plans differ.
pub struct Difference<'e> {
    before: &'e Explained,
    after: &'e Explained,
    blocks: Vec<Change<'e>>,
    tensors: Vec<Moved<'e>>,
}

impl<'e> Difference<'e> {
    /// Compares them: blocks are the same if their value, name and path are.
    pub fn between(before: &'e Explained, after: &'e Explained) -> Self {
        let blocks = steps(before, after)
            .into_iter()
            .filter_map(|(a, b)| match (a, b) {
                (Some(a), Some(b)) => {
                    let changes = changes(before, a, after, b);
                    (!changes.is_empty()).then_some(Change::Changed(a, b, changes))
                }
                (Some(a), None) => Some(Change::Removed(a)),
                (None, b) => b.map(Change::Added),
            })
            .collect();
        let uses = |explained: &'e Explained| {
            let mut uses: BTreeMap<&str, Vec<String>> = BTreeMap::new();
            for tensor in &explained.tensors {
                let role = match &tensor.role {
                    Use::Declared(_, label, _) => label.clone(),
                    Use::Twin(one) => format!("as {one}"),
                    Use::Ignored => "ignored".into(),
                    Use::Elsewhere => "unused".into(),
                };
                uses.entry(&tensor.name).or_default().push(role);
            }
            uses
        };
        let (mut old, new) = (uses(before), uses(after));
        let moved = new.into_iter().map(|(name, after)| {
            let before = old.remove(name).unwrap_or_default();
            Moved { name, before: before.join(", "), after: after.join(", ") }
        });
        let tensors = moved.filter(|moved| moved.before != moved.after).collect();
        Difference { before, after, blocks, tensors }
    }

    /// For people: nothing but the totals where both are the same.
    pub fn text(&self) -> String {
        let mut text = format!("--- {}\n+++ {}\n", self.before.plan.name, self.after.plan.name);
        if self.blocks.is_empty() && self.tensors.is_empty() {
            text += "\nthe same blocks, with the same settings and tensors\n";
        }
        let mut value = "";
        let mut lines = Vec::new();
        for change in &self.blocks {
            let (explained, row, sign) = match change {
                Change::Removed(row) => (self.before, row, "-"),
                Change::Added(row) => (self.after, row, "+"),
                Change::Changed(_, row, _) => (self.after, row, "~"),
            };
            let block = &explained.plan.blocks[row.block];
            if block.value != value {
                value = &block.value;
                lines.push(vec![format!("\n{value}:")]);
            }
            let times = if row.count() > 1 { format!(" ×{}", row.count()) } else { String::new() };
            lines.push(vec![
                format!("{sign} {}{times}", block.name),
                row.path.clone(),
                match change {
                    Change::Changed(.., changes) => {
                        let told = changes.iter().map(|(name, old, new)| format!("{name} {old} → {new}"));
                        told.collect::<Vec<_>>().join(", ")
                    }
                    _ => settings(block),
                },
            ]);
        }
        text += &table(&lines, &[]);
        if !self.tensors.is_empty() {
            text += "\ntensors:\n";
            let line = |moved: &Moved| {
                vec![format!("~ {}", moved.name), format!("{} → {}", moved.before, moved.after)]
            };
            text += &table(&self.tensors.iter().map(line).collect::<Vec<_>>(), &[]);
        }
        text.push('\n');
        let totals = |explained: &Explained| {
            let Cost { parameters, flops, .. } = explained.total;
            let memory = &explained.memory;
            let peak = bytes(explained.peak);
            [short(parameters), short(flops), bytes(memory.weights), bytes(memory.cache_per_token), peak]
        };
        let names = ["parameters", "flops", "weights", "keys and values per token", "peak memory, about"];
        let (old, new) = (totals(self.before), totals(self.after));
        let line = |i: usize| match old[i] == new[i] {
            true => vec![names[i].to_owned(), old[i].clone()],
            false => vec![names[i].to_owned(), format!("{} → {}", old[i], new[i])],
        };
        text + &table(&(0..names.len()).map(line).collect::<Vec<_>>(), &[])
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let side = |explained: &Explained, row: &Row| {
            let block = &explained.plan.blocks[row.block];
            json!({
                "value": block.value,
                "block": block.name,
                "path": row.path,
                "count": row.count(),
                "output": shape(block.output),
                "line": explained.plan.spec.source.line(&block.at),
            })
        };
        let blocks = self.blocks.iter().map(|change| match change {
            Change::Removed(row) => json!({"change": "removed", "before": side(self.before, row)}),
            Change::Added(row) => json!({"change": "added", "after": side(self.after, row)}),
            Change::Changed(a, b, changes) => {
                let changes =
                    changes.iter().map(|(name, old, new)| json!({"name": name, "before": old, "after": new}));
                json!({
                    "change": "changed",
                    "before": side(self.before, a),
                    "after": side(self.after, b),
                    "settings": changes.collect::<Vec<_>>(),
                })
            }
        });
        let tensors = self
            .tensors
            .iter()
            .map(|moved| json!({"name": moved.name, "before": moved.before, "after": moved.after}));
        let total = |explained: &Explained| {
            json!({
                "architecture": explained.plan.name,
                "parameters": explained.total.parameters,
                "flops": explained.total.flops,
                "weight_bytes": explained.memory.weights,
                "cache_bytes_per_token": explained.memory.cache_per_token,
                "peak_bytes": explained.peak,
            })
        };
        json!({
            "before": total(self.before),
            "after": total(self.after),
            "blocks": blocks.collect::<Vec<_>>(),
            "tensors": tensors.collect::<Vec<_>>(),
        })
    }
}

fn settings(block: &PlannedBlock) -> String {
    let told = block.settings.iter().filter(|(_, value)| plain(value) != json!(false));
    told.map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", ")
}

/// What differs of two rows that are the same block.
fn changes(before: &Explained, a: &Row, after: &Explained, b: &Row) -> Vec<(String, String, String)> {
    let (x, y) = (&before.plan.blocks[a.block], &after.plan.blocks[b.block]);
    let layers =
        |row: &Row| if row.layers.is_empty() { "-".into() } else { smelt::plan::ranges(&row.layers) };
    let mut found = vec![
        ("layers".to_owned(), layers(a), layers(b)),
        ("output".to_owned(), shape(x.output), shape(y.output)),
    ];
    let value = |block: &PlannedBlock, name: &str| {
        let setting = block.settings.iter().find(|(other, _)| other == name);
        setting.map_or("none".to_owned(), |(_, value)| value.to_string())
    };
    let mut names: Vec<&String> = x.settings.iter().chain(&y.settings).map(|(name, _)| name).collect();
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(*name));
    found.extend(names.into_iter().map(|name| (name.clone(), value(x, name), value(y, name))));
    let around = |block: &PlannedBlock| {
        let kinds = block.within.iter().map(|within| within.kind).filter(|kind| *kind != "repeat");
        kinds.collect::<Vec<_>>().join(" > ")
    };
    found.push(("inside of".to_owned(), around(x), around(y)));
    found.retain(|(_, old, new)| old != new);
    for (_, old, new) in &mut found {
        [old, new].into_iter().filter(|text| text.is_empty()).for_each(|text| *text = "nothing".into());
    }
    found
}

/// The rows of both in one order: the longest sequence that they share, and between them what only one has.
fn steps<'e>(before: &'e Explained, after: &'e Explained) -> Vec<(Option<&'e Row>, Option<&'e Row>)> {
    let key = |explained: &'e Explained, row: &'e Row| {
        let block = &explained.plan.blocks[row.block];
        (block.value.as_str(), block.name, pattern(&row.path))
    };
    let old: Vec<_> = before.rows.iter().map(|row| key(before, row)).collect();
    let new: Vec<_> = after.rows.iter().map(|row| key(after, row)).collect();
    // How many rows the rests behind `i` and `j` share.
    let mut shared = vec![vec![0u32; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            shared[i][j] = match old[i] == new[j] {
                true => shared[i + 1][j + 1] + 1,
                false => shared[i + 1][j].max(shared[i][j + 1]),
            };
        }
    }
    let (mut i, mut j, mut found) = (0, 0, Vec::new());
    while i < old.len() || j < new.len() {
        let (a, b) = (before.rows.get(i), after.rows.get(j));
        if i < old.len() && j < new.len() && old[i] == new[j] {
            found.push((a, b));
            (i, j) = (i + 1, j + 1);
        } else if j == new.len() || (i < old.len() && shared[i + 1][j] >= shared[i][j + 1]) {
            found.push((a, None));
            i += 1;
        } else {
            found.push((None, b));
            j += 1;
        }
    }
    found
}

/// A path without the numbers of layers.
fn pattern(path: &str) -> String {
    let is_layer = |part: &str| part.chars().all(|c| c.is_ascii_digit() || c == '-' || c == ',');
    path.split('.').map(|part| if is_layer(part) { "*" } else { part }).collect::<Vec<_>>().join(".")
}
