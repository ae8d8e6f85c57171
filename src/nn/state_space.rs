use super::builder::{Builder, LinearId, Prepare, Rows, Shape, StateId, VectorId};
use super::causal_conv::{CausalConv, MAX_KERNEL};
use super::fields::{Path, Projection, fields};
use super::run::Run;
use super::then_linear::{Inner, ThenLinear};
use super::{BlockFields, Built};
use crate::backend::{Activation, Scan};
use crate::error::Result;
use crate::spec::Address;
use crate::tensor::Tensor;

fields! {
    /// A selective state space: `out(scan(act(conv(x))) · act(z))` with `[x; z] = in(input)`.
    ///
    /// `[tokens, cols] -> [tokens, cols]`. The convolution runs over the tokens before each, channel by channel. From its result
    /// `u` come step sizes and the two projections of the state, `[t; b; c] = x_proj(u)`, `dt = softplus(dt_proj(t))`; the state is
    /// `s = exp(dt · a) · s + dt · b · u` with `a = -exp(a_log)`, and gives `Σ c · s + d · u`. Gu and Dao, arXiv:2312.00752, 2023.
    pub struct StateSpace("state_space") {
        /// To `2 * inner` columns.
        in_proj: Projection,
        /// Path of the convolution, which owns `weight`, `[inner, kernel]`, and `bias`.
        conv: Path,
        /// Whether the convolution has a bias.
        conv_bias: bool = "true",
        /// To `dt_rank + 2 * state` columns.
        x_proj: Projection,
        /// From `dt_rank` to `inner` columns.
        dt_proj: Projection,
        /// Path of the parameter `a_log`, `[inner, state]`.
        a_log: Path,
        /// Path of the parameter `d`, `[inner]`.
        d: Path,
        /// Back to the width of the input.
        out_proj: Projection,
        /// Channels.
        inner: usize,
        /// Numbers that each channel remembers.
        state: usize,
        /// Tokens that the convolution sees, the own one included.
        kernel: usize,
        /// Columns from which the step sizes are computed.
        dt_rank: usize,
        /// Applied behind the convolution and to `z`.
        act: Activation = "silu",
    }
}

#[derive(Debug)]
struct Planned {
    rows: Rows,
    x: LinearId,
    z: LinearId,
    conv: CausalConv,
    x_proj: LinearId,
    dt_proj: LinearId,
    /// `[state, inner]`.
    a: VectorId,
    d: VectorId,
    inner: usize,
    dt_rank: usize,
    act: Activation,
    /// The state, `[state, inner]`.
    kept: StateId,
}

/// A state beyond this is a mistake.
const MAX_STATE: usize = 1 << 16;

impl BlockFields for StateSpace {
    fn plan(self, b: &mut Builder<'_>, input: Option<Shape>, at: &Address) -> Built {
        let (stream, cols) = b.tokens(input, at)?;
        let (inner, state, kernel) = (self.inner, self.state, self.kernel);
        if kernel > MAX_KERNEL || state > MAX_STATE || inner > super::fields::MAX_SIZE as usize / MAX_STATE {
            let message =
                format!("{inner} channels with a state of {state} and a kernel of {kernel} are too many");
            b.wrong_fields(at, &["inner", "state", "kernel"], message);
            return None;
        }
        let mut rows_of_in = |rows| b.linear_rows("in_proj", &self.in_proj, 2 * inner, cols, rows, at);
        let (x, z) = (rows_of_in(0..inner)?, rows_of_in(inner..2 * inner)?);
        let conv = CausalConv::plan(b, &self.conv, self.conv_bias, inner, kernel, self.act)?;
        let x_proj = b.linear(&[("x_proj", &self.x_proj, self.dt_rank + 2 * state)], inner)?;
        let dt_proj = b.linear(&[("dt_proj", &self.dt_proj, inner)], self.dt_rank)?;
        b.field = "a_log";
        let a = b.parameter(&self.a_log, "", vec![inner, state], Prepare::TransposeRates(state))?;
        b.field = "d";
        let d = b.vector(&self.d, "", inner)?;
        let last = b.linear(&[("out_proj", &self.out_proj, cols)], inner)?;
        let kept = b.state(inner * state);
        let rows = Rows::Tokens(stream);
        let block = Planned {
            rows,
            x,
            z,
            conv,
            x_proj,
            dt_proj,
            a,
            d,
            inner,
            dt_rank: self.dt_rank,
            act: self.act,
            kept,
        };
        Some((Box::new(ThenLinear { inner: block, last }), Shape::Matrix { rows, cols }))
    }
}

impl Inner for Planned {
    fn is_row_wise(&self) -> bool {
        false
    }

    fn inner(&self, run: &mut Run<'_>, input: &Tensor) -> Result<Tensor> {
        let x = run.linear(self.x, input, None, None); // [tokens, inner]
        let u = self.conv.apply(run, self.rows, &x, 0);
        run.give(x);
        let tbc = run.linear(self.x_proj, &u, None, None); // [tokens, dt_rank + 2 state]
        let t = run.columns(&tbc, 0..self.dt_rank);
        let dt = run.linear(self.dt_proj, &t, Some(Activation::Softplus), None); // [tokens, inner]
        run.give(t);
        let (a, d) = (run.vector(self.a), run.vector(self.d));
        let mut y = run.take(u.rows(), self.inner);
        let spans = run.spans(self.rows);
        let scan = Scan { x: &u, dt: &dt, bc: &tbc, start: self.dt_rank, a, d };
        let mut states = Run::recurrent(run.states, self.kept, spans.len());
        run.backend.scan(&scan, &spans, &mut states, &mut y);
        [u, tbc, dt].into_iter().for_each(|x| run.give(x));
        let gated = run.linear(self.z, input, Some(self.act), Some(&y));
        run.give(y);
        Ok(gated)
    }
}
