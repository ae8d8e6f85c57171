use super::Block;
use super::run::Run;
use crate::error::{Error, ErrorKind, Result};
use crate::tensor::Tensor;

/// A bias on attention scores as a value: an `attention` takes it by its id, and there is nothing to compute.
#[derive(Debug)]
pub struct OnlyBias;

impl Block for OnlyBias {
    fn forward(&self, _: &mut Run<'_>, _: &Tensor) -> Result<Tensor> {
        Err(Error::new(ErrorKind::Spec, "a position bias has no rows"))
    }
}
