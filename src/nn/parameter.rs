use super::builder::{Builder, Grid, Prepare, Rows, Shape, VectorId};
use super::fields::{Path, fields};
use super::run::Run;
use super::{Block, BlockFields, Built};
use crate::error::Result;
use crate::spec::Address;
use crate::tensor::Tensor;

fields! {
    /// A learned matrix, the same whatever the input. Begins a sequence.
    ///
    /// `-> [rows, width]`.
    pub struct Parameter("parameter") {
        /// Path of the parameter, `weight` included if that is its name.
        at: Path,
        /// Rows of the parameter.
        rows: usize,
        /// Columns of the parameter.
        width: usize,
    }
}

fields! {
    /// The learned row of each position: `residual: {positions: {at: …}}` adds it.
    ///
    /// `[items * n, cols] -> [items * n, cols]`, for images and sounds, whose number of rows is known. Tokens take theirs from
    /// an `embedding`. For images of another size (`any_size` of `patches`) the square of rows that belong to patches is resized as by
    /// `torch.nn.functional.interpolate(mode="bicubic", align_corners=False)`, rows before it stay.
    pub struct Positions("positions") {
        /// Path of the parameter, `[n, cols]`, `weight` included if that is its name.
        at: Path,
    }
}

#[derive(Debug)]
struct Planned {
    learned: VectorId,
    rows: usize,
    width: usize,
}

impl BlockFields for Parameter {
    const KEEPS_SHAPE: bool = false;
    const IS_SOURCE: bool = true;

    fn plan(self, b: &mut Builder<'_>, _: Option<Shape>, _: &Address) -> Built {
        let (rows, width) = (self.rows, self.width);
        let learned = b.parameter(&self.at, "", vec![rows, width], Prepare::AsStored)?;
        let shape = Shape::Matrix { rows: Rows::Learned(rows), cols: width };
        Some((Box::new(Planned { learned, rows, width }), shape))
    }
}

impl Block for Planned {
    fn is_row_wise(&self) -> bool {
        false
    }

    fn forward(&self, run: &mut Run<'_>, _: &Tensor) -> Result<Tensor> {
        let mut out = run.take(self.rows, self.width);
        out.data_mut().copy_from_slice(run.vector(self.learned));
        Ok(out)
    }
}

#[derive(Debug)]
struct OfPositions {
    learned: VectorId,
    /// How images are cut, and how many rows are before the patches, if images may have any size.
    patches: Option<(Grid, usize)>,
}

impl BlockFields for Positions {
    fn plan(self, b: &mut Builder<'_>, input: Option<Shape>, at: &Address) -> Built {
        let (rows, _, cols) = b.positions(input, at)?;
        let Some(n) = rows.usual() else {
            b.problem(&at.key(), "`positions` is for the rows of images and sounds, found tokens")
                .help("add an `embedding` of `positions` instead");
            return None;
        };
        let learned = b.parameter(&self.at, "", vec![n, cols], Prepare::AsStored)?;
        let patches = if let Rows::Patches(grid, before) = rows { Some((grid, before)) } else { None };
        Some((Box::new(OfPositions { learned, patches }), Shape::Matrix { rows, cols }))
    }
}

impl Block for OfPositions {
    fn is_row_wise(&self) -> bool {
        false
    }

    fn forward(&self, run: &mut Run<'_>, x: &Tensor) -> Result<Tensor> {
        let mut out = run.take(x.rows(), x.cols());
        let learned = run.vector(self.learned);
        let found = self.patches.map(|(grid, before)| (grid, before, grid.of(run.inputs.image_size())));
        match found {
            Some((grid, before, to)) if to != grid.of(grid.image) => {
                let mut item = run.take(before + to[0] * to[1], x.cols());
                let from = grid.of(grid.image);
                let (first, square) = learned.split_at(before * x.cols());
                let (down, across) = (Cubic::all(from[0], to[0]), Cubic::all(from[1], to[1]));
                run.backend.each_row(&mut item, &|i, row| match i.checked_sub(before) {
                    Some(i) => resized(square, from[1], &down[i / to[1]], &across[i % to[1]], row),
                    None => row.copy_from_slice(&first[i * row.len()..][..row.len()]),
                });
                out.data_mut().chunks_mut(item.data().len()).for_each(|all| all.copy_from_slice(item.data()));
                run.give(item);
            }
            _ => out.data_mut().chunks_mut(learned.len()).for_each(|item| item.copy_from_slice(learned)),
        }
        Ok(out)
    }
}

/// The four neighbours that a place takes its value from, those beyond the edge moved to it, and their shares.
struct Cubic {
    at: [usize; 4],
    share: [f32; 4],
}

impl Cubic {
    /// Those of `to` places that lie evenly on `from`, by the cubic convolution of Keys (1981) with a = -0.75.
    fn all(from: usize, to: usize) -> Vec<Cubic> {
        const A: f32 = -0.75;
        let near = |x: f32| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
        let far = |x: f32| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
        let scale = from as f32 / to as f32;
        let place = |i: usize| {
            let x = scale * (i as f32 + 0.5) - 0.5;
            let (first, t) = (x.floor() as isize - 1, x - x.floor());
            let at = [0, 1, 2, 3].map(|k| (first + k).clamp(0, from as isize - 1) as usize);
            Cubic { at, share: [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)] }
        };
        (0..to).map(place).collect()
    }
}

/// The row of one place of a square of rows, `across` of them side by side.
fn resized(square: &[f32], across: usize, down: &Cubic, side: &Cubic, row: &mut [f32]) {
    row.fill(0.0);
    for (y, of_line) in down.at.iter().zip(&down.share) {
        for (x, share) in side.at.iter().zip(&side.share) {
            let learned = &square[(y * across + x) * row.len()..][..row.len()];
            row.iter_mut().zip(learned).for_each(|(sum, value)| *sum += of_line * share * value);
        }
    }
}
