use super::builder::{Builder, Shape, ValueId};
use super::fields::{FieldShape, FieldType, ValueName, fields};
use super::run::Run;
use super::{Block, BlockFields, Built};
use crate::error::Result;
use crate::spec::{Address, Tree};
use crate::tensor::Tensor;

fields! {
    /// The columns of several values side by side: `concat: [first, mean]`. Begins a sequence.
    ///
    /// `-> [rows, sum of cols]`.
    pub struct Concat("concat") {
        /// The names of the values.
        of: ValueNames,
    }
}

/// Names of values.
#[derive(Clone, Debug)]
pub struct ValueNames(Vec<ValueName>);

impl FieldType for ValueNames {
    const SHAPE: FieldShape = FieldShape::ValueNames;
    fn kind() -> String {
        "a list of names of values".into()
    }
    fn read(builder: &mut Builder<'_>, value: &Tree, at: &Address) -> Option<Self> {
        match value {
            Tree::List(items) if !items.is_empty() => {
                let each =
                    items.iter().enumerate().map(|(i, item)| ValueName::read(builder, item, &at.child(i)));
                each.collect::<Option<_>>().map(ValueNames)
            }
            _ => builder.mismatch::<Self>(value, at),
        }
    }
}

#[derive(Debug)]
struct Planned {
    values: Vec<ValueId>,
    cols: usize,
}

impl BlockFields for Concat {
    const KEEPS_SHAPE: bool = false;
    const IS_SOURCE: bool = true;

    fn plan(self, b: &mut Builder<'_>, _: Option<Shape>, _: &Address) -> Built {
        let (mut values, mut all, mut total) = (Vec::new(), None, 0);
        for reference in &self.of.0 {
            let (id, shape) = b.refer(reference)?;
            let (rows, cols) = b.matrix(Some(shape), &reference.at)?;
            if *all.get_or_insert(rows) != rows {
                b.problem(&reference.at, "`concat` takes values with the same rows");
                return None;
            }
            total += cols;
            values.push(id);
        }
        Some((Box::new(Planned { values, cols: total }), Shape::Matrix { rows: all?, cols: total }))
    }
}

impl Block for Planned {
    fn is_row_wise(&self) -> bool {
        false
    }

    fn forward(&self, run: &mut Run<'_>, _: &Tensor) -> Result<Tensor> {
        let parts = self.values.iter().map(|id| run.value(*id)).collect::<Result<Vec<_>>>()?;
        let rows = parts.first().map_or(0, |part| part.rows());
        let mut out = run.take(rows, self.cols);
        for i in 0..rows {
            let mut rest = out.row_mut(i);
            for part in &parts {
                let (to, more) = rest.split_at_mut(part.cols());
                to.copy_from_slice(part.row(i));
                rest = more;
            }
        }
        Ok(out)
    }
}
