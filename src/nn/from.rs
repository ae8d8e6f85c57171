use super::builder::{Builder, Shape, ValueId};
use super::fields::{ValueName, fields};
use super::run::Run;
use super::{Block, BlockFields, Built};
use crate::error::Result;
use crate::spec::Address;
use crate::tensor::Tensor;

fields! {
    /// The value of that name: `from: hidden`. Begins a sequence.
    pub struct From("from") {
        /// The name.
        value: ValueName,
    }
}

#[derive(Debug)]
struct Planned(ValueId);

impl BlockFields for From {
    const KEEPS_SHAPE: bool = false;
    const IS_SOURCE: bool = true;

    fn plan(self, b: &mut Builder<'_>, _: Option<Shape>, at: &Address) -> Built {
        let (id, shape) = b.refer(&self.value)?;
        b.matrix(Some(shape), at)?;
        Some((Box::new(Planned(id)), shape))
    }
}

impl Block for Planned {
    fn forward(&self, run: &mut Run<'_>, _: &Tensor) -> Result<Tensor> {
        let value = run.value(self.0)?;
        if let Some(rows) = run.wanted_rows().map(<[usize]>::to_vec) {
            let mut out = run.take(rows.len(), value.cols());
            for (i, row) in rows.into_iter().enumerate() {
                out.row_mut(i).copy_from_slice(value.row(row));
            }
            return Ok(out);
        }
        let mut out = run.take(value.rows(), value.cols());
        out.data_mut().copy_from_slice(value.data());
        Ok(out)
    }
}
