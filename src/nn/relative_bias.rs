use super::builder::{Builder, Shape};
use super::fields::{Path, fields};
use super::position_bias::OnlyBias;
use super::{BlockFields, Built};
use crate::backend::PositionBias;
use crate::spec::Address;

fields! {
    /// A bias on attention scores, learned per head and per bucket of distances. An `attention` takes it by name:
    /// `bias: …`.
    ///
    /// Of the buckets (of each half of them, if `bidirectional`) half are for one distance each, the others
    /// cover distances up to `max_distance` at logarithmic steps. Raffel et al., “Exploring the Limits of Transfer
    /// Learning”, 2020; the rounding is that of transformers 5.23, a truncated float32 logarithm.
    pub struct RelativeBias("relative_bias") {
        /// Path of the module that owns `weight`, `[buckets, heads]`.
        at: Path,
        /// Rows of the table.
        buckets: usize,
        /// Columns of the table.
        heads: usize,
        /// Distances from here on share the last bucket.
        max_distance: usize,
        /// Whether keys after the query have buckets of their own: the upper half.
        bidirectional: bool,
    }
}

/// Distances beyond this would make the table of all distances large for no known model.
const MAX_DISTANCE: usize = 1 << 20;

impl BlockFields for RelativeBias {
    const KEEPS_SHAPE: bool = false;
    const IS_SOURCE: bool = true;

    fn plan(self, b: &mut Builder<'_>, _: Option<Shape>, at: &Address) -> Built {
        let (buckets, heads, limit, both) = (self.buckets, self.heads, self.max_distance, self.bidirectional);
        let exact = if both { buckets / 4 } else { buckets / 2 };
        if exact == 0 || limit <= exact || limit > MAX_DISTANCE {
            let message = format!(
                "expected buckets for at least one distance and a `max_distance` of more than {exact} and at most \
                 {MAX_DISTANCE}, found {buckets} buckets and {limit}"
            );
            b.wrong_value(at, message);
            return None;
        }
        let elements = heads.saturating_mul(2 * limit + 1);
        let id = b.bias(&self.at, vec![buckets, heads], elements, move |weight| {
            let mut table = Vec::with_capacity(elements);
            for h in 0..heads {
                for distance in -(limit as i64)..=limit as i64 {
                    table.push(weight[bucket(distance, buckets, limit, both) * heads + h]);
                }
            }
            PositionBias::Distance { table, limit }
        })?;
        Some((Box::new(OnlyBias), Shape::Bias { id, heads }))
    }
}

/// The bucket of the distance from a query to a key; negative for keys before it.
fn bucket(distance: i64, buckets: usize, max_distance: usize, bidirectional: bool) -> usize {
    let (half, first) = match bidirectional {
        true if distance > 0 => (buckets / 2, buckets / 2),
        true => (buckets / 2, 0),
        false => (buckets, 0),
    };
    let n = if bidirectional { distance.unsigned_abs() as usize } else { (-distance).max(0) as usize };
    let exact = half / 2;
    if n < exact {
        return first + n;
    }
    let ratio = (max_distance as f64 / exact as f64).ln() as f32;
    let steps = (n as f32 / exact as f32).ln() / ratio * (half - exact) as f32;
    first + (exact + steps as usize).min(half - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_those_of_transformers() {
        // transformers 5.23: `_relative_position_bucket` of (distance, bidirectional, 32, 128)
        let distances = [-200, -128, -64, -20, -16, -15, -8, -7, -1, 0, 1, 7, 8, 20, 127, 500];
        let both = [15, 15, 14, 10, 10, 9, 8, 7, 1, 0, 17, 23, 24, 26, 31, 31];
        let causal = [31, 31, 26, 17, 16, 15, 8, 7, 1, 0, 0, 0, 0, 0, 0, 0];
        for (i, d) in distances.into_iter().enumerate() {
            assert_eq!(bucket(d, 32, 128, true), both[i], "distance {d}");
            assert_eq!(bucket(d, 32, 128, false), causal[i], "distance {d}, causal");
        }
    }
}
