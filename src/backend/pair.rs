use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Two numbers in bfloat16, the first in the lower bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(transparent)]
pub struct Pair(pub u32);

impl Pair {
    /// Two numbers, rounded.
    #[inline(always)]
    pub fn new(first: f32, second: f32) -> Pair {
        Pair(rounded(first) | rounded(second) << 16)
    }

    /// The same bits among numbers of float32, as which memory is kept.
    #[inline(always)]
    pub fn as_word(self) -> f32 {
        f32::from_bits(self.0)
    }

    /// See [`as_word`](Self::as_word).
    #[inline(always)]
    pub fn of_word(word: f32) -> Pair {
        Pair(word.to_bits())
    }

    /// Both numbers.
    #[inline(always)]
    pub fn numbers(self) -> [f32; 2] {
        [f32::from_bits(self.0 << 16), f32::from_bits(self.0 & 0xffff_0000)]
    }

    /// This pair with number `i`, 0 or 1, replaced by `x`, rounded.
    #[inline(always)]
    pub fn with(self, i: usize, x: f32) -> Pair {
        let shift = 16 * i as u32;
        Pair(self.0 & !(0xffff << shift) | rounded(x) << shift)
    }
}

/// The bits of a number in bfloat16. Ties go to even. What is no number stays one: its upper bits are kept, and one that rounding cannot
/// carry away.
#[inline(always)]
pub(crate) fn rounded(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    (if x.is_nan() { bits | 0x40_0000 } else { rounded }) >> 16
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn numbers_are_rounded_as_elsewhere() {
        let values = [
            0.0,
            -0.0,
            1.0,
            1.003_906_3,
            1.011_718_8,
            3.4e38,
            f32::INFINITY,
            f32::MIN_POSITIVE,
            1e-45,
            -7.77,
        ];
        for x in values {
            let Pair(pair) = Pair::new(x, -x);
            assert_eq!(pair as u16, bf16::from_f32(x).to_bits(), "{x}");
            assert_eq!((pair >> 16) as u16, bf16::from_f32(-x).to_bits(), "-{x}");
            assert_eq!(Pair(pair).numbers(), [x, -x].map(|x| bf16::from_f32(x).to_f32()), "{x}");
            assert_eq!(Pair::default().with(1, -x).with(0, x), Pair(pair), "{x}");
        }
        let nan = Pair::new(f32::NAN, f32::from_bits(0xffff_ffff)).0;
        assert!(bf16::from_bits(nan as u16).is_nan() && bf16::from_bits((nan >> 16) as u16).is_nan());
    }
}
