use super::builder::{Builder, LinearId, Shape};
use super::fields::{Projection, fields};
use super::run::Run;
use super::{Block, BlockFields, Built};
use crate::backend::Activation;
use crate::error::Result;
use crate::spec::Address;
use crate::tensor::Tensor;

fields! {
    /// Two linear maps with an activation between them: `down(act(up(x)))`.
    ///
    /// `[rows, cols] -> [rows, cols]`.
    pub struct Mlp("mlp") {
        /// The first map, to `inner` columns.
        up: Projection,
        /// The second map, back to the width of the input.
        down: Projection,
        /// Columns between the maps.
        inner: usize,
        /// Applied between the maps.
        act: Activation,
    }
}

#[derive(Debug)]
struct Planned {
    up: LinearId,
    down: LinearId,
    act: Activation,
}

impl BlockFields for Mlp {
    fn plan(self, b: &mut Builder<'_>, input: Option<Shape>, at: &Address) -> Built {
        let (rows, cols) = b.matrix(input, at)?;
        let up = b.linear(&[("up", &self.up, self.inner)], cols)?;
        let down = b.linear(&[("down", &self.down, cols)], self.inner)?;
        Some((Box::new(Planned { up, down, act: self.act }), Shape::Matrix { rows, cols }))
    }
}

impl Block for Planned {
    fn forward(&self, run: &mut Run<'_>, x: &Tensor) -> Result<Tensor> {
        let inner = run.linear(self.up, x, Some(self.act), None); // [rows, inner]
        let out = run.linear(self.down, &inner, None, None);
        run.give(inner);
        Ok(out)
    }

    fn forward_add(&self, run: &mut Run<'_>, x: Option<&Tensor>, sum: &mut Tensor) -> Result<()> {
        let inner = run.linear(self.up, x.unwrap_or(sum), Some(self.act), None); // [rows, inner]
        run.linear_add(self.down, &inner, sum);
        run.give(inner);
        Ok(())
    }
}
