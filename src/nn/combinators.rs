//! The five ways to put blocks together.

use super::Block;
use super::builder::{RoundId, ValueId};
use super::run::Run;
use super::trace::Site;
use crate::error::Result;
use crate::tensor::Tensor;

/// Blocks one after another: the output of each is the input of the next.
#[derive(Debug)]
pub struct Sequence(Vec<Box<dyn Block>>);

impl Sequence {
    /// The blocks as one: a single block is that already.
    pub fn of(blocks: Vec<Box<dyn Block>>) -> Box<dyn Block> {
        match <[Box<dyn Block>; 1]>::try_from(blocks) {
            Ok([only]) => only,
            Err(blocks) => Box::new(Sequence(blocks)),
        }
    }
}

impl Block for Sequence {
    fn is_row_wise(&self) -> bool {
        self.0.iter().all(|block| block.is_row_wise())
    }

    fn layers(&self) -> usize {
        self.0.iter().map(|block| block.layers()).sum()
    }

    fn forward(&self, run: &mut Run<'_>, x: &Tensor) -> Result<Tensor> {
        let Some((first, rest)) = self.0.split_first() else { return Ok(x.clone()) };
        let mut y = first.forward(run, x)?;
        for block in rest {
            y = block.forward_owned(run, y)?;
        }
        Ok(y)
    }

    fn forward_owned(&self, run: &mut Run<'_>, mut x: Tensor) -> Result<Tensor> {
        for block in &self.0 {
            x = block.forward_owned(run, x)?;
        }
        Ok(x)
    }

    fn forward_add(&self, run: &mut Run<'_>, x: Option<&Tensor>, sum: &mut Tensor) -> Result<()> {
        match &self.0[..] {
            [] => add_itself(run, x, sum),
            [only] => only.forward_add(run, x, sum),
            [first, rest @ .., last] => {
                let mut y = first.forward(run, x.unwrap_or(sum))?;
                for block in rest {
                    y = block.forward_owned(run, y)?;
                }
                last.forward_add(run, Some(&y), sum)?;
                run.give(y);
                Ok(())
            }
        }
    }
}

fn add_itself(run: &mut Run<'_>, x: Option<&Tensor>, sum: &mut Tensor) -> Result<()> {
    match x {
        Some(x) => run.backend.add(sum, x),
        None => run.backend.scale(sum, 2.0),
    }
    Ok(())
}

/// `x + body(x)`.
#[derive(Debug)]
pub struct Residual(pub Box<dyn Block>);

impl Block for Residual {
    fn is_row_wise(&self) -> bool {
        self.0.is_row_wise()
    }

    fn forward(&self, run: &mut Run<'_>, x: &Tensor) -> Result<Tensor> {
        let mut sum = run.take(x.rows(), x.cols());
        sum.data_mut().copy_from_slice(x.data());
        self.forward_owned(run, sum)
    }

    fn forward_owned(&self, run: &mut Run<'_>, mut x: Tensor) -> Result<Tensor> {
        self.0.forward_add(run, None, &mut x)?;
        Ok(x)
    }
}

/// The sum of all branches, each of which gets the same input.
#[derive(Debug)]
pub struct Sum(pub Vec<Box<dyn Block>>);

impl Block for Sum {
    fn is_row_wise(&self) -> bool {
        self.0.iter().all(|branch| branch.is_row_wise())
    }

    fn forward(&self, run: &mut Run<'_>, x: &Tensor) -> Result<Tensor> {
        let Some((first, rest)) = self.0.split_first() else { return Ok(x.clone()) };
        let mut sum = first.forward(run, x)?;
        for branch in rest {
            branch.forward_add(run, Some(x), &mut sum)?;
        }
        Ok(sum)
    }

    fn forward_add(&self, run: &mut Run<'_>, x: Option<&Tensor>, sum: &mut Tensor) -> Result<()> {
        // The first branch changes `sum`, so the others need the input kept.
        let kept = x.is_none().then(|| sum.clone());
        for branch in &self.0 {
            branch.forward_add(run, x.or(kept.as_ref()), sum)?;
        }
        kept.into_iter().for_each(|kept| run.give(kept));
        Ok(())
    }
}

/// The product of all branches, each of which gets the same input; a branch of one column counts for all columns.
#[derive(Debug)]
pub struct Product(pub Vec<Box<dyn Block>>);

impl Block for Product {
    fn is_row_wise(&self) -> bool {
        self.0.iter().all(|branch| branch.is_row_wise())
    }

    fn forward(&self, run: &mut Run<'_>, x: &Tensor) -> Result<Tensor> {
        let Some((first, rest)) = self.0.split_first() else { return Ok(x.clone()) };
        let mut product = first.forward(run, x)?;
        for branch in rest {
            let mut y = branch.forward(run, x)?;
            if y.cols() > product.cols() {
                std::mem::swap(&mut y, &mut product);
            }
            run.backend.each_row(&mut product, &|i, row| {
                row.iter_mut().zip(y.row(i).iter().cycle()).for_each(|(x, y)| *x *= y);
            });
            run.give(y);
        }
        Ok(product)
    }
}

/// Layers one after another.
#[derive(Debug)]
pub struct Repeat {
    /// The bodies.
    pub layers: Vec<Box<dyn Block>>,
    /// The value whose hidden states the inputs of the layers are; none for a loop inside of another.
    pub value: Option<ValueId>,
    /// The layers as modules; empty for a loop without a path.
    pub rounds: Vec<RoundId>,
}

impl Block for Repeat {
    fn is_row_wise(&self) -> bool {
        self.layers.iter().all(|layer| layer.is_row_wise())
    }

    fn layers(&self) -> usize {
        if self.value.is_some() { self.layers.len() } else { 0 }
    }

    fn forward(&self, run: &mut Run<'_>, x: &Tensor) -> Result<Tensor> {
        self.forward_owned(run, x.clone())
    }

    fn forward_owned(&self, run: &mut Run<'_>, mut x: Tensor) -> Result<Tensor> {
        for (i, layer) in self.layers.iter().enumerate() {
            if let Some(value) = self.value {
                run.layer_input(value, &x);
            }
            let traced = self.rounds.get(i).filter(|_| run.trace.is_some()).map(|round| (*round, x.clone()));
            x = layer.forward_owned(run, x)?;
            if let Some((round, input)) = traced {
                run.trace(Site::Round(round), Some(&input), &x);
            }
        }
        Ok(x)
    }
}
