//! What quantised weights are: the definition that all backends share.

use half::bf16;

/// Inputs of an output whose weights share a scale: with 8 bits there is room for a coarser one.
pub const fn block_inputs(bits: u32) -> usize {
    if bits == 8 { LONGEST } else { 32 }
}

const LONGEST: usize = 256;

/// Up to [`block_inputs`] weights as whole numbers times a scale; what is not there counts as 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Block {
    /// Exact in bfloat16, so that it takes two bytes.
    pub scale: f32,
    /// From `-2^(bits - 1)` on, below `2^(bits - 1)`.
    pub weights: [i8; LONGEST],
}

impl Block {
    /// The nearest block of numbers of `bits` bits to these weights.
    ///
    /// The weight that is furthest from 0 comes to lie at the lowest number, `-2^(bits - 1)`, or as near to it as the scale's
    /// rounding leaves it; the error of each weight is at most half of the scale, but for the furthest ones of the other sign.
    pub fn new(weights: &[f32], bits: u32) -> Block {
        let furthest = weights.iter().fold(0.0f32, |a, b| if b.abs() > a.abs() { *b } else { a });
        let lowest = -f32::powi(2.0, bits as i32 - 1);
        let scale = bf16::from_f32(furthest / lowest).to_f32();
        let mut block = Block { scale, weights: [0; LONGEST] };
        if scale != 0.0 {
            for (to, from) in block.weights.iter_mut().zip(weights) {
                // What is not a number becomes 0 here, so it is kept in the scale, see below.
                *to = (from / scale).round().clamp(lowest, -lowest - 1.0) as i8;
            }
        }
        if weights.iter().any(|w| !w.is_finite()) {
            block.scale = f32::NAN;
        }
        block
    }

    /// Weight `i` as it is kept.
    pub fn weight(&self, i: usize) -> f32 {
        f32::from(self.weights[i]) * self.scale
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_near() {
        for bits in [4, 8] {
            let weights: Vec<f32> =
                (0..block_inputs(bits)).map(|i| ((i * 37 % 64) as f32 - 31.0) / 100.0).collect();
            let block = Block::new(&weights, bits);
            for (i, w) in weights.iter().enumerate() {
                assert!((block.weight(i) - w).abs() <= block.scale.abs() * 1.01, "{bits} bits: {w}");
            }
        }
    }

    #[test]
    fn zeros_stay_and_what_is_not_a_number_shows() {
        assert_eq!(Block::new(&[0.0; 5], 8), Block { scale: -0.0, weights: [0; LONGEST] });
        assert!(Block::new(&[1.0, f32::NAN], 4).weight(0).is_nan());
        assert!(Block::new(&[1.0, f32::INFINITY], 8).weight(0).is_nan());
    }
}
