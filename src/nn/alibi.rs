use super::builder::{Builder, Shape};
use super::fields::{FieldType, fields, read_choice};
use super::position_bias::OnlyBias;
use super::{BlockFields, Built};
use crate::backend::PositionBias;
use crate::spec::{Address, Tree, listed};

fields! {
    /// A bias on attention scores that falls with the distance: `slope · (key position - query position)`, with a slope for each
    /// head that is not learned. An `attention` takes it by name: `bias: …`.
    ///
    /// Press, Smith, Lewis, “Train Short, Test Long” (ALiBi), 2022. For `n` heads, a power of two, the slopes are `2^(-max·k/n)` for
    /// `k` from 1 on.
    pub struct Alibi("alibi") {
        /// Number of heads.
        heads: usize,
        /// Which slopes there are where `heads` is not a power of two: `appended`, those of the power of two below and then every
        /// second one of the power above; or `interleaved`, those of the power of two above, every second one first.
        order: Order = "appended",
        /// Exponent of the smallest slope.
        max: f64 = "8",
        /// Slopes, positions of keys and their products are rounded to bfloat16, and then divided by this number. Without it nothing
        /// is rounded.
        rounded: Option<f64>,
    }
}

/// Which slopes there are for a number of heads that is not a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Those of the power of two below, then every second one of the power above.
    Appended,
    /// Those of the power of two above, every second one first.
    Interleaved,
}

const ORDERS: [(&str, Order); 2] = [("appended", Order::Appended), ("interleaved", Order::Interleaved)];

impl FieldType for Order {
    fn kind() -> String {
        listed(&ORDERS.map(|(name, _)| name))
    }
    fn read(builder: &mut Builder<'_>, value: &Tree, at: &Address) -> Option<Self> {
        read_choice(builder, value, at, &ORDERS)
    }
}

/// More heads than this are a mistake.
const MAX_HEADS: usize = 1 << 16;

impl BlockFields for Alibi {
    const KEEPS_SHAPE: bool = false;
    const IS_SOURCE: bool = true;

    fn plan(self, b: &mut Builder<'_>, _: Option<Shape>, at: &Address) -> Built {
        let (heads, rounded) = (self.heads, self.rounded.map(|divisor| 1.0 / divisor as f32));
        if heads > MAX_HEADS || rounded.is_some_and(|factor| !factor.is_finite()) {
            let message = format!("expected at most {MAX_HEADS} heads and a divisor other than 0");
            b.wrong_fields(at, &["heads", "rounded"], message);
            return None;
        }
        let slopes = slopes(heads, self.order, self.max);
        let id = b.bias_of(None, heads, move |_| match rounded {
            Some(factor) => PositionBias::RoundedSlope { slopes: slopes.clone(), factor },
            None => PositionBias::Slope { slopes: slopes.clone() },
        });
        Some((Box::new(OnlyBias), Shape::Bias { id, heads }))
    }
}

fn slopes(heads: usize, order: Order, max: f64) -> Vec<f32> {
    let of_power = |n: usize, k: usize| (-max * k as f64 / n as f64).exp2() as f32;
    let above = heads.next_power_of_two();
    let below = if above == heads { heads } else { above / 2 };
    match order {
        Order::Appended => {
            let more = (1..=above).step_by(2).map(|k| of_power(above, k));
            (1..=below).map(|k| of_power(below, k)).chain(more).take(heads).collect()
        }
        Order::Interleaved if above == heads => (1..=above).map(|k| of_power(above, k)).collect(),
        Order::Interleaved => {
            let ks = (2..=above).step_by(2).chain((1..=above).step_by(2));
            ks.map(|k| of_power(above, k)).take(heads).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_those_of_the_paper() {
        assert_eq!(slopes(4, Order::Appended, 8.0), [0.25, 0.0625, 0.015625, 0.00390625]);
        assert_eq!(slopes(4, Order::Interleaved, 8.0), slopes(4, Order::Appended, 8.0));
        assert_eq!(slopes(3, Order::Appended, 8.0), [0.0625, 0.00390625, 0.25]);
        assert_eq!(slopes(3, Order::Interleaved, 8.0), [0.0625, 0.00390625, 0.25]);
        assert_eq!(slopes(6, Order::Interleaved, 8.0)[..2], [0.25, 0.0625]);
        assert_eq!(slopes(6, Order::Appended, 8.0)[4..], [0.5, 0.125]);
    }
}
