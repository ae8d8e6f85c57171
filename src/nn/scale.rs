use super::builder::{Builder, Shape, VectorId};
use super::fields::{Path, fields};
use super::run::Run;
use super::{Block, BlockFields, Built};
use crate::error::Result;
use crate::spec::Address;
use crate::tensor::Tensor;

fields! {
    /// Each element times a number, `scale: ${hidden ** 0.5}`, or times a learned one for its column, `scale: {at: …}`.
    ///
    /// `[rows, cols] -> [rows, cols]`.
    pub struct Scale("scale") {
        /// The number, rounded to float32.
        by: f64 = "1",
        /// Path of a parameter with a factor for each column, `[cols]`.
        at: Option<Path>,
    }
}

#[derive(Debug)]
struct Planned {
    by: f32,
    learned: Option<VectorId>,
}

impl BlockFields for Scale {
    fn plan(self, b: &mut Builder<'_>, input: Option<Shape>, at: &Address) -> Built {
        let (rows, cols) = b.matrix(input, at)?;
        let learned = match &self.at {
            Some(path) => Some(b.vector(path, "", cols)?),
            None => None,
        };
        Some((Box::new(Planned { by: self.by as f32, learned }), Shape::Matrix { rows, cols }))
    }
}

impl Block for Planned {
    fn forward(&self, run: &mut Run<'_>, x: &Tensor) -> Result<Tensor> {
        self.forward_owned(run, x.clone())
    }

    fn forward_owned(&self, run: &mut Run<'_>, mut x: Tensor) -> Result<Tensor> {
        if self.by != 1.0 {
            run.backend.scale(&mut x, self.by);
        }
        if let Some(id) = self.learned {
            let learned = run.vector(id);
            run.backend.each_row(&mut x, &|_, row| {
                row.iter_mut().zip(learned).for_each(|(x, factor)| *x *= factor);
            });
        }
        Ok(x)
    }
}
