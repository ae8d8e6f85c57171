//! The matrix product with quantised weights: `out[m, n] = epilogue(x[m, k] W[n, k]ᵀ)`.
//!
//! Rows of x are rounded to whole numbers; products of whole numbers and their sums over a block of [`BLOCK`] inputs are exact, and blocks
//! are added up in order, in float32. So a row's bits do not depend on what is computed with it.
//!
//! How far x is rounded is up to the instructions. Where there are some for sums of four products of bytes, each run of [`RUN`] inputs
//! becomes numbers of 8 bits with a scale of its own. Elsewhere numbers of 16 bits cost nothing, and one scale for a row is enough: the
//! weights are then the only source of error.
//!
//! Weights lie in panels of two vectors' width, block after block: the scales of the panel's outputs in bfloat16, then the numbers, in
//! groups of [`Simd::GROUP`] inputs for each output. In groups of four they have no sign: what was added to them is taken off the sum.

use std::ops::Range;

use super::matmul::{LINE, PANELS_OF_A_ROW, Shared, Split, Store, panel_width, panels_of_a_row};
use super::rows::rows_of_task;
use super::simd::{Fetch, Kernel, Simd, load};
use crate::backend::{Epilogue, QuantBlock};
use crate::cpu::pool::Pool;
use crate::tensor::Tensor;

/// Inputs of a block.
pub const BLOCK: usize = crate::backend::QUANT_BLOCK;

/// Bits of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    Four,
    Eight,
}

impl Bits {
    pub fn count(self) -> u32 {
        match self {
            Bits::Four => 4,
            Bits::Eight => 8,
        }
    }

    /// Bytes of the numbers of a block, for one output.
    const fn bytes(self) -> usize {
        match self {
            Bits::Four => BLOCK / 2,
            Bits::Eight => BLOCK,
        }
    }

    /// What is added to a number so that it has no sign.
    fn zero(self) -> i32 {
        1 << (self.count() - 1)
    }

    /// Bytes of a panel of `width` outputs.
    pub fn panel_bytes(self, inputs: usize, width: usize) -> usize {
        inputs.div_ceil(BLOCK) * width * (2 + self.bytes())
    }

    /// Rounds a panel `[inputs][width]` of weights into its bytes, with inputs in groups of `group`.
    pub fn pack(self, panel: &[f32], width: usize, group: usize, bytes: &mut [u8]) {
        let block_bytes = width * (2 + self.bytes());
        for (rows, bytes) in panel.chunks(BLOCK * width).zip(bytes.chunks_exact_mut(block_bytes)) {
            let (scales, numbers) = bytes.split_at_mut(2 * width);
            for lane in 0..width {
                let mut weights = [0.0; BLOCK];
                let count = rows.len() / width;
                for (i, w) in weights[..count].iter_mut().enumerate() {
                    *w = rows[i * width + lane];
                }
                let block = QuantBlock::new(&weights[..count], self.count());
                let scale = half::bf16::from_f32(block.scale);
                scales[2 * lane..2 * lane + 2].copy_from_slice(&scale.to_le_bytes());
                for (i, w) in block.weights.into_iter().enumerate() {
                    let w = if group == 4 { w.wrapping_add(self.zero() as i8) } else { w } as u8;
                    match self {
                        // A group of inputs side by side, for each output.
                        Bits::Eight => numbers[(i / group * width + lane) * group + i % group] = w,
                        // Of eight inputs of an output, four bytes with two inputs each.
                        Bits::Four => {
                            let (byte, half) = match group {
                                // A byte for each of four inputs, whose upper halves are the other four.
                                4 => (i % 4, i % 8 / 4),
                                // A word for the first of each pair and one for the second, each with all four in order.
                                _ => (i % 2 * 2 + i % 8 / 4, i / 2 % 2),
                            };
                            numbers[(i / 8 * width + lane) * 4 + byte] |= (w & 15) << (4 * half);
                        }
                    }
                }
            }
        }
    }
}

/// Inputs of a row that share a scale where they become numbers of 8 bits: a multiple of [`BLOCK`]. Fewer would be a little more exact,
/// and slower: 32 take a tenth of the speed.
const RUN: usize = 256;

/// Of the blocks of a row, how many share a scale.
fn blocks_of_run<S: Simd>(blocks: usize) -> usize {
    if S::GROUP == 4 { RUN / BLOCK } else { blocks.max(1) }
}

/// Rows as whole numbers.
#[derive(Debug, Default)]
pub struct Rounded {
    rows: usize,
    blocks: usize,
    /// `[rows][blocks][groups]`, the last block filled up with zeros.
    numbers: Vec<i32>,
    /// `[rows][runs]`: what numbers are to be multiplied with.
    scales: Vec<f32>,
    /// `[rows][blocks]`: what takes off a block's sum of products what was added to the weights, which happens in groups of four.
    offsets: Vec<i32>,
}

/// Rounds all rows of a matrix.
pub struct Round<'a> {
    pub pool: &'a Pool,
    pub x: &'a Tensor,
    /// Of the weights.
    pub bits: Bits,
    /// Whose memory is used.
    pub rounded: Rounded,
}

impl Kernel for Round<'_> {
    type Output = Rounded;

    /// # Safety
    /// None beyond the features.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) -> Rounded {
        let Round { pool, x, bits, mut rounded } = self;
        let (rows, cols, blocks) = (x.rows(), x.cols(), x.cols().div_ceil(BLOCK));
        let (width, runs) = (blocks * BLOCK / S::GROUP, blocks.div_ceil(blocks_of_run::<S>(blocks)));
        (rounded.rows, rounded.blocks) = (rows, blocks);
        rounded.numbers.resize(rows * width, 0);
        rounded.scales.resize(rows * runs, 0.0);
        rounded.offsets.resize(rows * blocks, 0);
        if cols == 0 {
            return rounded;
        }
        let some = rows_of_task(cols);
        let numbers = rounded.numbers.chunks_mut(some * width);
        let scales = rounded.scales.chunks_mut(some * runs);
        let offsets = rounded.offsets.chunks_mut(some * blocks);
        pool.run_each(numbers.zip(scales).zip(offsets).enumerate(), |(i, ((numbers, scales), offsets))| {
            let rows = x.data()[i * some * cols..].chunks(cols);
            let to = numbers.chunks_mut(width).zip(scales.chunks_mut(runs)).zip(offsets.chunks_mut(blocks));
            for (row, ((numbers, scales), offsets)) in rows.zip(to) {
                // SAFETY: the token turns its features on; lengths are those that the kernel asks for.
                unsafe { s.run(RoundRow { row, numbers, scales, offsets, zero: bits.zero() }) };
            }
        });
        rounded
    }
}

struct RoundRow<'a> {
    row: &'a [f32],
    numbers: &'a mut [i32],
    scales: &'a mut [f32],
    offsets: &'a mut [i32],
    zero: i32,
}

impl Kernel for RoundRow<'_> {
    type Output = ();

    /// # Safety
    /// There are `numbers` and `offsets` for all blocks of the row, and `scales` for all runs.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) {
        let RoundRow { row, numbers, scales, offsets, zero } = self;
        let of_run = blocks_of_run::<S>(offsets.len());
        // A block's sum of products with weights of 8 bits stays below 2^31.
        let largest = ((1u32 << (32 / S::GROUP - 1)) - 1) as f32;
        let numbers = numbers.as_mut_ptr().cast::<u8>();
        for (run, (values, scale)) in row.chunks(of_run * BLOCK).zip(scales).enumerate() {
            // SAFETY: vectors inside of the run, numbers and offsets of its blocks.
            unsafe {
                let furthest = furthest(s, values);
                let factor = if furthest > 0.0 { largest / furthest } else { 0.0 };
                if !furthest.is_finite() || !factor.is_finite() {
                    // What cannot be rounded must not come out as if it could; the smallest numbers count as 0. The scale decides,
                    // whatever numbers stand there.
                    *scale = if furthest.is_finite() { 0.0 } else { f32::NAN };
                    continue;
                }
                *scale = furthest / largest;
                let factor = s.splat(factor);
                for (block, values) in values.chunks(BLOCK).enumerate() {
                    let block = run * of_run + block;
                    let to = numbers.add(block * BLOCK * 4 / S::GROUP);
                    let mut sum = s.splat(0.0);
                    // Zeros behind the row's end, up to the end of the block.
                    for i in (0..BLOCK).step_by(S::LANES) {
                        let n = values.len().saturating_sub(i).min(S::LANES);
                        let y = s.round(s.mul(load(s, values.as_ptr().wrapping_add(i), n), factor));
                        s.store_numbers(to.add(i * 4 / S::GROUP), y);
                        sum = s.add(sum, y);
                    }
                    if S::GROUP == 4 {
                        // Up to 32 numbers up to 127, added up exactly.
                        offsets[block] = -zero * s.sum(sum).to_int_unchecked::<i32>();
                    }
                }
            }
        }
    }
}

/// The size of the value that is furthest from 0; not a number if there is one that is infinite or none.
#[inline(always)]
unsafe fn furthest<S: Simd>(s: S, values: &[f32]) -> f32 {
    // SAFETY: the caller has the features on; `n` elements are there.
    unsafe {
        let zero = s.splat(0.0);
        let (mut furthest, mut none) = (zero, zero);
        let mut i = 0;
        while i < values.len() {
            let n = (values.len() - i).min(S::LANES);
            let x = load(s, values.as_ptr().add(i), n);
            furthest = s.max(furthest, s.max(x, s.sub(zero, x)));
            none = s.fma(x, zero, none);
            i += n;
        }
        s.largest(furthest) + s.sum(none)
    }
}

/// A product over all rows, on all threads of a pool.
pub struct QuantisedProduct<'a> {
    pub pool: &'a Pool,
    pub x: &'a Rounded,
    pub panels: &'a [u8],
    pub bits: Bits,
    pub inputs: usize,
    pub outputs: usize,
    pub epilogue: &'a Epilogue<'a>,
    pub out: &'a mut Tensor,
}

impl Kernel for QuantisedProduct<'_> {
    type Output = ();

    /// # Safety
    /// Lengths are checked here.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) {
        let QuantisedProduct { pool, x, panels, bits, inputs, outputs, epilogue, out } = self;
        let (rows, width) = (x.rows, panel_width::<S>());
        let panel_bytes = bits.panel_bytes(inputs, width);
        let count = outputs.div_ceil(width);
        assert_eq!(panels.len(), count * panel_bytes, "packed weights");
        assert_eq!((out.rows(), out.cols()), (rows, outputs), "shape of a product");
        let runs = x.blocks.div_ceil(blocks_of_run::<S>(x.blocks));
        assert_eq!(
            (x.blocks, x.numbers.len(), x.scales.len(), x.offsets.len()),
            (inputs.div_ceil(BLOCK), rows * x.blocks * BLOCK / S::GROUP, rows * runs, rows * x.blocks),
            "rounded rows"
        );
        let store = Store::new(epilogue, rows, outputs, Shared::new(out));
        let together = panels_of_a_row::<S>(1);
        let Some(split) = Split::new(rows, count, panel_bytes, together, pool.threads()) else { return };
        pool.run(split.tasks(), &|i| {
            let (rows, panel_range) = split.task(i);
            let tiles = Tiles { x, panels, bits, panel_bytes, store: &store, rows, panel_range };
            // SAFETY: the token turns its features on; lengths are checked above; tasks have different rows or panels.
            unsafe { s.run(tiles) };
        });
    }
}

struct Tiles<'a> {
    x: &'a Rounded,
    panels: &'a [u8],
    bits: Bits,
    panel_bytes: usize,
    store: &'a Store<'a>,
    rows: Range<usize>,
    panel_range: Range<usize>,
}

impl Kernel for Tiles<'_> {
    type Output = ();

    /// # Safety
    /// `QuantisedProduct` has checked the lengths.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) {
        // SAFETY: rows and panels lie inside of the matrices.
        unsafe {
            match self.bits {
                Bits::Four => self.all::<S, true>(s),
                Bits::Eight => self.all::<S, false>(s),
            }
        }
    }
}

impl Tiles<'_> {
    #[inline(always)]
    unsafe fn all<S: Simd, const FOUR: bool>(&self, s: S) {
        let rows = self.rows.len();
        let tiles = rows.div_ceil(6);
        let mut panel = self.panel_range.start;
        // SAFETY: the caller's.
        unsafe {
            while panel < self.panel_range.end {
                if panels_of_a_row::<S>(1) > 1 && rows == 1 && panel + PANELS_OF_A_ROW <= self.panel_range.end
                {
                    self.tile::<S, FOUR, 1, PANELS_OF_A_ROW>(s, panel, self.rows.start, false);
                    panel += PANELS_OF_A_ROW;
                    continue;
                }
                for tile in 0..tiles {
                    let first = self.rows.start + rows * tile / tiles;
                    // Tiles behind the first find the panel in the cache.
                    let ahead = tile == 0;
                    match self.rows.start + rows * (tile + 1) / tiles - first {
                        1 => self.tile::<S, FOUR, 1, 1>(s, panel, first, ahead),
                        2 => self.tile::<S, FOUR, 2, 1>(s, panel, first, ahead),
                        3 => self.tile::<S, FOUR, 3, 1>(s, panel, first, ahead),
                        4 => self.tile::<S, FOUR, 4, 1>(s, panel, first, ahead),
                        5 => self.tile::<S, FOUR, 5, 1>(s, panel, first, ahead),
                        _ => self.tile::<S, FOUR, 6, 1>(s, panel, first, ahead),
                    }
                }
                panel += 1;
            }
        }
    }

    /// `R` rows from `row` on and `P` panels from `panel` on; `ahead` fetches the panel on the way.
    #[inline(always)]
    unsafe fn tile<S: Simd, const FOUR: bool, const R: usize, const P: usize>(
        &self,
        s: S,
        panel: usize,
        row: usize,
        ahead: bool,
    ) {
        let (width, blocks) = (panel_width::<S>(), self.x.blocks);
        let groups = BLOCK / S::GROUP;
        let step = blocks * groups;
        let block_bytes = width * (2 + self.bits.bytes());
        let of_run = blocks_of_run::<S>(blocks);
        let runs = blocks.div_ceil(of_run);
        // SAFETY: blocks lie inside of the panels, rows inside of the numbers.
        unsafe {
            let x = self.x.numbers.as_ptr().add(row * step);
            let b = self.panels.as_ptr().add(panel * self.panel_bytes);
            // In memory: sums of blocks and of runs take all registers.
            let mut totals = [[[[0.0f32; 16]; 2]; R]; P];
            for run in 0..runs {
                let mut parts = [[[s.splat(0.0); 2]; R]; P];
                for block in run * of_run..((run + 1) * of_run).min(blocks) {
                    let x = x.add(block * groups);
                    for p in 0..P {
                        let scales = b.add(p * self.panel_bytes + block * block_bytes);
                        let numbers = scales.add(2 * width);
                        if ahead && let Fetch::Near(bytes) = S::FETCH {
                            for line in 0..block_bytes.div_ceil(LINE) {
                                s.prefetch(scales.wrapping_add(bytes + line * LINE));
                            }
                        }
                        let mut sums = [[s.splat_whole(0); 2]; R];
                        if S::GROUP == 4 {
                            for (r, sums) in sums.iter_mut().enumerate() {
                                let offset = *self.x.offsets.get_unchecked((row + r) * blocks + block);
                                *sums = [s.splat_whole(offset); 2];
                            }
                        }
                        if FOUR {
                            for eight in 0..BLOCK / 8 {
                                let w = numbers.add(eight * width * 4);
                                let w = [s.load_bytes(w), s.load_bytes(w.add(S::LANES * 4))];
                                let x = x.add(eight * 8 / S::GROUP);
                                part_of_eight::<S, R, 0>(s, w, x, step, &mut sums);
                                part_of_eight::<S, R, 1>(s, w, x.add(1), step, &mut sums);
                                if S::GROUP == 2 {
                                    part_of_eight::<S, R, 2>(s, w, x.add(2), step, &mut sums);
                                    part_of_eight::<S, R, 3>(s, w, x.add(3), step, &mut sums);
                                }
                            }
                        } else {
                            for group in 0..groups {
                                let w = numbers.add(group * width * S::GROUP);
                                let w = [s.load_eights(w), s.load_eights(w.add(S::LANES * S::GROUP))];
                                multiply::<S, R>(s, w, x.add(group), step, &mut sums);
                            }
                        }
                        let scales = scales.cast::<u16>();
                        let scales = [s.load_bf16(scales), s.load_bf16(scales.add(S::LANES))];
                        for r in 0..R {
                            for half in 0..2 {
                                let sum = s.float(sums[r][half]);
                                parts[p][r][half] = s.fma(sum, scales[half], parts[p][r][half]);
                            }
                        }
                    }
                }
                for r in 0..R {
                    let scale = s.splat(*self.x.scales.get_unchecked((row + r) * runs + run));
                    for p in 0..P {
                        for half in 0..2 {
                            let total = totals[p][r][half].as_mut_ptr();
                            s.store(total, s.fma(parts[p][r][half], scale, s.load(total)));
                        }
                    }
                }
            }
            for p in 0..P {
                let mut acc = [[s.splat(0.0); 2]; R];
                for r in 0..R {
                    acc[r] = [s.load(totals[p][r][0].as_ptr()), s.load(totals[p][r][1].as_ptr())];
                }
                self.store.tile::<S, R>(s, panel + p, row, &acc);
            }
        }
    }
}

/// The products of group `J` of those whose weights of four bits lie side by side in `w`.
#[inline(always)]
unsafe fn part_of_eight<S: Simd, const R: usize, const J: u32>(
    s: S,
    w: [S::W; 2],
    x: *const i32,
    step: usize,
    sums: &mut [[S::I; 2]; R],
) {
    // SAFETY: the caller's.
    unsafe { multiply::<S, R>(s, [s.nibbles::<J>(w[0]), s.nibbles::<J>(w[1])], x, step, sums) }
}

/// Adds the products of a group of inputs of `R` rows, which lie `step` groups apart.
#[inline(always)]
unsafe fn multiply<S: Simd, const R: usize>(
    s: S,
    w: [S::W; 2],
    x: *const i32,
    step: usize,
    sums: &mut [[S::I; 2]; R],
) {
    for r in 0..R {
        // SAFETY: the caller's.
        unsafe {
            let x = s.splat_group(*x.add(r * step));
            sums[r][0] = s.add_products(sums[r][0], w[0], x);
            sums[r][1] = s.add_products(sums[r][1], w[1], x);
        }
    }
}
