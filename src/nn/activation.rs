use super::builder::{Builder, Shape};
use super::fields::fields;
use super::run::Run;
use super::{Block, BlockFields, Built};
use crate::backend::Activation;
use crate::error::Result;
use crate::spec::Address;
use crate::tensor::Tensor;

fields! {
    /// A function applied to each element: `activation: tanh`.
    ///
    /// `[rows, cols] -> [rows, cols]`.
    pub struct Activate("activation") {
        /// The function, by the name that config files use.
        act: Activation,
    }
}

#[derive(Debug)]
struct Planned(Activation);

impl BlockFields for Activate {
    fn plan(self, b: &mut Builder<'_>, input: Option<Shape>, at: &Address) -> Built {
        let (rows, cols) = b.matrix(input, at)?;
        Some((Box::new(Planned(self.act)), Shape::Matrix { rows, cols }))
    }
}

impl Block for Planned {
    fn forward(&self, run: &mut Run<'_>, x: &Tensor) -> Result<Tensor> {
        self.forward_owned(run, x.clone())
    }

    fn forward_owned(&self, run: &mut Run<'_>, mut x: Tensor) -> Result<Tensor> {
        run.backend.activate(self.0, &mut x);
        Ok(x)
    }
}
