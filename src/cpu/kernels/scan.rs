//! Selective state spaces: a recurrence over the rows of a sequence, for each channel by itself.

use super::matmul::Shared;
use crate::backend::{Scan, Span};
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
    assert!(spans.iter().all(|span| span.rows.end <= out.rows()), "rows of a sequence");
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
