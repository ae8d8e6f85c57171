//! What each block of a plan costs, and which tensor is whose: `smelt explain` without the printing.

use std::collections::{BTreeSet, HashMap};

use super::memory::linear_bytes;
use super::{Memory, Plan, PlannedBlock};
use crate::backend::{Backend, Layout, PACKED_AT_ONCE, PAGE_KEYS, Reach, WeightType};
use crate::nn::disentangled_attention::rows_read;
use crate::nn::{LinearId, PartUse, Rows, Shape, Stream};
use crate::tensor::DType;
use crate::weights::Index;

/// How many tokens a pass computes, and how many each sequence has had before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Tokens of each stream.
    pub new: u64,
    /// Tokens whose keys and values are there already.
    pub past: u64,
}

/// What a block needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Elements of the tensors that it is the first to use.
    pub parameters: u64,
    /// Multiplications and additions of linear maps, of attention and of state spaces.
    pub flops: u64,
    /// Bytes of its weights, as they are kept; embedding tables as they are stored.
    pub weight_bytes: u64,
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Cost) {
        self.parameters = self.parameters.saturating_add(other.parameters);
        self.flops = self.flops.saturating_add(other.flops);
        self.weight_bytes = self.weight_bytes.saturating_add(other.weight_bytes);
    }
}

/// The cost of each of a plan's blocks on a backend that keeps weights as `asked`, or as they are stored.
pub fn costs(
    plan: &Plan,
    index: &Index,
    backend: &dyn Backend,
    asked: Option<WeightType>,
    tokens: Tokens,
) -> Vec<Cost> {
    let mut seen = BTreeSet::new();
    plan.blocks
        .iter()
        .map(|block| Cost {
            parameters: parameters(plan, block, &mut seen),
            flops: flops(plan, block, tokens),
            weight_bytes: weight_bytes(plan, block, index, backend, asked),
        })
        .collect()
}

/// The program with its threads and what they allocate, measured.
const PROGRAM_BYTES: u64 = 10_000_000;

/// What the system maps around each row of a table that is read.
const FAULT_BYTES: u64 = 64 << 10;

/// Most memory that a process takes for `sequences` sequences at once: an estimate, up to a tenth above what was measured
/// (`docs/tools.md`). [`Memory`] has bounds instead.
///
/// Sequences of tokens are computed in groups of up to [`Backend::rows_at_once`]; images and sounds all at once.
pub fn peak(
    plan: &Plan,
    index: &Index,
    memory: &Memory,
    tokens: Tokens,
    sequences: u64,
    backend: &dyn Backend,
) -> u64 {
    let at_once = backend.rows_at_once() as u64;
    let of_stream = |shape: &Shape| matches!(shape, Shape::Matrix { rows, .. } if rows.stream().is_some());
    let shapes = plan.blocks.iter().map(|block| block.output).filter(of_stream);
    let each = shapes.map(|shape| row_count(plan, shape, tokens)).max().unwrap_or(0);
    let rows = each.saturating_mul(sequences);
    let bytes = |tensor: usize| elements(plan, tensor) * stored_type(plan, index, tensor).size() as u64;
    let tables: BTreeSet<usize> = plan.declared.tables.iter().map(|table| table.0).collect();
    let read =
        tables.into_iter().map(|table| bytes(table).min(rows.saturating_mul(FAULT_BYTES))).sum::<u64>();
    let width = plan.blocks.iter().filter(|block| !block.loops.is_empty()).map(|block| match block.output {
        Shape::Matrix { cols, .. } => cols as u64,
        _ => 0,
    });
    // The widest matrix of a layer, the sum, its normed copy, and what is added to it, with one to spare.
    let layer = 4 * (plan.declared.widest_in_layers as u64 + 4 * width.max().unwrap_or(0));
    let activations = layer.max(2 * 4 * plan.declared.widest as u64) + memory.passing_cache_per_token;
    let kept_caches = || plan.declared.caches.iter().filter(|cache| cache.kept);
    let kept = kept_caches().map(|cache| {
        let positions = match cache.rows {
            Rows::Tokens(_) | Rows::Sequences(_) => tokens.new + tokens.past,
            rows => rows.usual().map_or(0, |n| n as u64),
        };
        product(&[positions.next_multiple_of(PAGE_KEYS as u64), cache.bytes_per_token(backend.compute())])
    });
    let kept = kept.fold(memory.state_per_sequence, u64::saturating_add);
    let takes_items = !plan.declared.items.is_empty();
    // What goes on with more tokens is computed at once; else results of groups are put together.
    let (at_once, joined) = if takes_items || kept_caches().next().is_some() {
        (rows, 0)
    } else {
        let cols = plan.outputs.iter().map(|(_, id)| match plan.values[id.0].shape {
            Shape::Matrix { rows: Rows::Tokens(_), cols } => cols as u64,
            _ => 0,
        });
        (rows.min(at_once.max(tokens.new)), product(&[4, rows, cols.max().unwrap_or(0)]))
    };
    let derived = plan.blocks.iter().map(|block| derived(plan, block, tokens)).fold(0, u64::saturating_add);
    let batch = [at_once.saturating_mul(activations), joined, sequences.saturating_mul(kept), derived];
    let batch = batch.into_iter().fold(0, u64::saturating_add);
    // What is stored of the outputs that are packed at once is mapped, and all of a part whose outputs do not lie together, and of
    // the one behind it.
    let parts = || plan.declared.linears.iter().flat_map(|linear| &linear.parts);
    let size = |part: &PartUse| bytes(part.weight.0);
    let element = parts().map(|part| stored_type(plan, index, part.weight.0).size() as u64).max();
    let whole = parts().filter(|part| part.layout != Layout::OutIn || part.order.is_some()).map(size).max();
    let together = PACKED_AT_ONCE as u64 * element.unwrap_or(0) + 2 * whole.unwrap_or(0);
    let loading = together.min(parts().map(size).sum());
    memory.weights.saturating_add(read.saturating_add(batch).max(loading)).saturating_add(PROGRAM_BYTES)
}

/// The sum of all costs.
pub fn totals(costs: &[Cost]) -> Cost {
    let mut sum = Cost::default();
    costs.iter().for_each(|cost| sum += *cost);
    sum
}

/// The product of numbers, or the largest there is.
fn product(factors: &[u64]) -> u64 {
    factors.iter().fold(1, |n, factor| n.saturating_mul(*factor))
}

fn elements(plan: &Plan, tensor: usize) -> u64 {
    let shape = &plan.declared.tensors[tensor].shape;
    shape.iter().fold(1u64, |n, d| n.saturating_mul(*d as u64))
}

/// A tensor that is stored once counts once.
fn parameters<'p>(plan: &'p Plan, block: &PlannedBlock, seen: &mut BTreeSet<&'p str>) -> u64 {
    let fresh = block.indices(|ranges| &ranges.tensors).filter(|i| seen.insert(&plan.tensors.stored[*i]));
    fresh.map(|i| elements(plan, i)).sum()
}

fn weight_bytes(
    plan: &Plan,
    block: &PlannedBlock,
    index: &Index,
    backend: &dyn Backend,
    asked: Option<WeightType>,
) -> u64 {
    let stored = |tensor: usize| stored_type(plan, index, tensor);
    let linears = block.indices(|ranges| &ranges.linears);
    let linears: u64 =
        linears.map(|i| linear_bytes(&plan.declared.linears[i], backend, &stored, asked)).sum();
    let vectors = block.indices(|ranges| &ranges.vectors).map(|i| &plan.declared.vectors[i]);
    let vectors: u64 = vectors.flat_map(|vector| &vector.parts).map(|part| 4 * elements(plan, part.0)).sum();
    let tables = block.indices(|ranges| &ranges.tables).map(|i| plan.declared.tables[i]);
    let tables: u64 = tables.map(|table| elements(plan, table.0) * stored(table.0).size() as u64).sum();
    linears + vectors + tables
}

/// The type in which a declared tensor is stored.
pub fn stored_type(plan: &Plan, index: &Index, tensor: usize) -> DType {
    let entry = index.get(&plan.tensors.stored[tensor]);
    match entry.map(|entry| &entry.dtype) {
        Some(crate::weights::StoredType::Known(dtype)) => *dtype,
        _ => DType::F32,
    }
}

/// Rows that a pass computes of one sequence or item.
fn row_count(plan: &Plan, shape: Shape, tokens: Tokens) -> u64 {
    // What a decoder reads is computed with its first token.
    let is_done = |stream: Stream| tokens.past > 0 && plan.has_decoder() && stream != Stream::Decoder;
    match shape {
        Shape::Matrix { rows, .. } => match rows {
            Rows::Learned(n) => n as u64,
            _ if rows.stream().is_some_and(is_done) => 0,
            Rows::Tokens(_) => tokens.new,
            rows => rows.usual().map_or(0, |n| n as u64),
        },
        _ => 0,
    }
}

/// Learned rows of distances that a pass over one sequence reads.
fn distances(plan: &Plan, block: &PlannedBlock, tokens: Tokens) -> u64 {
    let Some((_, shape)) = &block.reads else { return 0 };
    let max_distance = block.number("max_distance").map(|n| n as usize);
    let learned = row_count(plan, *shape, tokens);
    rows_read(tokens.new as usize, learned as usize, max_distance) as u64
}

/// What a block computes from its weights alone and keeps, for sequences of so many tokens.
fn derived(plan: &Plan, block: &PlannedBlock, tokens: Tokens) -> u64 {
    if block.name != "disentangled_attention" {
        return 0;
    }
    // Keys and queries of the distances come behind the two maps that every such block has.
    let outputs = block.linears.iter().skip(2).map(|id| plan.declared.linears[id.0].outputs as u64);
    product(&[4, distances(plan, block, tokens), outputs.sum()])
}

/// Floating-point operations of a first pass: what is kept of it, later ones do not compute again.
fn flops(plan: &Plan, block: &PlannedBlock, tokens: Tokens) -> u64 {
    let rows = row_count(plan, block.input.unwrap_or(block.output), tokens);
    let of = |id: &LinearId, rows: u64| {
        let linear = &plan.declared.linears[id.0];
        // A checkpoint of which only the headers are there may claim any size.
        rows.saturating_mul((linear.inputs as u64).saturating_mul(2 * linear.outputs as u64))
    };
    let read_rows = match block.name {
        "disentangled_attention" => distances(plan, block, tokens),
        _ => block.reads.as_ref().map_or(0, |(_, shape)| row_count(plan, *shape, tokens)),
    };
    let number = |field: &str| block.number(field).unwrap_or(0);
    let is_read = |position: usize| match block.name {
        "attention" => block.reads.is_some() && position == 1,
        "disentangled_attention" => position > 1,
        _ => false,
    };
    let linears = block.linears.iter().enumerate();
    let mut flops =
        linears.map(|(i, id)| of(id, if is_read(i) { read_rows } else { rows })).fold(0, u64::saturating_add);
    match block.name {
        "moe" => {
            let router = block.linears.first().map_or(0, |id| of(id, rows));
            let experts = number("experts").max(1);
            let chosen = ((flops - router) / experts).saturating_mul(number("chosen"));
            flops = router.saturating_add(chosen);
        }
        "patches" | "frames" | "conv1d" => {
            let out = row_count(plan, block.output, tokens);
            flops = block.linears.iter().map(|id| of(id, out)).fold(0, u64::saturating_add);
        }
        "state_space" => {
            let conv = product(&[2, rows, number("inner"), number("kernel")]);
            let scan = product(&[6, rows, number("inner"), number("state")]);
            flops = flops.saturating_add(conv).saturating_add(scan);
        }
        "multi_head_state_space" => {
            let inner = number("heads").saturating_mul(number("head_dim"));
            let shared = product(&[2, number("groups"), number("state")]);
            let conv = product(&[2, rows, inner.saturating_add(shared), number("kernel")]);
            let scan = product(&[5, rows, inner, number("state")]);
            flops = flops.saturating_add(conv).saturating_add(scan);
        }
        "disentangled_attention" => {
            // Scores, of which those with the vectors of distances are as many again, one way or both ways, and sums of values.
            let cols = block.linears.get(1).map_or(0, |id| plan.declared.linears[id.0].outputs as u64);
            flops = flops.saturating_add(product(&[2, rows, rows, cols, block.linears.len() as u64]));
        }
        _ => {}
    }
    let heads = number("heads");
    for cache in block.indices(|ranges| &ranges.caches).map(|i| &plan.declared.caches[i]) {
        let keys = match &block.reads {
            Some((_, Shape::Matrix { rows: rows @ (Rows::Fixed(..) | Rows::Patches(..)), .. })) => {
                rows.usual().map_or(0, |n| n as u64)
            }
            Some(_) if block.name == "attention" => tokens.new + tokens.past,
            _ if matches!(cache.rows, Rows::Tokens(_)) => tokens.new + tokens.past,
            _ => rows,
        };
        let scores = scores(block, rows, keys, tokens.past);
        let dims = (cache.k_dim + cache.v_dim) as u64;
        flops = flops.saturating_add(product(&[2, scores, heads, dims]));
    }
    flops
}

/// How many pairs of a query and a key there are.
fn scores(block: &PlannedBlock, queries: u64, keys: u64, past: u64) -> u64 {
    let window = block.number("window").map(|n| n as usize);
    let is_causal = block.is("causal") || block.name == "latent_attention";
    let reach = match (is_causal, window) {
        _ if block.name == "attention" && block.reads.is_some() => Reach::ALL,
        (true, window) => Reach { back: window.map(|w| w.saturating_sub(1)), ahead: Some(0) },
        (false, window) => Reach { back: window, ahead: window },
    };
    seen(reach, past, queries, keys)
}

/// How many keys the queries from position `first` on see together, as [`Reach::of`] has it for each. Images may have millions.
fn seen(reach: Reach, first: u64, queries: u64, keys: u64) -> u64 {
    let keys = i128::from(keys);
    // The sum of `position + shift`, of 0 and `keys` where that lies outside of them, over all queries.
    let sum = |shift: i128| {
        let before = |n: i128| {
            let rising = n.clamp(0, keys + 1);
            rising * (rising - 1) / 2 + (n - rising).max(0) * keys
        };
        let first = i128::from(first) + shift;
        before(first + i128::from(queries)) - before(first)
    };
    let ends = reach.ahead.map_or(i128::from(queries) * keys, |ahead| sum(ahead as i128 + 1));
    let starts = reach.back.map_or(0, |back| sum(-(back as i128)));
    u64::try_from(ends - starts).unwrap_or(u64::MAX)
}

/// Blocks of identical layers in one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The first of the blocks it stands for, as an index of [`Plan::blocks`].
    pub block: usize,
    /// The layers, rounds of the outermost loop, whose blocks it stands for; none outside of loops.
    pub layers: Vec<usize>,
    /// Path with the numbers of the layers: `encoder.layer.0-11.attention`.
    pub path: String,
    /// What all of them together need.
    pub cost: Cost,
}

impl Row {
    /// How many blocks it stands for.
    pub fn count(&self) -> usize {
        self.layers.len().max(1)
    }
}

/// Rows for all blocks; layers that do not differ share theirs unless `all` is set.
pub fn rows(plan: &Plan, costs: &[Cost], all: bool) -> Vec<Row> {
    let mut rows = Vec::new();
    let layer = |i: usize| plan.blocks[i].loops.first().map(|(index, _)| *index);
    let single = |i: usize| Row {
        block: i,
        layers: layer(i).into_iter().collect(),
        path: plan.blocks[i].path(&plan.declared),
        cost: costs[i],
    };
    let mut i = 0;
    while i < plan.blocks.len() {
        let Some(repeat) = outermost(&plan.blocks[i]).filter(|_| !all) else {
            rows.push(single(i));
            i += 1;
            continue;
        };
        let start = i;
        while i < plan.blocks.len() && outermost(&plan.blocks[i]) == Some(repeat) {
            i += 1;
        }
        // Layers by what they are made of.
        let blocks: Vec<usize> = (start..i).collect();
        let layers = blocks.chunk_by(|a, b| plan.blocks[*a].loops.first() == plan.blocks[*b].loops.first());
        let mut kinds: Vec<Vec<&[usize]>> = Vec::new();
        let is_same = |a: usize, b: usize| {
            let (x, y) = (&plan.blocks[a], &plan.blocks[b]);
            let pattern = |block: &PlannedBlock| super::tensors::pattern(&block.path(&plan.declared));
            x.at == y.at
                && x.output == y.output
                && x.settings == y.settings
                && costs[a] == costs[b]
                && pattern(x) == pattern(y)
        };
        for layer in layers {
            let found = kinds.iter_mut().find(|kind| {
                kind[0].len() == layer.len() && kind[0].iter().zip(layer).all(|(a, b)| is_same(*a, *b))
            });
            match found {
                Some(kind) => kind.push(layer),
                None => kinds.push(vec![layer]),
            }
        }
        for kind in kinds {
            for (j, first) in kind[0].iter().enumerate() {
                let mut row = single(*first);
                let paths = kind.iter().map(|layer| plan.blocks[layer[j]].path(&plan.declared));
                row.path = merged(&paths.collect::<Vec<_>>());
                row.layers = kind.iter().filter_map(|blocks| layer(blocks[j])).collect();
                kind[1..].iter().for_each(|layer| row.cost += costs[layer[j]]);
                rows.push(row);
            }
        }
    }
    rows
}

/// The number of the outermost loop around a block.
fn outermost(block: &PlannedBlock) -> Option<usize> {
    block.within.iter().find(|within| within.kind == "repeat").map(|within| within.id)
}

/// Paths that differ in numbers as one: `layer.0-2,4.norm`.
fn merged(paths: &[String]) -> String {
    let split: Vec<Vec<&str>> = paths.iter().map(|path| path.split('.').collect()).collect();
    let segment = |i: usize| {
        let mut numbers: Vec<usize> = split.iter().filter_map(|path| path.get(i)?.parse().ok()).collect();
        numbers.dedup();
        if numbers.len() > 1 { ranges(&numbers) } else { split[0][i].to_owned() }
    };
    (0..split.first().map_or(0, Vec::len)).map(segment).collect::<Vec<_>>().join(".")
}

/// Ascending numbers, those that follow each other as `first-last`.
pub fn ranges(numbers: &[usize]) -> String {
    let runs: Vec<&[usize]> = numbers.chunk_by(|a, b| *b == a + 1).collect();
    let shown = runs.iter().map(|run| match run {
        [one] => one.to_string(),
        run => format!("{}-{}", run[0], run[run.len() - 1]),
    });
    shown.collect::<Vec<_>>().join(",")
}

/// A stored tensor and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its shape there.
    pub shape: Vec<usize>,
    /// What it is used as.
    pub role: Use,
}

/// What becomes of a stored tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Use {
    /// A declared tensor: its name, `` `k` of `attention` ``, and the line of the description that asks for it.
    Declared(String, String, Option<usize>),
    /// The same as another stored tensor.
    Twin(String),
    /// Listed as not mattering.
    Ignored,
    /// Belongs to a head or value that was not asked for.
    Elsewhere,
}

/// All stored tensors, each as often as it is used.
pub fn stored(plan: &Plan, index: &Index) -> Vec<Stored> {
    let mut uses: HashMap<&str, Vec<usize>> = HashMap::new();
    for (i, name) in plan.tensors.stored.iter().enumerate() {
        uses.entry(name).or_default().push(i);
    }
    // Finding a line reads the file again: once for each place.
    let mut lines: HashMap<Vec<usize>, Option<usize>> = HashMap::new();
    let mut found = Vec::new();
    for (name, entry) in index.iter() {
        let mut add = |role| found.push(Stored { name: name.to_owned(), shape: entry.shape.clone(), role });
        if let Some(uses) = uses.get(name) {
            for i in uses {
                let tensor = &plan.declared.tensors[*i];
                let line = lines.entry(tensor.at.steps().to_vec());
                let line = *line.or_insert_with(|| plan.spec.source.line(&tensor.at));
                add(Use::Declared(tensor.name.clone(), tensor.label.clone(), line));
            }
        } else if let Some((one, _)) = plan.tensors.twins.iter().find(|(_, twin)| twin == name) {
            add(Use::Twin(one.clone()));
        } else if plan.tensors.ignored.iter().any(|ignored| ignored == name) {
            add(Use::Ignored);
        } else {
            add(Use::Elsewhere);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_counted_as_queries_see_them() {
        let reaches = [None, Some(0), Some(1), Some(5), Some(100)];
        for reach in reaches.iter().flat_map(|back| reaches.map(|ahead| Reach { back: *back, ahead })) {
            for (first, queries, keys) in
                [(0, 0, 7), (0, 7, 7), (3, 4, 7), (0, 9, 4), (20, 3, 23), (20, 1, 8)]
            {
                let each = (first..first + queries).map(|i| reach.of(i as usize, keys as usize).len() as u64);
                let expected: u64 = each.sum();
                assert_eq!(
                    seen(reach, first, queries, keys),
                    expected,
                    "{reach:?}, {first} {queries} {keys}"
                );
            }
        }
        assert_eq!(seen(Reach::ALL, 0, 1 << 32, 1 << 31), 1 << 63);
        assert_eq!(seen(Reach::ALL, 0, 1 << 33, 1 << 32), u64::MAX);
    }

    #[test]
    fn numbers_of_layers_are_merged() {
        let paths = |names: &[&str]| merged(&names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>());
        assert_eq!(paths(&["a.0.b", "a.1.b", "a.2.b", "a.4.b"]), "a.0-2,4.b");
        assert_eq!(paths(&["a.3.b"]), "a.3.b");
        assert_eq!(paths(&["a", "a"]), "a");
    }
}
