//! What a pass leaves behind when it is traced: what modules took and gave, as hooks on torch modules would see it.

use super::builder::{LinearId, RoundId, TableId, VectorId};
use crate::spec::Address;
use crate::tensor::Tensor;

/// Something that corresponds to a torch module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Site {
    /// A linear map: one module per weight. Its output is `x Wᵀ + b`, before any activation, product or sum.
    Linear(LinearId),
    /// A norm, known by its weight.
    Norm(VectorId),
    /// An embedding table.
    Table(TableId),
    /// A round of a loop that has a path.
    Round(RoundId),
}

/// One call of a module.
#[derive(Debug)]
pub struct Call {
    /// The module.
    pub site: Site,
    /// What it took; none for what takes ids.
    pub input: Option<Tensor>,
    /// What it gave.
    pub output: Tensor,
}

/// A round of a loop that has a path.
#[derive(Clone, Debug)]
pub struct RoundUse {
    /// The path.
    pub path: String,
    /// Where it is written.
    pub at: Address,
    /// Index and count of the outermost loop.
    pub layer: Option<(usize, usize)>,
}

/// The step of the description that a module belongs to.
#[derive(Clone, Debug, Default)]
pub struct StepUse {
    /// Name of the block.
    pub block: String,
    /// The entry that names it.
    pub at: Address,
    /// The step whose output it takes; none at the beginning of a value.
    pub before: Option<Address>,
    /// Index and count of the outermost loop.
    pub layer: Option<(usize, usize)>,
}
