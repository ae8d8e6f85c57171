//! Causal depthwise convolutions: in each channel a sum over the last rows of the sequence.

use super::builder::{Builder, Prepare, Rows, StateId, VectorId};
use super::fields::Path;
use super::run::Run;
use crate::backend::{self, Activation};
use crate::tensor::Tensor;

/// More rows than this at once are a mistake.
pub const MAX_KERNEL: usize = 1 << 10;

/// A convolution with its weights and the activation behind it.
#[derive(Debug)]
pub struct CausalConv {
    /// `[kernel, channels]`.
    weight: VectorId,
    bias: Option<VectorId>,
    act: Activation,
    channels: usize,
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
        act: Activation,
    ) -> Option<CausalConv> {
        b.field = "conv";
        let weight = b.parameter(at, "weight", vec![channels, kernel], Prepare::Transpose(kernel))?;
        let bias = if has_bias { Some(b.vector(at, "bias", channels)?) } else { None };
        let kept = b.state((kernel - 1) * channels);
        Some(CausalConv { weight, bias, act, channels, kept })
    }

    /// What comes of the channels in the columns of `x` from `start` on: `[rows, channels]`.
    pub fn apply(&self, run: &mut Run<'_>, rows: Rows, x: &Tensor, start: usize) -> Tensor {
        let (weight, bias) = (run.vector(self.weight), self.bias.map(|id| run.vector(id)));
        let mut out = run.take(x.rows(), self.channels);
        let spans = run.spans(rows);
        let mut states = Run::recurrent(run.states, self.kept, spans.len());
        let conv = backend::CausalConv { x, start, weight, bias, act: self.act };
        run.backend.causal_conv(&conv, &spans, &mut states, &mut out);
        out
    }
}
