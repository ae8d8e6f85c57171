use super::builder::{Builder, Shape};
use super::fields::{Index, fields};
use super::run::Run;
use super::{Block, BlockFields, Built};
use crate::error::Result;
use crate::spec::Address;
use crate::tensor::Tensor;

fields! {
    /// Some columns of a matrix: `columns: 0` is the first.
    ///
    /// `[rows, cols] -> [rows, count]`.
    pub struct Columns("columns") {
        /// The first column that is taken, counted from 0.
        start: Index,
        /// How many.
        count: usize = "1",
    }
}

#[derive(Debug)]
struct Planned {
    start: usize,
    count: usize,
}

impl BlockFields for Columns {
    const KEEPS_SHAPE: bool = false;

    fn plan(self, b: &mut Builder<'_>, input: Option<Shape>, at: &Address) -> Built {
        let (rows, cols) = b.matrix(input, at)?;
        let (start, count) = (self.start.0, self.count);
        if start + count > cols {
            let found = match count {
                1 => start.to_string(),
                _ => format!("{start} to {}", start + count - 1),
            };
            b.problem(at, format!("expected columns below {cols}, found {found}"));
            return None;
        }
        Some((Box::new(Planned { start, count }), Shape::Matrix { rows, cols: count }))
    }
}

impl Block for Planned {
    fn forward(&self, run: &mut Run<'_>, x: &Tensor) -> Result<Tensor> {
        Ok(run.columns(x, self.start..self.start + self.count))
    }
}
