//! The matrix product with quantised weights: `out[m, n] = epilogue(x[m, k] W[n, k]ᵀ)`.
//!
//! Rows of x are rounded to 16-bit whole numbers, each row with a scale of its own; products of whole numbers and their sums over a
//! block of [`BLOCK`] inputs are exact, and blocks are added up in order, in float32. So a row's bits do not depend on what is computed
//! with it. Sixteen bits rather than eight cost nothing where there are no instructions for sums of four products, and leave the weights
//! as the only source of error.
//!
//! Weights lie in panels of two vectors' width, block after block: the scales of the panel's outputs in bfloat16, then the numbers.

use std::ops::Range;

use super::matmul::{Shared, Split, Store, panel_width};
use super::rows::TASK_ELEMENTS;
use super::simd::{Kernel, Simd};
use crate::backend::{Epilogue, QuantBlock};
use crate::cpu::pool::Pool;
use crate::tensor::Tensor;

/// Inputs of a block.
pub const BLOCK: usize = crate::backend::QUANT_BLOCK;

/// Pairs of inputs of a block: a pair of products is what is added up at once.
const PAIRS: usize = BLOCK / 2;

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

    /// Bytes of a panel of `width` outputs.
    pub fn panel_bytes(self, inputs: usize, width: usize) -> usize {
        inputs.div_ceil(BLOCK) * width * (2 + self.bytes())
    }

    /// Rounds a panel `[inputs][width]` of weights into its bytes.
    pub fn pack(self, panel: &[f32], width: usize, bytes: &mut [u8]) {
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
                    match self {
                        // A pair of inputs side by side, for each output.
                        Bits::Eight => numbers[(i / 2 * width + lane) * 2 + i % 2] = w as u8,
                        // Word `lane` of eight inputs holds, for each of its two halves, the four numbers of one side of the pairs.
                        Bits::Four => {
                            let byte = ((i / 8 * width + lane) * 2 + i % 2) * 2 + i % 8 / 4;
                            numbers[byte] |= (w as u8 & 15) << (4 * (i / 2 % 2));
                        }
                    }
                }
            }
        }
    }
}

/// Rows as whole numbers.
pub struct Rounded {
    /// `[rows][pairs]`: two 16-bit numbers each, of `pairs` the last block filled up with zeros.
    numbers: Vec<i32>,
    scales: Vec<f32>,
    pairs: usize,
}

/// Rounds all rows of a matrix.
pub struct Round<'a> {
    pub pool: &'a Pool,
    pub x: &'a Tensor,
}

impl Kernel for Round<'_> {
    type Output = Rounded;

    /// # Safety
    /// None beyond the features.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) -> Rounded {
        let Round { pool, x } = self;
        let pairs = x.cols().div_ceil(BLOCK) * PAIRS;
        let mut rounded = Rounded { numbers: vec![0; x.rows() * pairs], scales: vec![0.0; x.rows()], pairs };
        let some = (TASK_ELEMENTS / x.cols().max(1)).max(1);
        let numbers = rounded.numbers.chunks_mut((some * pairs).max(1));
        let parts = numbers.zip(rounded.scales.chunks_mut(some)).enumerate();
        pool.run_each(parts, |(i, (numbers, scales))| {
            let rows = x.data()[i * some * x.cols()..].chunks(x.cols().max(1));
            for ((row, numbers), scale) in rows.zip(numbers.chunks_mut(pairs.max(1))).zip(scales) {
                // SAFETY: the token turns its features on.
                unsafe { s.run(RoundRow { row, numbers, scale }) };
            }
        });
        rounded
    }
}

struct RoundRow<'a> {
    row: &'a [f32],
    numbers: &'a mut [i32],
    scale: &'a mut f32,
}

impl Kernel for RoundRow<'_> {
    type Output = ();

    /// # Safety
    /// None beyond the features, with which the compiler makes vectors of these loops.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, _: S) {
        /// The largest number: a block's sum of products with weights of 8 bits stays below 2^31.
        const LARGEST: f32 = 32767.0;
        /// Added to a number below 2^22 it leaves the nearest whole one, the even of two, in the lower bits.
        const SHIFT: f32 = 12_582_912.0;
        let RoundRow { row, numbers, scale } = self;
        // As whole numbers, sizes compare as the numbers do, and what is infinite or no number is larger than all.
        let mut furthest = 0;
        for x in row {
            furthest = furthest.max(x.to_bits() & 0x7fff_ffff);
        }
        let furthest = f32::from_bits(furthest);
        let factor = if furthest > 0.0 { LARGEST / furthest } else { 0.0 };
        if !furthest.is_finite() || !factor.is_finite() {
            // A row that cannot be rounded must not come out as one that could; the smallest numbers count as 0.
            *scale = if furthest.is_finite() { 0.0 } else { f32::NAN };
            return;
        }
        let (whole, rest) = row.as_chunks::<2>();
        for (to, [a, b]) in numbers.iter_mut().zip(whole) {
            let (a, b) = ((a * factor + SHIFT).to_bits(), (b * factor + SHIFT).to_bits());
            *to = ((a & 0xffff) | b << 16) as i32;
        }
        if let [last] = rest {
            numbers[whole.len()] = ((last * factor + SHIFT).to_bits() & 0xffff) as i32;
        }
        *scale = furthest / LARGEST;
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
        let (rows, width) = (x.scales.len(), panel_width::<S>());
        let panel_bytes = bits.panel_bytes(inputs, width);
        let count = outputs.div_ceil(width);
        assert_eq!(panels.len(), count * panel_bytes, "packed weights");
        assert_eq!((out.rows(), out.cols()), (rows, outputs), "shape of a product");
        assert_eq!(x.pairs, inputs.div_ceil(BLOCK) * PAIRS, "rounded rows");
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
        let width = panel_width::<S>();
        let pairs = self.x.pairs;
        let block_bytes = width * (2 + self.bits.bytes());
        // SAFETY: blocks lie inside of the panels, rows inside of the numbers.
        unsafe {
            let x = self.x.numbers.as_ptr().add(row * pairs);
            let b = self.panels.as_ptr().add(panel * self.panel_bytes);
            let mut totals = [[[s.splat(0.0); 2]; R]; P];
            for block in 0..pairs / PAIRS {
                let x = x.add(block * PAIRS);
                for p in 0..P {
                    let scales = b.add(p * self.panel_bytes + block * block_bytes);
                    let numbers = scales.add(2 * width);
                    let mut sums = [[s.zeros(); 2]; R];
                    if FOUR {
                        for four in 0..PAIRS / 4 {
                            let w = numbers.add(four * width * 4);
                            let w = [s.load_words(w), s.load_words(w.add(S::LANES * 4))];
                            let x = x.add(four * 4);
                            quarter::<S, R, 0>(s, w, x, pairs, &mut sums);
                            quarter::<S, R, 1>(s, w, x.add(1), pairs, &mut sums);
                            quarter::<S, R, 2>(s, w, x.add(2), pairs, &mut sums);
                            quarter::<S, R, 3>(s, w, x.add(3), pairs, &mut sums);
                        }
                    } else {
                        for pair in 0..PAIRS {
                            let w = numbers.add(pair * width * 2);
                            let w = [s.widen(w), s.widen(w.add(S::LANES * 2))];
                            multiply::<S, R>(s, w, x.add(pair), pairs, &mut sums);
                        }
                    }
                    let scales =
                        [s.load_bf16(scales.cast()), s.load_bf16(scales.cast::<u16>().add(S::LANES))];
                    for r in 0..R {
                        for half in 0..2 {
                            totals[p][r][half] =
                                s.fma(s.float(sums[r][half]), scales[half], totals[p][r][half]);
                        }
                    }
                }
            }
            for p in 0..P {
                for r in 0..R {
                    let scale = s.splat(self.x.scales[row + r]);
                    totals[p][r] = [s.mul(totals[p][r][0], scale), s.mul(totals[p][r][1], scale)];
                }
                self.store.tile::<S, R>(s, panel + p, row, &totals[p]);
            }
        }
    }
}

/// The products of pair `J` of four, whose weights of four bits lie side by side in `w`.
#[inline(always)]
unsafe fn quarter<S: Simd, const R: usize, const J: u32>(
    s: S,
    w: [S::W; 2],
    x: *const i32,
    pairs: usize,
    sums: &mut [[S::I; 2]; R],
) {
    // SAFETY: the caller's.
    unsafe { multiply::<S, R>(s, [s.nibbles::<J>(w[0]), s.nibbles::<J>(w[1])], x, pairs, sums) }
}

/// Adds the products of a pair of inputs of `R` rows.
#[inline(always)]
unsafe fn multiply<S: Simd, const R: usize>(
    s: S,
    w: [S::W; 2],
    x: *const i32,
    pairs: usize,
    sums: &mut [[S::I; 2]; R],
) {
    for r in 0..R {
        // SAFETY: the caller's.
        unsafe {
            let x = s.splat_pair(*x.add(r * pairs));
            sums[r][0] = s.add_products(sums[r][0], w[0], x);
            sums[r][1] = s.add_products(sums[r][1], w[1], x);
        }
    }
}
