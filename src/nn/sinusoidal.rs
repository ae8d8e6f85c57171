use super::builder::{Builder, Rows, Shape, Stream};
use super::fields::{FieldType, fields, read_choice};
use super::run::Run;
use super::{Block, BlockFields, Built};
use crate::error::Result;
use crate::spec::{Address, Tree, listed};
use crate::tensor::Tensor;

fields! {
    /// Sines and cosines of each token's position: the first half of the columns sines, the second half cosines, of
    /// `position / 10000^(2p / width)`. Begins a sequence.
    ///
    /// `-> [tokens, width]`. Vaswani et al., “Attention Is All You Need”, 2017, with the columns in another order.
    pub struct Sinusoidal("sinusoidal") {
        /// Whose positions.
        of: Of,
        /// Columns.
        width: usize,
        /// Most tokens of a sequence.
        max_positions: Option<usize>,
    }
}

/// A stream of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Of(Stream);

const STREAMS: [(&str, Of); 2] =
    [("positions", Of(Stream::Input)), ("decoder_positions", Of(Stream::Decoder))];

impl FieldType for Of {
    fn kind() -> String {
        listed(&STREAMS.map(|(name, _)| name))
    }
    fn read(builder: &mut Builder<'_>, value: &Tree, at: &Address) -> Option<Self> {
        read_choice(builder, value, at, &STREAMS)
    }
}

#[derive(Debug)]
struct Planned {
    stream: Stream,
    width: usize,
}

impl BlockFields for Sinusoidal {
    const KEEPS_SHAPE: bool = false;
    const IS_SOURCE: bool = true;

    fn plan(self, b: &mut Builder<'_>, _: Option<Shape>, at: &Address) -> Built {
        let (stream, width) = (self.of.0, self.width);
        if width % 2 != 0 {
            b.wrong_fields(at, &["width"], format!("expected an even `width`, found {width}"));
            return None;
        }
        if let Some(limit) = self.max_positions {
            b.declared.limits.push((stream, limit, "`max_positions` of `sinusoidal`".into()));
        }
        b.declared.streams.insert(stream);
        let rows = Rows::Tokens(stream);
        Some((Box::new(Planned { stream, width }), Shape::Matrix { rows, cols: width }))
    }
}

impl Block for Planned {
    fn is_row_wise(&self) -> bool {
        false
    }

    fn forward(&self, run: &mut Run<'_>, _: &Tensor) -> Result<Tensor> {
        let tokens = run.tokens(self.stream);
        let mut out = run.take(tokens.ids.len(), self.width);
        for (row, position) in tokens.positions().enumerate() {
            let (sines, cosines) = out.row_mut(row).split_at_mut(self.width / 2);
            for (p, (sine, cosine)) in sines.iter_mut().zip(cosines).enumerate() {
                let angle = position as f64 / 10000f64.powf((2 * p) as f64 / self.width as f64);
                (*sine, *cosine) = (angle.sin() as f32, angle.cos() as f32);
            }
        }
        Ok(out)
    }
}
