use super::builder::{Builder, Rows, Shape, Stream};
use super::fields::{FieldType, Index, fields, read_choice};
use super::run::Run;
use super::{Block, Built, Plan};
use crate::error::Result;
use crate::spec::{Address, Tree, listed};
use crate::tensor::Tensor;

fields! {
    /// One row per sequence: the row of its first or last token, or the mean of all.
    ///
    /// `[tokens, cols] -> [sequences, cols]`.
    pub struct Pool("pool") {
        /// Which row.
        rows: Which,
        /// With `last`: tokens of this id at the end are passed over.
        skip: Option<Index>,
    }
}

/// Which row stands for a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// That of the first token.
    First,
    /// That of the last token.
    Last,
    /// The mean of all.
    Mean,
}

const CHOICES: [(&str, Which); 3] = [("first", Which::First), ("last", Which::Last), ("mean", Which::Mean)];

impl FieldType for Which {
    fn kind() -> String {
        listed(&CHOICES.map(|(name, _)| name))
    }
    fn read(builder: &mut Builder<'_>, value: &Tree, at: &Address) -> Option<Self> {
        read_choice(builder, value, at, &CHOICES)
    }
}

#[derive(Debug)]
struct Planned {
    stream: Stream,
    which: Which,
    skip: Option<usize>,
}

impl Plan for Pool {
    const KEEPS_SHAPE: bool = false;

    fn plan(self, b: &mut Builder<'_>, input: Option<Shape>, at: &Address) -> Built {
        let (stream, cols) = b.tokens(input, at)?;
        let block = Planned { stream, which: self.rows, skip: self.skip.map(|id| id.0) };
        Some((Box::new(block), Shape::Matrix { rows: Rows::Sequences, cols }))
    }
}

impl Block for Planned {
    fn is_row_wise(&self) -> bool {
        false
    }

    fn forward(&self, run: &mut Run<'_>, x: &Tensor) -> Result<Tensor> {
        let tokens = run.tokens(self.stream);
        let mut out = run.take(tokens.spans.len(), x.cols());
        for (i, span) in tokens.spans.iter().enumerate() {
            let row = match self.which {
                Which::First => span.rows.start,
                Which::Last => {
                    let passed = |row: &usize| self.skip.is_none_or(|skip| tokens.ids[*row] as usize != skip);
                    span.rows.clone().rev().find(passed).unwrap_or(span.rows.start)
                }
                Which::Mean => {
                    let mut sums = vec![0f64; x.cols()];
                    for row in span.rows.clone() {
                        sums.iter_mut().zip(x.row(row)).for_each(|(sum, x)| *sum += f64::from(*x));
                    }
                    let n = span.rows.len() as f64;
                    out.row_mut(i).iter_mut().zip(sums).for_each(|(out, sum)| *out = (sum / n) as f32);
                    continue;
                }
            };
            out.row_mut(i).copy_from_slice(x.row(row));
        }
        Ok(out)
    }
}
