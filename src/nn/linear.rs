use super::builder::{Builder, LinearId, Shape};
use super::fields::{Bias, Path, Projection, fields};
use super::run::Run;
use super::{Block, BlockFields, Built};
use crate::backend::Layout;
use crate::error::Result;
use crate::spec::Address;
use crate::tensor::Tensor;

fields! {
    /// `x Wᵀ + b`.
    ///
    /// `[rows, cols] -> [rows, out]`. As `torch.nn.Linear`. Fields of other blocks that are linear maps take `at`, `bias`,
    /// `layout` and `tie` too, and `defaults: {linear: …}` holds for all of them.
    pub struct Linear("linear") {
        /// Path of the module that owns `weight` and `bias`.
        at: Path,
        /// Columns of the output.
        out: usize,
        /// Whether there is a bias, or its path where it is stored under another name.
        bias: Bias = "true",
        /// How the weight is stored.
        layout: Layout = "out_in",
        /// Path of a module whose weight is used if this one is not stored.
        tie: Option<Path>,
    }
}

#[derive(Debug)]
struct Planned {
    linear: LinearId,
}

impl BlockFields for Linear {
    const KEEPS_SHAPE: bool = false;

    fn plan(self, b: &mut Builder<'_>, input: Option<Shape>, at: &Address) -> Built {
        let (rows, cols) = b.matrix(input, at)?;
        let projection = Projection { at: self.at, bias: self.bias, layout: self.layout, tie: self.tie };
        let linear = b.linear(&[("", &projection, self.out)], cols)?;
        Some((Box::new(Planned { linear }), Shape::Matrix { rows, cols: self.out }))
    }
}

impl Block for Planned {
    fn forward(&self, run: &mut Run<'_>, x: &Tensor) -> Result<Tensor> {
        Ok(run.linear(self.linear, x, None, None))
    }

    fn forward_add(&self, run: &mut Run<'_>, x: Option<&Tensor>, sum: &mut Tensor) -> Result<()> {
        match x {
            Some(x) => run.linear_add(self.linear, x, sum),
            None => {
                let y = run.linear(self.linear, sum, None, None);
                run.backend.add(sum, &y);
                run.give(y);
            }
        }
        Ok(())
    }
}
