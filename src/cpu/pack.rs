//! From stored weights to panels, on all threads.

#![forbid(unsafe_code)]

use std::ops::Range;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::kernels::quantised::{Bits, Groups, filled};
use super::kernels::simd::MAX_WIDTH;
use super::memory::Memory;
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

    /// `[outputs / width][inputs][width]`, the last panel filled up with zeros.
    pub fn pack<T>(&self, pool: &Pool, width: usize, convert: impl Fn(f32) -> T + Sync) -> Memory<T>
    where
        T: Copy + Send + FromBytes + IntoBytes + Immutable,
    {
        self.each_panel(pool, width, self.inputs * width, |outputs, panel| {
            self.pack_panel(outputs, width, panel, &convert);
        })
    }

    /// `[outputs / width][inputs / 2][width]`, filled up with zeros.
    pub fn pack_pairs(&self, pool: &Pool, width: usize) -> Memory<Pair> {
        self.each_panel(pool, width, self.inputs.div_ceil(2) * width, |outputs, pairs| {
            let mut panel = vec![0.0; self.inputs.next_multiple_of(2) * width];
            self.pack_panel(outputs, width, &mut panel[..self.inputs * width], &|x| x);
            for (pairs, two) in pairs.chunks_mut(width).zip(panel.chunks(2 * width)) {
                let (first, second) = two.split_at(width);
                for (pair, (a, b)) in pairs.iter_mut().zip(first.iter().zip(second)) {
                    *pair = Pair::new(*a, *b);
                }
            }
        })
    }

    /// Panels of quantised weights, one after another.
    pub fn quantise(&self, pool: &Pool, width: usize, groups: Groups, bits: Bits) -> Memory<u8> {
        self.each_panel(pool, width, bits.panel_bytes(self.inputs, width), |outputs, bytes| {
            let mut panel = vec![0.0; filled(self.inputs) * width];
            self.pack_panel(outputs, width, &mut panel[..self.inputs * width], &|x| x);
            bits.pack(&panel, width, groups, bytes);
        })
    }

    /// Has the panels filled, `len` elements each, on all threads.
    fn each_panel<T>(
        &self,
        pool: &Pool,
        width: usize,
        len: usize,
        fill: impl Fn(Range<usize>, &mut [T]) + Sync,
    ) -> Memory<T>
    where
        T: Send + FromBytes + IntoBytes + Immutable,
    {
        let len = len.max(1);
        let mut memory = Memory::new(self.outputs.div_ceil(width) * len);
        let round = (PACKED_AT_ONCE / (self.inputs * width).max(1)).max(1);
        for (i, panels) in memory.as_mut_slice().chunks_mut(round * len).enumerate() {
            let count = panels.len() / len;
            pool.run_each(panels.chunks_exact_mut(len).enumerate(), |(panel, data)| {
                let first = (i * round + panel) * width;
                fill(first..(first + width).min(self.outputs), data);
            });
            self.release(i * round * width..((i * round + count) * width).min(self.outputs));
        }
        memory
    }

    /// The elements of one panel.
    fn pack_panel<T>(
        &self,
        outputs: Range<usize>,
        width: usize,
        panel: &mut [T],
        convert: &impl Fn(f32) -> T,
    ) {
        for (part, bounds) in self.parts.iter().zip(self.starts.windows(2)) {
            // The outputs of the panel that are of this part, counted from the panel's and from the part's first.
            let (start, end) = (outputs.start.max(bounds[0]), outputs.end.min(bounds[1]));
            if start >= end {
                continue;
            }
            let (lane, first, count) = (start - outputs.start, start - bounds[0], end - start);
            let stored = |i: usize| part.outputs.map_or(first + i, |order| order[first + i] as usize);
            match part.layout {
                Layout::OutIn => {
                    let mut rows = [0.0; MAX_WIDTH * TRANSPOSE_BLOCK];
                    for from in (0..self.inputs).step_by(TRANSPOSE_BLOCK) {
                        let n = TRANSPOSE_BLOCK.min(self.inputs - from);
                        for (i, row) in rows.chunks_mut(TRANSPOSE_BLOCK).take(count).enumerate() {
                            part.weight.read_f32(stored(i) * self.inputs + from, &mut row[..n]);
                        }
                        for (j, to) in panel[from * width..].chunks_mut(width).take(n).enumerate() {
                            for (i, to) in to[lane..lane + count].iter_mut().enumerate() {
                                *to = convert(rows[i * TRANSPOSE_BLOCK + j]);
                            }
                        }
                    }
                }
                Layout::InOut => {
                    let cols = part.weight.shape()[1];
                    let mut row = [0.0; MAX_WIDTH];
                    for (input, to) in panel.chunks_mut(width).enumerate() {
                        if part.outputs.is_none() {
                            part.weight.read_f32(input * cols + first, &mut row[..count]);
                        } else {
                            for (i, x) in row[..count].iter_mut().enumerate() {
                                part.weight.read_f32(input * cols + stored(i), std::slice::from_mut(x));
                            }
                        }
                        for (to, x) in to[lane..lane + count].iter_mut().zip(row) {
                            *to = convert(x);
                        }
                    }
                }
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
}
