use super::builder::{Builder, LinearId, Shape, VectorId};
use super::fields::{Bias, FieldType, NonNegative, Path, Projection, fields, read_choice};
use super::run::Run;
use super::{Block, BlockFields, Built};
use crate::backend::Activation;
use crate::error::Result;
use crate::spec::{Address, Tree, listed};
use crate::tensor::Tensor;

fields! {
    /// A mixture of experts: a router chooses a few of many gated maps for each row, and the result is the sum of theirs, each times its
    /// weight: `Σ w_e · down_e(act(gate_e(x)) · (up_e(x) + up_offset))`. Only the experts that are chosen are computed.
    ///
    /// `[rows, cols] -> [rows, cols]`. Shazeer et al., “Outrageously Large Neural Networks”, 2017. In the paths of the experts `*`
    /// stands for the number of the expert; a path without it is a parameter that holds all experts, one after another.
    pub struct Moe("moe") {
        /// The router: a score for each expert.
        router: Projection,
        /// Number of experts.
        experts: usize,
        /// How many are chosen for each row.
        chosen: usize,
        /// The factor that goes through the activation, `inner` columns.
        gate: Option<Projection>,
        /// The other factor, `inner` columns.
        up: Option<Projection>,
        /// Both factors in one weight, instead of `gate` and `up`.
        gate_up: Option<Projection>,
        /// Whether the columns of gate and up alternate in `gate_up`; otherwise the gate comes first.
        interleaved: bool = "false",
        /// Back to the width of the input.
        down: Projection,
        /// Columns of the factors.
        inner: usize,
        /// Applied to the gate.
        act: Activation,
        /// What makes weights of the router's scores, over all experts.
        score: Score = "softmax",
        /// Whether the weights of the chosen experts are divided by their sum.
        normalise: bool = "false",
        /// Of the weights.
        factor: f64 = "1",
        /// Path of a parameter that is added to the weights for the choice alone: `[experts]`.
        correction: Option<Path>,
        /// The experts form this many groups, of which only the best take part in the choice: those with the largest sum of their
        /// two best.
        groups: usize = "1",
        /// How many groups take part.
        chosen_groups: usize = "1",
        /// The gate is clamped from above, and the other factor from both sides, to this magnitude.
        clamp: Option<NonNegative>,
        /// Added to the other factor.
        up_offset: f64 = "0",
    }
}

/// What makes weights of scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Score {
    /// Of all experts together.
    Softmax,
    /// Of each by itself.
    Sigmoid,
}

const SCORES: [(&str, Score); 2] = [("softmax", Score::Softmax), ("sigmoid", Score::Sigmoid)];

impl FieldType for Score {
    fn kind() -> String {
        listed(&SCORES.map(|(name, _)| name))
    }
    fn read(builder: &mut Builder<'_>, value: &Tree, at: &Address) -> Option<Self> {
        read_choice(builder, value, at, &SCORES)
    }
}

#[derive(Debug)]
struct Expert {
    gate: LinearId,
    up: LinearId,
    down: LinearId,
}

#[derive(Debug)]
struct Planned {
    router: LinearId,
    experts: Vec<Expert>,
    correction: Option<VectorId>,
    chosen: usize,
    score: Score,
    normalise: bool,
    factor: f64,
    groups: usize,
    chosen_groups: usize,
    act: Activation,
    clamp: Option<f32>,
    up_offset: f32,
}

/// More experts than this are a mistake.
const MAX_EXPERTS: usize = 1 << 14;

impl BlockFields for Moe {
    fn check(&self, b: &mut Builder<'_>, at: &Address) -> Option<()> {
        let (experts, groups) = (self.experts, self.groups);
        let fits = experts <= MAX_EXPERTS && experts % groups == 0 && self.chosen_groups <= groups;
        if !fits || self.chosen > experts / groups * self.chosen_groups {
            let message = format!(
                "expected at most {MAX_EXPERTS} experts in groups of one size, and no more chosen than there are, found \
                 {} of {experts} experts and {} of {groups} groups",
                self.chosen, self.chosen_groups
            );
            b.wrong_fields(at, &["experts", "chosen", "groups", "chosen_groups"], message);
            return None;
        }
        match (&self.gate, &self.up, &self.gate_up) {
            (Some(_), Some(_), None) | (None, None, Some(_)) => {}
            _ => {
                b.problem(&at.key(), "`moe` needs `gate` and `up`, or `gate_up` alone");
                return None;
            }
        }
        b.only_with(at, ("interleaved", self.interleaved), ("`gate_up`", self.gate_up.is_some()))
    }

    fn plan(self, b: &mut Builder<'_>, input: Option<Shape>, at: &Address) -> Built {
        let (rows, cols) = b.matrix(input, at)?;
        let experts = self.experts;
        let router = b.linear(&[("router", &self.router, experts)], cols)?;
        b.field = "correction";
        let correction = match &self.correction {
            Some(path) => Some(b.vector(path, "", experts)?),
            None => None,
        };
        let inner = self.inner;
        let mut planned = Vec::with_capacity(experts);
        for e in 0..experts {
            let part = |b: &mut Builder<'_>, field, of: &Projection, outputs, inputs, rows| {
                let part = match of.at.name.contains('*') {
                    true => b.linear_part(field, &numbered(of, e), outputs, inputs, rows)?,
                    false => b.stacked_part(field, of, (e, experts), outputs, inputs, rows)?,
                };
                Some(b.linear_of(vec![part], inputs))
            };
            let (gate, up) = if let Some(fused) = &self.gate_up {
                b.order(inner.saturating_mul(2), at)?;
                let (step, second) = if self.interleaved { (2, 1) } else { (1, inner) };
                let rows = |first: usize| Some((0..inner).map(|i| (first + i * step) as u32).collect());
                (
                    part(b, "gate_up", fused, 2 * inner, cols, rows(0))?,
                    part(b, "gate_up", fused, 2 * inner, cols, rows(second))?,
                )
            } else {
                // One of the two forms is there, as `check` has seen.
                let (gate, up) = (self.gate.as_ref()?, self.up.as_ref()?);
                (part(b, "gate", gate, inner, cols, None)?, part(b, "up", up, inner, cols, None)?)
            };
            let down = part(b, "down", &self.down, cols, inner, None)?;
            planned.push(Expert { gate, up, down });
        }
        let block = Planned {
            router,
            experts: planned,
            correction,
            chosen: self.chosen,
            score: self.score,
            normalise: self.normalise,
            factor: self.factor,
            groups: self.groups,
            chosen_groups: self.chosen_groups,
            act: self.act,
            clamp: self.clamp.map(|limit| limit.0 as f32),
            up_offset: self.up_offset as f32,
        };
        Some((Box::new(block), Shape::Matrix { rows, cols }))
    }
}

/// A projection of one expert: `*` in its paths is the expert's number.
fn numbered(of: &Projection, expert: usize) -> Projection {
    let path = |path: &Path| Path { name: path.name.replace('*', &expert.to_string()), at: path.at.clone() };
    let bias = match &of.bias {
        Bias::At(at) => Bias::At(path(at)),
        other => other.clone(),
    };
    Projection { at: path(&of.at), bias, ..of.clone() }
}

impl Planned {
    /// The experts of a row with their weights, in the order of their numbers.
    fn choose(&self, scores: &[f32], correction: Option<&[f32]>) -> Vec<(usize, f32)> {
        let weights: Vec<f64> = match self.score {
            Score::Sigmoid => scores.iter().map(|s| 1.0 / (1.0 + (-f64::from(*s)).exp())).collect(),
            Score::Softmax => {
                let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let exp: Vec<f64> = scores.iter().map(|s| f64::from(s - largest).exp()).collect();
                let sum: f64 = exp.iter().sum();
                exp.into_iter().map(|e| e / sum).collect()
            }
        };
        let merit = |e: usize| weights[e] + correction.map_or(0.0, |c| f64::from(c[e]));
        // Of those that are equally good the first ones.
        let best = |mut of: Vec<usize>, n: usize, merit: &dyn Fn(usize) -> f64| {
            if n < of.len() {
                of.select_nth_unstable_by(n, |a, b| merit(*b).total_cmp(&merit(*a)).then(a.cmp(b)));
                of.truncate(n);
            }
            of
        };
        let size = weights.len() / self.groups;
        let of_group = |g: usize| (g * size..(g + 1) * size).collect::<Vec<usize>>();
        let group_merit = |g: usize| best(of_group(g), 2, &merit).into_iter().map(merit).sum::<f64>();
        let groups = match self.groups {
            1 => vec![0],
            n => best((0..n).collect(), self.chosen_groups, &group_merit),
        };
        let mut chosen = best(groups.into_iter().flat_map(of_group).collect(), self.chosen, &merit);
        chosen.sort_unstable();
        let sum: f64 = if self.normalise { chosen.iter().map(|e| weights[*e]).sum() } else { 1.0 };
        chosen.into_iter().map(|e| (e, (weights[e] / sum * self.factor) as f32)).collect()
    }

    /// What one expert gives for rows.
    fn expert(&self, run: &mut Run<'_>, expert: &Expert, x: &Tensor) -> Tensor {
        let mut up = run.linear(expert.up, x, None, None);
        let inner = match self.clamp {
            None => {
                if self.up_offset != 0.0 {
                    up.data_mut().iter_mut().for_each(|x| *x += self.up_offset);
                }
                run.linear(expert.gate, x, Some(self.act), Some(&up))
            }
            Some(limit) => {
                let mut gate = run.linear(expert.gate, x, None, None);
                // Unlike `min`, this lets pass what is not a number.
                gate.data_mut().iter_mut().for_each(|x| *x = if *x > limit { limit } else { *x });
                run.backend.activate(self.act, &mut gate);
                let pairs = gate.data_mut().iter_mut().zip(up.data());
                pairs.for_each(|(gate, up)| *gate *= up.clamp(-limit, limit) + self.up_offset);
                gate
            }
        };
        let out = run.linear(expert.down, &inner, None, None);
        run.give(up);
        run.give(inner);
        out
    }
}

impl Block for Planned {
    fn forward(&self, run: &mut Run<'_>, x: &Tensor) -> Result<Tensor> {
        let scores = run.linear(self.router, x, None, None); // [rows, experts]
        let correction = self.correction.map(|id| run.vector(id));
        let mut rows: Vec<Vec<(usize, f32)>> = vec![Vec::new(); self.experts.len()];
        for r in 0..x.rows() {
            for (expert, weight) in self.choose(scores.row(r), correction) {
                rows[expert].push((r, weight));
            }
        }
        run.give(scores);
        let mut out = run.take(x.rows(), x.cols());
        out.data_mut().fill(0.0);
        // Where the row of an expert's output lies for each row of this one.
        let mut places = vec![None; x.rows()];
        // In the order of the experts' numbers, so that the sum of a row does not depend on the others.
        for (expert, rows) in self.experts.iter().zip(rows).filter(|(_, rows)| !rows.is_empty()) {
            let mut some = run.take(rows.len(), x.cols());
            run.backend.each_row(&mut some, &|i, row| row.copy_from_slice(x.row(rows[i].0)));
            let y = self.expert(run, expert, &some);
            places.fill(None);
            rows.iter().enumerate().for_each(|(i, (r, weight))| places[*r] = Some((i, *weight)));
            run.backend.each_row(&mut out, &|r, out| {
                if let Some((i, weight)) = places[r] {
                    out.iter_mut().zip(y.row(i)).for_each(|(out, y)| *out += weight * y);
                }
            });
            run.give(some);
            run.give(y);
        }
        Ok(out)
    }
}
