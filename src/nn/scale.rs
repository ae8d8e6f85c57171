use super::builder::{Builder, Shape};
use super::fields::fields;
use super::run::Run;
use super::{Block, Built, Plan};
use crate::error::Result;
use crate::spec::Address;
use crate::tensor::Tensor;

fields! {
    /// Each element times a number: `scale: ${hidden ** 0.5}`.
    ///
    /// `[rows, cols] -> [rows, cols]`.
    pub struct Scale("scale") {
        /// The number, rounded to float32.
        by: f64,
    }
}

#[derive(Debug)]
struct Planned(f32);

impl Plan for Scale {
    fn plan(self, b: &mut Builder<'_>, input: Option<Shape>, at: &Address) -> Built {
        let (rows, cols) = b.matrix(input, at)?;
        Some((Box::new(Planned(self.by as f32)), Shape::Matrix { rows, cols }))
    }
}

impl Block for Planned {
    fn forward(&self, run: &mut Run<'_>, x: &Tensor) -> Result<Tensor> {
        self.forward_owned(run, x.clone())
    }

    fn forward_owned(&self, run: &mut Run<'_>, mut x: Tensor) -> Result<Tensor> {
        run.backend.scale(&mut x, self.0);
        Ok(x)
    }
}
