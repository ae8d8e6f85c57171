//! A traced pass: what each module of the network took and gave, under the paths of the description.

use std::collections::BTreeMap;

use super::{Batch, Network};
use crate::error::Result;
use crate::nn::{Call, PartUse, Site, StepUse, TensorId, TensorUse};
use crate::spec::Address;
use crate::tensor::Tensor;

/// One call of a module.
#[derive(Debug)]
pub struct ModuleCall {
    /// Its path, as the description has it.
    pub name: String,
    /// What it took, one row per token or sequence; none for an embedding.
    pub input: Option<Tensor>,
    /// What it gave: of a linear map `x Wᵀ + b`, before any activation or sum.
    pub output: Tensor,
    /// Where the path is written.
    pub at: Address,
    /// What asks for it: `` `k` of `attention` ``.
    pub label: String,
    /// The step that it belongs to.
    pub step: StepUse,
    /// Whether it is a round of a loop.
    pub is_round: bool,
}

impl Network {
    /// Computes the outputs named in `wanted` (all without names) for a batch, and gives every call of a module in the order
    /// in which they were made. Linear maps are computed twice, and everything is kept, so this is for few tokens.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), but that results may be no numbers.
    pub fn trace(&self, batch: &Batch, wanted: &[&str]) -> Result<Vec<ModuleCall>> {
        let ids = self.ids_of(wanted)?;
        let batch = self.checked(batch, &self.plan.streams(&ids))?;
        self.check_memory(&batch, 0)?;
        let mut states = self.new_states(batch.len());
        let calls = self.pass(&batch, &mut states, |run| {
            run.trace = Some(Vec::new());
            for id in ids {
                run.value(id)?;
            }
            Ok(run.trace.take().unwrap_or_default())
        })?;
        let mut partial = BTreeMap::new();
        Ok(calls.into_iter().flat_map(|call| self.modules_of(call, &mut partial)).collect())
    }

    fn modules_of(&self, call: Call, partial: &mut BTreeMap<TensorId, Partial>) -> Vec<ModuleCall> {
        let declared = &self.plan.declared;
        let step = declared.steps.get(&call.site).cloned().unwrap_or_default();
        let tensor = |id: TensorId| &declared.tensors[id.0];
        match call.site {
            Site::Linear(id) => {
                let parts = columns(&declared.linears[id.0].parts);
                let whole = |(weight, columns): (TensorId, Vec<Option<usize>>)| {
                    let known = partial.remove(&weight).filter(|known| known.input == call.input);
                    let mut known = known.unwrap_or_else(|| Partial::new(&call, columns.len()));
                    known.take(&call.output, &columns);
                    if known.is_whole() {
                        return Some(module(tensor(weight), &step, known.input, known.output));
                    }
                    partial.insert(weight, known);
                    None
                };
                parts.into_iter().filter_map(whole).collect()
            }
            Site::Norm(id) => {
                let parts = &declared.vectors[id.0].parts;
                let weight = parts.first().filter(|_| parts.len() == 1); // norms head by head are no module
                let module = weight.map(|id| module(tensor(*id), &step, call.input, call.output));
                module.into_iter().collect()
            }
            Site::Table(id) => vec![module(tensor(declared.tables[id.0]), &step, call.input, call.output)],
            Site::Round(id) => {
                let round = &declared.rounds[id.0];
                vec![ModuleCall {
                    name: round.path.clone(),
                    input: call.input,
                    output: call.output,
                    at: round.at.clone(),
                    label: "`at` of `repeat`".into(),
                    step,
                    is_round: true,
                }]
            }
        }
    }
}

fn module(tensor: &TensorUse, step: &StepUse, input: Option<Tensor>, output: Tensor) -> ModuleCall {
    // A tensor of several steps is declared by the first, one under `defaults` by all: the step itself tells more.
    let within = tensor.at.steps().starts_with(step.at.steps());
    ModuleCall {
        name: tensor.name.strip_suffix(".weight").unwrap_or(&tensor.name).to_owned(),
        input,
        output,
        at: if within { tensor.at.clone() } else { step.at.key() },
        label: if within { tensor.label.clone() } else { format!("`{}`", step.block) },
        step: step.clone(),
        is_round: false,
    }
}

/// What a weight gave of which some outputs may come later: a gate and its factor may be stored as one.
struct Partial {
    input: Option<Tensor>,
    output: Tensor,
    /// Of each output, whether it is there.
    found: Vec<bool>,
}

impl Partial {
    fn new(call: &Call, outputs: usize) -> Partial {
        let output = Tensor::zeros(call.output.rows(), outputs);
        Partial { input: call.input.clone(), output, found: vec![false; outputs] }
    }

    /// Takes the columns of a matrix that outputs are in.
    fn take(&mut self, from: &Tensor, columns: &[Option<usize>]) {
        for (to, column) in columns.iter().enumerate().filter_map(|(to, column)| Some((to, (*column)?))) {
            self.found[to] = true;
            for i in 0..from.rows() {
                self.output.row_mut(i)[to] = from.row(i)[column];
            }
        }
    }

    fn is_whole(&self) -> bool {
        self.found.iter().all(|found| *found)
    }
}

/// For each weight of a linear map, in which column of what the map gives each of its outputs is, if it is taken.
fn columns(parts: &[PartUse]) -> Vec<(TensorId, Vec<Option<usize>>)> {
    let mut columns: BTreeMap<usize, (TensorId, Vec<Option<usize>>)> = BTreeMap::new();
    if parts.iter().any(|part| part.item.is_some()) {
        return Vec::new(); // several maps in one parameter have no modules of their own
    }
    let (mut start, mut first) = (0, BTreeMap::new());
    for (i, part) in parts.iter().enumerate() {
        let rank = *first.entry(part.weight).or_insert(i);
        let (_, sources) = columns.entry(rank).or_insert_with(|| (part.weight, vec![None; part.outputs]));
        let count = part.order.as_ref().map_or(part.outputs, Vec::len);
        for j in 0..count {
            let column = part.order.as_ref().map_or(j, |order| order[j] as usize);
            if let Some(source) = sources.get_mut(column) {
                *source = Some(start + j);
            }
        }
        start += count;
    }
    columns.into_values().collect()
}
