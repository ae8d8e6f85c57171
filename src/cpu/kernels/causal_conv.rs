//! Causal depthwise convolutions: in each channel a sum over the last rows of the sequence.

use std::ops::Range;

use super::math::activate;
use super::matmul::Shared;
use super::simd::{Checked, Kernel, Simd, load, store};
use crate::backend::{CausalConv, Span};
use crate::cpu::pool::Pool;
use crate::tensor::Tensor;

/// Channels of one sequence that are one task: enough to be worth it.
const CHANNELS: usize = 128;

/// See [`Backend::causal_conv`](crate::backend::Backend::causal_conv).
pub struct CausalConvolution<'a, 's> {
    pub pool: &'a Pool,
    pub conv: &'a CausalConv<'a>,
    pub spans: &'a [Span],
    pub states: &'a mut [&'s mut [f32]],
    pub out: &'a mut Tensor,
}

impl Kernel for CausalConvolution<'_, '_> {
    type Output = ();

    /// # Safety
    /// None beyond the features.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) {
        let CausalConvolution { pool, conv, spans, states, out } = self;
        let channels = out.cols();
        let kernel = conv.weight.len() / channels.max(1);
        assert!(kernel > 0 && conv.weight.len() == kernel * channels, "weights of a convolution");
        assert!(conv.bias.is_none_or(|bias| bias.len() == channels), "biases of a convolution");
        assert!(conv.start + channels <= conv.x.cols(), "columns of a convolution");
        assert_eq!(spans.len(), states.len(), "a state for each sequence");
        assert!(Span::are_in_order(spans, out.rows().min(conv.x.rows())), "rows of sequences");
        let shared = Shared::new(out);
        let states = states.iter_mut().map(|state| {
            assert_eq!(state.len(), (kernel - 1) * channels, "the state of a sequence");
            Shared::of(channels, state)
        });
        let (states, parts) = (states.collect::<Vec<_>>(), channels.div_ceil(CHANNELS));
        pool.run(spans.len() * parts, &|i| {
            let (rows, state, first) =
                (spans[i / parts].rows.clone(), states[i / parts], i % parts * CHANNELS);
            let part = first..(first + CHANNELS).min(channels);
            // SAFETY: the token turns its features on; lengths are checked above; tasks have different rows or channels.
            unsafe { s.run(ConvPart { conv, channels, kernel, rows, part, state, out: shared }) }
        });
    }
}

// SAFETY: lengths are checked before anything else.
unsafe impl Checked for CausalConvolution<'_, '_> {}

/// Some channels of one sequence.
struct ConvPart<'a> {
    conv: &'a CausalConv<'a>,
    /// Of all, not only of these.
    channels: usize,
    kernel: usize,
    rows: Range<usize>,
    part: Range<usize>,
    /// `[kernel - 1, channels]`.
    state: Shared,
    out: Shared,
}

impl Kernel for ConvPart<'_> {
    type Output = ();

    /// # Safety
    /// `CausalConvolution` has checked the lengths.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) {
        let ConvPart { conv, channels, kernel, rows, part, state, out } = self;
        let before = kernel - 1;
        // Where the inputs from a channel on lie, counted from the first that is remembered.
        let input = |i: usize, channel: usize| -> *const f32 {
            match i.checked_sub(before) {
                // SAFETY: `i` is below `before`, which is how many rows the state has.
                None => unsafe { state.at(i, channel) },
                Some(i) => conv.x.row(rows.start + i)[conv.start + channel..].as_ptr(),
            }
        };
        for (i, row) in rows.clone().enumerate() {
            for first in part.clone().step_by(S::LANES) {
                let lanes = (part.end - first).min(S::LANES);
                // SAFETY: `lanes` channels from `first` on lie inside of what is read and written.
                unsafe {
                    let mut sum =
                        conv.bias.map_or(s.splat(0.0), |bias| load(s, bias.as_ptr().add(first), lanes));
                    for k in 0..kernel {
                        let weight = load(s, conv.weight.as_ptr().add(k * channels + first), lanes);
                        sum = s.fma(weight, load(s, input(i + k, first), lanes), sum);
                    }
                    store(s, out.at(row, first), lanes, activate(s, conv.act, sum));
                }
            }
        }
        for k in 0..before {
            // SAFETY: the channels lie inside of both; later rows have not been written yet, and a row is at most copied onto itself.
            unsafe { input(rows.len() + k, part.start).copy_to(state.at(k, part.start), part.len()) };
        }
    }
}
