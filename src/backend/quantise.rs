//! What quantised weights are: the definition that all backends share. The weights of a block are whole numbers of 4 or 8 bits times its
//! scale.

use half::bf16;

/// Inputs of an output whose weights share a scale: with 8 bits there is room for a coarser one.
pub const fn block_inputs(bits: u32) -> usize {
    if bits == 8 { 256 } else { 32 }
}

/// What the whole numbers of a block are multiplied with, if `furthest` is its weight that is furthest from 0. Exact in bfloat16, so
/// that it takes two bytes.
///
/// That weight comes to lie at the lowest number, `-2^(bits - 1)`, or as near to it as the scale's rounding leaves it; the error of
/// each weight is at most half of the scale, but for the furthest ones of the other sign.
pub fn scale(furthest: f32, bits: u32) -> f32 {
    bf16::from_f32(furthest / lowest(bits)).to_f32()
}

/// The whole number of `bits` bits, from `-2^(bits - 1)` on, whose product with the block's scale is nearest to `weight`, of two
/// equally near ones the one further from 0; 0 if `weight` is not a number.
#[inline(always)] // part of a loop that becomes instructions for several weights
pub fn quantise(weight: f32, scale: f32, bits: u32) -> i8 {
    /// So large a number has no room for a fraction: what is added to it is rounded, and stands in its lowest bits.
    const LARGE: f32 = 1.5 * (1 << 23) as f32;
    // A scale of 0 leaves nothing to tell weights apart.
    let scale = if scale == 0.0 { f32::INFINITY } else { scale };
    let x = (weight / scale).clamp(lowest(bits), -lowest(bits) - 1.0);
    let x = if x.is_nan() { 0.0 } else { x };
    // No `f32::round` and no `as i32`: they come to calls, or to a test of each number, where the processor has no instruction that
    // does the same.
    let even = x + LARGE - LARGE;
    let further = if x - even == 0.5f32.copysign(x) { 1f32.copysign(x) } else { 0.0 };
    (even + further + LARGE).to_bits() as i8
}

fn lowest(bits: u32) -> f32 {
    -((1 << (bits - 1)) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_near() {
        for bits in [4, 8] {
            let weights: Vec<f32> =
                (0..block_inputs(bits)).map(|i| ((i * 37 % 64) as f32 - 31.0) / 100.0).collect();
            let scale = scale(0.32, bits);
            for w in weights {
                let kept = f32::from(quantise(w, scale, bits)) * scale;
                assert!((kept - w).abs() <= scale.abs() * 1.01, "{bits} bits: {w}");
            }
        }
    }

    #[test]
    fn numbers_are_the_nearest() {
        for (weight, number) in [(2.4, 2), (2.5, 3), (-2.5, -3), (-9.0, -8), (9.0, 7), (-0.0, 0)] {
            assert_eq!(quantise(weight, 1.0, 4), number, "{weight}");
            assert_eq!(quantise(weight, 0.0, 4), 0);
        }
        for i in -1024..1024 {
            let x = i as f32 / 8.0;
            for x in [x.next_down(), x, x.next_up()] {
                assert_eq!(quantise(x, 1.0, 8), x.round().clamp(-128.0, 127.0) as i8, "{x}");
            }
        }
        assert_eq!(scale(0.0, 8), 0.0);
        assert_eq!(
            (quantise(-200.0, 1.0, 8), quantise(200.0, 1.0, 8), quantise(-60.4, -0.5, 8)),
            (-128, 127, 121)
        );
    }
}
