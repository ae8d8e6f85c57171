//! The blocks: generic neural-network layers at the level of torch modules, one file each, written against
//! [`Backend`](crate::backend::Backend).
//!
//! A block is two things in one file: a struct of `fields!`, which is its definition in the language,
//! and a [`Block`] with the forward pass, or, where a linear map comes last, what is before it. `plan`, between them,
//! checks shapes and declares tensors to the [`Builder`]. Read `layer_norm.rs` first, then `attention.rs`.

#![forbid(unsafe_code)]

use std::fmt;

use crate::error::Result;
use crate::spec::{Address, Problems, Scope, Tree};
use crate::tensor::Tensor;

mod activation;
mod alibi;
mod attention;
mod builder;
mod causal_conv;
mod columns;
pub(crate) mod combinators;
mod concat;
mod conv1d;
pub(crate) mod disentangled_attention;
mod embedding;
mod fields;
mod frames;
mod from;
mod gated_mlp;
mod head_norm;
mod latent_attention;
mod layer_norm;
mod linear;
mod mlp;
mod moe;
mod multi_head_state_space;
mod parameter;
mod patches;
mod pool;
mod position_bias;
mod prepend;
mod relative_bias;
mod rms_norm;
mod rope;
mod run;
mod scale;
mod similarity;
mod sinusoidal;
mod state_space;
mod then_linear;
mod trace;

pub use builder::{
    BiasUse, Builder, CacheUse, Declared, Grid, IdsUse, ItemUse, KnownValue, LinearId, LinearUse, PartUse,
    RoundId, Rows, Shape, Stream, TensorId, TensorUse, ValueId, VectorUse,
};
pub use fields::{FieldDef, FieldShape, FieldType, Fields, Given};
pub use rope::Rope;
pub use run::{BoundLinear, Inputs, Parameters, PlannedValue, Run, SequenceState, Tokens};
pub use trace::{Call, RoundUse, Site, StepUse};

/// A planned block: shapes are checked, weights are known by their ids.
pub trait Block: Send + Sync + fmt::Debug {
    /// The block's output for input `x`.
    fn forward(&self, run: &mut Run<'_>, x: &Tensor) -> Result<Tensor>;

    /// The same, when nobody needs the input any more.
    fn forward_owned(&self, run: &mut Run<'_>, x: Tensor) -> Result<Tensor> {
        let y = self.forward(run, &x)?;
        run.give(x);
        Ok(y)
    }

    /// Whether each row of the output depends on the same row of the input alone.
    fn is_row_wise(&self) -> bool {
        true
    }

    /// How many layers it has whose inputs are hidden states.
    fn layers(&self) -> usize {
        0
    }

    /// Adds the output to `sum`. Without `x` the input is what `sum` holds on entry.
    fn forward_add(&self, run: &mut Run<'_>, x: Option<&Tensor>, sum: &mut Tensor) -> Result<()> {
        let y = self.forward(run, x.unwrap_or(sum))?;
        run.backend.add(sum, &y);
        run.give(y);
        Ok(())
    }
}

/// A planned block with the shape of what it gives; none when something is wrong, which the builder then knows.
pub type Built = Option<(Box<dyn Block>, Shape)>;

/// A block of the language.
#[derive(Debug)]
pub struct Definition {
    /// Name in the YAML.
    pub name: &'static str,
    /// What it computes, line by line.
    pub doc: &'static [&'static str],
    /// Its fields.
    pub fields: fn() -> &'static [FieldDef],
    /// Whether the output has the shape of the input.
    pub keeps_shape: bool,
    /// Whether it takes no input.
    pub is_source: bool,
    /// Reports fields that do not go together whatever the input, if all of them have values without a config.
    pub check: fn(&mut Builder<'_>, &Tree, &Address),
    /// Builds it: reads the fields, checks the input's shape, declares the tensors, and gives the output's shape.
    pub build: fn(&mut Builder<'_>, &Tree, &Address, Option<Shape>) -> Built,
}

/// A struct of fields that can be planned as a block.
pub trait BlockFields: Fields {
    /// Whether the output has the shape of the input.
    const KEEPS_SHAPE: bool = true;
    /// Whether it takes no input: it is planned only where there is none.
    const IS_SOURCE: bool = false;

    /// Reports fields that do not go together whatever the input; none if there are some.
    fn check(&self, _b: &mut Builder<'_>, _at: &Address) -> Option<()> {
        Some(())
    }

    /// Checks the input's shape, declares the tensors, and gives the planned block with its output's shape.
    fn plan(self, b: &mut Builder<'_>, input: Option<Shape>, at: &Address) -> Built;
}

const fn define<T: BlockFields>() -> Definition {
    Definition {
        name: T::NAME,
        doc: T::DOC,
        fields: T::fields,
        keeps_shape: T::KEEPS_SHAPE,
        is_source: T::IS_SOURCE,
        check: |builder, fields, at| {
            // What cannot be read by itself is reported, or waits for a config.
            let mut unread = Problems::unseen();
            let mut reader = Builder::new(builder.source, builder.defaults, Scope::default(), &mut unread);
            let block = T::read(&mut Given::new::<T>(&mut reader, fields, at));
            if let Some(block) = block {
                builder.block = T::NAME.into();
                block.check(builder, at);
            }
        },
        build: |builder, fields, at, input| {
            builder.block = T::NAME.into();
            builder.field = "";
            let block = T::read(&mut Given::new::<T>(builder, fields, at))?;
            builder.field = "";
            if T::IS_SOURCE && input.is_some() {
                let help = "begin a sequence with it: a value of `model`, or a branch of `sum`";
                builder.problem(&at.key(), format!("`{}` takes no input", T::NAME)).help(help);
                return None;
            }
            block.check(builder, at)?;
            block.plan(builder, input, at)
        },
    }
}

/// All blocks, in the order of the reference.
pub static BLOCKS: [Definition; 29] = [
    define::<embedding::Embedding>(),
    define::<from::From>(),
    define::<concat::Concat>(),
    define::<parameter::Parameter>(),
    define::<sinusoidal::Sinusoidal>(),
    define::<patches::Patches>(),
    define::<frames::Frames>(),
    define::<prepend::Prepend>(),
    define::<parameter::Positions>(),
    define::<linear::Linear>(),
    define::<attention::Attention>(),
    define::<latent_attention::LatentAttention>(),
    define::<disentangled_attention::DisentangledAttention>(),
    define::<relative_bias::RelativeBias>(),
    define::<alibi::Alibi>(),
    define::<mlp::Mlp>(),
    define::<gated_mlp::GatedMlp>(),
    define::<moe::Moe>(),
    define::<state_space::StateSpace>(),
    define::<multi_head_state_space::MultiHeadStateSpace>(),
    define::<conv1d::Conv1d>(),
    define::<layer_norm::LayerNorm>(),
    define::<rms_norm::RmsNorm>(),
    define::<activation::Activate>(),
    define::<scale::Scale>(),
    define::<pool::Pool>(),
    define::<columns::Columns>(),
    define::<similarity::Normalise>(),
    define::<similarity::Similarity>(),
];

/// What blocks are put together with.
pub const COMBINATORS: [&str; 5] = ["residual", "sum", "product", "repeat", "when"];

/// Maps that several blocks take as the value of a field: name, documentation and fields.
pub type Group = (&'static str, &'static [&'static str], fn() -> &'static [FieldDef]);

/// The groups of fields that blocks share, for the reference.
pub static GROUPS: [Group; 4] = [
    (fields::Projection::NAME, fields::Projection::DOC, fields::Projection::fields),
    (rope::RopeFields::NAME, rope::RopeFields::DOC, rope::RopeFields::fields),
    (head_norm::HeadNorm::NAME, head_norm::HeadNorm::DOC, head_norm::HeadNorm::fields),
    (
        multi_head_state_space::GatedNorm::NAME,
        multi_head_state_space::GatedNorm::DOC,
        multi_head_state_space::GatedNorm::fields,
    ),
];

/// The groups that no block has the name of: linear maps inside of other blocks have that of the block itself.
pub fn maps() -> impl Iterator<Item = &'static Group> {
    GROUPS.iter().filter(|(name, ..)| block(name).is_none())
}

/// The fields of the block or group of that name.
pub fn fields_of(name: &str) -> Option<&'static [FieldDef]> {
    let group = || GROUPS.iter().find(|(group, ..)| *group == name).map(|(.., fields)| fields());
    block(name).map(|block| (block.fields)()).or_else(group)
}

/// The block of that name.
pub fn block(name: &str) -> Option<&'static Definition> {
    BLOCKS.iter().find(|b| b.name == name)
}
