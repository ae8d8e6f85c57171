use super::Block;
use super::builder::LinearId;
use super::run::Run;
use crate::error::Result;
use crate::tensor::Tensor;

/// What a block computes before its last linear map.
pub trait Inner: Send + Sync + std::fmt::Debug {
    /// What the map is given for input `x`.
    fn inner(&self, run: &mut Run<'_>, x: &Tensor) -> Result<Tensor>;

    /// As [`Block::is_row_wise`].
    fn is_row_wise(&self) -> bool {
        true
    }
}

/// A block that ends in a linear map, which adds to a sum by itself.
#[derive(Debug)]
pub struct ThenLinear<I> {
    /// What comes before.
    pub inner: I,
    /// The map.
    pub last: LinearId,
}

impl<I: Inner> Block for ThenLinear<I> {
    fn is_row_wise(&self) -> bool {
        self.inner.is_row_wise()
    }

    fn forward(&self, run: &mut Run<'_>, x: &Tensor) -> Result<Tensor> {
        let inner = self.inner.inner(run, x)?;
        let out = run.linear(self.last, &inner, None, None);
        run.give(inner);
        Ok(out)
    }

    fn forward_add(&self, run: &mut Run<'_>, x: Option<&Tensor>, sum: &mut Tensor) -> Result<()> {
        let inner = self.inner.inner(run, x.unwrap_or(sum))?;
        run.linear_add(self.last, &inner, sum);
        run.give(inner);
        Ok(())
    }
}
