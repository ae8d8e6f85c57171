use super::builder::{Builder, LinearId, Prepare, Rows, Shape, StateId, VectorId};
use super::causal_conv::{CausalConv, MAX_KERNEL};
use super::fields::{FieldType, NonNegative, Path, Projection, fields, nested};
use super::run::Run;
use super::then_linear::{Inner, ThenLinear};
use super::trace::Site;
use super::{BlockFields, Built};
use crate::backend::{Activation, HeadScan, Norm};
use crate::error::Result;
use crate::spec::{Address, Tree};
use crate::tensor::Tensor;

fields! {
    /// A selective state space of heads (state space duality, SSD): a head has one step size and one rate of decay, and groups of
    /// heads share the projections of the state.
    ///
    /// `[tokens, cols] -> [tokens, cols]`: `out(norm(scan · silu(z)))` with `[z; u; dt] = in(input)`. A convolution over the tokens
    /// before each, channel by channel, gives `[x; b; c] = act(conv(u))`. The step size of a head is `dt = softplus(dt + dt_bias)`,
    /// clamped to `dt_limit`; its state, `[head_dim, state]`, is `s = exp(dt · a) · s + dt · x ⊗ b` with `a = -exp(a_log)`, and
    /// gives `s c + d · x`. Head `h` reads the `b` and `c` of group `h / (heads / groups)`. Dao and Gu, arXiv:2405.21060, 2024.
    pub struct MultiHeadStateSpace("multi_head_state_space") {
        /// To `inner` columns of `z`, `inner + 2 * groups * state` of `u`, and `heads` of `dt`, where `inner = heads * head_dim`.
        in_proj: Projection,
        /// Path of the convolution, which owns `weight`, `[inner + 2 * groups * state, kernel]`, and `bias`.
        conv: Path,
        /// Whether the convolution has a bias.
        conv_bias: bool = "true",
        /// Path of the parameter `dt_bias`, `[heads]`.
        dt_bias: Path,
        /// The smallest and the largest step size; `.inf` for no largest one. It holds for every token: transformers ignores it for
        /// tokens that come one by one.
        dt_limit: Limits = "[0, .inf]",
        /// Path of the parameter `a_log`, `[heads]`.
        a_log: Path,
        /// Path of the parameter `d`, `[heads]`.
        d: Path,
        /// The norm of the gated result; there is none without it.
        norm: Option<GatedNorm>,
        /// From `inner` columns back to the width of the input.
        out_proj: Projection,
        /// Number of heads.
        heads: usize,
        /// Channels of a head.
        head_dim: usize,
        /// Groups of heads; divides `heads`.
        groups: usize = "1",
        /// Numbers that each channel remembers.
        state: usize,
        /// Tokens that the convolution sees, the own one included.
        kernel: usize,
        /// Applied behind the convolution.
        act: Activation = "silu",
    }
}

fields! {
    /// An rms norm of something that is multiplied with a gate.
    pub struct GatedNorm("gated_norm") {
        /// Path of the module that owns `weight`.
        at: Path,
        /// Added to the mean inside of the root.
        eps: NonNegative = "1e-6",
        /// Into how many parts the columns are cut, each normed by itself; as many as the block has groups by default.
        groups: Option<usize>,
        /// Whether the normed columns are multiplied with the gate, and not the columns that are normed.
        before_gate: bool = "false",
    }
}

nested!(GatedNorm);

/// A smallest and a largest number, which may be infinite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits(f32, f32);

impl FieldType for Limits {
    fn kind() -> String {
        "two numbers, the smaller one first".into()
    }
    fn read(builder: &mut Builder<'_>, value: &Tree, at: &Address) -> Option<Self> {
        let number = |x: &Tree| match x {
            Tree::Int(n) => Some(*n as f32),
            Tree::Float(x) => Some(*x as f32),
            _ => None,
        };
        match value {
            Tree::List(items) => match items.iter().map(number).collect::<Option<Vec<f32>>>().as_deref() {
                // False if either is not a number.
                Some([low, high]) if low <= high => Some(Limits(*low, *high)),
                _ => builder.mismatch(value, at),
            },
            _ => builder.mismatch(value, at),
        }
    }
}

#[derive(Debug)]
struct Planned {
    rows: Rows,
    z: LinearId,
    /// `u` and `dt`.
    u: LinearId,
    conv: CausalConv,
    dt_bias: VectorId,
    dt_limit: Limits,
    a: VectorId,
    d: VectorId,
    norm: Option<PlannedNorm>,
    heads: usize,
    head_dim: usize,
    groups: usize,
    state: usize,
    /// The states of the heads, `[heads, state, head_dim]`.
    kept: StateId,
}

#[derive(Debug)]
struct PlannedNorm {
    weight: VectorId,
    eps: f32,
    /// Columns that are normed together.
    width: usize,
    before_gate: bool,
}

/// More columns of all heads, or of what all groups share, are a mistake.
const MAX_COLS: usize = 1 << 16;

impl BlockFields for MultiHeadStateSpace {
    fn plan(self, b: &mut Builder<'_>, input: Option<Shape>, at: &Address) -> Built {
        let (stream, cols) = b.tokens(input, at)?;
        let (heads, head_dim, groups, state) = (self.heads, self.head_dim, self.groups, self.state);
        let (inner, shared) = (heads.saturating_mul(head_dim), groups.saturating_mul(state));
        if inner > MAX_COLS || shared > MAX_COLS || self.kernel > MAX_KERNEL {
            let message = format!(
                "{heads} heads of {head_dim} channels and {groups} groups with a state of {state} and a kernel of {} are \
                 too many",
                self.kernel
            );
            b.wrong_fields(at, &["heads", "head_dim", "groups", "state", "kernel"], message);
            return None;
        }
        if heads % groups != 0 {
            let message = format!("expected a number of heads that {groups} groups can share, found {heads}");
            b.wrong_fields(at, &["groups", "heads"], message);
            return None;
        }
        let convolved = inner + 2 * shared;
        let projected = inner + convolved + heads;
        let mut rows_of_in = |rows| b.linear_rows("in_proj", &self.in_proj, projected, cols, rows, at);
        let (z, u) = (rows_of_in(0..inner)?, rows_of_in(inner..projected)?);
        let conv = CausalConv::plan(b, &self.conv, self.conv_bias, convolved, self.kernel, self.act)?;
        b.field = "dt_bias";
        let dt_bias = b.vector(&self.dt_bias, "", heads)?;
        b.field = "a_log";
        let a = b.parameter(&self.a_log, "", vec![heads], Prepare::TransposeRates(1))?;
        b.field = "d";
        let d = b.vector(&self.d, "", heads)?;
        let norm = match &self.norm {
            None => None,
            Some(norm) => {
                let parts = norm.groups.unwrap_or(groups);
                if inner % parts != 0 {
                    let message =
                        format!("expected columns that can be cut into {parts} parts, found {inner}");
                    b.wrong_fields(at, &["norm", "groups", "heads", "head_dim"], message);
                    return None;
                }
                b.field = "norm";
                let weight = b.vector(&norm.at, "weight", inner)?;
                let (width, before_gate) = (inner / parts, norm.before_gate);
                Some(PlannedNorm { weight, eps: norm.eps.0 as f32, width, before_gate })
            }
        };
        let last = b.linear(&[("out_proj", &self.out_proj, cols)], inner)?;
        let kept = b.state(inner * state);
        let rows = Rows::Tokens(stream);
        let inner = Planned {
            rows,
            z,
            u,
            conv,
            dt_bias,
            dt_limit: self.dt_limit,
            a,
            d,
            norm,
            heads,
            head_dim,
            groups,
            state,
            kept,
        };
        Some((Box::new(ThenLinear { inner, last }), Shape::Matrix { rows, cols }))
    }
}

impl Inner for Planned {
    fn is_row_wise(&self) -> bool {
        false
    }

    fn inner(&self, run: &mut Run<'_>, input: &Tensor) -> Result<Tensor> {
        let (tokens, inner) = (input.rows(), self.heads * self.head_dim);
        let projected = run.linear(self.u, input, None, None); // [tokens, convolved + heads]
        let xbc = self.conv.apply(run, self.rows, &projected, 0); // [tokens, convolved]
        let mut dt = run.take(tokens, self.heads);
        let (bias, Limits(low, high)) = (run.vector(self.dt_bias), self.dt_limit);
        run.backend.each_row(&mut dt, &|i, row| {
            let steps = projected.row(i)[xbc.cols()..].iter().zip(bias);
            row.iter_mut().zip(steps).for_each(|(to, (x, bias))| *to = x + bias);
        });
        run.give(projected);
        run.backend.activate(Activation::Softplus, &mut dt);
        // Cannot panic: `Limits` has the smaller one first. What is not a number stays so.
        dt.data_mut().iter_mut().for_each(|step| *step = step.clamp(low, high));
        let mut y = run.take(tokens, inner);
        let scan = HeadScan {
            xbc: &xbc,
            dt: &dt,
            a: run.vector(self.a),
            d: run.vector(self.d),
            head_dim: self.head_dim,
            groups: self.groups,
            state: self.state,
        };
        let spans = run.spans(self.rows);
        let mut states = Run::recurrent(run.states, self.kept, spans.len());
        run.backend.scan_heads(&scan, &spans, &mut states, &mut y);
        [xbc, dt].into_iter().for_each(|x| run.give(x));
        let silu = Some(Activation::Silu);
        let gated = match &self.norm {
            None => run.linear(self.z, input, silu, Some(&y)),
            Some(norm) => {
                let mut normed = run.take(tokens, inner);
                let weight = Some(run.vector(norm.weight));
                let rms = Norm { weight, bias: None, eps: norm.eps, width: norm.width };
                if norm.before_gate {
                    run.backend.rms_norm(&y, &rms, &mut normed);
                    run.trace(Site::Norm(norm.weight), Some(&y), &normed);
                    let gated = run.linear(self.z, input, silu, Some(&normed));
                    run.give(normed);
                    gated
                } else {
                    let gated = run.linear(self.z, input, silu, Some(&y));
                    run.backend.rms_norm(&gated, &rms, &mut normed);
                    run.trace(Site::Norm(norm.weight), Some(&y), &normed);
                    run.give(gated);
                    normed
                }
            }
        };
        run.give(y);
        Ok(gated) // [tokens, inner]
    }
}
