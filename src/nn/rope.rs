//! Rotary position embedding: frequencies and angles. Su et al., “RoFormer”, 2021.

use super::builder::{Builder, Stream};
use super::fields::{Settings, fields, nested};
use crate::spec::{Address, Tree};
use crate::tensor::Tensor;

fields! {
    /// Rotary position embedding of queries and keys: pairs of columns of each head turn by an angle that grows with
    /// the position.
    pub struct RopeFields("rope") {
        /// Base of the frequencies.
        theta: f64 = "10000",
        /// The map `rope_scaling` or `rope_parameters` of a config: kinds `default`, `linear` and `llama3`.
        scaling: Option<Settings>,
        /// How many columns of each head turn; all by default, or as `partial_rotary_factor` in `scaling` says.
        dim: Option<usize>,
        /// Whether neighbours are paired, instead of columns half of `dim` apart.
        interleaved: bool = "false",
        /// Most tokens of a sequence.
        max_positions: Option<usize>,
    }
}

nested!(RopeFields);

/// Rotary settings with their frequencies.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// One per pair.
    inv_freq: Vec<f32>,
    /// Whether neighbours are paired.
    pub interleaved: bool,
}

/// Most columns of one head that turn: models have some hundreds, and each pair is computed before any tensor is
/// looked up.
const MAX_DIM: usize = 1 << 16;

/// Keys of a scaling map that mean something to some kind of scaling.
const KEYS: [&str; 15] = [
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "short_factor",
    "long_factor",
];

impl RopeFields {
    /// The settings for heads of `head_dim` columns; `at` is where `rope` is written.
    pub fn plan(&self, b: &mut Builder<'_>, head_dim: usize, stream: Stream, at: &Address) -> Option<Rope> {
        let scaling = self.scaling.as_ref();
        let partial = match scaling.and_then(|s| s.0.get("partial_rotary_factor")) {
            None | Some(Tree::Null) => 1.0,
            Some(_) => number(b, scaling?, "partial_rotary_factor")?,
        };
        let dim = self.dim.unwrap_or((head_dim as f64 * partial) as usize);
        if !dim.is_multiple_of(2) || dim == 0 || dim > head_dim.min(MAX_DIM) {
            let most = head_dim.min(MAX_DIM);
            let message = format!("expected an even number of rotated columns up to {most}, found {dim}");
            b.wrong_fields(at, &["head_dim", "rope", "heads"], message);
            return None;
        }
        if self.theta <= 0.0 {
            b.wrong_fields(at, &["rope"], format!("expected a positive `theta`, found {}", self.theta));
            return None;
        }
        if let Some(limit) = self.max_positions {
            b.declared.limits.push((stream, limit, "`max_positions` of `rope`".into()));
        }
        // transformers computes these in float32 as well.
        let mut inv_freq: Vec<f32> =
            (0..dim / 2).map(|p| 1.0 / self.theta.powf((2 * p) as f64 / dim as f64) as f32).collect();
        if let Some(scaling) = scaling {
            scale(b, scaling, &mut inv_freq)?;
        }
        Some(Rope { inv_freq, interleaved: self.interleaved })
    }
}

/// Changes frequencies as a scaling map says.
fn scale(b: &mut Builder<'_>, scaling: &Settings, inv_freq: &mut [f32]) -> Option<()> {
    let Settings(map, at) = scaling;
    if let Some((key, _)) = map.entries().iter().find(|(key, _)| !KEYS.contains(&key.as_str())) {
        b.wrong_value(at, format!("unsupported rope setting `{key}`"));
        return None;
    }
    let kind = match map.get("rope_type").or_else(|| map.get("type")) {
        None | Some(Tree::Null) => "default",
        Some(Tree::Text(kind)) => kind,
        Some(other) => {
            b.wrong_value(at, format!("expected the name of a `rope_type`, found {}", other.kind()));
            return None;
        }
    };
    match kind {
        "default" => {}
        "linear" => {
            let factor = number(b, scaling, "factor")?;
            inv_freq.iter_mut().for_each(|f| *f = (f64::from(*f) / factor) as f32);
        }
        // Grattafiori et al., arXiv:2407.21783, 2024, as transformers 5.23 computes it.
        "llama3" => {
            let factor = number(b, scaling, "factor")?;
            let low = number(b, scaling, "low_freq_factor")?;
            let high = number(b, scaling, "high_freq_factor")?;
            let original = number(b, scaling, "original_max_position_embeddings")?;
            if high <= low {
                let message = format!("expected a `high_freq_factor` above {low}, found {high}");
                b.wrong_value(at, message);
                return None;
            }
            for f in inv_freq {
                let freq = f64::from(*f);
                let wavelength = 2.0 * std::f64::consts::PI / freq;
                *f = if wavelength > original / low {
                    (freq / factor) as f32
                } else if wavelength < original / high {
                    *f
                } else {
                    let smooth = (original / wavelength - low) / (high - low);
                    ((1.0 - smooth) * freq / factor + smooth * freq) as f32
                };
            }
        }
        other => {
            let message =
                format!("unsupported `rope_type`: expected `default`, `linear` or `llama3`, found `{other}`");
            b.wrong_value(at, message);
            return None;
        }
    }
    Some(())
}

/// A positive number of a scaling map.
fn number(b: &mut Builder<'_>, Settings(map, at): &Settings, key: &str) -> Option<f64> {
    match map.get(key) {
        Some(Tree::Int(n)) if *n > 0 => Some(*n as f64),
        Some(Tree::Float(x)) if *x > 0.0 && x.is_finite() => Some(*x),
        found => {
            let found = found.map_or("nothing".into(), |x| format!("`{x}`"));
            b.wrong_value(at, format!("expected a positive `{key}` in the rope settings, found {found}"));
            None
        }
    }
}

impl Rope {
    /// Cosines and sines for these positions, each `[positions, pairs]`.
    pub fn angles(&self, positions: impl Iterator<Item = usize>) -> (Tensor, Tensor) {
        let pairs = self.inv_freq.len();
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for position in positions {
            for freq in &self.inv_freq {
                // The product is rounded to float32, as in transformers; its cosine then is exact.
                let angle = f64::from(position as f32 * freq);
                cos.push(angle.cos() as f32);
                sin.push(angle.sin() as f32);
            }
        }
        let rows = cos.len() / pairs.max(1);
        (Tensor::from_vec(rows, pairs, cos), Tensor::from_vec(rows, pairs, sin))
    }
}
