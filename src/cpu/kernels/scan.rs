//! Selective state spaces: a recurrence over the rows of a sequence, for each channel or each head by itself.

use std::ops::Range;

use super::math::exp_to_0;
use super::matmul::Shared;
use super::simd::{Checked, Kernel, Simd, load, store};
use crate::backend::{HeadScan, Scan, Span};
use crate::cpu::pool::Pool;
use crate::tensor::Tensor;

/// Channels of one sequence that are one task: enough to be worth it.
const CHANNELS: usize = 64;

/// See [`Backend::scan`](crate::backend::Backend::scan).
pub struct ScanChannels<'a, 's> {
    pub pool: &'a Pool,
    pub scan: &'a Scan<'a>,
    pub spans: &'a [Span],
    pub states: &'a mut [&'s mut [f32]],
    pub out: &'a mut Tensor,
}

impl Kernel for ScanChannels<'_, '_> {
    type Output = ();

    /// # Safety
    /// None beyond the features.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) {
        let ScanChannels { pool, scan, spans, states, out } = self;
        let inner = scan.d.len();
        let n = scan.a.len() / inner.max(1);
        assert!(n > 0 && scan.a.len() == inner * n, "a state for each channel");
        assert_eq!((scan.x.cols(), scan.dt.cols(), out.cols()), (inner, inner, inner), "channels of a scan");
        assert!(scan.start + 2 * n <= scan.bc.cols(), "columns of a scan");
        assert_eq!(spans.len(), states.len(), "a state for each sequence");
        let rows = out.rows().min(scan.x.rows()).min(scan.dt.rows()).min(scan.bc.rows());
        assert!(Span::are_in_order(spans, rows), "rows of sequences");
        let shared = Shared::new(out);
        let states = states.iter_mut().map(|state| {
            assert_eq!(state.len(), inner * n, "the state of a sequence");
            Shared::of(inner, state)
        });
        let (states, parts) = (states.collect::<Vec<_>>(), inner.div_ceil(CHANNELS));
        pool.run(spans.len() * parts, &|i| {
            let (rows, state, first) =
                (spans[i / parts].rows.clone(), states[i / parts], i % parts * CHANNELS);
            let channels = first..(first + CHANNELS).min(inner);
            // SAFETY: the token turns its features on; lengths are checked above; tasks have different rows or channels.
            unsafe { s.run(ScanPart { scan, rows, channels, state, out: shared }) }
        });
    }
}

// SAFETY: lengths are checked before anything else.
unsafe impl Checked for ScanChannels<'_, '_> {}

/// Some channels of one sequence.
struct ScanPart<'a> {
    scan: &'a Scan<'a>,
    rows: Range<usize>,
    channels: Range<usize>,
    /// `[state, inner]`.
    state: Shared,
    out: Shared,
}

/// Numbers of a channel that stay in registers while it goes through the rows.
const KEPT: usize = 8;

impl Kernel for ScanPart<'_> {
    type Output = ();

    /// # Safety
    /// `ScanChannels` has checked the lengths.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) {
        let ScanPart { scan, rows, channels, state, out } = self;
        let inner = scan.d.len();
        let n = scan.a.len() / inner;
        for from in (0..n).step_by(KEPT) {
            let count = (n - from).min(KEPT);
            for first in channels.clone().step_by(S::LANES) {
                let lanes = (channels.end - first).min(S::LANES);
                // SAFETY: `lanes` channels from `first` on, and `count` numbers from `from` on, lie inside of what is read and written.
                unsafe {
                    let d = load(s, scan.d.as_ptr().add(first), lanes);
                    let (mut a, mut kept) = ([s.splat(0.0); KEPT], [s.splat(0.0); KEPT]);
                    let mut room = [[0.0; KEPT]; 2];
                    for i in 0..count {
                        a[i] = load(s, scan.a.as_ptr().add((from + i) * inner + first), lanes);
                        kept[i] = load(s, state.at(from + i, first), lanes);
                    }
                    for row in rows.clone() {
                        let (dt, x) =
                            (scan.dt.row(row).as_ptr().add(first), scan.x.row(row).as_ptr().add(first));
                        let (dt, x) = (load(s, dt, lanes), load(s, x, lanes));
                        let step = s.mul(dt, x);
                        let bc = &scan.bc.row(row)[scan.start..];
                        let b = some(&bc[from..], count, &mut room[0]);
                        let c = some(&bc[n + from..], count, &mut room[1]);
                        let to = out.at(row, first);
                        let y = if from == 0 { s.mul(d, x) } else { load(s, to, lanes) };
                        let mut decays = [s.splat(1.0); KEPT];
                        for i in 0..KEPT {
                            decays[i] = exp_to_0(s, s.mul(dt, a[i]));
                        }
                        let y = advance(s, &mut kept, decays, step, b, c, y);
                        store(s, to, lanes, y);
                    }
                    for i in 0..count {
                        store(s, state.at(from + i, first), lanes, kept[i]);
                    }
                }
            }
        }
    }
}

/// See [`Backend::scan_heads`](crate::backend::Backend::scan_heads).
pub struct ScanHeads<'a, 's> {
    pub pool: &'a Pool,
    pub scan: &'a HeadScan<'a>,
    pub spans: &'a [Span],
    pub states: &'a mut [&'s mut [f32]],
    pub out: &'a mut Tensor,
}

impl Kernel for ScanHeads<'_, '_> {
    type Output = ();

    /// # Safety
    /// None beyond the features.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) {
        let ScanHeads { pool, scan, spans, states, out } = self;
        let heads = scan.a.len();
        // No sizes that a product of would begin again at 0.
        let sizes = [heads, scan.head_dim, scan.state].into_iter().try_fold(2usize, usize::checked_mul);
        assert!(sizes.is_some_and(|n| n > 0), "a state for each head");
        let (size, inner) = (scan.head_dim * scan.state, heads * scan.head_dim);
        assert!(scan.groups > 0 && heads % scan.groups == 0, "heads of a group");
        assert_eq!((scan.d.len(), scan.dt.cols()), (heads, heads), "heads of a scan");
        assert_eq!(scan.xbc.cols(), inner + 2 * scan.groups * scan.state, "columns of a scan");
        assert_eq!(out.cols(), inner, "columns of what a scan gives");
        assert_eq!(spans.len(), states.len(), "a state for each sequence");
        let rows = out.rows().min(scan.xbc.rows()).min(scan.dt.rows());
        assert!(Span::are_in_order(spans, rows), "rows of sequences");
        let shared = Shared::new(out);
        let states = states.iter_mut().map(|state| {
            assert_eq!(state.len(), heads * size, "the state of a sequence");
            Shared::of(scan.head_dim, state)
        });
        let states = states.collect::<Vec<_>>();
        pool.run(spans.len() * heads, &|i| {
            let (rows, state, head) = (spans[i / heads].rows.clone(), states[i / heads], i % heads);
            // SAFETY: the token turns its features on; lengths are checked above; tasks have different rows or heads.
            unsafe { s.run(ScanHead { scan, rows, head, state, out: shared }) }
        });
    }
}

// SAFETY: lengths are checked before anything else.
unsafe impl Checked for ScanHeads<'_, '_> {}

/// One head of one sequence.
struct ScanHead<'a> {
    scan: &'a HeadScan<'a>,
    rows: Range<usize>,
    head: usize,
    /// `[heads, state, head_dim]`.
    state: Shared,
    out: Shared,
}

impl Kernel for ScanHead<'_> {
    type Output = ();

    /// # Safety
    /// `ScanHeads` has checked the lengths.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) {
        let ScanHead { scan, rows, head, state, out } = self;
        let (heads, head_dim, n) = (scan.a.len(), scan.head_dim, scan.state);
        let group = head / (heads / scan.groups);
        let b_start = heads * head_dim + group * n;
        let c_start = b_start + scan.groups * n;
        let decays: Vec<f32> =
            rows.clone().map(|row| (scan.dt.row(row)[head] * scan.a[head]).exp()).collect();
        for from in (0..n).step_by(KEPT) {
            let count = (n - from).min(KEPT);
            for first in (0..head_dim).step_by(S::LANES) {
                let lanes = (head_dim - first).min(S::LANES);
                let channel = head * head_dim + first;
                // SAFETY: `lanes` channels from `channel` on, and `count` numbers from `from` on, lie inside of what is read and
                // written.
                unsafe {
                    let d = s.splat(scan.d[head]);
                    let (mut kept, mut room) = ([s.splat(0.0); KEPT], [[0.0; KEPT]; 2]);
                    for i in 0..count {
                        kept[i] = load(s, state.at(head * n + from + i, first), lanes);
                    }
                    for (row, decay) in rows.clone().zip(&decays) {
                        let xbc = scan.xbc.row(row);
                        let x = load(s, xbc.as_ptr().add(channel), lanes);
                        let step = s.mul(s.splat(scan.dt.row(row)[head]), x);
                        let b = some(&xbc[b_start + from..], count, &mut room[0]);
                        let c = some(&xbc[c_start + from..], count, &mut room[1]);
                        let to = out.at(row, channel);
                        let y = if from == 0 { s.mul(d, x) } else { load(s, to, lanes) };
                        let y = advance(s, &mut kept, [s.splat(*decay); KEPT], step, b, c, y);
                        store(s, to, lanes, y);
                    }
                    for i in 0..count {
                        store(s, state.at(head * n + from + i, first), lanes, kept[i]);
                    }
                }
            }
        }
    }
}

/// One step of a vector of channels: `kept = decay * kept + step * b`, then `y` and the sum of `c * kept`, in this order.
///
/// # Safety
/// Only inside of a kernel; `b` and `c` have `KEPT` elements. Where they lie in memory, a processor takes them for all channels at once.
#[inline(always)]
unsafe fn advance<S: Simd>(
    s: S,
    kept: &mut [S::V; KEPT],
    decays: [S::V; KEPT],
    step: S::V,
    b: *const f32,
    c: *const f32,
    mut y: S::V,
) -> S::V {
    // SAFETY: the caller's.
    unsafe {
        for i in 0..KEPT {
            kept[i] = s.fma(decays[i], kept[i], s.mul(step, s.splat(*b.add(i))));
            y = s.fma(s.splat(*c.add(i)), kept[i], y);
        }
        y
    }
}

/// Where the first `count` numbers lie, with zeros behind them up to `KEPT`.
#[inline(always)]
fn some(numbers: &[f32], count: usize, room: &mut [f32; KEPT]) -> *const f32 {
    if count == KEPT {
        return numbers[..KEPT].as_ptr();
    }
    room[..count].copy_from_slice(&numbers[..count]);
    room.as_ptr()
}
