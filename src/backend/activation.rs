use std::f64::consts::{PI, SQRT_2};

/// A function applied to each element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x Φ(x)`, Φ by the error function.
    Gelu,
    /// `0.5 x (1 + tanh(sqrt(2/π) (x + 0.044715 x³)))`.
    GeluTanh,
    /// `x sigmoid(1.702 x)`.
    QuickGelu,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)²`.
    Relu2,
    /// `x sigmoid(x)`.
    Silu,
    /// `tanh(x)`.
    Tanh,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
    /// `ln(1 + exp(x))`.
    Softplus,
}

impl Activation {
    /// Names as they stand in `config.json` files, each with its function.
    pub const NAMES: [(&'static str, Activation); 15] = [
        ("gelu", Activation::Gelu),
        ("gelu_python", Activation::Gelu),
        ("gelu_new", Activation::GeluTanh),
        ("gelu_tanh", Activation::GeluTanh),
        ("gelu_pytorch_tanh", Activation::GeluTanh),
        ("gelu_fast", Activation::GeluTanh),
        ("quick_gelu", Activation::QuickGelu),
        ("relu", Activation::Relu),
        ("relu2", Activation::Relu2),
        ("relu_squared", Activation::Relu2),
        ("silu", Activation::Silu),
        ("swish", Activation::Silu),
        ("tanh", Activation::Tanh),
        ("sigmoid", Activation::Sigmoid),
        ("softplus", Activation::Softplus),
    ];

    /// The function of that name, if it is known.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(n, _)| *n == name).map(|(_, act)| *act)
    }

    /// The exact value, computed in float64: the truth that fast versions are tested against.
    pub fn exact(self, x: f64) -> f64 {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        // Unlike `max`, this lets pass what is not a number.
        let relu = |x: f64| if x < 0.0 { 0.0 } else { x };
        match self {
            Activation::Gelu => 0.5 * x * erfc(-x / SQRT_2),
            Activation::GeluTanh => 0.5 * x * (1.0 + ((2.0 / PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh()),
            Activation::QuickGelu => x * sigmoid(1.702 * x),
            Activation::Relu => relu(x),
            Activation::Relu2 => relu(x).powi(2),
            Activation::Silu => x * sigmoid(x),
            Activation::Tanh => x.tanh(),
            Activation::Sigmoid => sigmoid(x),
            Activation::Softplus => relu(x) + (-x.abs()).exp().ln_1p(),
        }
    }
}

/// Complementary error function, to about 2e-12 relative.
///
/// Below 2.5 by the Maclaurin series of erf (Abramowitz and Stegun 7.1.6), above by the continued fraction of
/// erfc (7.1.14).
pub(crate) fn erfc(x: f64) -> f64 {
    let a = x.abs();
    let tail = if a < 2.5 {
        let (mut term, mut sum, mut n) = (a, a, 1.0);
        while term > sum * 1e-17 {
            term *= 2.0 * a * a / (2.0 * n + 1.0);
            sum += term;
            n += 1.0;
        }
        1.0 - 2.0 / PI.sqrt() * (-a * a).exp() * sum
    } else if a < 28.0 {
        let fraction = (1..=120).rev().fold(a, |rest, k| a + f64::from(k) / 2.0 / rest);
        (-a * a).exp() / PI.sqrt() / fraction
    } else {
        0.0
    };
    if x < 0.0 { 2.0 - tail } else { tail }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erfc_matches_published_values() {
        // NIST Digital Library of Mathematical Functions, table of erfc.
        let cases =
            [(0.0, 1.0), (0.5, 0.479500122186953), (1.0, 0.157299207050285), (2.0, 0.004677734981047266)];
        for (x, expected) in cases {
            assert!((erfc(x) - expected).abs() < 1e-14, "erfc({x}) = {}", erfc(x));
            assert!((erfc(-x) - (2.0 - expected)).abs() < 1e-14);
        }
        let (below, above) = (erfc(2.5 - 1e-12), erfc(2.5));
        assert!((below / above - 1.0).abs() < 1e-10, "{below} {above}");
    }

    #[test]
    fn names_are_unique() {
        for (i, (name, act)) in Activation::NAMES.iter().enumerate() {
            assert_eq!(Activation::from_name(name), Some(*act));
            assert!(Activation::NAMES[..i].iter().all(|(other, _)| other != name));
        }
    }
}
