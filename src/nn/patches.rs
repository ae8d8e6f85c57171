use super::builder::{Builder, LinearId, Rows, Shape, Stream};
use super::fields::{Bias, FieldType, MAX_SIZE, Path, fields};
use super::run::Run;
use super::{Block, BlockFields, Built};
use crate::error::{Error, ErrorKind, Result};
use crate::spec::{Address, Tree};
use crate::tensor::Tensor;

fields! {
    /// Images cut into squares, each of which becomes a row. Begins a sequence.
    ///
    /// `-> [images * patches, width]`, row by row from the top left. As `torch.nn.Conv2d` with a stride of its kernel size, on
    /// normalised images `[images, channels, height, width]`. Dosovitskiy et al., “An Image is Worth 16x16 Words”, 2021.
    pub struct Patches("patches") {
        /// Path of the module that owns `weight`, `[width, channels, patch, patch]`, and `bias`.
        at: Path,
        /// Columns of the output.
        width: usize,
        /// Height and width of the images, or one number for both.
        image: Size,
        /// Height and width of a patch, or one number for both.
        patch: Size,
        /// Colours.
        channels: usize = "3",
        /// Whether there is a bias.
        bias: Bias = "true",
    }
}

/// Height and width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(usize, usize);

impl FieldType for Size {
    fn kind() -> String {
        "a positive integer, or a list of two".into()
    }
    fn read(builder: &mut Builder<'_>, value: &Tree, at: &Address) -> Option<Self> {
        /// Larger images are a mistake.
        const MAX_SIDE: i64 = 1 << 16;
        let side = |tree: &Tree| match tree {
            Tree::Int(n @ 1..=MAX_SIDE) => Some(*n as usize),
            _ => None,
        };
        let size = match value {
            Tree::List(sides) if sides.len() == 2 => side(&sides[0]).zip(side(&sides[1])),
            other => side(other).map(|n| (n, n)),
        };
        match size {
            Some((height, width)) => Some(Size(height, width)),
            None => builder.mismatch(value, at),
        }
    }
}

#[derive(Debug)]
struct Planned {
    linear: LinearId,
    channels: usize,
    image: Size,
    patch: Size,
}

impl BlockFields for Patches {
    const KEEPS_SHAPE: bool = false;
    const IS_SOURCE: bool = true;

    fn plan(self, b: &mut Builder<'_>, _: Option<Shape>, at: &Address) -> Built {
        let (image, patch, channels) = (self.image, self.patch, self.channels);
        let elements = channels.saturating_mul(patch.0 * patch.1);
        if patch.0 > image.0 || patch.1 > image.1 || elements > MAX_SIZE as usize {
            let message = format!(
                "expected patches no larger than the images, found {} by {} in {} by {}",
                patch.0, patch.1, image.0, image.1
            );
            b.wrong_fields(at, &["patch", "image"], message);
            return None;
        }
        let linear = b.filter(&self.at, &self.bias, vec![self.width, channels, patch.0, patch.1])?;
        b.items(Stream::Images, vec![channels, image.0, image.1], at)?;
        let n = (image.0 / patch.0) * (image.1 / patch.1);
        let rows = Rows::Fixed(Stream::Images, n);
        Some((Box::new(Planned { linear, channels, image, patch }), Shape::Matrix { rows, cols: self.width }))
    }
}

impl Block for Planned {
    fn is_row_wise(&self) -> bool {
        false
    }

    fn forward(&self, run: &mut Run<'_>, _: &Tensor) -> Result<Tensor> {
        let (Size(height, width), Size(down, across)) = (self.image, self.patch);
        let images = run.inputs.items(Stream::Images);
        let images = images.ok_or_else(|| Error::new(ErrorKind::Input, "expected images, found none"))?;
        let count = images.shape()[0];
        let (rows, cols) = (height / down, width / across);
        let mut patches = run.take(count * rows * cols, self.channels * down * across);
        run.backend.each_row(&mut patches, &|i, patch| {
            let (image, at) = (i / (rows * cols), i % (rows * cols));
            let (top, left) = (at / cols * down, at % cols * across);
            for (k, line) in patch.chunks_mut(across).enumerate() {
                let (channel, y) = (k / down, top + k % down);
                images.read_f32(((image * self.channels + channel) * height + y) * width + left, line);
            }
        });
        let out = run.linear(self.linear, &patches, None, None);
        run.give(patches);
        Ok(out)
    }
}
