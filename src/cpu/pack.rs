//! From stored weights to panels, on all threads.

#![forbid(unsafe_code)]

use std::ops::Range;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::kernels::quantised::{Bits, Groups, filled};
use super::kernels::simd::MAX_WIDTH;
use super::pool::Pool;
use crate::backend::{Layout, LinearPart, PACKED_AT_ONCE, Pair};

/// The stored parts of a linear map, whose outputs follow each other.
pub struct Sources<'a> {
    parts: &'a [LinearPart<'a>],
    /// The first output of each part, and the end of the last.
    starts: Vec<usize>,
    pub inputs: usize,
    pub outputs: usize,
}

/// Outputs that are packed together where the stored rows are those of inputs: of each row one run is read, not many short ones.
const OUTPUTS_AT_ONCE: usize = 128;

/// Inputs that are transposed together: so many elements of each output of a panel stay in the first cache.
const TRANSPOSE_BLOCK: usize = 64;

impl<'a> Sources<'a> {
    pub fn new(parts: &'a [LinearPart<'a>]) -> Self {
        let (mut starts, mut inputs) = (vec![0], 0);
        for part in parts {
            let [rows, cols] = *part.weight.shape() else { panic!("a linear weight has two axes") };
            let (outputs, columns) = if part.layout == Layout::OutIn { (rows, cols) } else { (cols, rows) };
            inputs = columns;
            starts.push(starts[starts.len() - 1] + part.outputs.map_or(outputs, <[u32]>::len));
        }
        Sources { parts, outputs: starts[starts.len() - 1], starts, inputs }
    }

    /// Fills panels `[outputs / width][inputs][width]`.
    pub fn pack<T>(&self, pool: &Pool, width: usize, panels: &mut [u8], convert: impl Fn(f32) -> T + Sync)
    where
        T: Copy + Send + FromBytes + IntoBytes + Immutable,
    {
        let len = self.inputs * width;
        self.each_group(pool, width, numbers(panels), len, |outputs, panels| {
            self.gather(outputs, width, panels, len, &convert);
        })
    }

    /// Fills panels `[outputs / width][inputs / 2][width]`.
    pub fn pack_pairs(&self, pool: &Pool, width: usize, panels: &mut [u8]) {
        let len = self.inputs.div_ceil(2) * width;
        self.each_group(pool, width, numbers(panels), len, |outputs, pairs: &mut [Pair]| {
            let mut panels = vec![0.0; 2 * pairs.len()];
            self.gather(outputs, width, &mut panels, 2 * len, &|x| x);
            for (pairs, two) in pairs.chunks_mut(width).zip(panels.chunks(2 * width)) {
                let (first, second) = two.split_at(width);
                for (pair, (a, b)) in pairs.iter_mut().zip(first.iter().zip(second)) {
                    *pair = Pair::new(*a, *b);
                }
            }
        })
    }

    /// Fills panels of quantised weights.
    pub fn quantise(&self, pool: &Pool, width: usize, groups: Groups, bits: Bits, panels: &mut [u8]) {
        let (len, filled) = (bits.panel_bytes(self.inputs, width), filled(self.inputs) * width);
        self.each_group(pool, width, panels, len, |outputs, bytes| {
            let mut panels = vec![0.0; bytes.len() / len * filled];
            self.gather(outputs, width, &mut panels, filled, &|x| x);
            for (panel, bytes) in panels.chunks(filled).zip(bytes.chunks_mut(len)) {
                bits.pack(panel, width, groups, bytes);
            }
        })
    }

    /// Has groups of panels filled, `len` elements a panel, on all threads.
    fn each_group<T: Send>(
        &self,
        pool: &Pool,
        width: usize,
        panels: &mut [T],
        len: usize,
        fill: impl Fn(Range<usize>, &mut [T]) + Sync,
    ) {
        let len = len.max(1);
        let by_rows = self.parts.iter().all(|part| part.layout == Layout::OutIn);
        let group = if by_rows { 1 } else { (OUTPUTS_AT_ONCE / width).max(1) };
        let round = (PACKED_AT_ONCE / (self.inputs * width).max(1)).max(1).next_multiple_of(group);
        for (i, panels) in panels.chunks_mut(round * len).enumerate() {
            let outputs = |panels: Range<usize>| {
                let output = |panel: usize| ((i * round + panel) * width).min(self.outputs);
                output(panels.start)..output(panels.end)
            };
            let count = panels.len() / len;
            pool.run_each(panels.chunks_mut(group * len).enumerate(), |(at, panels)| {
                let first = at * group;
                fill(outputs(first..first + panels.len() / len), panels);
            });
            self.release(outputs(0..count));
        }
    }

    /// The elements of a group of panels, which begin `step` elements apart.
    fn gather<T>(
        &self,
        outputs: Range<usize>,
        width: usize,
        panels: &mut [T],
        step: usize,
        convert: &impl Fn(f32) -> T,
    ) {
        for (part, bounds) in self.parts.iter().zip(self.starts.windows(2)) {
            let (start, end) = (outputs.start.max(bounds[0]), outputs.end.min(bounds[1]));
            if start >= end {
                continue;
            }
            let outputs = start - outputs.start..end - outputs.start;
            let piece = Piece { part, first: start - bounds[0], outputs, inputs: self.inputs, width };
            match part.layout {
                Layout::OutIn => piece.transpose(panels, step, convert),
                Layout::InOut => piece.copy(panels, step, convert),
            }
        }
    }

    /// Lets go of what was stored of outputs that are packed, as far as it lies together.
    fn release(&self, outputs: Range<usize>) {
        for (part, bounds) in self.parts.iter().zip(self.starts.windows(2)) {
            let (start, end) = (outputs.start.max(bounds[0]), outputs.end.min(bounds[1]));
            if start >= end {
                continue;
            }
            if part.layout == Layout::OutIn && part.outputs.is_none() {
                part.weight.release((start - bounds[0]) * self.inputs..(end - bounds[0]) * self.inputs);
            } else if end == bounds[1] {
                part.weight.release(0..part.weight.len());
            }
        }
    }

    /// Lets go of all that the system has mapped of the files.
    pub fn release_storage(&self) {
        self.parts.iter().for_each(|part| part.weight.release_storage());
    }
}

/// Outputs of one part in a group of panels.
struct Piece<'a> {
    part: &'a LinearPart<'a>,
    /// The first of them, counted from the part's.
    first: usize,
    /// Counted from the group's first.
    outputs: Range<usize>,
    inputs: usize,
    width: usize,
}

impl Piece<'_> {
    /// Where an output is stored.
    fn stored(&self, output: usize) -> usize {
        let i = self.first + output - self.outputs.start;
        self.part.outputs.map_or(i, |order| order[i] as usize)
    }

    /// Panels, each with its outputs.
    fn panels(&self) -> impl Iterator<Item = (usize, Range<usize>)> {
        let (width, Range { start, end }) = (self.width, self.outputs.clone());
        let bounds = move |panel: usize| start.max(panel * width)..end.min((panel + 1) * width);
        (start / width..end.div_ceil(width)).map(move |panel| (panel, bounds(panel)))
    }

    /// From rows of outputs.
    fn transpose<T>(&self, panels: &mut [T], step: usize, convert: &impl Fn(f32) -> T) {
        let (inputs, width) = (self.inputs, self.width);
        let mut rows = [0.0; MAX_WIDTH * TRANSPOSE_BLOCK];
        for (panel, outputs) in self.panels() {
            let (panel, lane) = (&mut panels[panel * step..], outputs.start % width);
            for from in (0..inputs).step_by(TRANSPOSE_BLOCK) {
                let n = TRANSPOSE_BLOCK.min(inputs - from);
                for (output, row) in outputs.clone().zip(rows.chunks_mut(TRANSPOSE_BLOCK)) {
                    self.part.weight.read_f32(self.stored(output) * inputs + from, &mut row[..n]);
                }
                for (j, to) in panel[from * width..].chunks_mut(width).take(n).enumerate() {
                    for (i, to) in to[lane..lane + outputs.len()].iter_mut().enumerate() {
                        *to = convert(rows[i * TRANSPOSE_BLOCK + j]);
                    }
                }
            }
        }
    }

    /// From rows of inputs.
    fn copy<T>(&self, panels: &mut [T], step: usize, convert: &impl Fn(f32) -> T) {
        let weight = self.part.weight;
        let stored = weight.shape()[1];
        let mut row = vec![0.0; self.outputs.len()];
        for input in 0..self.inputs {
            if self.part.outputs.is_none() {
                weight.read_f32(input * stored + self.first, &mut row);
            } else {
                for (output, x) in self.outputs.clone().zip(&mut row) {
                    weight.read_f32(input * stored + self.stored(output), std::slice::from_mut(x));
                }
            }
            for (panel, outputs) in self.panels() {
                let to = &mut panels[panel * step + input * self.width + outputs.start % self.width..];
                for (to, x) in to.iter_mut().zip(&row[outputs.start - self.outputs.start..][..outputs.len()])
                {
                    *to = convert(*x);
                }
            }
        }
    }
}

/// Bytes as the numbers that they are to be.
fn numbers<T: FromBytes + IntoBytes + Immutable>(bytes: &mut [u8]) -> &mut [T] {
    // Panels begin at a line of the cache and consist of whole numbers.
    <[T]>::mut_from_bytes(bytes).unwrap_or_default()
}
