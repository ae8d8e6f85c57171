//! The matrix product with quantised weights: `out[m, n] = epilogue(x[m, k] W[n, k]ᵀ)`.
//!
//! Rows of x are rounded to whole numbers; products of whole numbers and their sums over a block of weights are exact, and blocks are added
//! up in order, in float32. So a row's bits do not depend on what is computed with it.
//!
//! How far x is rounded is up to the instructions. Where there are some for sums of products of bytes, each run of [`RUN`] inputs
//! becomes numbers of 8 bits with a scale of its own. Elsewhere numbers of 16 bits cost nothing, and one scale for a row is enough: the
//! weights are then the only source of error. Instructions that add up two products in 16 bits would cut off what does not fit; the scale
//! is one with which it does: of weights up to 255 the two numbers may come to 128 together.
//!
//! Weights lie in panels of two vectors' width, block after block: the scales of the panel's outputs in bfloat16, then the numbers, in
//! groups of [`Simd::GROUP`] inputs for each output. Where they have no sign, what was added to them is taken off the sum.

use std::ops::Range;

use half::bf16;

use super::matmul::{LINE, Shared, Split, Store, panel_width};
use super::rows::rows_of_task;
use super::simd::{Checked, Fetch, Kernel, MAX_LANES, MAX_WIDTH, Simd, load};
use crate::backend::Epilogue;
use crate::backend::quantise::{block_inputs, quantise, scale};
use crate::cpu::pool::{Pool, part};
use crate::tensor::{Tensor, at_least};

/// Bits of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    Four,
    Eight,
}

impl Bits {
    pub const fn count(self) -> u32 {
        match self {
            Bits::Four => 4,
            Bits::Eight => 8,
        }
    }

    /// Inputs of a block.
    const fn block(self) -> usize {
        block_inputs(self.count())
    }

    /// Bytes of the numbers of so many inputs, for one output.
    const fn bytes(self, inputs: usize) -> usize {
        match self {
            Bits::Four => inputs / 2,
            Bits::Eight => inputs,
        }
    }

    /// Blocks of a row that share a scale of the row's.
    const fn blocks_of_run<S: Simd>(self) -> usize {
        if S::GROUP == 4 { RUN / self.block() } else { usize::MAX }
    }

    /// Bytes of a block of `width` outputs.
    const fn block_bytes(self, width: usize) -> usize {
        width * (2 + self.bytes(self.block()))
    }

    /// What is added to a weight so that it has no sign.
    fn zero(self) -> i32 {
        1 << (self.count() - 1)
    }

    /// Bytes of a panel of `width` outputs.
    pub const fn panel_bytes(self, inputs: usize, width: usize) -> usize {
        width * (2 * inputs.div_ceil(self.block()) + self.bytes(filled(inputs)))
    }

    /// Inputs of an output that lie together in a word, and where input `i` of them lies in it: by how many bits it is shifted.
    fn word<S: Simd>(self) -> (usize, impl Fn(usize) -> usize) {
        let shift = move |i: usize| match (self, S::GROUP) {
            // A group of inputs side by side.
            (Bits::Eight, _) => 8 * i,
            // Four bytes for eight inputs: a byte for each of four inputs, whose upper halves are the other four.
            (Bits::Four, 4) => 8 * (i % 4) + 4 * (i / 4),
            // Two bytes for the first of each pair and two for the second, each with all four in order.
            (Bits::Four, _) => 16 * (i % 2) + 4 * (i / 2),
        };
        (if self == Bits::Eight { S::GROUP } else { 8 }, shift)
    }

    /// The scale of each output of a block, `[inputs][width]`; not a number where a weight is none, or infinite.
    #[inline(always)]
    fn scales(self, rows: &[f32], width: usize) -> [f32; MAX_WIDTH] {
        let (mut furthest, mut none) = ([0.0f32; MAX_WIDTH], [0.0f32; MAX_WIDTH]);
        for row in rows.chunks(width) {
            for ((furthest, none), w) in furthest.iter_mut().zip(&mut none).zip(row) {
                *furthest = if w.abs() > furthest.abs() { *w } else { *furthest };
                *none += w * 0.0;
            }
        }
        std::array::from_fn(|lane| scale(furthest[lane], self.count()) + none[lane])
    }
}

/// Inputs are filled up with zeros to a multiple of this, which whole vectors of numbers make up.
const UNIT: usize = 32;

/// As many inputs as there are with those zeros.
pub const fn filled(inputs: usize) -> usize {
    inputs.next_multiple_of(UNIT)
}

/// Rounds a panel `[inputs][width]` of weights, with zeros behind the last input up to a multiple of [`UNIT`], into its bytes.
pub struct QuantisePanel<'a> {
    pub bits: Bits,
    pub panel: &'a [f32],
    pub bytes: &'a mut [u8],
}

impl Kernel for QuantisePanel<'_> {
    type Output = ();

    /// # Safety
    /// None beyond the features.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, _: S) {
        let QuantisePanel { bits, panel, bytes } = self;
        let width = panel_width::<S>();
        let (of_word, shift) = bits.word::<S>();
        let zero = if S::SIGNED { 0 } else { bits.zero() as i8 };
        let mask = (1 << bits.count()) - 1;
        let word_bytes = of_word * bits.count() as usize / 8;
        let blocks = bytes.chunks_mut(bits.block_bytes(width));
        for (rows, bytes) in panel.chunks(bits.block() * width).zip(blocks) {
            let (to, numbers) = bytes.split_at_mut(2 * width);
            let scales = bits.scales(rows, width);
            for (to, scale) in to.chunks_mut(2).zip(&scales) {
                to.copy_from_slice(&bf16::from_f32(*scale).to_le_bytes());
            }
            for (rows, to) in rows.chunks(of_word * width).zip(numbers.chunks_mut(word_bytes * width)) {
                let mut words = [0u32; MAX_WIDTH];
                for (i, row) in rows.chunks(width).enumerate() {
                    let shift = shift(i);
                    for ((word, w), scale) in words.iter_mut().zip(row).zip(&scales) {
                        let number = quantise(*w, *scale, bits.count()).wrapping_add(zero);
                        *word |= (number as u32 & mask) << shift;
                    }
                }
                // Lengths that the compiler knows: no call for each word.
                match word_bytes {
                    4 => to.as_chunks_mut().0.iter_mut().zip(words).for_each(|(to, w)| *to = w.to_le_bytes()),
                    _ => {
                        let to = to.as_chunks_mut().0.iter_mut();
                        to.zip(words).for_each(|(to, w)| *to = (w as u16).to_le_bytes());
                    }
                }
            }
        }
    }
}

// SAFETY: no pointers.
unsafe impl Checked for QuantisePanel<'_> {}

/// Inputs of a row that share a scale where they become numbers of 8 bits: a multiple of all blocks. Fewer would be a little more exact,
/// and slower.
const RUN: usize = 256;

/// How a row is divided.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Parts {
    /// Filled up with zeros.
    inputs: usize,
    /// The last may have fewer inputs.
    blocks: usize,
    /// Of blocks that share a scale of the row's.
    runs: usize,
}

impl Parts {
    fn new<S: Simd>(inputs: usize, bits: Bits) -> Parts {
        let blocks = inputs.div_ceil(bits.block());
        Parts { inputs: filled(inputs), blocks, runs: blocks.div_ceil(bits.blocks_of_run::<S>()) }
    }
}

/// Rows as whole numbers; behind them lies what the memory held before.
#[derive(Debug, Default)]
pub struct QuantisedRows {
    rows: usize,
    parts: Parts,
    /// `[rows][groups]`.
    numbers: Vec<i32>,
    /// `[rows][runs]`: what numbers are to be multiplied with.
    scales: Vec<f32>,
    /// `[rows][blocks]`: what takes off a block's sum of products what was added to the weights.
    offsets: Vec<i32>,
}

/// Rounds all rows of a matrix.
pub struct QuantiseRows<'a> {
    pub pool: &'a Pool,
    pub x: &'a Tensor,
    /// Of the weights.
    pub bits: Bits,
    /// Whose memory is used.
    pub quantised: QuantisedRows,
}

impl Kernel for QuantiseRows<'_> {
    type Output = QuantisedRows;

    /// # Safety
    /// None beyond the features.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) -> QuantisedRows {
        let QuantiseRows { pool, x, bits, mut quantised } = self;
        let (rows, cols) = (x.rows(), x.cols());
        let parts = Parts::new::<S>(cols, bits);
        let Parts { inputs, blocks, runs, .. } = parts;
        let groups = inputs / S::GROUP;
        (quantised.rows, quantised.parts) = (rows, parts);
        if cols == 0 {
            return quantised;
        }
        let some = rows_of_task(cols);
        let numbers = at_least(&mut quantised.numbers, rows * groups).chunks_mut(some * groups);
        let scales = at_least(&mut quantised.scales, rows * runs).chunks_mut(some * runs);
        let offsets = at_least(&mut quantised.offsets, rows * blocks).chunks_mut(some * blocks);
        pool.run_each(numbers.zip(scales).zip(offsets).enumerate(), |(i, ((numbers, scales), offsets))| {
            let rows = x.data()[i * some * cols..].chunks(cols);
            let to = numbers.chunks_mut(groups).zip(scales.chunks_mut(runs)).zip(offsets.chunks_mut(blocks));
            for (row, ((numbers, scales), offsets)) in rows.zip(to) {
                // SAFETY: the token turns its features on; lengths are those that the kernel asks for.
                unsafe { s.run(QuantiseRow { row, bits, numbers, scales, offsets }) };
            }
        });
        quantised
    }
}

// SAFETY: memory is made as long as it has to be.
unsafe impl Checked for QuantiseRows<'_> {}

struct QuantiseRow<'a> {
    row: &'a [f32],
    bits: Bits,
    numbers: &'a mut [i32],
    scales: &'a mut [f32],
    offsets: &'a mut [i32],
}

impl Kernel for QuantiseRow<'_> {
    type Output = ();

    /// # Safety
    /// There are `numbers` and `offsets` for all blocks of the row, and `scales` for all runs.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) {
        let QuantiseRow { row, bits, numbers, scales, offsets } = self;
        let of_run = bits.blocks_of_run::<S>().min(offsets.len());
        // A block's sum of products with weights of 8 bits stays below 2^31.
        let largest = ((1u32 << (32 / S::GROUP - 1)) - 1) as f32;
        let numbers = numbers.as_mut_ptr().cast::<u8>();
        let runs = || row.chunks(of_run * bits.block());
        // The largest number of each run first, in the place of its scale: what one waits for, others do in the meantime.
        for (values, furthest) in runs().zip(scales.iter_mut()) {
            // SAFETY: vectors inside of the run.
            *furthest = unsafe { max_abs(s, values, S::PAIRED && bits == Bits::Eight) };
        }
        for (run, (values, (scale, offsets))) in
            runs().zip(scales.iter_mut().zip(offsets.chunks_mut(of_run))).enumerate()
        {
            // SAFETY: vectors inside of the run, numbers of its blocks.
            unsafe {
                let furthest = *scale;
                let factor = if furthest > 0.0 { largest / furthest } else { 0.0 };
                if !furthest.is_finite() || !factor.is_finite() {
                    // What cannot be rounded must not come out as if it could; the smallest numbers count as 0.
                    *scale = if furthest.is_finite() { 0.0 } else { f32::NAN };
                    let first = run * of_run * bits.block();
                    let bytes = 4 / S::GROUP;
                    numbers.add(first * bytes).write_bytes(0, filled(values.len()) * bytes);
                    offsets.fill(0);
                    continue;
                }
                *scale = furthest / largest;
                let factor = s.splat(factor);
                for (block, (values, offset)) in values.chunks(bits.block()).zip(offsets).enumerate() {
                    let first = (run * of_run + block) * bits.block();
                    let mut sum = s.splat(0.0);
                    // Zeros behind the row's end.
                    for i in (0..filled(values.len())).step_by(S::LANES) {
                        let n = values.len().saturating_sub(i).min(S::LANES);
                        let y = s.round(s.mul(load(s, values.as_ptr().wrapping_add(i), n), factor));
                        s.store_integers(numbers.add((first + i) * 4 / S::GROUP), y);
                        sum = s.add(sum, y);
                    }
                    if !S::SIGNED {
                        // Up to 256 numbers up to 127, added up exactly.
                        *offset = -bits.zero() * s.reduce_sum(sum).to_int_unchecked::<i32>();
                    }
                }
            }
        }
    }
}

/// The size of the value that is furthest from 0, or with `paired` of the sum of two neighbours; not a number if there is one that is
/// infinite or none.
#[inline(always)]
unsafe fn max_abs<S: Simd>(s: S, values: &[f32], paired: bool) -> f32 {
    // SAFETY: the caller has the features on; `n` elements are there.
    unsafe {
        let zero = s.splat(0.0);
        let (mut furthest, mut none) = (zero, zero);
        let mut i = 0;
        while i < values.len() {
            let n = (values.len() - i).min(S::LANES);
            let x = load(s, values.as_ptr().add(i), n);
            furthest = s.max(furthest, s.max(x, s.sub(zero, x)));
            if paired {
                let sum = s.pair_sums(x);
                furthest = s.max(furthest, s.max(sum, s.sub(zero, sum)));
            }
            none = s.fma(x, zero, none);
            i += n;
        }
        s.reduce_max(furthest) + s.reduce_sum(none)
    }
}

/// A product over all rows, on all threads of a pool.
pub struct QuantisedProduct<'a> {
    pub pool: &'a Pool,
    pub x: &'a QuantisedRows,
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
    /// None beyond the features.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) {
        let QuantisedProduct { pool, x, panels, bits, inputs, outputs, epilogue, out } = self;
        let (rows, width) = (x.rows, panel_width::<S>());
        let panel_bytes = bits.panel_bytes(inputs, width);
        let count = outputs.div_ceil(width);
        assert_eq!(panels.len(), count * panel_bytes, "packed weights");
        assert_eq!((out.rows(), out.cols()), (rows, outputs), "shape of a product");
        let parts = Parts::new::<S>(inputs, bits);
        assert_eq!(x.parts, parts, "how rows are quantised");
        let held = x.numbers.len() >= rows * parts.inputs / S::GROUP
            && x.scales.len() >= rows * parts.runs
            && x.offsets.len() >= rows * parts.blocks;
        assert!(held, "quantised rows");
        let store = Store::new(epilogue, rows, outputs, Shared::new(out));
        let Some(split) = Split::new(rows, count, panel_bytes, 1, pool.threads()) else { return };
        pool.run(split.tasks(), &|i| {
            let (rows, panel_range) = split.task(i);
            let tiles = Tiles { x, panels, bits, panel_bytes, store: &store, rows, panel_range };
            // SAFETY: the token turns its features on; lengths are checked above; tasks have different rows or panels.
            unsafe { s.run(tiles) };
        });
    }
}

// SAFETY: lengths are checked before anything else.
unsafe impl Checked for QuantisedProduct<'_> {}

/// Rows of a tile. Registers would hold the sums of more, but not what is multiplied as well; with short blocks they hold the sums of
/// several blocks too. Sums of pairs on the way take another register.
const fn tile_rows<S: Simd, const FOUR: bool>() -> usize {
    let most = if FOUR { 6 } else { 8 };
    let held = if S::PAIRED { S::TILE_ROWS - 1 } else { S::TILE_ROWS };
    if held > most { most } else { held }
}

struct Tiles<'a> {
    x: &'a QuantisedRows,
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
        let tiles = rows.div_ceil(tile_rows::<S, FOUR>());
        let mut panel = self.panel_range.start;
        // SAFETY: the caller's.
        unsafe {
            while panel < self.panel_range.end {
                for tile in 0..tiles {
                    let Range { start: first, end } = part(&self.rows, tile, tiles);
                    // Tiles behind the first find the panel in the cache.
                    let ahead = tile == 0 && (rows > 1 || !matches!(s.fetch(), Fetch::Second(_)));
                    match end - first {
                        1 => self.tile::<S, FOUR, 1>(s, panel, first, ahead),
                        2 => self.tile::<S, FOUR, 2>(s, panel, first, ahead),
                        3 => self.tile::<S, FOUR, 3>(s, panel, first, ahead),
                        4 => self.tile::<S, FOUR, 4>(s, panel, first, ahead),
                        5 if tile_rows::<S, FOUR>() > 4 => self.tile::<S, FOUR, 5>(s, panel, first, ahead),
                        6 if tile_rows::<S, FOUR>() > 5 => self.tile::<S, FOUR, 6>(s, panel, first, ahead),
                        7 if tile_rows::<S, FOUR>() > 6 => self.tile::<S, FOUR, 7>(s, panel, first, ahead),
                        8 if tile_rows::<S, FOUR>() > 6 => self.tile::<S, FOUR, 8>(s, panel, first, ahead),
                        n => unreachable!("a tile of {n} rows"),
                    }
                }
                panel += 1;
            }
        }
    }

    /// Fetches what is wanted soon while the bytes `done .. done + bytes` of a panel are multiplied.
    #[inline(always)]
    unsafe fn fetch<S: Simd>(&self, s: S, panel: *const u8, done: usize, bytes: usize) {
        for line in 0..bytes.div_ceil(LINE) {
            let here = done + line * LINE;
            // SAFETY: the caller has the features on; the place may lie anywhere.
            unsafe {
                match s.fetch() {
                    // Blocks have steps of their own: as many bytes as of weights of 16 bits.
                    Fetch::Near(steps) => {
                        let at = here + steps * panel_width::<S>() * size_of::<u16>();
                        s.prefetch::<false>(panel.wrapping_add(at));
                    }
                    Fetch::Second(bytes) => s.prefetch::<true>(panel.wrapping_add(here + bytes)),
                    // Of the next panel.
                    Fetch::Streams(streams) => {
                        let line = here / LINE;
                        let at = self.panel_bytes / streams * (line % streams) + line / streams * LINE;
                        s.prefetch::<false>(panel.wrapping_add(self.panel_bytes + at));
                    }
                }
            }
        }
    }

    /// `R` rows from `row` on and a panel.
    #[inline(always)]
    unsafe fn tile<S: Simd, const FOUR: bool, const R: usize>(
        &self,
        s: S,
        panel: usize,
        row: usize,
        ahead: bool,
    ) {
        let Parts { inputs, blocks, runs } = self.x.parts;
        let bits = const { if FOUR { Bits::Four } else { Bits::Eight } };
        let (width, step, of_run) = (panel_width::<S>(), inputs / S::GROUP, bits.blocks_of_run::<S>());
        let block_bytes = bits.block_bytes(width);
        // SAFETY: blocks lie inside of the panels, rows inside of the numbers.
        unsafe {
            let x = self.x.numbers.as_ptr().add(row * step);
            let b = self.panels.as_ptr().add(panel * self.panel_bytes);
            // In memory: the sums of a block take all registers.
            let mut totals = [[[0.0f32; MAX_LANES]; 2]; R];
            for run in 0..runs {
                let mut sums_of_run = [[s.splat(0.0); 2]; R];
                for block in run * of_run..blocks.min(run * of_run + of_run) {
                    let first = block * bits.block();
                    let x = x.add(first / S::GROUP);
                    let groups = bits.block().min(inputs - first) / S::GROUP;
                    let (scales, numbers) = (block * block_bytes, block * block_bytes + 2 * width);
                    if ahead {
                        self.fetch(s, b, scales, 2 * width);
                    }
                    let mut sums = [[s.splat_i32(0); 2]; R];
                    // Half of a block, of weights up to 15 with numbers up to 127, comes to 30480 at most: 16 bits are enough.
                    let paired = FOUR && S::PAIRED;
                    if !S::SIGNED && !paired {
                        for (r, sums) in sums.iter_mut().enumerate() {
                            let offset = *self.x.offsets.get_unchecked((row + r) * blocks + block);
                            *sums = [s.splat_i32(offset); 2];
                        }
                    }
                    if FOUR {
                        for eight in 0..UNIT / 8 {
                            let at = numbers + eight * width * 4;
                            if ahead {
                                self.fetch(s, b, at, width * 4);
                            }
                            let w = [s.load_bytes(b.add(at)), s.load_bytes(b.add(at + S::LANES * 4))];
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
                            let at = numbers + group * width * S::GROUP;
                            if ahead {
                                self.fetch(s, b, at, width * S::GROUP);
                            }
                            let w =
                                [s.load_eights(b.add(at)), s.load_eights(b.add(at + S::LANES * S::GROUP))];
                            multiply::<S, R, false>(s, w, x.add(group), step, &mut sums);
                        }
                    }
                    let scales = b.add(scales).cast::<u16>();
                    let scales = [s.load_bf16(scales), s.load_bf16(scales.add(S::LANES))];
                    for r in 0..R {
                        for half in 0..2 {
                            if paired {
                                let offset = *self.x.offsets.get_unchecked((row + r) * blocks + block);
                                sums[r][half] = s.add_pairs(s.splat_i32(offset), sums[r][half]);
                            }
                            let sum = s.to_f32(sums[r][half]);
                            sums_of_run[r][half] = s.fma(sum, scales[half], sums_of_run[r][half]);
                        }
                    }
                }
                for r in 0..R {
                    let scale = s.splat(*self.x.scales.get_unchecked((row + r) * runs + run));
                    for half in 0..2 {
                        let total = totals[r][half].as_mut_ptr();
                        s.store(total, s.fma(sums_of_run[r][half], scale, s.load(total)));
                    }
                }
            }
            let mut acc = [[s.splat(0.0); 2]; R];
            for r in 0..R {
                acc[r] = [s.load(totals[r][0].as_ptr()), s.load(totals[r][1].as_ptr())];
            }
            self.store.tile::<S, R>(s, panel, row, &acc, None);
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
    unsafe { multiply::<S, R, true>(s, [s.nibbles::<J>(w[0]), s.nibbles::<J>(w[1])], x, step, sums) }
}

/// Adds the products of a group of inputs of `R` rows, which lie `step` groups apart.
#[inline(always)]
unsafe fn multiply<S: Simd, const R: usize, const FOUR: bool>(
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
            for half in 0..2 {
                sums[r][half] = if FOUR && S::PAIRED {
                    s.add_paired_products(sums[r][half], w[half], x)
                } else {
                    s.add_products(sums[r][half], w[half], x)
                };
            }
        }
    }
}
