use super::builder::{Builder, Shape, VectorId};
use super::fields::{NonNegative, Path, fields};
use super::run::Run;
use super::trace::Site;
use super::{Block, BlockFields, Built};
use crate::backend::Norm;
use crate::error::Result;
use crate::spec::Address;
use crate::tensor::Tensor;

fields! {
    /// `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias` over the columns of each row; the variance is biased.
    ///
    /// `[rows, cols] -> [rows, cols]`. As `torch.nn.LayerNorm`; Ba, Kiros, Hinton, “Layer Normalization”, 2016.
    pub struct LayerNorm("layer_norm") {
        /// Path of the module that owns `weight` and `bias`.
        at: Path,
        /// Added to the variance inside of the root.
        eps: NonNegative = "1e-5",
        /// Whether there is a bias.
        bias: bool = "true",
    }
}

#[derive(Debug)]
struct Planned {
    weight: VectorId,
    bias: Option<VectorId>,
    eps: f32,
}

impl BlockFields for LayerNorm {
    fn plan(self, b: &mut Builder<'_>, input: Option<Shape>, at: &Address) -> Built {
        let (rows, cols) = b.matrix(input, at)?;
        let weight = b.vector(&self.at, "weight", cols)?;
        let bias = if self.bias { Some(b.vector(&self.at, "bias", cols)?) } else { None };
        let block = Planned { weight, bias, eps: self.eps.0 as f32 };
        Some((Box::new(block), Shape::Matrix { rows, cols }))
    }
}

impl Block for Planned {
    fn forward(&self, run: &mut Run<'_>, x: &Tensor) -> Result<Tensor> {
        let mut out = run.take(x.rows(), x.cols());
        let weight = Some(run.vector(self.weight));
        let bias = self.bias.map(|id| run.vector(id));
        run.backend.layer_norm(x, &Norm { weight, bias, eps: self.eps, width: x.cols() }, &mut out);
        run.trace(Site::Norm(self.weight), Some(x), &out);
        Ok(out)
    }
}
