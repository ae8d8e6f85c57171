use super::builder::{Builder, Prepare, Shape, VectorId};
use super::fields::{NonNegative, Path, fields};
use super::run::Run;
use super::trace::Site;
use super::{Block, BlockFields, Built};
use crate::backend::Norm;
use crate::error::Result;
use crate::spec::Address;
use crate::tensor::Tensor;

fields! {
    /// `x / sqrt(mean(x²) + eps) * weight` over the columns of each row.
    ///
    /// `[rows, cols] -> [rows, cols]`. Zhang and Sennrich, “Root Mean Square Layer Normalization”, 2019.
    pub struct RmsNorm("rms_norm") {
        /// Path of the module that owns `weight`.
        at: Path,
        /// Added to the mean inside of the root.
        eps: NonNegative = "1e-6",
        /// Added to each stored weight.
        offset: f64 = "0",
    }
}

#[derive(Debug)]
struct Planned {
    weight: VectorId,
    eps: f32,
}

impl BlockFields for RmsNorm {
    fn plan(self, b: &mut Builder<'_>, input: Option<Shape>, at: &Address) -> Built {
        let (rows, cols) = b.matrix(input, at)?;
        let weight = b.parameter(&self.at, "weight", vec![cols], Prepare::Plus(self.offset as f32))?;
        Some((Box::new(Planned { weight, eps: self.eps.0 as f32 }), Shape::Matrix { rows, cols }))
    }
}

impl Block for Planned {
    fn forward(&self, run: &mut Run<'_>, x: &Tensor) -> Result<Tensor> {
        let mut out = run.take(x.rows(), x.cols());
        let weight = Some(run.vector(self.weight));
        run.backend.rms_norm(x, &Norm { weight, bias: None, eps: self.eps, width: x.cols() }, &mut out);
        run.trace(Site::Norm(self.weight), Some(x), &out);
        Ok(out)
    }
}
