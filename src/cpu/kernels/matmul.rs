//! The matrix product: `out[m, n] = epilogue(x[m, k] W[n, k]ᵀ)`.
//!
//! Weights lie in panels of two vectors' width: `[n / width][k][width]`. A tile of up to `TILE_ROWS` rows and one panel (with few
//! rows, several panels) stays in registers while k runs. Every element has one accumulator that takes its products in the order
//! of k, whatever the tile, so its bits do not depend on which rows are computed together.

use super::math::activate;
use super::simd::{Kernel, Simd, Weight};
use crate::backend::Epilogue;
use crate::cpu::pool::Pool;
use crate::tensor::Tensor;

/// Elements of k that are taken at once when there are many rows: the part of a panel that stays in the first cache.
const K_BLOCK: usize = 256;

/// Rows that are computed together: their part of `x` stays in the second cache while the panels pass.
const ROW_BLOCK: usize = 96;

/// Bytes of weights below which it does not pay to hand a task to another thread.
const TASK_BYTES: usize = 64 << 10;

/// Packed weights.
pub struct Panels<'w, T> {
    /// `[n / width][k][width]`, the last panel filled up with zeros.
    pub data: &'w [T],
    /// Inputs.
    pub k: usize,
    /// Outputs.
    pub n: usize,
}

/// Width of a panel.
pub const fn panel_width<S: Simd>() -> usize {
    2 * S::LANES
}

/// A product over all rows, on all threads of a pool.
pub struct Product<'a, T> {
    pub pool: &'a Pool,
    pub x: &'a Tensor,
    pub weights: Panels<'a, T>,
    pub epilogue: &'a Epilogue<'a>,
    pub out: &'a mut Tensor,
}

/// A matrix that several threads write to, each to elements of its own.
#[derive(Clone, Copy)]
pub struct Shared {
    data: *mut f32,
    cols: usize,
}

// SAFETY: whoever writes promises that no two threads write the same element.
unsafe impl Sync for Shared {}

impl Shared {
    /// A view of a matrix for the time that it is borrowed.
    pub fn new(x: &mut Tensor) -> Self {
        Shared { cols: x.cols(), data: x.data_mut().as_mut_ptr() }
    }

    /// Where element `[row, col]` lies.
    ///
    /// # Safety
    /// It must lie inside of the matrix.
    #[inline(always)]
    pub unsafe fn at(&self, row: usize, col: usize) -> *mut f32 {
        // SAFETY: the caller's.
        unsafe { self.data.add(row * self.cols + col) }
    }
}

impl<T: Weight> Kernel for Product<'_, T> {
    type Output = ();

    /// # Safety
    /// Lengths are checked here.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) {
        let Product { pool, x, weights, epilogue, out } = self;
        let width = panel_width::<S>();
        let panels = weights.n.div_ceil(width);
        assert_eq!(weights.data.len(), panels * weights.k * width, "packed weights");
        assert_eq!(
            (x.cols(), out.rows(), out.cols()),
            (weights.k, x.rows(), weights.n),
            "shapes of a product"
        );
        if let Some(bias) = epilogue.bias {
            assert_eq!(bias.len(), weights.n, "one bias per output");
        }
        if let Some(mul) = epilogue.mul {
            assert_eq!((mul.rows(), mul.cols()), (x.rows(), weights.n), "the factor of a product");
        }
        if x.rows() == 0 || weights.n == 0 {
            return;
        }
        let row_blocks = x.rows().div_ceil(ROW_BLOCK);
        // Tasks large enough to be worth handing out, and enough of them to even out the threads.
        let panel_bytes = weights.k * width * size_of::<T>();
        let least = TASK_BYTES.div_ceil(panel_bytes.max(1) * x.rows().clamp(1, 16)).max(1);
        let wanted = (panels * row_blocks).div_ceil(pool.threads() * 8);
        let group = wanted.max(least).min(panels);
        let groups = panels.div_ceil(group);
        let shared = Shared::new(out);
        let task = Task { x, weights: &weights, epilogue, out: shared };
        pool.run(groups * row_blocks, &|i| {
            let first = i / row_blocks * group;
            let rows = i % row_blocks * ROW_BLOCK;
            let block = Block {
                task: &task,
                panels: first..(first + group).min(panels),
                rows: rows..(rows + ROW_BLOCK).min(task.x.rows()),
            };
            // SAFETY: the token turns its features on; lengths are checked above; tasks have different rows or panels.
            unsafe { s.run(block) };
        });
    }
}

struct Task<'a, T> {
    x: &'a Tensor,
    weights: &'a Panels<'a, T>,
    epilogue: &'a Epilogue<'a>,
    out: Shared,
}

struct Block<'a, T> {
    task: &'a Task<'a, T>,
    panels: std::ops::Range<usize>,
    rows: std::ops::Range<usize>,
}

impl<T: Weight> Kernel for Block<'_, T> {
    type Output = ();

    /// # Safety
    /// `Product` has checked the lengths.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) {
        // SAFETY: panels and rows lie inside of the matrices.
        unsafe {
            match self.rows.len() {
                // Few rows leave registers free: several panels at once keep the multipliers busy.
                1 => self.narrow::<S, 1, 4>(s),
                2 => self.narrow::<S, 2, 2>(s),
                3 => self.narrow::<S, 3, 2>(s),
                _ => self.wide(s),
            }
        }
    }
}

/// Sums of a tile that is wider than k: `[rows of a block][two vectors]`.
type Scratch = [f32; ROW_BLOCK * 32];

impl<T: Weight> Block<'_, T> {
    /// `R` rows, `P` panels at once.
    #[inline(always)]
    unsafe fn narrow<S: Simd, const R: usize, const P: usize>(&self, s: S) {
        let Task { x, weights, .. } = self.task;
        let (k, width) = (weights.k, panel_width::<S>());
        let mut panel = self.panels.start;
        // SAFETY: whole groups of panels, then single ones, all inside of the range.
        unsafe {
            let a = x.data().as_ptr().add(self.rows.start * k);
            while panel + P <= self.panels.end {
                let b = weights.data.as_ptr().add(panel * k * width);
                let mut acc = [[[s.splat(0.0); 2]; R]; P];
                for i in 0..k {
                    for (p, acc) in acc.iter_mut().enumerate() {
                        let w = b.add((p * k + i) * width);
                        let w = [T::load(s, w), T::load(s, w.add(S::LANES))];
                        for (r, acc) in acc.iter_mut().enumerate() {
                            let x = s.splat(*a.add(r * k + i));
                            acc[0] = s.fma(x, w[0], acc[0]);
                            acc[1] = s.fma(x, w[1], acc[1]);
                        }
                    }
                }
                for (p, acc) in acc.iter().enumerate() {
                    for (r, acc) in acc.iter().enumerate() {
                        self.finish(s, panel + p, self.rows.start + r, *acc);
                    }
                }
                panel += P;
            }
            if P > 1 && panel < self.panels.end {
                let rest = Block { task: self.task, panels: panel..self.panels.end, rows: self.rows.clone() };
                rest.narrow::<S, R, 1>(s);
            }
        }
    }

    /// More rows: if they do not fit into one tile, k goes in blocks, and sums are kept aside between them.
    #[inline(always)]
    unsafe fn wide<S: Simd>(&self, s: S) {
        let k = self.task.weights.k;
        let mut scratch: Scratch = [0.0; ROW_BLOCK * 32];
        let k_block = if self.rows.len() <= S::TILE_ROWS { k } else { K_BLOCK };
        // SAFETY: tiles lie inside of the rows, and the scratch has room for a block of rows.
        unsafe {
            for panel in self.panels.clone() {
                let mut from = 0;
                while from < k {
                    let to = (from + k_block).min(k);
                    let mut row = self.rows.start;
                    while row < self.rows.end {
                        let n = (self.rows.end - row).min(S::TILE_ROWS);
                        self.tile(s, panel, row, n, from..to, &mut scratch);
                        row += n;
                    }
                    from = to;
                }
            }
        }
    }

    /// A tile of `rows` rows from `row` on, over a part of k. Sums go on from what the scratch holds and are put back until k is
    /// complete.
    #[inline(always)]
    unsafe fn tile<S: Simd>(
        &self,
        s: S,
        panel: usize,
        row: usize,
        rows: usize,
        part: std::ops::Range<usize>,
        scratch: &mut Scratch,
    ) {
        // SAFETY: the caller's.
        unsafe {
            match rows {
                1 => self.tile_of::<S, 1>(s, panel, row, part, scratch),
                2 => self.tile_of::<S, 2>(s, panel, row, part, scratch),
                3 => self.tile_of::<S, 3>(s, panel, row, part, scratch),
                4 => self.tile_of::<S, 4>(s, panel, row, part, scratch),
                5 => self.tile_of::<S, 5>(s, panel, row, part, scratch),
                6 => self.tile_of::<S, 6>(s, panel, row, part, scratch),
                7 if S::TILE_ROWS > 6 => self.tile_of::<S, 7>(s, panel, row, part, scratch),
                8 if S::TILE_ROWS > 6 => self.tile_of::<S, 8>(s, panel, row, part, scratch),
                9 if S::TILE_ROWS > 6 => self.tile_of::<S, 9>(s, panel, row, part, scratch),
                10 if S::TILE_ROWS > 6 => self.tile_of::<S, 10>(s, panel, row, part, scratch),
                11 if S::TILE_ROWS > 6 => self.tile_of::<S, 11>(s, panel, row, part, scratch),
                _ if S::TILE_ROWS > 6 => self.tile_of::<S, 12>(s, panel, row, part, scratch),
                _ => unreachable!("a tile of {rows} rows"),
            }
        }
    }

    #[inline(always)]
    unsafe fn tile_of<S: Simd, const R: usize>(
        &self,
        s: S,
        panel: usize,
        row: usize,
        part: std::ops::Range<usize>,
        scratch: &mut Scratch,
    ) {
        let Task { x, weights, .. } = self.task;
        let (k, width) = (weights.k, panel_width::<S>());
        // SAFETY: row + R rows, the panel and the part of k lie inside of the matrices.
        unsafe {
            let a = x.data().as_ptr().add(row * k);
            let b = weights.data.as_ptr().add(panel * k * width);
            let kept = scratch.as_mut_ptr().add((row - self.rows.start) * width);
            let mut acc = [[s.splat(0.0); 2]; R];
            if part.start > 0 {
                for (r, acc) in acc.iter_mut().enumerate() {
                    *acc = [s.load(kept.add(r * width)), s.load(kept.add(r * width + S::LANES))];
                }
            }
            for i in part.clone() {
                let w = b.add(i * width);
                let w = [T::load(s, w), T::load(s, w.add(S::LANES))];
                for (r, acc) in acc.iter_mut().enumerate() {
                    let x = s.splat(*a.add(r * k + i));
                    acc[0] = s.fma(x, w[0], acc[0]);
                    acc[1] = s.fma(x, w[1], acc[1]);
                }
            }
            for (r, acc) in acc.iter().enumerate() {
                if part.end < k {
                    s.store(kept.add(r * width), acc[0]);
                    s.store(kept.add(r * width + S::LANES), acc[1]);
                } else {
                    self.finish(s, panel, row + r, *acc);
                }
            }
        }
    }

    /// Stores the sums of one row of a panel.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, s: S, panel: usize, row: usize, acc: [S::V; 2]) {
        let Task { weights, epilogue, out, .. } = self.task;
        for (half, v) in acc.into_iter().enumerate() {
            let col = panel * panel_width::<S>() + half * S::LANES;
            let n = weights.n.saturating_sub(col).min(S::LANES);
            if n == 0 {
                return;
            }
            // SAFETY: `n` elements from `col` on lie inside of the row of each matrix.
            unsafe {
                let load = |p: *const f32| if n == S::LANES { s.load(p) } else { s.load_part(p, n) };
                let mut y = v;
                if let Some(bias) = epilogue.bias {
                    y = s.add(y, load(bias.as_ptr().add(col)));
                }
                if let Some(act) = epilogue.act {
                    y = activate(s, act, y);
                }
                if let Some(mul) = epilogue.mul {
                    y = s.mul(y, load(mul.data().as_ptr().add(row * weights.n + col)));
                }
                let to = out.at(row, col);
                if epilogue.accumulate {
                    y = s.add(y, load(to));
                }
                if n == S::LANES { s.store(to, y) } else { s.store_part(to, n, y) }
            }
        }
    }
}
