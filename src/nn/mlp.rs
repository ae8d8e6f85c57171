use super::builder::{Builder, LinearId, Shape};
use super::fields::{Projection, fields};
use super::run::Run;
use super::then_linear::{Inner, ThenLinear};
use super::{BlockFields, Built};
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
    act: Activation,
}

impl BlockFields for Mlp {
    fn plan(self, b: &mut Builder<'_>, input: Option<Shape>, at: &Address) -> Built {
        let (rows, cols) = b.matrix(input, at)?;
        let up = b.linear(&[("up", &self.up, self.inner)], cols)?;
        let last = b.linear(&[("down", &self.down, cols)], self.inner)?;
        let inner = Planned { up, act: self.act };
        Some((Box::new(ThenLinear { inner, last }), Shape::Matrix { rows, cols }))
    }
}

impl Inner for Planned {
    fn inner(&self, run: &mut Run<'_>, x: &Tensor) -> Result<Tensor> {
        Ok(run.linear(self.up, x, Some(self.act), None)) // [rows, inner]
    }
}
