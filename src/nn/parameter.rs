use super::builder::{Builder, Prepare, Rows, Shape, VectorId};
use super::fields::{Path, fields};
use super::run::Run;
use super::{Block, BlockFields, Built};
use crate::error::Result;
use crate::spec::Address;
use crate::tensor::Tensor;

fields! {
    /// A learned matrix, the same whatever the input. Begins a sequence.
    ///
    /// `-> [rows, width]`.
    pub struct Parameter("parameter") {
        /// Path of the parameter, `weight` included if that is its name.
        at: Path,
        /// Rows of the parameter.
        rows: usize,
        /// Columns of the parameter.
        width: usize,
    }
}

fields! {
    /// The learned row of each position: `residual: {positions: {at: …}}` adds it.
    ///
    /// `[items * n, cols] -> [items * n, cols]`, for images and sounds, whose number of rows is known. Tokens take theirs from
    /// an `embedding`.
    pub struct Positions("positions") {
        /// Path of the parameter, `[n, cols]`, `weight` included if that is its name.
        at: Path,
    }
}

#[derive(Debug)]
struct Planned {
    learned: VectorId,
    rows: usize,
    width: usize,
}

impl BlockFields for Parameter {
    const KEEPS_SHAPE: bool = false;
    const IS_SOURCE: bool = true;

    fn plan(self, b: &mut Builder<'_>, _: Option<Shape>, _: &Address) -> Built {
        let (rows, width) = (self.rows, self.width);
        let learned = b.parameter(&self.at, "", vec![rows, width], Prepare::AsStored)?;
        let shape = Shape::Matrix { rows: Rows::Learned(rows), cols: width };
        Some((Box::new(Planned { learned, rows, width }), shape))
    }
}

impl Block for Planned {
    fn is_row_wise(&self) -> bool {
        false
    }

    fn forward(&self, run: &mut Run<'_>, _: &Tensor) -> Result<Tensor> {
        let mut out = run.take(self.rows, self.width);
        out.data_mut().copy_from_slice(run.vector(self.learned));
        Ok(out)
    }
}

#[derive(Debug)]
struct OfPositions(VectorId);

impl BlockFields for Positions {
    fn plan(self, b: &mut Builder<'_>, input: Option<Shape>, at: &Address) -> Built {
        let (rows, _, cols) = b.positions(input, at)?;
        let Rows::Fixed(_, n) = rows else {
            b.problem(&at.key(), "`positions` is for the rows of images and sounds, found tokens")
                .help("add an `embedding` of `positions` instead");
            return None;
        };
        let learned = b.parameter(&self.at, "", vec![n, cols], Prepare::AsStored)?;
        Some((Box::new(OfPositions(learned)), Shape::Matrix { rows, cols }))
    }
}

impl Block for OfPositions {
    fn is_row_wise(&self) -> bool {
        false
    }

    fn forward(&self, run: &mut Run<'_>, x: &Tensor) -> Result<Tensor> {
        let mut out = run.take(x.rows(), x.cols());
        let learned = run.vector(self.0);
        out.data_mut().chunks_mut(learned.len()).for_each(|item| item.copy_from_slice(learned));
        Ok(out)
    }
}
