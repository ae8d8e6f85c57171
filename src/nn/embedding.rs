use super::builder::{Builder, IdsUse, Rows, Shape, Stream, TableId};
use super::fields::{FieldType, Index, Path, fields, read_choice};
use super::run::{Run, Tokens};
use super::trace::Site;
use super::{Block, BlockFields, Built};
use crate::error::{Error, ErrorKind, Result};
use crate::spec::{Address, Tree, listed};
use crate::tensor::Tensor;

fields! {
    /// One row of a table for each token. Begins a sequence.
    ///
    /// `-> [tokens, width]`. As `torch.nn.Embedding`.
    pub struct Embedding("embedding") {
        /// Path of the module that owns `weight`.
        at: Path,
        /// What chooses the row.
        of: Input,
        /// Rows of the table.
        rows: usize,
        /// Columns of the table.
        width: usize,
        /// Factor of the rows.
        factor: f64 = "1",
        /// Added to the number that chooses the row.
        offset: Index = "0",
        /// With positions: tokens of this id are not counted, and take the row before the first.
        skip: Option<Index>,
    }
}

/// Numbers that a model is given or counts by itself, one per token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ids {
    Tokens,
    Types,
    Positions,
}

/// What an embedding is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Input {
    stream: Stream,
    ids: Ids,
}

const INPUTS: [(&str, Input); 5] = [
    ("token_ids", Input { stream: Stream::Input, ids: Ids::Tokens }),
    ("type_ids", Input { stream: Stream::Input, ids: Ids::Types }),
    ("positions", Input { stream: Stream::Input, ids: Ids::Positions }),
    ("decoder_token_ids", Input { stream: Stream::Decoder, ids: Ids::Tokens }),
    ("decoder_positions", Input { stream: Stream::Decoder, ids: Ids::Positions }),
];

impl FieldType for Input {
    fn kind() -> String {
        listed(&INPUTS.map(|(name, _)| name))
    }
    fn read(builder: &mut Builder<'_>, value: &Tree, at: &Address) -> Option<Self> {
        read_choice(builder, value, at, &INPUTS)
    }
}

#[derive(Debug)]
struct Planned {
    table: TableId,
    of: Input,
    offset: usize,
    skip: Option<usize>,
    width: usize,
    factor: f32,
}

impl BlockFields for Embedding {
    const KEEPS_SHAPE: bool = false;
    const IS_SOURCE: bool = true;

    fn plan(self, b: &mut Builder<'_>, _: Option<Shape>, at: &Address) -> Built {
        let table = b.table(&self.at, self.rows, self.width)?;
        let (of, rows, width, offset) = (self.of, self.rows, self.width, self.offset.0);
        if offset >= rows {
            b.wrong_fields(
                at,
                &["offset"],
                format!("expected `offset` below the {rows} rows, found {offset}"),
            );
            return None;
        }
        let below = rows - offset;
        match of.ids {
            Ids::Positions => {
                b.declared.limits.push((of.stream, below, format!("`{}` has {rows} rows", self.at.name)));
            }
            ids => {
                let name = INPUTS.iter().find(|(_, input)| *input == of).map_or("", |(name, _)| name);
                let types = ids == Ids::Types;
                b.declared.ids.push(IdsUse { stream: of.stream, types, name, below });
            }
        }
        let skip = self.skip.map(|id| id.0);
        if skip.is_some() && (of.ids != Ids::Positions || offset == 0) {
            b.wrong_fields(at, &["skip"], "`skip` is for positions, and takes an `offset` of at least 1");
            return None;
        }
        b.declared.streams.insert(of.stream);
        let shape = Shape::Matrix { rows: Rows::Tokens(of.stream), cols: width };
        Some((Box::new(Planned { table, of, offset, skip, width, factor: self.factor as f32 }), shape))
    }
}

impl Planned {
    /// The rows of positions that are counted without the tokens of id `skip`.
    fn count(&self, tokens: &Tokens, skip: usize, rows: &mut Vec<u32>) -> Result<()> {
        for span in &tokens.spans {
            if span.past > 0 {
                let message = "positions that leave tokens out cannot go on from earlier ones";
                return Err(Error::new(ErrorKind::Input, message));
            }
            let mut counted = 0;
            for id in &tokens.ids[span.rows.clone()] {
                let is_skipped = *id as usize == skip;
                rows.push((if is_skipped { self.offset - 1 } else { self.offset + counted }) as u32);
                counted += usize::from(!is_skipped);
            }
        }
        Ok(())
    }

    fn look_up(&self, run: &mut Run<'_>, accumulate: bool, out: &mut Tensor) -> Result<()> {
        let tokens = run.tokens(self.of.stream);
        // Numbers without a row have been refused before the pass.
        let row = |number: usize| (number + self.offset) as u32;
        let mut ids = Vec::with_capacity(tokens.ids.len());
        match (self.of.ids, self.skip) {
            (Ids::Tokens, _) => ids.extend(tokens.ids.iter().map(|id| row(*id as usize))),
            (Ids::Types, _) if tokens.type_ids.is_empty() => ids.resize(tokens.ids.len(), row(0)),
            (Ids::Types, _) => ids.extend(tokens.type_ids.iter().map(|id| row(*id as usize))),
            (Ids::Positions, Some(skip)) => self.count(tokens, skip, &mut ids)?,
            (Ids::Positions, None) => ids.extend(tokens.positions().map(row)),
        }
        self.rows_of(run, &ids, accumulate, out);
        Ok(())
    }

    /// The rows of these numbers.
    fn rows_of(&self, run: &mut Run<'_>, ids: &[u32], accumulate: bool, out: &mut Tensor) {
        if self.factor == 1.0 && run.trace.is_none() {
            run.backend.embedding(run.table(self.table), ids, accumulate, out);
            return;
        }
        let mut rows = run.take(ids.len(), self.width);
        run.backend.embedding(run.table(self.table), ids, false, &mut rows);
        run.backend.scale(&mut rows, self.factor);
        run.trace(Site::Table(self.table), None, &rows);
        if accumulate {
            run.backend.add(out, &rows);
        } else {
            out.data_mut().copy_from_slice(rows.data());
        }
        run.give(rows);
    }
}

impl Block for Planned {
    fn is_row_wise(&self) -> bool {
        false
    }

    fn forward(&self, run: &mut Run<'_>, _: &Tensor) -> Result<Tensor> {
        let mut out = run.take(run.tokens(self.of.stream).ids.len(), self.width);
        self.look_up(run, false, &mut out)?;
        Ok(out)
    }

    fn forward_add(&self, run: &mut Run<'_>, _: Option<&Tensor>, sum: &mut Tensor) -> Result<()> {
        self.look_up(run, true, sum)
    }
}
