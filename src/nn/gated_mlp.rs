use super::builder::{Builder, LinearId, Shape};
use super::fields::{Projection, fields};
use super::run::Run;
use super::then_linear::{Inner, ThenLinear};
use super::{BlockFields, Built};
use crate::backend::Activation;
use crate::error::Result;
use crate::spec::Address;
use crate::tensor::Tensor;

fields! {
    /// A linear map of a product, one of whose factors went through an activation: `down(act(gate(x)) · up(x))`.
    ///
    /// `[rows, cols] -> [rows, cols]`. Shazeer, “GLU Variants Improve Transformer”, 2020.
    pub struct GatedMlp("gated_mlp") {
        /// The factor that goes through the activation, `inner` columns.
        gate: Option<Projection>,
        /// The other factor, `inner` columns.
        up: Option<Projection>,
        /// Both factors in one weight, the gate first, instead of `gate` and `up`.
        gate_up: Option<Projection>,
        /// Back to the width of the input.
        down: Projection,
        /// Columns of the factors.
        inner: usize,
        /// Applied to the gate.
        act: Activation,
    }
}

#[derive(Debug)]
struct Planned {
    gate: LinearId,
    up: LinearId,
    act: Activation,
}

impl BlockFields for GatedMlp {
    fn plan(self, b: &mut Builder<'_>, input: Option<Shape>, at: &Address) -> Built {
        let (rows, cols) = b.matrix(input, at)?;
        let inner = self.inner;
        let (gate, up) = match (&self.gate, &self.up, &self.gate_up) {
            (Some(gate), Some(up), None) => {
                (b.linear(&[("gate", gate, inner)], cols)?, b.linear(&[("up", up, inner)], cols)?)
            }
            (None, None, Some(fused)) => {
                b.order(inner.saturating_mul(2), at)?;
                let half = |b: &mut Builder<'_>, rows: std::ops::Range<usize>| {
                    let rows = Some(rows.map(|row| row as u32).collect());
                    let part = b.linear_part("gate_up", fused, 2 * inner, cols, rows)?;
                    Some(b.linear_of(vec![part], cols))
                };
                (half(b, 0..inner)?, half(b, inner..2 * inner)?)
            }
            _ => {
                b.problem(&at.key(), "`gated_mlp` needs `gate` and `up`, or `gate_up` alone");
                return None;
            }
        };
        let last = b.linear(&[("down", &self.down, cols)], self.inner)?;
        let inner = Planned { gate, up, act: self.act };
        Some((Box::new(ThenLinear { inner, last }), Shape::Matrix { rows, cols }))
    }
}

impl Inner for Planned {
    fn inner(&self, run: &mut Run<'_>, x: &Tensor) -> Result<Tensor> {
        let up = run.linear(self.up, x, None, None);
        let inner = run.linear(self.gate, x, Some(self.act), Some(&up));
        run.give(up);
        Ok(inner)
    }
}
