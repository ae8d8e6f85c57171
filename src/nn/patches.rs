use super::builder::{Builder, Grid, ItemUse, LinearId, Rows, Shape, Stream};
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
    /// normalised images `[images, channels, height, width]`; what is left at the edges is not looked at.
    /// Dosovitskiy et al., “An Image is Worth 16x16 Words”, 2021.
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
        /// Whether images of another size than `image`, which must be square then, are cut as well, into other numbers of rows.
        any_size: bool = "false",
    }
}

/// Height and width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size([usize; 2]);

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
            Some((height, width)) => Some(Size([height, width])),
            None => builder.mismatch(value, at),
        }
    }
}

#[derive(Debug)]
struct Planned {
    linear: LinearId,
    channels: usize,
    grid: Grid,
}

impl BlockFields for Patches {
    const KEEPS_SHAPE: bool = false;
    const IS_SOURCE: bool = true;

    fn plan(self, b: &mut Builder<'_>, _: Option<Shape>, at: &Address) -> Built {
        let (Size(image), Size(patch), channels) = (self.image, self.patch, self.channels);
        let elements = channels.saturating_mul(patch[0] * patch[1]);
        if patch[0] > image[0] || patch[1] > image[1] || elements > MAX_SIZE as usize {
            let message = format!(
                "expected patches no larger than the images, found {} by {} in {} by {}",
                patch[0], patch[1], image[0], image[1]
            );
            b.wrong_fields(at, &["patch", "image"], message);
            return None;
        }
        let grid = Grid { image, patch };
        let [down, across] = grid.of(image);
        if self.any_size && down != across {
            let message = format!("expected a square of patches, found {down} by {across}");
            b.wrong_fields(at, &["image", "any_size"], message);
            return None;
        }
        let linear = b.filter(&self.at, &self.bias, vec![self.width, channels, patch[0], patch[1]])?;
        let (stream, shape) = (Stream::Images, vec![channels, image[0], image[1]]);
        b.items(ItemUse { stream, shape, at_least: self.any_size.then_some(patch) }, at)?;
        let rows = if self.any_size { Rows::Patches(grid, 0) } else { Rows::Fixed(stream, grid.usual()) };
        Some((Box::new(Planned { linear, channels, grid }), Shape::Matrix { rows, cols: self.width }))
    }
}

impl Block for Planned {
    fn is_row_wise(&self) -> bool {
        false
    }

    fn forward(&self, run: &mut Run<'_>, _: &Tensor) -> Result<Tensor> {
        let images = run.inputs.items(Stream::Images);
        let images = images.ok_or_else(|| Error::new(ErrorKind::Input, "expected images, found none"))?;
        let count = images.shape()[0];
        let [height, width] = run.inputs.image_size();
        let ([rows, cols], [down, across]) = (self.grid.of([height, width]), self.grid.patch);
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
