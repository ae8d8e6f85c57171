//! Selective state spaces: a recurrence over the rows of a sequence, for each channel or each head by itself.

use super::matmul::Shared;
use super::simd::{Kernel, Simd, load, store};
use crate::backend::{HeadScan, Scan, Span};
use crate::cpu::pool::Pool;
use crate::tensor::Tensor;

/// Channels of one sequence that are one task: enough to be worth it.
const CHANNELS: usize = 64;

/// See [`Backend::scan`](crate::backend::Backend::scan).
pub fn scan(pool: &Pool, scan: &Scan<'_>, spans: &[Span], states: &mut [&mut [f32]], out: &mut Tensor) {
    let inner = scan.d.len();
    let n = scan.a.len() / inner.max(1);
    assert!(n > 0 && scan.a.len() == inner * n, "a state for each channel");
    assert_eq!((scan.x.cols(), scan.dt.cols(), out.cols()), (inner, inner, inner), "channels of a scan");
    assert_eq!(spans.len(), states.len(), "a state for each sequence");
    assert!(Span::are_in_order(spans, out.rows()), "rows of sequences");
    let shared = Shared::new(out);
    let mut tasks = Vec::new();
    for (span, state) in spans.iter().zip(states) {
        assert_eq!(state.len(), inner * n, "the state of a sequence");
        for (part, state) in state.chunks_mut(CHANNELS * n).enumerate() {
            tasks.push((span.rows.clone(), part * CHANNELS, state));
        }
    }
    pool.run_each(tasks.into_iter(), |(rows, first, state)| {
        for row in rows {
            let (b, c) = scan.bc.row(row)[scan.start..scan.start + 2 * n].split_at(n);
            for (i, state) in state.chunks_exact_mut(n).enumerate() {
                let channel = first + i;
                let (x, dt) = (scan.x.row(row)[channel], scan.dt.row(row)[channel]);
                let mut y = scan.d[channel] * x;
                for (i, s) in state.iter_mut().enumerate() {
                    *s = (dt * scan.a[channel * n + i]).exp() * *s + dt * b[i] * x;
                    y += c[i] * *s;
                }
                // SAFETY: row and channel lie inside of the matrix, as is checked above; tasks differ in one or the other.
                unsafe { *shared.at(row, channel) = y };
            }
        }
    });
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
    /// Lengths are checked here.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) {
        let ScanHeads { pool, scan, spans, states, out } = self;
        let (heads, size) = (scan.a.len(), scan.head_dim * scan.state);
        let inner = heads * scan.head_dim;
        assert!(size > 0 && heads > 0, "a state for each head");
        assert!(scan.groups > 0 && heads % scan.groups == 0, "heads of a group");
        assert_eq!((scan.d.len(), scan.dt.cols()), (heads, heads), "heads of a scan");
        assert_eq!(scan.xbc.cols(), inner + 2 * scan.groups * scan.state, "columns of a scan");
        assert_eq!(out.cols(), inner, "columns of what a scan gives");
        assert_eq!(spans.len(), states.len(), "a state for each sequence");
        let rows = out.rows().min(scan.xbc.rows()).min(scan.dt.rows());
        assert!(Span::are_in_order(spans, rows), "rows of sequences");
        let shared = Shared::new(out);
        let mut tasks = Vec::new();
        for (span, state) in spans.iter().zip(states) {
            assert_eq!(state.len(), heads * size, "the state of a sequence");
            for (head, state) in state.chunks_exact_mut(size).enumerate() {
                tasks.push((span.rows.clone(), head, state));
            }
        }
        pool.run_each(tasks.into_iter(), |(rows, head, state)| {
            // SAFETY: the token turns its features on; lengths are checked above; tasks have different rows or heads.
            unsafe { s.run(ScanHead { scan, rows, head, state, out: shared }) }
        });
    }
}

/// One head of one sequence.
struct ScanHead<'a> {
    scan: &'a HeadScan<'a>,
    rows: std::ops::Range<usize>,
    head: usize,
    /// `[head_dim, state]`.
    state: &'a mut [f32],
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
        // All rows for some channels, then for the next ones: what these remember stays in the nearest cache.
        for (part, state) in state.chunks_mut(TOGETHER * n).enumerate() {
            let (first, channels) = (head * head_dim + part * TOGETHER, state.len() / n);
            for row in rows.clone() {
                let xbc = scan.xbc.row(row);
                let (x, b, c) = (&xbc[first..][..channels], &xbc[b_start..][..n], &xbc[c_start..][..n]);
                let dt = scan.dt.row(row)[head];
                let decay = (dt * scan.a[head]).exp();
                // SAFETY: `b` and `c` have `n` elements and `state` `n` for each channel; the row and columns that are written
                // lie inside of the matrix.
                unsafe {
                    let (b, c, state, out) = (b.as_ptr(), c.as_ptr(), state.as_mut_ptr(), out.at(row, first));
                    if let Ok(x) = <&[f32; TOGETHER]>::try_from(x) {
                        let sums = advance(s, decay, x.map(|x| dt * x), b, c, state, n);
                        for i in 0..TOGETHER {
                            *out.add(i) = sums[i] + scan.d[head] * x[i];
                        }
                    } else {
                        for i in 0..channels {
                            let [sum] = advance(s, decay, [dt * x[i]], b, c, state.add(i * n), n);
                            *out.add(i) = sum + scan.d[head] * x[i];
                        }
                    }
                }
            }
        }
    }
}

/// Channels of a head that go through the rows together: their sums hide each other's latency.
const TOGETHER: usize = 4;

/// One step of `N` channels: `state = decay * state + step * b`, then the sums of `c * state`. The order of a channel's sum does not
/// depend on `N`.
///
/// # Safety
/// `b` and `c` have `n` elements, `state` has `N * n`.
#[inline(always)]
unsafe fn advance<S: Simd, const N: usize>(
    s: S,
    decay: f32,
    steps: [f32; N],
    b: *const f32,
    c: *const f32,
    state: *mut f32,
    n: usize,
) -> [f32; N] {
    // SAFETY: the caller's: offsets end at `n`, or at `N * n`.
    unsafe {
        let decay = s.splat(decay);
        let (mut by, mut sums, mut results) = ([s.splat(0.0); N], [s.splat(0.0); N], [0.0; N]);
        for k in 0..N {
            by[k] = s.splat(steps[k]);
        }
        let mut i = 0;
        while i < n {
            let some = (n - i).min(S::LANES);
            let (b, c) = (load(s, b.add(i), some), load(s, c.add(i), some));
            for k in 0..N {
                let at = state.add(k * n + i);
                let new = s.fma(decay, load(s, at, some), s.mul(by[k], b));
                store(s, at, some, new);
                sums[k] = s.fma(c, new, sums[k]);
            }
            i += some;
        }
        for k in 0..N {
            results[k] = s.reduce_sum(sums[k]);
        }
        results
    }
}
