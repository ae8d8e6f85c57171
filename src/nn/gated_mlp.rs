use super::builder::{Builder, LinearId, Shape};
use super::fields::{Projection, fields};
use super::run::Run;
use super::{Block, Built, Plan};
use crate::backend::Activation;
use crate::error::Result;
use crate::spec::Address;
use crate::tensor::Tensor;

fields! {
    /// A linear map of a product, one of whose factors went through an activation: `down(act(gate(x)) · up(x))`.
    ///
    /// `[rows, cols] -> [rows, cols]`. Shazeer, “GLU Variants Improve Transformer”, 2020.
    pub struct GatedMlp("gated_mlp") {
        /// The factor that goes through the activation, `inner` columns.
        gate: Projection,
        /// The other factor, `inner` columns.
        up: Projection,
        /// Back to the width of the input.
        down: Projection,
        /// Columns of the factors.
        inner: usize,
        /// Applied to the gate.
        act: Activation,
    }
}

#[derive(Debug)]
struct Planned {
    gate: LinearId,
    up: LinearId,
    down: LinearId,
    act: Activation,
}

impl Planned {
    /// `act(gate(x)) · up(x)`, `[rows, inner]`.
    fn inner(&self, run: &mut Run<'_>, x: &Tensor) -> Tensor {
        let up = run.linear(self.up, x, None, None);
        let inner = run.linear(self.gate, x, Some(self.act), Some(&up));
        run.give(up);
        inner
    }
}

impl Plan for GatedMlp {
    fn plan(self, b: &mut Builder<'_>, input: Option<Shape>, at: &Address) -> Built {
        let (rows, cols) = b.matrix(input, at)?;
        let gate = b.linear(&[("gate", &self.gate, self.inner)], cols)?;
        let up = b.linear(&[("up", &self.up, self.inner)], cols)?;
        let down = b.linear(&[("down", &self.down, cols)], self.inner)?;
        Some((Box::new(Planned { gate, up, down, act: self.act }), Shape::Matrix { rows, cols }))
    }
}

impl Block for Planned {
    fn forward(&self, run: &mut Run<'_>, x: &Tensor) -> Result<Tensor> {
        let inner = self.inner(run, x);
        let out = run.linear(self.down, &inner, None, None);
        run.give(inner);
        Ok(out)
    }

    fn forward_add(&self, run: &mut Run<'_>, x: Option<&Tensor>, sum: &mut Tensor) -> Result<()> {
        let inner = self.inner(run, x.unwrap_or(sum));
        run.linear_add(self.down, &inner, sum);
        run.give(inner);
        Ok(())
    }
}
