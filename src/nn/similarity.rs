use super::builder::{Builder, Rows, Shape, ValueId, VectorId};
use super::fields::{NonNegative, Path, ValueName, fields};
use super::run::Run;
use super::{Block, BlockFields, Built};
use crate::error::Result;
use crate::spec::Address;
use crate::tensor::Tensor;

fields! {
    /// The product of each row with each row of another value, times a learned factor: `exp(scale) · x yᵀ + bias`.
    ///
    /// `[sequences, cols] -> [sequences, sequences of the other]`. Radford et al., arXiv:2103.00020, 2021.
    pub struct Similarity("similarity") {
        /// Name of the other value: a row per sequence.
        with: ValueName,
        /// Path of the parameter whose exponential is the factor: one number.
        scale: Path,
        /// Path of a parameter that is added: one number.
        bias: Option<Path>,
    }
}

fields! {
    /// Each row divided by its length: `x / |x|`.
    ///
    /// `[rows, cols] -> [rows, cols]`.
    pub struct Normalise("normalise") {
        /// The length is taken for at least this.
        eps: NonNegative = "0",
    }
}

#[derive(Debug)]
struct Planned {
    with: ValueId,
    scale: VectorId,
    bias: Option<VectorId>,
}

impl BlockFields for Similarity {
    const KEEPS_SHAPE: bool = false;

    fn plan(self, b: &mut Builder<'_>, input: Option<Shape>, at: &Address) -> Built {
        let (rows, cols) = b.matrix(input, at)?;
        let (with, other) = b.refer(&self.with)?;
        let (Rows::Sequences(of), Shape::Matrix { rows: Rows::Sequences(stream), cols: found }) =
            (rows, other)
        else {
            b.problem(&at.key(), "`similarity` takes a row per sequence on both sides");
            return None;
        };
        if found != cols {
            b.problem(&self.with.at, format!("expected a value of {cols} columns, found {found}"));
            return None;
        }
        b.field = "scale";
        let scale = b.vector(&self.scale, "", 1)?;
        b.field = "bias";
        let bias = match &self.bias {
            Some(path) => Some(b.vector(path, "", 1)?),
            None => None,
        };
        Some((Box::new(Planned { with, scale, bias }), Shape::Pairs { of, with: stream }))
    }
}

impl Block for Planned {
    fn is_row_wise(&self) -> bool {
        false
    }

    fn forward(&self, run: &mut Run<'_>, x: &Tensor) -> Result<Tensor> {
        let y = run.value(self.with)?;
        let mut out = run.take(x.rows(), y.rows());
        run.backend.products(x, &y, &mut out);
        let factor = run.vector(self.scale)[0].exp();
        let bias = self.bias.map_or(0.0, |id| run.vector(id)[0]);
        out.data_mut().iter_mut().for_each(|x| *x = *x * factor + bias);
        Ok(out)
    }
}

#[derive(Debug)]
struct Length(f64);

impl BlockFields for Normalise {
    fn plan(self, b: &mut Builder<'_>, input: Option<Shape>, at: &Address) -> Built {
        let (rows, cols) = b.matrix(input, at)?;
        Some((Box::new(Length(self.eps.0)), Shape::Matrix { rows, cols }))
    }
}

impl Block for Length {
    fn forward(&self, run: &mut Run<'_>, x: &Tensor) -> Result<Tensor> {
        let mut out = run.take(x.rows(), x.cols());
        for r in 0..x.rows() {
            let square: f64 = x.row(r).iter().map(|x| f64::from(*x).powi(2)).sum();
            let length = square.sqrt().max(self.0);
            out.row_mut(r).iter_mut().zip(x.row(r)).for_each(|(y, x)| *y = (f64::from(*x) / length) as f32);
        }
        Ok(out)
    }
}
