use std::fmt;
use std::str::FromStr;

use crate::tensor::DType;

/// How a backend keeps the weights of linear maps.
///
/// Nothing but the weights of linear maps is quantised: embeddings, norms and biases stay as they are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightType {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of a float32. With AVX-512 it takes 12 bits in memory, without loss, unless exponents differ too much, inputs are no
    /// multiple of 4, or products are of bfloat16.
    Bf16,
    /// Whole numbers of 8 bits, with a scale for each 256 inputs of an output: 8.06 bits a weight.
    Q8,
    /// Whole numbers of 4 bits, with a scale for each 32 inputs of an output: 4.5 bits a weight.
    Q4,
}

impl WeightType {
    /// All, the most exact first.
    pub const ALL: [WeightType; 5] =
        [WeightType::F32, WeightType::F16, WeightType::Bf16, WeightType::Q8, WeightType::Q4];

    /// The type that keeps stored weights as they are.
    pub fn of(stored: DType) -> Self {
        match stored {
            DType::F16 => WeightType::F16,
            DType::Bf16 => WeightType::Bf16,
            _ => WeightType::F32,
        }
    }

    /// Its short name, as on the command line: `f32`, `f16`, `bf16`, `q8`, `q4`.
    pub fn name(self) -> &'static str {
        match self {
            WeightType::F32 => "f32",
            WeightType::F16 => "f16",
            WeightType::Bf16 => "bf16",
            WeightType::Q8 => "q8",
            WeightType::Q4 => "q4",
        }
    }
}

/// How a backend multiplies the weights of linear maps that it keeps in bfloat16, and keys, queries and values in attention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Compute {
    /// As float32: only weights are rounded.
    #[default]
    F32,
    /// As bfloat16: both sides of a product are rounded to it, products are added up in float32.
    Bf16,
}

impl FromStr for Compute {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "f32" => Ok(Compute::F32),
            "bf16" => Ok(Compute::Bf16),
            _ => Err("expected f32 or bf16".into()),
        }
    }
}

impl fmt::Display for WeightType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for WeightType {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = WeightType::ALL.into_iter().find(|kept| kept.name() == name);
        found.ok_or_else(|| format!("expected one of {}", WeightType::ALL.map(WeightType::name).join(", ")))
    }
}
