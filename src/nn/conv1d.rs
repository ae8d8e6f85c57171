use super::builder::{Builder, LinearId, Rows, Shape};
use super::fields::{Bias, Index, Path, fields};
use super::run::Run;
use super::{Block, BlockFields, Built};
use crate::error::{Error, ErrorKind, Result};
use crate::spec::Address;
use crate::tensor::Tensor;

fields! {
    /// A convolution over the rows of each sequence, with zeros before the first and behind the last.
    ///
    /// `[rows, cols] -> [rows', out]`; as `torch.nn.Conv1d` with columns as channels. Each sequence of `n` rows gives
    /// `(n + 2 · padding - kernel) / stride + 1`; a sequence of tokens must keep its length.
    pub struct Conv1d("conv1d") {
        /// Path of the module that owns `weight`, `[out, cols, kernel]`, and `bias`.
        at: Path,
        /// Columns of the output.
        out: usize,
        /// How many neighbouring rows go into one.
        kernel: usize,
        /// How many rows lie between the first ones of two neighbours.
        stride: usize = "1",
        /// How many rows of zeros there are on both sides.
        padding: Index = "0",
        /// Whether there is a bias.
        bias: Bias = "true",
    }
}

#[derive(Debug)]
struct Planned {
    linear: LinearId,
    rows: Rows,
    kernel: usize,
    stride: usize,
    padding: usize,
    /// Rows of each sequence that come out; none for as many as go in.
    fixed: Option<usize>,
}

/// Rows that one convolution may put side by side.
const MAX_KERNEL: usize = 1 << 12;

impl BlockFields for Conv1d {
    const KEEPS_SHAPE: bool = false;

    fn plan(self, b: &mut Builder<'_>, input: Option<Shape>, at: &Address) -> Built {
        let (rows, stream, cols) = b.positions(input, at)?;
        let (kernel, stride, padding) = (self.kernel, self.stride, self.padding.0);
        if kernel > MAX_KERNEL || padding > MAX_KERNEL {
            let message = format!("expected a kernel and padding of at most {MAX_KERNEL} rows");
            b.wrong_fields(at, &["kernel", "padding"], message);
            return None;
        }
        let (fixed, out_rows) = match rows {
            Rows::Fixed(_, n) if n + 2 * padding >= kernel => {
                let n = (n + 2 * padding - kernel) / stride + 1;
                (Some(n), Rows::Fixed(stream, n))
            }
            Rows::Tokens(_) if stride == 1 && kernel == 2 * padding + 1 => (None, rows),
            Rows::Patches(..) => {
                b.problem(&at.key(), "`conv1d` needs a number of rows that does not depend on the images");
                return None;
            }
            _ => {
                let message = "the kernel does not fit: a sequence of tokens keeps its length with `stride: 1` and a \
                               `kernel` of twice the `padding` and 1";
                b.wrong_fields(at, &["kernel"], message);
                return None;
            }
        };
        let shape = vec![self.out, cols, kernel];
        let linear = b.filter(&self.at, &self.bias, shape)?;
        b.note_width(cols.saturating_mul(kernel));
        let block = Planned { linear, rows, kernel, stride, padding, fixed };
        Some((Box::new(block), Shape::Matrix { rows: out_rows, cols: self.out }))
    }
}

impl Block for Planned {
    fn is_row_wise(&self) -> bool {
        false
    }

    fn forward(&self, run: &mut Run<'_>, x: &Tensor) -> Result<Tensor> {
        let spans = run.spans(self.rows);
        if self.kernel > 1 && spans.iter().any(|span| span.past > 0) {
            return Err(Error::new(ErrorKind::Input, "this convolution cannot go on from earlier tokens"));
        }
        let count = |n: usize| self.fixed.unwrap_or(n);
        let places = spans.iter().flat_map(|span| (0..count(span.rows.len())).map(|i| (&span.rows, i)));
        let places = places.collect::<Vec<_>>();
        let kernel = self.kernel;
        let mut windows = run.take(places.len(), x.cols() * kernel);
        run.backend.each_row(&mut windows, &|to, window| {
            let (rows, i) = places[to];
            window.fill(0.0);
            for k in 0..kernel {
                let at = (i * self.stride + k).checked_sub(self.padding).filter(|at| *at < rows.len());
                // The weight is `[out, cols, kernel]`: the rows of a window alternate.
                let Some(at) = at else { continue };
                let row = x.row(rows.start + at);
                row.iter().enumerate().for_each(|(c, x)| window[c * kernel + k] = *x);
            }
        });
        let out = run.linear(self.linear, &windows, None, None);
        run.give(windows);
        Ok(out)
    }
}
