use super::builder::{Builder, Rows, Shape, VectorId};
use super::fields::{Path, fields};
use super::run::Run;
use super::{Block, BlockFields, Built};
use crate::error::Result;
use crate::spec::Address;
use crate::tensor::Tensor;

fields! {
    /// Learned rows before the rows of each item: `prepend: [cls_token]`.
    ///
    /// `[items * n, cols] -> [items * (n + rows), cols]`.
    pub struct Prepend("prepend") {
        /// Paths of the parameters, one for each row, `[cols]`; one path alone stands for itself.
        at: Paths,
    }
}

/// Paths, in order.
#[derive(Clone, Debug)]
pub struct Paths(Vec<Path>);

impl super::fields::FieldType for Paths {
    fn kind() -> String {
        "a path, or a list of paths".into()
    }
    fn read(builder: &mut Builder<'_>, value: &crate::spec::Tree, at: &Address) -> Option<Self> {
        match value {
            crate::spec::Tree::List(items) => {
                let paths = items.iter().enumerate().map(|(i, item)| Path::read(builder, item, &at.child(i)));
                paths.collect::<Option<_>>().map(Paths)
            }
            other => Path::read(builder, other, at).map(|path| Paths(vec![path])),
        }
    }
}

#[derive(Debug)]
struct Planned {
    learned: Vec<VectorId>,
    rows: Rows,
}

impl BlockFields for Prepend {
    const KEEPS_SHAPE: bool = false;

    fn plan(self, b: &mut Builder<'_>, input: Option<Shape>, at: &Address) -> Built {
        let (rows, stream, cols) = b.positions(input, at)?;
        if matches!(rows, Rows::Tokens(_)) {
            b.problem(&at.key(), "`prepend` is for the rows of images and sounds, found tokens");
            return None;
        }
        let learned: Vec<VectorId> =
            self.at.0.iter().map(|path| b.vector(path, "", cols)).collect::<Option<_>>()?;
        let longer = match rows {
            Rows::Fixed(_, n) => Rows::Fixed(stream, n + learned.len()),
            Rows::Patches(grid, before) => Rows::Patches(grid, before + learned.len()),
            other => other,
        };
        Some((Box::new(Planned { learned, rows }), Shape::Matrix { rows: longer, cols }))
    }
}

impl Block for Planned {
    fn is_row_wise(&self) -> bool {
        false
    }

    fn forward(&self, run: &mut Run<'_>, x: &Tensor) -> Result<Tensor> {
        let spans = run.spans(self.rows);
        let mut out = run.take(x.rows() + spans.len() * self.learned.len(), x.cols());
        let mut to = 0;
        for span in spans.iter() {
            let learned = self.learned.iter().map(|id| run.vector(*id));
            for row in learned.chain(span.rows.clone().map(|row| x.row(row))) {
                out.row_mut(to).copy_from_slice(row);
                to += 1;
            }
        }
        Ok(out)
    }
}
