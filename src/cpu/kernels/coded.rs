//! bfloat16 weights in 12 bits, without loss.
//!
//! The upper byte of such a number is its sign and all but the last bit of its exponent, and those of a panel are few: of trained weights
//! 3 to 9 in 10,000 do not have one of the 14 exponents in a row that most of them have. So a panel has a table of upper bytes, and of a
//! weight there are 4 bits, its place in the table, and its lower byte. Weights whose upper byte is not in the table are zeros in the panel;
//! they stand apart as they are, and their products are added to the sums at the end. So what is multiplied with them must be finite: of
//! infinity and the zero comes no number.
//!
//! The panels of a map lie one behind another without gaps, at which processors would cease to fetch ahead. Behind the last one there is for
//! each panel its table, and room for what stands apart.

use zerocopy::{FromBytes, Immutable};

use super::matmul::panel_width;
use super::simd::{Checked, Kernel, MAX_LANES, Simd, Weight};
use crate::backend::rounded;

/// Room for four weights of an output, for inputs that follow each other. Those of a panel's width have the 4 bits of all weights first: in
/// each byte those of a weight of the first and of the second vector; then the lower bytes of both. Of each four outputs come two inputs
/// after the other two, of each output an even and an odd one: so instructions make words of them, of which an operation for each makes
/// two numbers of float32.
#[derive(Clone, Copy, Debug, FromBytes, Immutable)]
#[repr(transparent)]
pub struct CodedFour([u8; BYTES]);

const BYTES: usize = 6;

/// Inputs of a [`CodedFour`].
pub const INPUTS: usize = 4;

/// Exponents are told apart in twos, by the upper byte: so many twos are in a table, beside that of zero.
const TWOS: usize = 7;

/// Places in a table: those of negative weights are the second half.
const TABLE: usize = 16;

/// Of so many weights of a panel one may stand apart.
const RARE: usize = 256;

/// Elements that are the table of a panel and the number of weights that stand apart.
const HEAD: usize = 4;

/// Elements in whole lines of the cache.
const LINES: usize = 32;

/// A weight that stands apart: where its product belongs, and what it is.
#[derive(Clone, Copy)]
struct Rest {
    input: usize,
    lane: usize,
    weight: f32,
}

/// Weights of a panel that stand apart, and what they are multiplied with.
#[derive(Clone, Copy)]
pub struct RestProducts {
    first: *const CodedFour,
    len: usize,
    x: *const f32,
    /// Inputs, which is also the number of elements between rows.
    inputs: usize,
}

impl CodedFour {
    /// Bytes of a panel of so many inputs, and behind all panels for each of them, if so many can be coded.
    pub fn panel_bytes(inputs: usize, width: usize) -> Option<[usize; 2]> {
        let elements = inputs / INPUTS * width;
        let fits = inputs.is_multiple_of(INPUTS) && u32::try_from(inputs * width).is_ok();
        fits.then(|| [elements, CodedFour::behind(elements)].map(|elements| elements * BYTES))
    }
}

impl Rest {
    /// As [`Apart::list`] has written it.
    fn of(CodedFour([a, b, c, d, e, f]): CodedFour, width: usize) -> Rest {
        let place = u32::from_le_bytes([a, b, c, d]) as usize;
        let weight = f32::from_bits(u32::from(u16::from_le_bytes([e, f])) << 16);
        Rest { input: place / width, lane: place % width, weight }
    }
}

impl RestProducts {
    /// Adds them to the sums of `rows` rows, which are `step` elements apart.
    ///
    /// # Safety
    /// Only inside of a kernel; each row of `x` must have the inputs, and each row of sums a panel's width of elements.
    #[inline(always)]
    pub unsafe fn add<S: Simd>(self, _: S, rows: usize, sums: *mut f32, step: usize) {
        for i in 0..self.len {
            // SAFETY: there is room for `len` of them.
            let rest = Rest::of(unsafe { *self.first.add(i) }, panel_width::<S>());
            // Always so, unless a file of packed weights was changed.
            if rest.input < self.inputs {
                for r in 0..rows {
                    // SAFETY: the input lies inside of the row, and a lane inside of the panel's width.
                    unsafe {
                        let sum = sums.add(r * step + rest.lane);
                        *sum = (*self.x.add(r * self.inputs + rest.input)).mul_add(rest.weight, *sum);
                    }
                }
            }
        }
    }
}

impl Weight for CodedFour {
    type X = [f32; INPUTS];
    type Vector<S: Simd> = [S::V; INPUTS];
    type Panel<S: Simd> = S::W;
    const WIDENED_ONCE: bool = true;

    fn behind(elements: usize) -> usize {
        (HEAD + elements * INPUTS / RARE).next_multiple_of(LINES)
    }
    #[inline(always)]
    unsafe fn panel<S: Simd>(s: S, behind: *const Self) -> S::W {
        // SAFETY: the caller's; the table is the first thing there.
        unsafe { s.load_table(behind.cast()) }
    }
    #[inline(always)]
    unsafe fn rest<S: Simd>(behind: *const Self, x: *const Self::X, k: usize) -> Option<RestProducts> {
        let room = Self::behind(k * panel_width::<S>());
        // SAFETY: the caller's; the number follows the table.
        let len = unsafe { u32::from_le_bytes(*behind.cast::<u8>().add(TABLE).cast()) } as usize;
        let first = behind.wrapping_add(HEAD);
        (len > 0).then(|| RestProducts { first, len: len.min(room - HEAD), x: x.cast(), inputs: k * INPUTS })
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, table: S::W, p: *const Self) -> [Self::Vector<S>; 2] {
        // SAFETY: the caller's.
        unsafe { s.load_coded(table, p.cast()) }
    }
    #[inline(always)]
    unsafe fn widen<S: Simd>(s: S, w: [Self::Vector<S>; 2], to: *mut f32) {
        for input in 0..INPUTS {
            // SAFETY: the caller's.
            unsafe {
                s.store(to.add(2 * input * S::LANES), w[0][input]);
                s.store(to.add((2 * input + 1) * S::LANES), w[1][input]);
            }
        }
    }
    #[inline(always)]
    unsafe fn splat<S: Simd>(s: S, x: [f32; INPUTS]) -> Self::Vector<S> {
        // SAFETY: the caller's.
        unsafe { [s.splat(x[0]), s.splat(x[1]), s.splat(x[2]), s.splat(x[3])] }
    }
    #[inline(always)]
    unsafe fn fma<S: Simd>(s: S, w: Self::Vector<S>, x: Self::Vector<S>, sum: S::V) -> S::V {
        // SAFETY: the caller's.
        unsafe { s.fma(x[3], w[3], s.fma(x[2], w[2], s.fma(x[1], w[1], s.fma(x[0], w[0], sum)))) }
    }
}

/// Codes a panel `[inputs][width]` of weights; gives whether it can be coded.
pub struct CodePanel<'a> {
    pub panel: &'a [f32],
    /// [`CodedFour::panel_bytes`] of them, and of what is behind all panels.
    pub bytes: &'a mut [u8],
    pub behind: &'a mut [u8],
}

/// Inputs of a panel that are looked at to find out which exponents it has, about. If these mislead, all are.
const SAMPLES: usize = 128;

impl CodePanel<'_> {
    /// The first of the upper bytes, without a sign, of a good table for each `step`th input.
    #[inline(always)]
    fn first_upper(&self, width: usize, step: usize) -> u32 {
        // Several counters, since the same one cannot be raised again at once.
        let mut counts = [[0u32; 1 << 7]; 4];
        for row in self.panel.chunks_exact(width).step_by(step) {
            for four in row.as_chunks::<4>().0 {
                for (counts, x) in counts.iter_mut().zip(four) {
                    counts[(x.to_bits() >> 24 & 0x7f) as usize] += 1;
                }
            }
        }
        // Zeros have a place of their own. Of equally good tables, that of the larger weights.
        let count = |upper: usize| counts.iter().map(|counts| counts[upper]).sum::<u32>();
        let last = counts[0].len() - TWOS;
        (1..=last).max_by_key(|first| (*first..first + TWOS).map(count).sum::<u32>()).unwrap_or(last) as u32
    }
}

impl Kernel for CodePanel<'_> {
    type Output = bool;

    /// # Safety
    /// None beyond the features.
    #[inline(always)]
    unsafe fn run<S: Simd>(mut self, _: S) -> bool {
        let width = panel_width::<S>();
        let sampled = (self.panel.len() / width / SAMPLES).max(1);
        let steps = [sampled, 1];
        // Without samples there is one table.
        for step in &steps[usize::from(sampled == 1)..] {
            let first = self.first_upper(width, *step);
            if self.code::<S>(first) {
                return true;
            }
        }
        false
    }
}

impl CodePanel<'_> {
    /// Codes the panel with this table; gives whether there is room for what stands apart.
    #[inline(always)]
    fn code<S: Simd>(&mut self, first: u32) -> bool {
        let (CodePanel { panel, bytes, behind }, width) = (self, panel_width::<S>());
        let (head, room) = behind.split_at_mut(HEAD * BYTES);
        let mut apart = Apart { room, len: 0, width };
        for (i, to) in bytes.chunks_exact_mut(width * BYTES).enumerate() {
            let (places, lower) = to.split_at_mut(4 * S::LANES);
            for half in 0..2 {
                let lower = &mut lower[half * 4 * S::LANES..];
                for two in [0, 2] {
                    let (input, lane) = (i * INPUTS + two, half * S::LANES);
                    let from = &panel[input * width + lane..];
                    let (even, odd) = (&from[..S::LANES], &from[width..][..S::LANES]);
                    let (mut place, mut low, mut fits) = ([0u16; MAX_LANES], [0u16; MAX_LANES], true);
                    for j in 0..S::LANES {
                        let [even, odd] = [even[j], odd[j]].map(|x| Code::of(x, first));
                        place[j] = even.place | odd.place << 8;
                        low[j] = even.lower | odd.lower << 8;
                        fits &= even.fits & odd.fits;
                    }
                    if !fits {
                        let both = even.iter().chain(odd).enumerate();
                        for (j, x) in both.filter(|(_, x)| !Code::of(**x, first).fits) {
                            if !apart.list(input + j / S::LANES, lane + j % S::LANES, *x) {
                                return false;
                            }
                        }
                    }
                    // Instructions that put bytes together do so in each 16 bytes: those of four lanes.
                    for four in 0..S::LANES / 4 {
                        let lanes = 4 * four..4 * (four + 1);
                        let at = 16 * four + 4 * two..16 * four + 4 * two + 8;
                        for (to, low) in
                            lower[at.clone()].as_chunks_mut().0.iter_mut().zip(&low[lanes.clone()])
                        {
                            *to = low.to_le_bytes();
                        }
                        for (to, place) in places[at].as_chunks_mut().0.iter_mut().zip(&place[lanes]) {
                            let before = if half == 0 { 0 } else { u16::from_le_bytes(*to) };
                            *to = (before | place << (4 * half)).to_le_bytes();
                        }
                    }
                }
            }
        }
        for (i, upper) in head[..TABLE].iter_mut().enumerate() {
            let (two, is_negative) = (i % (TABLE / 2), i >= TABLE / 2);
            let sign = if is_negative { 0x80 } else { 0 };
            *upper = if two == 0 { sign } else { sign | (first as u8 + two as u8 - 1) };
        }
        head[TABLE..][..4].copy_from_slice(&(apart.len as u32).to_le_bytes());
        true
    }
}

// SAFETY: no pointers.
unsafe impl Checked for CodePanel<'_> {}

/// Weights of a panel of so many outputs that stand apart.
struct Apart<'a> {
    room: &'a mut [u8],
    len: usize,
    width: usize,
}

impl Apart<'_> {
    /// Lists one more; gives whether there is room for it.
    fn list(&mut self, input: usize, lane: usize, weight: f32) -> bool {
        let place = self.len * BYTES..(self.len + 1) * BYTES;
        let Some(to) = self.room.get_mut(place) else { return false };
        let (at, bits) = to.split_at_mut(4);
        at.copy_from_slice(&((input * self.width + lane) as u32).to_le_bytes());
        bits.copy_from_slice(&(rounded(weight) as u16).to_le_bytes());
        self.len += 1;
        true
    }
}

/// A weight in its panel.
struct Code {
    /// In the table.
    place: u16,
    lower: u16,
    /// If not, it is a zero.
    fits: bool,
}

impl Code {
    #[inline(always)]
    fn of(x: f32, first: u32) -> Code {
        let bits = rounded(x);
        let upper = bits >> 8 & 0x7f;
        let two = if upper == 0 { 0 } else { upper.wrapping_sub(first).wrapping_add(1) };
        let fits = two <= TWOS as u32 && (two > 0 || upper == 0);
        let (place, lower) = if fits { (two | bits >> 12 & 8, bits & 0xff) } else { (0, 0) };
        Code { place: place as u16, lower: lower as u16, fits }
    }
}
