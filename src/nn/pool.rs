use super::builder::{Builder, Rows, Shape, Stream};
use super::fields::{FieldType, Index, TokenId, fields, read_choice};
use super::run::Run;
use super::{Block, BlockFields, Built};
use crate::error::{Error, ErrorKind, Result};
use crate::spec::{Address, Tree, listed};
use crate::tensor::Tensor;

fields! {
    /// One row per sequence: the row of its first or last token, that of its largest id, the first of equals, or the mean of all.
    ///
    /// `first` and `last` may be asked for among the tokens of an id alone: `{rows: last, of: $eos}`.
    /// `[tokens, cols] -> [sequences, cols]`.
    pub struct Pool("pool") {
        /// Which row.
        rows: Which,
        /// With `last`, and without `of`: tokens of this id at the end are passed over; none is of a negative one.
        skip: Option<TokenId>,
        /// With `first` and `last`: only tokens of this id count. A sequence without one is refused.
        of: Option<Index>,
        /// Whose ids count, where that are not those of the rows: `token_ids` for the input of a decoder.
        ids_of: Option<Ids>,
        /// With `mean`: rows before this one are left out.
        start: Index = "0",
    }
}

/// Tokens of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids(Stream);

const IDS: [(&str, Ids); 2] =
    [("token_ids", Ids(Stream::Input)), ("decoder_token_ids", Ids(Stream::Decoder))];

impl FieldType for Ids {
    fn kind() -> String {
        listed(&IDS.map(|(name, _)| name))
    }
    fn read(builder: &mut Builder<'_>, value: &Tree, at: &Address) -> Option<Self> {
        read_choice(builder, value, at, &IDS)
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
    /// That of the first token with the largest id.
    LargestId,
}

const CHOICES: [(&str, Which); 4] =
    [("first", Which::First), ("last", Which::Last), ("mean", Which::Mean), ("largest_id", Which::LargestId)];

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
    rows: Rows,
    /// Whose ids count.
    ids: Stream,
    start: usize,
    which: Which,
    skip: Option<usize>,
    of: Option<usize>,
}

impl Pool {
    /// Whether ids say which row it is.
    fn by_id(&self) -> bool {
        self.skip.is_some() || self.of.is_some() || self.rows == Which::LargestId
    }
}

impl BlockFields for Pool {
    const KEEPS_SHAPE: bool = false;

    fn check(&self, b: &mut Builder<'_>, at: &Address) -> Option<()> {
        let (is_first, is_last) = (self.rows == Which::First, self.rows == Which::Last);
        b.only_with(
            at,
            ("skip", self.skip.is_some()),
            ("`rows: last`, and without `of`", is_last && self.of.is_none()),
        )?;
        b.only_with(at, ("of", self.of.is_some()), ("`rows: first` or `rows: last`", is_first || is_last))?;
        b.only_with(
            at,
            ("ids_of", self.ids_of.is_some()),
            ("`skip`, `of` or `rows: largest_id`", self.by_id()),
        )?;
        b.only_with(at, ("start", self.start.0 > 0), ("`rows: mean`", self.rows == Which::Mean))
    }

    fn plan(self, b: &mut Builder<'_>, input: Option<Shape>, at: &Address) -> Built {
        let (rows, stream, cols) = b.positions(input, at)?;
        if self.by_id() && !matches!(rows, Rows::Tokens(_)) {
            b.wrong_fields(at, &["skip", "of", "rows"], "there are no tokens here to choose by their ids");
            return None;
        }
        let (skip, of) = (self.skip.and_then(|id| id.0), self.of.map(|id| id.0));
        let ids = self.ids_of.map_or(stream, |ids| ids.0);
        let block = Planned { rows, ids, start: self.start.0, which: self.rows, skip, of };
        Some((Box::new(block), Shape::Matrix { rows: Rows::Sequences(stream), cols }))
    }
}

impl Block for Planned {
    fn is_row_wise(&self) -> bool {
        false
    }

    fn forward(&self, run: &mut Run<'_>, x: &Tensor) -> Result<Tensor> {
        let (tokens, spans) = (run.tokens(self.ids), run.spans(self.rows));
        let mut out = run.take(spans.len(), x.cols());
        for (i, span) in spans.iter().enumerate() {
            // The ids of another stream are those at the same positions of the same sequence.
            let first = tokens.spans.get(i).map_or(0, |ids| ids.rows.start);
            let id = |row: usize| tokens.ids.get(first + row - span.rows.start).copied().unwrap_or_default();
            let is_wanted = |row: &usize| self.of.is_none_or(|of| id(*row) as usize == of);
            let row = match self.which {
                Which::First | Which::Last if self.of.is_some() => {
                    let mut rows = span.rows.clone();
                    let found = match self.which {
                        Which::First => rows.find(is_wanted),
                        _ => rows.rfind(is_wanted),
                    };
                    found.ok_or_else(|| {
                        let id = self.of.unwrap_or_default();
                        Error::new(ErrorKind::Input, format!("expected the token {id} in each sequence"))
                    })?
                }
                Which::LargestId => {
                    let largest = |row: &usize| (id(*row), std::cmp::Reverse(*row));
                    span.rows.clone().max_by_key(largest).unwrap_or(span.rows.start)
                }
                Which::First => span.rows.start,
                Which::Last => {
                    let passed = |row: &usize| self.skip.is_none_or(|skip| id(*row) as usize != skip);
                    span.rows.clone().rev().find(passed).unwrap_or(span.rows.start)
                }
                Which::Mean => {
                    let mut sums = vec![0f64; x.cols()];
                    let rows = (span.rows.start + self.start).min(span.rows.end - 1)..span.rows.end;
                    let n = rows.len() as f64;
                    for row in rows {
                        sums.iter_mut().zip(x.row(row)).for_each(|(sum, x)| *sum += f64::from(*x));
                    }
                    out.row_mut(i).iter_mut().zip(sums).for_each(|(out, sum)| *out = (sum / n) as f32);
                    continue;
                }
            };
            out.row_mut(i).copy_from_slice(x.row(row));
        }
        Ok(out)
    }
}
