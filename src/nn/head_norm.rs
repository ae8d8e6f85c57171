//! Norms of the queries or keys of an attention block.

use super::builder::{Builder, Prepare, VectorId};
use super::fields::{FieldType, NonNegative, Path, fields, nested, read_choice};
use super::run::Run;
use super::trace::Site;
use crate::backend::Norm;
use crate::spec::{Address, Tree, listed};
use crate::tensor::Tensor;

fields! {
    /// A norm of queries or keys.
    pub struct HeadNorm("head_norm") {
        /// Path of the module that owns `weight`. With `over: each`, `*` in it stands for the number of the head.
        at: Path,
        /// Which norm.
        kind: Kind = "rms_norm",
        /// What is normed together, and what has weights of its own.
        over: Over = "head",
        /// Added to the mean square or the variance inside of the root.
        eps: NonNegative = "1e-6",
        /// Whether there is a bias.
        bias: bool = "false",
        /// Added to each stored weight.
        offset: f64 = "0",
    }
}

nested!(HeadNorm);

/// Which norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// As the block `layer_norm`.
    LayerNorm,
    /// As the block `rms_norm`.
    RmsNorm,
}

const KINDS: [(&str, Kind); 2] = [("rms_norm", Kind::RmsNorm), ("layer_norm", Kind::LayerNorm)];

impl FieldType for Kind {
    fn kind() -> String {
        listed(&KINDS.map(|(name, _)| name))
    }
    fn read(builder: &mut Builder<'_>, value: &Tree, at: &Address) -> Option<Self> {
        read_choice(builder, value, at, &KINDS)
    }
}

/// What is normed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// The columns of each head, all heads with the same weights.
    Head,
    /// The columns of each head, each with weights of its own.
    Each,
    /// The columns of all heads.
    All,
}

const OVERS: [(&str, Over); 3] = [("head", Over::Head), ("each", Over::Each), ("all", Over::All)];

impl FieldType for Over {
    fn kind() -> String {
        "`head` (each head, with the same weights), `each` (each head, with its own weights) or `all` heads \
         together"
            .into()
    }
    fn read(builder: &mut Builder<'_>, value: &Tree, at: &Address) -> Option<Self> {
        read_choice(builder, value, at, &OVERS)
    }
}

/// A norm with its weights.
#[derive(Debug)]
pub struct PlannedHeadNorm {
    kind: Kind,
    weight: VectorId,
    bias: Option<VectorId>,
    eps: f32,
    /// Columns that are normed together.
    width: usize,
    /// Columns of all heads.
    cols: usize,
}

impl HeadNorm {
    /// Declares the weights for `heads` heads; `field` is the field of the block that holds the norm.
    pub fn plan(
        &self,
        b: &mut Builder<'_>,
        field: &'static str,
        heads: usize,
        head_dim: usize,
    ) -> Option<PlannedHeadNorm> {
        b.field = field;
        let cols = heads * head_dim;
        let weight = self.vector(b, "weight", heads, head_dim, Prepare::Plus(self.offset as f32))?;
        let bias =
            if self.bias { Some(self.vector(b, "bias", heads, head_dim, Prepare::AsStored)?) } else { None };
        let width = if self.over == Over::All { cols } else { head_dim };
        Some(PlannedHeadNorm { kind: self.kind, weight, bias, eps: self.eps.0 as f32, width, cols })
    }

    fn vector(
        &self,
        b: &mut Builder<'_>,
        suffix: &str,
        heads: usize,
        head_dim: usize,
        prepare: Prepare,
    ) -> Option<VectorId> {
        match self.over {
            Over::Head => b.parameter(&self.at, suffix, vec![head_dim], prepare),
            Over::All => b.parameter(&self.at, suffix, vec![heads * head_dim], prepare),
            Over::Each if !self.at.name.contains('*') => {
                b.parameter(&self.at, suffix, vec![heads, head_dim], prepare)
            }
            Over::Each => {
                let mut parts = Vec::new();
                for h in 0..heads {
                    let name = format!("{}.{suffix}", self.at.name.replace('*', &h.to_string()));
                    parts.push(b.tensor(name, vec![head_dim], None, &self.at.at)?);
                }
                Some(b.vector_of(parts, prepare))
            }
        }
    }
}

impl PlannedHeadNorm {
    /// Norms the heads in the columns from `start` on.
    pub fn apply(&self, run: &mut Run<'_>, x: &mut Tensor, start: usize) {
        let columns = start..start + self.cols;
        let heads = run.is_traced().then(|| x.columns(columns.clone()));
        let norm = Norm {
            weight: Some(run.vector(self.weight)),
            bias: self.bias.map(|id| run.vector(id)),
            eps: self.eps,
            width: self.width,
        };
        run.backend.norm_columns(x, columns.clone(), &norm, self.kind == Kind::LayerNorm);
        if heads.is_some() {
            run.trace(Site::Norm(self.weight), heads.as_ref(), &x.columns(columns));
        }
    }
}
