//! Rotary position embedding: frequencies and angles. Su et al., “RoFormer”, 2021.

use std::f64::consts::PI;

use super::builder::{Builder, Stream};
use super::fields::{AnyMap, Positive, Share, fields, nested};
use crate::spec::{Address, Tree, listed};
use crate::tensor::Tensor;

fields! {
    /// Rotary position embedding of queries and keys: pairs of columns of each head turn by an angle that grows with
    /// the position.
    pub struct RopeFields("rope") {
        /// Base of the frequencies, unless `scaling` has a `rope_theta`.
        theta: Positive = "10000",
        /// The map `rope_scaling` or `rope_parameters` of a config: kinds `default`, `linear`, `dynamic`, `llama3`, `yarn` and
        /// `longrope` (also called `su`). `dynamic` and `longrope` change when a sequence outgrows the length that the model
        /// was trained with; sequences up to there are computed, longer ones refused.
        scaling: Option<AnyMap>,
        /// The share of each head's columns that turns, unless `scaling` has a `partial_rotary_factor`, which counts only where
        /// this is given. All columns if it is not.
        partial: Option<Share>,
        /// How many columns of each head turn, in place of a share.
        dim: Option<usize>,
        /// Whether neighbours are paired, instead of columns half of `dim` apart.
        interleaved: bool = "false",
        /// Most tokens of a sequence.
        max_positions: Option<usize>,
        /// The length that the model was trained with before its positions were scaled, for `llama3`, `yarn` and `longrope`, whatever
        /// `scaling` says.
        original_positions: Option<usize>,
    }
}

nested!(RopeFields);

/// Rotary settings with their frequencies.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// One per pair.
    inv_freq: Vec<f32>,
    /// Factor of cosines and sines.
    magnitude: f32,
    /// Whether neighbours are paired.
    pub interleaved: bool,
}

/// Most columns of one head that turn: models have some hundreds, and each pair is computed before any tensor is
/// looked up.
const MAX_DIM: usize = 1 << 16;

/// Keys of a scaling map that mean something to some kind of scaling, or to none: `finetuned` says how a model came about.
const KEYS: [&str; 17] = [
    "finetuned",
    "truncate",
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
        let (theta, share) = match scaling {
            Some(scaling) => (
                optional(b, scaling, "rope_theta")?.unwrap_or(self.theta.0),
                optional(b, scaling, "partial_rotary_factor")?,
            ),
            None => (self.theta.0, None),
        };
        if let (None, Some(share)) = (self.partial, share.filter(|share| *share != 1.0)) {
            let message = format!(
                "expected `partial` beside settings with a `partial_rotary_factor` ({share}): models differ in \
                 whether they use it"
            );
            b.wrong_fields(at, &["rope"], message);
            return None;
        }
        let partial = share.or(self.partial.map(|share| share.0)).unwrap_or(1.0);
        if self.dim.is_some() && partial != 1.0 {
            b.wrong_fields(
                at,
                &["rope"],
                format!("`dim` and `partial` ({partial}) both say what is rotated"),
            );
            return None;
        }
        let dim = self.dim.unwrap_or((head_dim as f64 * partial) as usize);
        if !dim.is_multiple_of(2) || dim == 0 || dim > head_dim.min(MAX_DIM) {
            let most = head_dim.min(MAX_DIM);
            let message = format!("expected an even number of rotated columns up to {most}, found {dim}");
            let is_said = self.dim.is_some() || partial != 1.0;
            let fields: &[&str] =
                if is_said { &["rope", "head_dim", "heads"] } else { &["head_dim", "rope", "heads"] };
            b.wrong_fields(at, fields, message);
            return None;
        }
        if let Some(limit) = self.max_positions {
            b.declared.limits.push((stream, limit, "`max_positions` of `rope`".into()));
        }
        b.declared.streams.insert(stream);
        // transformers computes these in float32 as well.
        let mut inv_freq: Vec<f32> =
            (0..dim / 2).map(|p| 1.0 / theta.powf((2 * p) as f64 / dim as f64) as f32).collect();
        let magnitude = match scaling {
            Some(scaling) => self.scale(b, scaling, theta, stream, &mut inv_freq)?,
            None => 1.0,
        };
        Some(Rope { inv_freq, magnitude: magnitude as f32, interleaved: self.interleaved })
    }

    /// Changes frequencies as a scaling map says, and gives the factor of cosines and sines.
    fn scale(
        &self,
        b: &mut Builder<'_>,
        scaling: &AnyMap,
        theta: f64,
        stream: Stream,
        inv_freq: &mut [f32],
    ) -> Option<f64> {
        let kind = kind(b, scaling)?;
        match kind.as_str() {
            "default" => {}
            "linear" => {
                let factor = number(b, scaling, "factor")?;
                inv_freq.iter_mut().for_each(|f| *f = (f64::from(*f) / factor) as f32);
            }
            "dynamic" => {
                // What the config says of an earlier length is for other kinds.
                let original = match self.max_positions {
                    Some(most) => most as f64,
                    None => number(b, scaling, "original_max_position_embeddings")?,
                };
                let why = "from there on, `dynamic` rope would depend on what else is in the batch";
                b.declared.limits.push((stream, original as usize, why.into()));
            }
            "llama3" => self.llama3(b, scaling, inv_freq)?,
            "yarn" => return self.yarn(b, scaling, theta, inv_freq),
            "longrope" | "su" => return self.longrope(b, scaling, stream, inv_freq),
            other => {
                let known = ["default", "linear", "dynamic", "llama3", "yarn", "longrope"];
                let message =
                    format!("unsupported `rope_type`: expected {}, found `{other}`", listed(&known));
                b.wrong_value(&scaling.1, message);
                return None;
            }
        }
        Some(1.0)
    }

    /// The length that the model was trained with before scaling.
    fn original(&self, b: &mut Builder<'_>, scaling: &AnyMap) -> Option<f64> {
        match (self.original_positions, scaling.0.get("original_max_position_embeddings"), self.max_positions)
        {
            (Some(original), ..) | (None, None | Some(Tree::Null), Some(original)) => Some(original as f64),
            _ => number(b, scaling, "original_max_position_embeddings"),
        }
    }

    /// How many times longer sequences may be after scaling.
    fn factor(&self, b: &mut Builder<'_>, scaling: &AnyMap, original: f64) -> Option<f64> {
        match (scaling.0.get("factor"), self.max_positions) {
            (None | Some(Tree::Null), Some(most)) => Some(most as f64 / original),
            _ => number(b, scaling, "factor"),
        }
    }

    /// Grattafiori et al., arXiv:2407.21783, 2024, as transformers 5.23 computes it.
    fn llama3(&self, b: &mut Builder<'_>, scaling: &AnyMap, inv_freq: &mut [f32]) -> Option<()> {
        let factor = number(b, scaling, "factor")?;
        let low = number(b, scaling, "low_freq_factor")?;
        let high = number(b, scaling, "high_freq_factor")?;
        let original = self.original(b, scaling)?;
        if high <= low {
            let message = format!("expected a `high_freq_factor` above {low}, found {high}");
            b.wrong_value(&scaling.1, message);
            return None;
        }
        for f in inv_freq {
            let freq = f64::from(*f);
            let wavelength = 2.0 * PI / freq;
            *f = if wavelength > original / low {
                (freq / factor) as f32
            } else if wavelength < original / high {
                *f
            } else {
                let smooth = (original / wavelength - low) / (high - low);
                ((1.0 - smooth) * freq / factor + smooth * freq) as f32
            };
        }
        Some(())
    }

    /// Peng et al., “YaRN”, arXiv:2309.00071, 2023, as transformers 5.23 computes it.
    fn yarn(&self, b: &mut Builder<'_>, scaling: &AnyMap, theta: f64, inv_freq: &mut [f32]) -> Option<f64> {
        let dim = (2 * inv_freq.len()) as f64;
        let original = self.original(b, scaling)?;
        let factor = self.factor(b, scaling, original)?;
        let fast = optional(b, scaling, "beta_fast")?.unwrap_or(32.0);
        let slow = optional(b, scaling, "beta_slow")?.unwrap_or(1.0);
        let bound = |turns: f64| dim * (original / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
        let (mut low, mut high) = (bound(fast), bound(slow));
        if scaling.0.get("truncate") != Some(&Tree::Bool(false)) {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        for (p, f) in inv_freq.iter_mut().enumerate() {
            let kept = 1.0 - ((p as f64 - low) / (high - low)).clamp(0.0, 1.0);
            let freq = f64::from(*f);
            *f = (freq / factor * (1.0 - kept) + freq * kept) as f32;
        }
        let magnitude = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
        if let Some(given) = optional(b, scaling, "attention_factor")? {
            return Some(given);
        }
        // Some configs write 0 for none.
        let mut scale = |key| match scaling.0.get(key) {
            Some(Tree::Int(0) | Tree::Float(0.0)) => Some(None),
            _ => optional(b, scaling, key),
        };
        let (mscale, all) = (scale("mscale")?, scale("mscale_all_dim")?);
        Some(match (mscale, all) {
            (Some(mscale), Some(all)) => magnitude(mscale) / magnitude(all),
            _ => magnitude(1.0),
        })
    }

    /// Ding et al., “LongRoPE”, arXiv:2402.13753, 2024, as transformers 5.23 computes it for sequences within the
    /// original length.
    fn longrope(
        &self,
        b: &mut Builder<'_>,
        scaling: &AnyMap,
        stream: Stream,
        inv_freq: &mut [f32],
    ) -> Option<f64> {
        let original = self.original(b, scaling)?;
        let Some(Tree::List(factors)) = scaling.0.get("short_factor") else {
            b.wrong_value(&scaling.1, "expected a list `short_factor` in the rope settings");
            return None;
        };
        let factors: Option<Vec<f64>> = factors.iter().map(positive).collect();
        match factors {
            Some(factors) if factors.len() == inv_freq.len() => {
                for (f, factor) in inv_freq.iter_mut().zip(factors) {
                    *f = (f64::from(*f) / factor) as f32;
                }
            }
            _ => {
                let message = format!("expected {} positive numbers in `short_factor`", inv_freq.len());
                b.wrong_value(&scaling.1, message);
                return None;
            }
        }
        let why = "from there on, `longrope` changes the positions of earlier tokens";
        b.declared.limits.push((stream, original as usize, why.into()));
        if let Some(given) = optional(b, scaling, "attention_factor")? {
            return Some(given);
        }
        let factor = self.factor(b, scaling, original)?;
        Some(if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() })
    }
}

/// The kind of scaling that a map asks for.
fn kind(b: &mut Builder<'_>, scaling: &AnyMap) -> Option<String> {
    let AnyMap(map, at) = scaling;
    if let Some((key, _)) = map.entries().iter().find(|(key, _)| !KEYS.contains(&key.as_str())) {
        b.wrong_value(at, format!("unsupported rope setting `{key}`"));
        return None;
    }
    match ["rope_type", "type"].iter().filter_map(|key| map.get(key)).find(|kind| **kind != Tree::Null) {
        None => Some("default".into()),
        Some(Tree::Text(kind)) => Some(kind.clone()),
        Some(other) => {
            b.wrong_value(at, format!("expected the name of a `rope_type`, found {}", other.kind()));
            None
        }
    }
}

fn positive(tree: &Tree) -> Option<f64> {
    match tree {
        Tree::Int(n) if *n > 0 => Some(*n as f64),
        Tree::Float(x) if *x > 0.0 && x.is_finite() => Some(*x),
        _ => None,
    }
}

/// A positive number of a scaling map, if the key is there; the outer option is none if something is wrong with it.
fn optional(b: &mut Builder<'_>, scaling: &AnyMap, key: &str) -> Option<Option<f64>> {
    match scaling.0.get(key) {
        None | Some(Tree::Null) => Some(None),
        Some(_) => number(b, scaling, key).map(Some),
    }
}

/// A positive number of a scaling map.
fn number(b: &mut Builder<'_>, AnyMap(map, at): &AnyMap, key: &str) -> Option<f64> {
    let found = map.get(key);
    let value = found.and_then(positive);
    if value.is_none() {
        let found = found.map_or("nothing".into(), |x| format!("`{x}`"));
        b.wrong_value(at, format!("expected a positive `{key}` in the rope settings, found {found}"));
    }
    value
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
                cos.push(angle.cos() as f32 * self.magnitude);
                sin.push(angle.sin() as f32 * self.magnitude);
            }
        }
        let rows = cos.len() / pairs.max(1);
        (Tensor::from_vec(rows, pairs, cos), Tensor::from_vec(rows, pairs, sin))
    }
}
