//! The matrix product with quantised weights: `out[m, n] = epilogue(x[m, k] W[n, k]ᵀ)`.
//!
//! Rows of x are rounded to whole numbers; products of whole numbers and their sums over a block of [`BLOCK`] inputs are exact, and blocks
//! are added up in order, in float32. So a row's bits do not depend on what is computed with it.
//!
//! How far x is rounded is up to the instructions. Where there are some for sums of four products of bytes, each block of a row becomes
//! numbers of 8 bits with a scale of its own. Elsewhere numbers of 16 bits cost nothing, and one scale for a row is enough: the
//! weights are then the only source of error.
//!
//! Weights lie in panels of two vectors' width, block after block: the scales of the panel's outputs in bfloat16, then the numbers, in
//! groups of [`Simd::GROUP`] inputs for each output. In groups of four they have no sign: what was added to them is taken off the sum.

use std::ops::Range;

use super::matmul::{Shared, Split, Store, panel_width};
use super::rows::TASK_ELEMENTS;
use super::simd::{Kernel, Simd};
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

/// Rows as whole numbers.
pub struct Rounded {
    rows: usize,
    blocks: usize,
    /// `[rows][blocks][groups]`, the last block filled up with zeros.
    numbers: Vec<i32>,
    /// `[rows]`, or in groups of four `[rows][blocks]`.
    scales: Vec<Scale>,
}

/// What numbers are to be multiplied with.
#[derive(Clone, Copy, Default)]
struct Scale {
    scale: f32,
    /// In groups of four: what takes off a block's sum of products what was added to the weights.
    offset: i32,
}

/// Rounds all rows of a matrix.
pub struct Round<'a> {
    pub pool: &'a Pool,
    pub x: &'a Tensor,
    /// Of the weights.
    pub bits: Bits,
}

impl Kernel for Round<'_> {
    type Output = Rounded;

    /// # Safety
    /// None beyond the features.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) -> Rounded {
        let Round { pool, x, bits } = self;
        let (rows, blocks) = (x.rows(), x.cols().div_ceil(BLOCK));
        let (width, scales) = (blocks * BLOCK / S::GROUP, if S::GROUP == 4 { blocks } else { 1 });
        let mut rounded = Rounded {
            rows,
            blocks,
            numbers: vec![0; rows * width],
            scales: vec![Scale::default(); rows * scales],
        };
        let some = (TASK_ELEMENTS / x.cols().max(1)).max(1);
        let numbers = rounded.numbers.chunks_mut((some * width).max(1));
        let parts = numbers.zip(rounded.scales.chunks_mut((some * scales).max(1))).enumerate();
        pool.run_each(parts, |(i, (numbers, of_rows))| {
            let rows = x.data()[i * some * x.cols()..].chunks(x.cols().max(1));
            let to = numbers.chunks_mut(width.max(1)).zip(of_rows.chunks_mut(scales.max(1)));
            for (row, (numbers, scales)) in rows.zip(to) {
                // SAFETY: the token turns its features on.
                unsafe { s.run(RoundRow { row, numbers, scales, zero: bits.zero() }) };
            }
        });
        rounded
    }
}

struct RoundRow<'a> {
    row: &'a [f32],
    numbers: &'a mut [i32],
    scales: &'a mut [Scale],
    zero: i32,
}

impl Kernel for RoundRow<'_> {
    type Output = ();

    /// # Safety
    /// None beyond the features, with which the compiler makes vectors of these loops.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, _: S) {
        let RoundRow { row, numbers, scales, zero } = self;
        if S::GROUP == 2 {
            scales[0].scale = round::<2>(row, numbers);
            return;
        }
        let blocks = row.chunks(BLOCK).zip(numbers.chunks_mut(BLOCK / 4));
        for ((block, numbers), to) in blocks.zip(scales) {
            let scale = round::<4>(block, numbers);
            let sum: i32 =
                numbers.iter().flat_map(|four| four.to_le_bytes()).map(|x| i32::from(x as i8)).sum();
            *to = Scale { scale, offset: -zero * sum };
        }
    }
}

/// Rounds to groups of whole numbers, of `32 / GROUP` bits each; gives their scale.
#[inline(always)]
fn round<const GROUP: usize>(values: &[f32], numbers: &mut [i32]) -> f32 {
    /// Added to a number below 2^22 it leaves the nearest whole one, the even of two, in the lower bits.
    const SHIFT: f32 = 12_582_912.0;
    let bits = 32 / GROUP;
    // A block's sum of products with weights of 8 bits stays below 2^31.
    let largest = ((1u32 << (bits - 1)) - 1) as f32;
    // As whole numbers, sizes compare as the numbers do, and what is infinite or no number is larger than all.
    let furthest = values.iter().fold(0, |furthest, x| (x.to_bits() & 0x7fff_ffff).max(furthest));
    let furthest = f32::from_bits(furthest);
    let factor = if furthest > 0.0 { largest / furthest } else { 0.0 };
    if !furthest.is_finite() || !factor.is_finite() {
        // What cannot be rounded must not come out as if it could; the smallest numbers count as 0.
        return if furthest.is_finite() { 0.0 } else { f32::NAN };
    }
    let group = |group: &[f32; GROUP]| {
        let whole = group.map(|x| (x * factor + SHIFT).to_bits() & (u32::MAX >> (32 - bits)));
        whole.iter().rev().fold(0, |group, x| group << (bits % 32) | x) as i32
    };
    let (whole, rest) = values.as_chunks::<GROUP>();
    numbers.iter_mut().zip(whole).for_each(|(to, values)| *to = group(values));
    if !rest.is_empty() {
        let mut last = [0.0; GROUP];
        last[..rest.len()].copy_from_slice(rest);
        numbers[whole.len()] = group(&last);
    }
    furthest / largest
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
        let scales = if S::GROUP == 4 { rows * x.blocks } else { rows };
        assert_eq!(
            (x.blocks, x.numbers.len(), x.scales.len()),
            (inputs.div_ceil(BLOCK), rows * x.blocks * BLOCK / S::GROUP, scales),
            "rounded rows"
        );
        let store = Store::new(epilogue, rows, outputs, Shared::new(out));
        let Some(split) = Split::new(rows, count, panel_bytes, pool.threads()) else { return };
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
                // Memory gives more when it is read in several streams than in one.
                if rows == 1 && panel + 4 <= self.panel_range.end {
                    self.tile::<S, FOUR, 1, 4>(s, panel, self.rows.start);
                    panel += 4;
                    continue;
                }
                for tile in 0..tiles {
                    let first = self.rows.start + rows * tile / tiles;
                    match self.rows.start + rows * (tile + 1) / tiles - first {
                        1 => self.tile::<S, FOUR, 1, 1>(s, panel, first),
                        2 => self.tile::<S, FOUR, 2, 1>(s, panel, first),
                        3 => self.tile::<S, FOUR, 3, 1>(s, panel, first),
                        4 => self.tile::<S, FOUR, 4, 1>(s, panel, first),
                        5 => self.tile::<S, FOUR, 5, 1>(s, panel, first),
                        _ => self.tile::<S, FOUR, 6, 1>(s, panel, first),
                    }
                }
                panel += 1;
            }
        }
    }

    /// `R` rows from `row` on and `P` panels from `panel` on.
    #[inline(always)]
    unsafe fn tile<S: Simd, const FOUR: bool, const R: usize, const P: usize>(
        &self,
        s: S,
        panel: usize,
        row: usize,
    ) {
        let (width, blocks) = (panel_width::<S>(), self.x.blocks);
        let groups = BLOCK / S::GROUP;
        let step = blocks * groups;
        let block_bytes = width * (2 + self.bits.bytes());
        // SAFETY: blocks lie inside of the panels, rows inside of the numbers.
        unsafe {
            let x = self.x.numbers.as_ptr().add(row * step);
            let b = self.panels.as_ptr().add(panel * self.panel_bytes);
            let mut totals = [[[s.splat(0.0); 2]; R]; P];
            for block in 0..blocks {
                let x = x.add(block * groups);
                for p in 0..P {
                    let scales = b.add(p * self.panel_bytes + block * block_bytes);
                    let numbers = scales.add(2 * width);
                    let mut sums = [[s.splat_whole(0); 2]; R];
                    if S::GROUP == 4 {
                        for (r, sums) in sums.iter_mut().enumerate() {
                            *sums = [s.splat_whole(self.scale((row + r) * blocks + block).offset); 2];
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
                    let scales =
                        [s.load_bf16(scales.cast()), s.load_bf16(scales.cast::<u16>().add(S::LANES))];
                    for r in 0..R {
                        for half in 0..2 {
                            let mut sum = s.float(sums[r][half]);
                            if S::GROUP == 4 {
                                sum = s.mul(sum, s.splat(self.scale((row + r) * blocks + block).scale));
                            }
                            totals[p][r][half] = s.fma(sum, scales[half], totals[p][r][half]);
                        }
                    }
                }
            }
            for p in 0..P {
                if S::GROUP == 2 {
                    for r in 0..R {
                        let scale = s.splat(self.scale(row + r).scale);
                        totals[p][r] = [s.mul(totals[p][r][0], scale), s.mul(totals[p][r][1], scale)];
                    }
                }
                self.store.tile::<S, R>(s, panel + p, row, &totals[p]);
            }
        }
    }

    /// Scale `i` of the rows.
    #[inline(always)]
    unsafe fn scale(&self, i: usize) -> Scale {
        // SAFETY: the caller's.
        unsafe { *self.x.scales.get_unchecked(i) }
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
