use super::builder::{Builder, ItemUse, Rows, Shape, Stream};
use super::fields::fields;
use super::run::Run;
use super::{Block, BlockFields, Built};
use crate::error::{Error, ErrorKind, Result};
use crate::spec::Address;
use crate::tensor::Tensor;

fields! {
    /// The spectra of sounds, a row for each moment. Begins a sequence.
    ///
    /// `-> [sounds * frames, bins]`, from `input_features` of shape `[sounds, bins, frames]`.
    pub struct Frames("frames") {
        /// Moments of each sound.
        frames: usize,
        /// Frequencies.
        bins: usize,
    }
}

#[derive(Debug)]
struct Planned {
    frames: usize,
    bins: usize,
}

impl BlockFields for Frames {
    const KEEPS_SHAPE: bool = false;
    const IS_SOURCE: bool = true;

    fn plan(self, b: &mut Builder<'_>, _: Option<Shape>, at: &Address) -> Built {
        let Frames { frames, bins } = self;
        b.items(ItemUse { stream: Stream::Audio, shape: vec![bins, frames], at_least: None }, at)?;
        let rows = Rows::Fixed(Stream::Audio, frames);
        Some((Box::new(Planned { frames, bins }), Shape::Matrix { rows, cols: bins }))
    }
}

impl Block for Planned {
    fn is_row_wise(&self) -> bool {
        false
    }

    fn forward(&self, run: &mut Run<'_>, _: &Tensor) -> Result<Tensor> {
        let audio = run.inputs.items(Stream::Audio);
        let audio = audio.ok_or_else(|| Error::new(ErrorKind::Input, "expected spectra, found none"))?;
        let count = audio.shape()[0];
        let mut out = run.take(count * self.frames, self.bins);
        let mut bin = vec![0.0; self.frames];
        for sound in 0..count {
            for b in 0..self.bins {
                audio.read_f32((sound * self.bins + b) * self.frames, &mut bin);
                bin.iter().enumerate().for_each(|(i, x)| out.row_mut(sound * self.frames + i)[b] = *x);
            }
        }
        Ok(out)
    }
}
