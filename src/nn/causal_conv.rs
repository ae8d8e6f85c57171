//! Causal depthwise convolutions: in each channel a sum over the last rows of the sequence.

use super::builder::{Builder, Rows, StateId, VectorId};
use super::fields::Path;
use super::run::Run;
use crate::tensor::Tensor;

/// More rows than this at once are a mistake.
pub const MAX_KERNEL: usize = 1 << 10;

/// A convolution with its weights.
#[derive(Debug)]
pub struct CausalConv {
    weight: VectorId,
    bias: Option<VectorId>,
    channels: usize,
    kernel: usize,
    /// The last inputs, `[kernel - 1, channels]`.
    kept: StateId,
}

impl CausalConv {
    /// Declares `weight`, `[channels, kernel]`, perhaps `bias`, and what a sequence remembers. The caller has checked the sizes.
    pub fn plan(
        b: &mut Builder<'_>,
        at: &Path,
        has_bias: bool,
        channels: usize,
        kernel: usize,
    ) -> Option<CausalConv> {
        b.field = "conv";
        let weight = b.parameter(at, "weight", vec![channels, kernel], 0.0)?;
        let bias = if has_bias { Some(b.vector(at, "bias", channels)?) } else { None };
        let kept = b.state((kernel - 1) * channels);
        Some(CausalConv { weight, bias, channels, kernel, kept })
    }

    /// The sums of the channels in the columns of `x` from `start` on: `[rows, channels]`.
    pub fn apply(&self, run: &mut Run<'_>, rows: Rows, x: &Tensor, start: usize) -> Tensor {
        let (channels, kernel) = (self.channels, self.kernel);
        let weight = run.vector(self.weight); // [channels, kernel]
        let bias = self.bias.map(|id| run.vector(id));
        let mut out = run.take(x.rows(), channels);
        let of = |row: usize| &x.row(row)[start..start + channels];
        for (span, sequence) in run.spans(rows).iter().zip(run.states.iter_mut()) {
            let past = &mut sequence.recurrent[self.kept.0];
            for row in span.rows.clone() {
                let out = out.row_mut(row);
                match bias {
                    Some(bias) => out.copy_from_slice(bias),
                    None => out.fill(0.0),
                }
                for k in 0..kernel {
                    // Row `k` of the window: the oldest come first.
                    let from = match (row + k + 1).checked_sub(kernel).filter(|r| *r >= span.rows.start) {
                        Some(earlier) => of(earlier),
                        None => &past[(row - span.rows.start + k) * channels..][..channels],
                    };
                    for (c, (out, x)) in out.iter_mut().zip(from).enumerate() {
                        *out += weight[c * kernel + k] * x;
                    }
                }
            }
            let new = span.rows.len().min(kernel - 1);
            past.copy_within(new * channels.., 0);
            let last = past[(kernel - 1 - new) * channels..].chunks_mut(channels);
            last.zip(span.rows.end - new..).for_each(|(to, row)| to.copy_from_slice(of(row)));
        }
        out
    }
}
