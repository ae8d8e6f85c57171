//! The matrix product: `out[m, n] = epilogue(x[m, k] W[n, k]ᵀ)`, of numbers or of pairs of them.
//!
//! Weights lie in panels of two vectors' width: `[n / width][k][width]`. A tile of up to `TILE_ROWS` rows and one panel (of one
//! row and several panels) stays in registers while k runs. Every element has one accumulator that takes its products in the order
//! of k, and those of weights that stand apart (`coded.rs`) behind them, whatever the tile, so its bits do not depend on which rows are
//! computed together.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::coded::RestProducts;
use super::math::activate;
use super::simd::{Checked, Fetch, Kernel, MAX_LANES, MAX_WIDTH, Simd, Weight, load, store};
use crate::backend::{Activation, Epilogue};
use crate::cpu::pool::{Pool, part};
use crate::tensor::Tensor;

/// Most elements of k that are taken at once when there are many rows: the rows of a tile stay in the first cache, and a part of a
/// panel in the second.
const K_BLOCK: usize = 768;

/// Rows that are computed together: their part of `x` stays in the second cache while the panels pass.
pub const ROW_BLOCK: usize = 96;

/// Rows from which on weights are [widened once](Weight::WIDENED_ONCE), not in each tile. Zen 4, one core, 12 layers of 768 columns, float16:
/// 24 rows would take 42.9 ms instead of 41.6; 36 take 62.7 instead of 63.2, 96 take 159.7 instead of 167.2.
const WIDENED_ROWS: usize = 36;

/// Bytes of weights below which it does not pay to hand a task to another thread.
const TASK_BYTES: usize = 64 << 10;

/// Bytes that the cache takes from memory at once.
pub const LINE: usize = 64;

/// Panels that are multiplied with one row at once, where memory gives more when it is read in several streams than in one: one row
/// leaves registers free.
const PANELS_OF_A_ROW: usize = 4;

/// [`PANELS_OF_A_ROW`], or 1 where one stream is as fast; none if it is to be fetched ahead. Decoding with GPT-2, one core: on Zen 5
/// float32 takes 11.8 ms with four panels and 13.0 with one that is fetched ahead, bfloat16 7.0 and 6.3; on Zen 4 float32 takes 16.9 with
/// four, 15.6 with one and 21.4 with one that is fetched ahead, float16 9.4, 9.8 and 11.6, and bfloat16 in 12 bits 8.7 with one, 7.6 with
/// one that is fetched ahead.
fn panels_of_a_row<S: Simd, T: Weight>(s: S) -> Option<usize> {
    match s.fetch() {
        Fetch::Near(_) if size_of::<T>() != 4 => None,
        Fetch::Second(_) if inputs_of::<T>() > 1 => None,
        Fetch::Second(_) if size_of::<T>() == 4 => Some(1),
        _ => Some(PANELS_OF_A_ROW),
    }
}

/// Numbers of float32 that are as long as what an element is multiplied with.
const fn inputs_of<T: Weight>() -> usize {
    size_of::<T::X>() / size_of::<f32>()
}

/// Packed weights.
pub struct Panels<'w, T> {
    /// `[n / width][k][width]`, the last panel filled up with zeros; and for each panel what is [behind](Weight::behind) all of them.
    pub data: &'w [T],
    /// Elements of each output: one or more inputs each.
    pub k: usize,
    /// Outputs.
    pub n: usize,
}

impl<T: Weight> Panels<'_, T> {
    /// What is behind all panels for this one.
    #[inline(always)]
    fn behind(&self, panel: usize, width: usize) -> *const T {
        let (panels, elements) = (self.n.div_ceil(width), self.k * width);
        self.data.as_ptr().wrapping_add(panels * elements + panel * T::behind(elements))
    }
}

/// Width of a panel.
pub const fn panel_width<S: Simd>() -> usize {
    const { assert!(S::LANES <= MAX_LANES) }
    2 * S::LANES
}

/// A product over all rows, on all threads of a pool.
pub struct Product<'a, T: Weight> {
    pub pool: &'a Pool,
    /// `[rows, k]`.
    pub x: &'a [T::X],
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
        Shared::of(x.cols(), x.data_mut())
    }

    /// The same of a matrix that nothing is written to.
    pub fn of_read(x: &Tensor) -> Self {
        Shared { cols: x.cols(), data: x.data().as_ptr().cast_mut() }
    }

    /// The same of elements in rows of so many columns.
    pub fn of(cols: usize, data: &mut [f32]) -> Self {
        Shared { cols, data: data.as_mut_ptr() }
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
    /// None beyond the features.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) {
        let Product { pool, x, weights, epilogue, out } = self;
        let width = panel_width::<S>();
        let panels = weights.n.div_ceil(width);
        let elements = weights.k * width;
        assert_eq!(weights.data.len(), panels * (elements + T::behind(elements)), "packed weights");
        let rows = out.rows();
        assert_eq!((x.len(), out.cols()), (rows * weights.k, weights.n), "shapes of a product");
        let panel_bytes = elements * size_of::<T>();
        let store = Store::new(epilogue, rows, weights.n, Shared::new(out));
        let together = panels_of_a_row::<S, T>(s).unwrap_or(1);
        let Some(split) = Split::new(rows, panels, panel_bytes, together, pool.threads()) else { return };
        let task = Task { x, weights: &weights, store };
        pool.run(split.tasks(), &|i| {
            let (rows, panels) = split.task(i);
            // SAFETY: the token turns its features on; lengths are checked above; tasks have different rows or panels.
            unsafe { s.run(Block { task: &task, panels, rows }) };
        });
    }
}

// SAFETY: lengths are checked before anything else.
unsafe impl<T: Weight> Checked for Product<'_, T> {}

/// How a product is shared out: blocks of rows of about equal size, times groups of panels. The tasks of a thread's share come one after
/// another, since a pool hands them out like that: rows stay in the caches of the thread that has computed them.
pub struct Split {
    rows: usize,
    row_blocks: usize,
    /// Blocks of a share. While one group of panels is in the cache, all of them use it.
    of_share: usize,
    panels: usize,
    group: usize,
}

impl Split {
    /// None if there is nothing to do. A row by itself is multiplied with `together` panels at once.
    pub fn new(
        rows: usize,
        panels: usize,
        panel_bytes: usize,
        together: usize,
        threads: usize,
    ) -> Option<Split> {
        if rows == 0 || panels == 0 {
            return None;
        }
        let of_share = rows.div_ceil(ROW_BLOCK * threads);
        let row_blocks = rows.div_ceil(ROW_BLOCK).next_multiple_of(of_share);
        // Tasks large enough to be worth handing out, and enough of them to even out the threads.
        let least = TASK_BYTES.div_ceil(panel_bytes.max(1) * rows.clamp(1, 16)).max(1);
        let wanted = (panels * row_blocks).div_ceil(threads * 16);
        let together = if rows == 1 && panels >= 2 * threads * together { together } else { 1 };
        let group = wanted.max(least).next_multiple_of(together).min(panels);
        Some(Split { rows, row_blocks, of_share, panels, group })
    }

    /// Number of tasks.
    pub fn tasks(&self) -> usize {
        self.row_blocks * self.panels.div_ceil(self.group)
    }

    /// Rows and panels of a task.
    pub fn task(&self, i: usize) -> (Range<usize>, Range<usize>) {
        let tasks = self.of_share * self.panels.div_ceil(self.group);
        let (share, i) = (i / tasks, i % tasks);
        let (block, first) = (share * self.of_share + i % self.of_share, i / self.of_share * self.group);
        (part(&(0..self.rows), block, self.row_blocks), first..(first + self.group).min(self.panels))
    }
}

/// Where sums go.
pub struct Store<'a> {
    epilogue: &'a Epilogue<'a>,
    cols: usize,
    out: Shared,
}

impl<'a> Store<'a> {
    /// Into a matrix of `rows` rows and `cols` columns.
    pub fn new(epilogue: &'a Epilogue<'a>, rows: usize, cols: usize, out: Shared) -> Self {
        if let Some(bias) = epilogue.bias {
            assert_eq!(bias.len(), cols, "one bias per output");
        }
        if let Some(mul) = epilogue.mul {
            assert_eq!((mul.rows(), mul.cols()), (rows, cols), "the factor of a product");
        }
        Store { epilogue, cols, out }
    }

    /// Stores the sums of `R` rows of a panel, from `row` on, when the `rest` is added to them.
    ///
    /// # Safety
    /// Only inside of a kernel; rows and panel must lie inside of the matrix, and nobody else may write there; the rest must be for as many
    /// rows.
    #[inline(always)]
    pub unsafe fn tile<S: Simd, const R: usize>(
        &self,
        s: S,
        panel: usize,
        row: usize,
        acc: &[[S::V; 2]; R],
        rest: Option<RestProducts>,
    ) {
        let mut sums = MaybeUninit::<[[f32; MAX_WIDTH]; R]>::uninit();
        let sums = sums.as_mut_ptr().cast::<f32>();
        // SAFETY: a row has room for two vectors; the rest is the caller's.
        unsafe {
            for (r, [first, second]) in acc.iter().enumerate() {
                s.store(sums.add(r * MAX_WIDTH), *first);
                s.store(sums.add(r * MAX_WIDTH + S::LANES), *second);
            }
            let rows = StoreRows { store: self, panel, row, rows: R, sums, rest };
            if R == 1 { rows.run(s) } else { s.run(rows) }
        }
    }
}

/// A tile on its way. For all but single rows, which have many short tiles, this is code of its own, once for all heights and types of
/// weights.
struct StoreRows<'a> {
    store: &'a Store<'a>,
    panel: usize,
    row: usize,
    rows: usize,
    /// Two vectors for each row, [`MAX_WIDTH`] elements apart.
    sums: *mut f32,
    rest: Option<RestProducts>,
}

impl Kernel for StoreRows<'_> {
    type Output = ();

    /// # Safety
    /// As [`Store::tile`]; there are `rows` rows of sums.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) {
        let StoreRows { store: Store { epilogue, cols, out }, panel, row, rows, sums, rest } = self;
        if let Some(rest) = rest {
            // SAFETY: the caller's.
            unsafe { rest.add(s, rows, sums, MAX_WIDTH) };
        }
        for half in 0..2 {
            let col = panel * panel_width::<S>() + half * S::LANES;
            let n = cols.saturating_sub(col).min(S::LANES);
            if n == 0 {
                return;
            }
            // SAFETY: `n` elements from `col` on lie inside of each row of each matrix, and a vector in each row of sums.
            unsafe {
                let bias = match epilogue.bias {
                    Some(bias) => load(s, bias.as_ptr().add(col), n),
                    None => s.splat(0.0),
                };
                // A loop for each activation: to choose it for each vector takes as long as some of them.
                macro_rules! each {
                    ($y:ident => $act:expr) => {
                        for r in 0..rows {
                            let $y = s.add(s.load(sums.add(r * MAX_WIDTH + half * S::LANES)), bias);
                            let mut y = $act;
                            if let Some(mul) = epilogue.mul {
                                y = s.mul(y, load(s, mul.data().as_ptr().add((row + r) * cols + col), n));
                            }
                            let to = out.at(row + r, col);
                            if epilogue.accumulate {
                                y = s.add(y, load(s, to, n));
                            }
                            store(s, to, n, y);
                        }
                    };
                }
                match epilogue.act {
                    None => each!(y => y),
                    Some(Activation::Gelu) => each!(y => activate(s, Activation::Gelu, y)),
                    Some(Activation::GeluTanh) => each!(y => activate(s, Activation::GeluTanh, y)),
                    Some(Activation::Silu) => each!(y => activate(s, Activation::Silu, y)),
                    Some(act) => each!(y => activate(s, act, y)),
                }
            }
        }
    }
}

/// What is fetched into the cache while something else is computed: up to three lines at each step of k.
#[derive(Clone, Copy)]
struct Ahead {
    first: *const u8,
    /// Bytes to fetch in all.
    len: usize,
    /// Bytes of those at each step.
    step: usize,
    /// Of so many equal shares of them, this one is fetched.
    share: usize,
    shares: usize,
}

/// Some rows and panels, over a part of k.
struct Operands<T: Weight> {
    a: *const T::X,
    /// Elements between rows.
    a_step: usize,
    b: *const T,
    /// Elements between panels.
    b_step: usize,
    /// What is behind all panels for the first of them.
    behind: *const T,
    k: usize,
    ahead: Option<Ahead>,
}

impl<T: Weight> Operands<T> {
    /// Adds the products of `R` rows with `P` panels to `acc`.
    ///
    /// # Safety
    /// Only inside of a kernel; rows and panels must have `k` readable elements.
    #[inline(always)]
    unsafe fn multiply<S: Simd, const R: usize, const P: usize>(&self, s: S, acc: &mut Sums<S, R, P>) {
        let mut sums = *acc;
        let mut i = 0;
        // SAFETY: the caller's. What is fetched ahead may lie anywhere.
        unsafe {
            let mut common = [T::panel(s, self.behind); P];
            for p in 1..P {
                common[p] = T::panel(s, self.behind.wrapping_add(p * T::behind(self.b_step)));
            }
            if let Some(ahead) = self.ahead {
                i = match s.fetch() {
                    Fetch::Second(_) => self.fetching::<S, R, P, true>(s, ahead, &common, &mut sums),
                    _ => self.fetching::<S, R, P, false>(s, ahead, &common, &mut sums),
                };
            }
            while S::STEPS > 1 && i + S::STEPS <= self.k {
                for j in 0..S::STEPS {
                    self.step(s, i + j, &common, &mut sums);
                }
                i += S::STEPS;
            }
            while i < self.k {
                self.step(s, i, &common, &mut sums);
                i += 1;
            }
        }
        *acc = sums;
    }

    /// Most steps of k, while something is fetched, into the first cache or only into the `SECOND`; gives how many steps.
    #[inline(always)]
    unsafe fn fetching<S: Simd, const R: usize, const P: usize, const SECOND: bool>(
        &self,
        s: S,
        ahead: Ahead,
        common: &[T::Panel<S>; P],
        sums: &mut Sums<S, R, P>,
    ) -> usize {
        let Ahead { first, len, step, share, shares } = ahead;
        let step = step / shares;
        let streams = match s.fetch() {
            // In a tall tile there are no registers left for more than one stream.
            Fetch::Streams(streams) if 3 * R <= 2 * S::TILE_ROWS => streams,
            _ => 1,
        };
        let first = first.wrapping_add(len / streams * share / shares);
        // A line that is named twice costs less than the question whether it is.
        let line = |i: usize| if step > i * LINE { i * LINE } else { 0 };
        let (second, third) = (line(1), line(2));
        let at_once = S::STEPS.next_multiple_of(streams);
        let mut i = 0;
        // SAFETY: the caller's.
        unsafe {
            while i + at_once <= self.k {
                for j in 0..at_once {
                    let at = len / streams * (j % streams) + (i / streams + j / streams) * step;
                    let at = first.wrapping_add(at);
                    s.prefetch::<SECOND>(at);
                    if panel_width::<S>() * size_of::<T>() > LINE {
                        s.prefetch::<SECOND>(at.wrapping_add(second));
                    }
                    if panel_width::<S>() * size_of::<T>() > 2 * LINE {
                        s.prefetch::<SECOND>(at.wrapping_add(third));
                    }
                    self.step(s, i + j, common, sums);
                }
                i += at_once;
            }
        }
        i
    }

    /// One step of k.
    #[inline(always)]
    unsafe fn step<S: Simd, const R: usize, const P: usize>(
        &self,
        s: S,
        i: usize,
        common: &[T::Panel<S>; P],
        sums: &mut Sums<S, R, P>,
    ) {
        // SAFETY: the caller's.
        unsafe {
            for p in 0..P {
                let w = T::load(s, common[p], self.b.add(p * self.b_step + i * panel_width::<S>()));
                for r in 0..R {
                    let x = T::splat(s, *self.a.add(r * self.a_step + i));
                    sums[p][r][0] = T::fma(s, w[0], x, sums[p][r][0]);
                    sums[p][r][1] = T::fma(s, w[1], x, sums[p][r][1]);
                }
            }
        }
    }
}

/// Sums of a tile: two vectors for each row of each panel.
type Sums<S, const R: usize, const P: usize> = [[[<S as Simd>::V; 2]; R]; P];

struct Task<'a, T: Weight> {
    x: &'a [T::X],
    weights: &'a Panels<'a, T>,
    store: Store<'a>,
}

struct Block<'a, T: Weight> {
    task: &'a Task<'a, T>,
    panels: Range<usize>,
    rows: Range<usize>,
}

impl<T: Weight> Kernel for Block<'_, T> {
    type Output = ();

    /// # Safety
    /// `Product` has checked the lengths.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) {
        // SAFETY: panels and rows lie inside of the matrices.
        unsafe {
            match (self.rows.len(), panels_of_a_row::<S, T>(s)) {
                (1, Some(1)) => self.narrow::<S, 1>(s),
                (1, Some(_)) => self.narrow::<S, PANELS_OF_A_ROW>(s),
                _ if self.is_widened() => s.run(Widened(self)),
                _ => self.wide(s, None),
            }
        }
    }
}

/// Numbers of a panel in float32, for a part of k: `[k][two vectors]`.
type Numbers = MaybeUninit<[f32; K_BLOCK * MAX_WIDTH]>;

/// A block with several tiles, whose weights are widened once for all of them.
struct Widened<'a, T: Weight>(Block<'a, T>);

impl<T: Weight> Kernel for Widened<'_, T> {
    type Output = ();

    /// # Safety
    /// As those of blocks.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) {
        let mut numbers = Numbers::uninit();
        // SAFETY: the caller's; a part of k has at most `K_BLOCK` numbers for each output.
        unsafe { self.0.wide(s, Some(numbers.as_mut_ptr().cast())) };
    }
}

/// Sums of the tiles of a block between two parts of k: `[rows of a block][two vectors]`.
type Scratch = MaybeUninit<[f32; ROW_BLOCK * MAX_WIDTH]>;

impl<T: Weight> Block<'_, T> {
    /// One row, `P` panels at once.
    #[inline(always)]
    unsafe fn narrow<S: Simd, const P: usize>(&self, s: S) {
        let Task { x, weights, .. } = self.task;
        let (k, width) = (weights.k, panel_width::<S>());
        let b_step = k * width;
        let mut panel = self.panels.start;
        // SAFETY: whole groups of panels, then single ones, all inside of the range.
        unsafe {
            let a = x.as_ptr().add(self.rows.start * k);
            while panel + P <= self.panels.end {
                let b = weights.data.as_ptr().add(panel * b_step);
                let behind = weights.behind(panel, width);
                let mut acc = [[[s.splat(0.0); 2]; 1]; P];
                let operands = Operands { a, a_step: k, b, b_step, behind, k, ahead: None };
                operands.multiply::<S, 1, P>(s, &mut acc);
                for p in 0..P {
                    let rest = T::rest::<S>(weights.behind(panel + p, width), a, k);
                    self.task.store.tile::<S, 1>(s, panel + p, self.rows.start, &acc[p], rest);
                }
                panel += P;
            }
            if P > 1 && panel < self.panels.end {
                let rest = Block { task: self.task, panels: panel..self.panels.end, rows: self.rows.clone() };
                rest.narrow::<S, 1>(s);
            }
        }
    }

    /// Whether weights are widened once for all tiles.
    #[inline(always)]
    fn is_widened(&self) -> bool {
        T::WIDENED_ONCE && self.rows.len() >= WIDENED_ROWS
    }

    /// More rows: tiles of about equal height. If there are several, k goes in blocks, and sums are kept aside between them; weights are
    /// then widened into `numbers`, if there are any.
    #[inline(always)]
    unsafe fn wide<S: Simd>(&self, s: S, numbers: Option<*mut f32>) {
        let (k, width) = (self.task.weights.k, panel_width::<S>());
        let mut scratch = Scratch::uninit();
        let tiles = self.rows.len().div_ceil(S::TILE_ROWS);
        let most = K_BLOCK / inputs_of::<T>();
        // What is widened has several tiles, and so no more of k at once than there is room for.
        const { assert!(WIDENED_ROWS > S::TILE_ROWS) };
        let k_block = if tiles == 1 { k } else { k.div_ceil(k.div_ceil(most).max(1)) };
        // SAFETY: tiles lie inside of the rows, and the scratch has room for a block of rows.
        unsafe {
            for panel in self.panels.clone() {
                let mut from = 0;
                // Without inputs there is one part as well, in which only what follows the product happens.
                loop {
                    let inputs = from..(from + k_block).min(k);
                    from = inputs.end;
                    let b = self.task.weights.data.as_ptr().add((panel * k + inputs.start) * width);
                    match numbers {
                        Some(numbers) => {
                            let common = T::panel(s, self.task.weights.behind(panel, width));
                            for i in 0..inputs.len() {
                                let to = numbers.add(i * inputs_of::<T>() * width);
                                T::widen(s, T::load(s, common, b.add(i * width)), to);
                            }
                            self.tiles::<S, f32>(s, panel, inputs, tiles, numbers, &mut scratch);
                        }
                        None => self.tiles::<S, T>(s, panel, inputs, tiles, b, &mut scratch),
                    }
                    if from == k {
                        break;
                    }
                }
            }
        }
    }

    /// All tiles, over a part of k, with its weights as they are kept or widened.
    #[inline(always)]
    unsafe fn tiles<S: Simd, U: Weight>(
        &self,
        s: S,
        panel: usize,
        part_of_k: Range<usize>,
        tiles: usize,
        b: *const U,
        scratch: &mut Scratch,
    ) {
        let Task { x, weights, .. } = self.task;
        let widened = inputs_of::<T>() / inputs_of::<U>();
        let (k, first, len) = (weights.k * widened, part_of_k.start * widened, part_of_k.len() * widened);
        let behind = weights.behind(panel, panel_width::<S>()).cast();
        for tile in 0..tiles {
            let rows = part(&self.rows, tile, tiles);
            let ahead = self.ahead::<S, U>(s, panel, part_of_k.clone(), tile, tiles);
            // SAFETY: row, panel and the part of k lie inside of the matrices.
            unsafe {
                let a = x.as_ptr().cast::<U::X>().add(rows.start * k + first);
                let operands = Operands { a, a_step: k, b, b_step: 0, behind, k: len, ahead };
                self.tile(s, panel, rows, part_of_k.clone(), operands, scratch);
            }
        }
    }

    /// What tile `tile` of `tiles` fetches ahead.
    #[inline(always)]
    fn ahead<S: Simd, U: Weight>(
        &self,
        s: S,
        panel: usize,
        part_of_k: Range<usize>,
        tile: usize,
        tiles: usize,
    ) -> Option<Ahead> {
        let (weights, width) = (self.task.weights, panel_width::<S>());
        let b =
            weights.data.as_ptr().wrapping_add((panel * weights.k + part_of_k.start) * width).cast::<u8>();
        let step = width * size_of::<T>();
        let len = part_of_k.len() * step;
        let step = step / (inputs_of::<T>() / inputs_of::<U>());
        let at = |bytes, share, shares| Ahead { first: b.wrapping_add(bytes), len, step, share, shares };
        match s.fetch() {
            // A tile by itself runs through the panel at the speed of memory.
            Fetch::Near(inputs) if tiles == 1 => Some(at(inputs / inputs_of::<U>() * step, 0, 1)),
            // Where a step takes two lines, each of the first two tiles fetches one, of the part behind this: the first by itself
            // would want them faster than memory has them for several threads. Other tiles find them in the second cache.
            Fetch::Second(_) if tiles > 1 && step > LINE => (tile < 2).then(|| at(len, tile, 2)),
            // What is widened before is all needed at once.
            Fetch::Second(_) if self.is_widened() => (tile == 0).then(|| at(len, 0, 1)),
            Fetch::Second(bytes) => (tile == 0).then(|| at(bytes, 0, 1)),
            // While this part of the panel is used, the next one, which lies behind it, is fetched: a share by each tile.
            _ => Some(at(len, tile, tiles)),
        }
    }

    /// A tile, over a part of k. Sums go on from what the scratch holds and are put back until k is complete.
    #[inline(always)]
    unsafe fn tile<S: Simd, U: Weight>(
        &self,
        s: S,
        panel: usize,
        rows: Range<usize>,
        part_of_k: Range<usize>,
        operands: Operands<U>,
        scratch: &mut Scratch,
    ) {
        let row = rows.start;
        // SAFETY: the caller's.
        unsafe {
            match rows.len() {
                1 => self.tile_of::<S, U, 1>(s, panel, row, part_of_k, operands, scratch),
                2 => self.tile_of::<S, U, 2>(s, panel, row, part_of_k, operands, scratch),
                3 => self.tile_of::<S, U, 3>(s, panel, row, part_of_k, operands, scratch),
                4 => self.tile_of::<S, U, 4>(s, panel, row, part_of_k, operands, scratch),
                5 => self.tile_of::<S, U, 5>(s, panel, row, part_of_k, operands, scratch),
                6 => self.tile_of::<S, U, 6>(s, panel, row, part_of_k, operands, scratch),
                7 if S::TILE_ROWS > 6 => self.tile_of::<S, U, 7>(s, panel, row, part_of_k, operands, scratch),
                8 if S::TILE_ROWS > 6 => self.tile_of::<S, U, 8>(s, panel, row, part_of_k, operands, scratch),
                9 if S::TILE_ROWS > 6 => self.tile_of::<S, U, 9>(s, panel, row, part_of_k, operands, scratch),
                10 if S::TILE_ROWS > 6 => {
                    self.tile_of::<S, U, 10>(s, panel, row, part_of_k, operands, scratch)
                }
                11 if S::TILE_ROWS > 6 => {
                    self.tile_of::<S, U, 11>(s, panel, row, part_of_k, operands, scratch)
                }
                _ if S::TILE_ROWS > 6 => {
                    self.tile_of::<S, U, 12>(s, panel, row, part_of_k, operands, scratch)
                }
                n => unreachable!("a tile of {n} rows"),
            }
        }
    }

    #[inline(always)]
    unsafe fn tile_of<S: Simd, U: Weight, const R: usize>(
        &self,
        s: S,
        panel: usize,
        row: usize,
        part_of_k: Range<usize>,
        operands: Operands<U>,
        scratch: &mut Scratch,
    ) {
        let Task { x, weights, .. } = self.task;
        let (k, width) = (weights.k, panel_width::<S>());
        // SAFETY: row + R rows, the panel and the part of k lie inside of the matrices.
        unsafe {
            let kept = scratch.as_mut_ptr().cast::<f32>().add((row - self.rows.start) * width);
            let mut acc = [[[s.splat(0.0); 2]; R]; 1];
            if part_of_k.start > 0 {
                for r in 0..R {
                    acc[0][r] = [s.load(kept.add(r * width)), s.load(kept.add(r * width + S::LANES))];
                }
            }
            operands.multiply::<S, R, 1>(s, &mut acc);
            if part_of_k.end == k {
                let behind = weights.behind(panel, width);
                let rest = T::rest::<S>(behind, x.as_ptr().add(row * k), k);
                self.task.store.tile::<S, R>(s, panel, row, &acc[0], rest);
                return;
            }
            for r in 0..R {
                s.store(kept.add(r * width), acc[0][r][0]);
                s.store(kept.add(r * width + S::LANES), acc[0][r][1]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_of_a_product_are_all_of_it_and_nothing_twice() {
        for (rows, panels, threads) in
            [(1, 7, 1), (1, 72, 2), (8, 1, 4), (97, 5, 2), (300, 24, 2), (300, 3, 7), (1000, 2, 3)]
        {
            let split = Split::new(rows, panels, 64 << 10, PANELS_OF_A_ROW, threads).unwrap();
            let mut times = vec![0; rows * panels];
            for (rows, some) in (0..split.tasks()).map(|i| split.task(i)) {
                assert!(rows.len() <= ROW_BLOCK);
                rows.flat_map(|r| some.clone().map(move |p| r * panels + p)).for_each(|at| times[at] += 1);
            }
            assert!(times.iter().all(|times| *times == 1), "{rows} rows, {panels} panels, {threads} threads");
        }
    }
}
