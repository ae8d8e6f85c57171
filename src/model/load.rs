use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Network, machine};
use crate::backend::{Backend, LaidOut, LinearPart, LinearWeights, WeightType};
use crate::error::{Error, ErrorKind, Result};
use crate::nn::{BiasUse, BoundLinear, LinearUse, Parameters, PartUse, TensorId, VectorUse};
use crate::plan::{Memory, Plan, linear_type};
use crate::tensor::{Array, DType, Spare};
use crate::weights::{Checkpoint, PackedFile};

/// How a model is loaded.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// How weights are kept; as they are stored by default.
    pub dtype: Option<WeightType>,
    /// Bytes that weights and batches may take; by default what the machine has, or this process may have of it.
    pub memory_limit: Option<u64>,
    /// A file that packed weights are taken from if it has those of this model, kept like this by this backend, and written to
    /// otherwise.
    pub packed: Option<PathBuf>,
}

impl Network {
    /// Reads the weights of a plan.
    ///
    /// # Errors
    /// `Limit` when the weights need too much memory, before any is taken as far as their shapes tell; `Checkpoint` when two stored copies
    /// of a tensor differ, a weight is too large for the type that it is to be kept in, or a file that is to have packed weights has
    /// something else; `Io` when that cannot be read or written; `Input` when the backend packs none.
    pub fn load(
        plan: Plan,
        checkpoint: &Checkpoint,
        backend: Arc<dyn Backend>,
        options: &LoadOptions,
    ) -> Result<Network> {
        let shapes = plan.declared.tensors.iter().map(|tensor| tensor.shape.clone());
        let stored = plan.tensors.stored.iter().zip(shapes);
        let arrays: Vec<Array> =
            stored.map(|(name, shape)| Ok(checkpoint.array(name)?.reshaped(shape))).collect::<Result<_>>()?;
        let kept = |tensor: usize| options.dtype.unwrap_or(WeightType::of(arrays[tensor].dtype()));
        let mut memory =
            Memory::of(&plan.declared, &*backend, &|tensor| arrays[tensor].dtype(), options.dtype);
        let memory_limit = options.memory_limit.unwrap_or_else(machine::memory);
        memory.check(memory_limit)?;
        let matrix = |part: &PartUse| {
            let array = &arrays[part.weight.0];
            match (part.item, array.shape()) {
                (None, [_, _]) => array.clone(),
                (Some(item), [_, rows, cols]) => array.item(item).reshaped(vec![*rows, *cols]),
                // The filters of a convolution are the rows of a matrix.
                (_, shape) => array.reshaped(vec![shape[0], array.len() / shape[0].max(1)]),
            }
        };
        let linears = &plan.declared.linears;
        let matrices: Vec<Vec<Array>> =
            linears.iter().map(|linear| linear.parts.iter().map(matrix).collect()).collect();
        let mut weights = Vec::with_capacity(linears.len());
        for (linear, matrices) in linears.iter().zip(&matrices) {
            let parts = linear.parts.iter().zip(matrices).map(|(part, weight)| LinearPart {
                weight,
                layout: part.layout,
                outputs: part.order.as_deref(),
            });
            let kept = linear_type(linear.parts.iter().map(|part| kept(part.weight.0)));
            weights.push(LinearWeights { parts: parts.collect(), kept });
        }
        let file = match &options.packed {
            Some(path) => Some(packed_file(path, &plan, checkpoint, &weights, &*backend)?),
            None => None,
        };
        let packed = file.as_ref().map(PackedFile::read).transpose()?.flatten();
        if packed.is_some() {
            // What it is made of was checked then, and is not read any more.
            checkpoint.settle();
        } else {
            check_twins(&plan, checkpoint)?;
            check_f16(&plan, &weights)?;
        }
        let mut parameters = Parameters::default();
        // What is small comes first: reading it maps pages that may be large, beside weights that are not there yet.
        let element = |vector: &VectorUse| -> Vec<f32> {
            let stored = vector.parts.iter().flat_map(|TensorId(i)| arrays[*i].to_f32());
            vector.prepare.apply(stored.collect())
        };
        parameters.vectors = plan.declared.vectors.iter().map(element).collect();
        parameters.tables = plan.declared.tables.iter().map(|TensorId(i)| arrays[*i].clone()).collect();
        let table = |bias: &BiasUse| bias.table.map_or(Vec::new(), |TensorId(i)| arrays[i].to_f32());
        parameters.biases = plan.declared.biases.iter().map(|bias| (bias.compute)(&table(bias))).collect();
        let biases: Vec<_> = linears.iter().map(|linear| bias(linear, &arrays)).collect();
        let LaidOut { maps, packed } = backend.linears(&weights, packed);
        // Which weights in bfloat16 take more than was promised shows only now.
        for (map, LinearWeights { kept, .. }) in maps.iter().zip(&weights) {
            let promised = backend.linear_bytes(map.inputs(), map.outputs(), *kept);
            memory.weights = (memory.weights + map.bytes()).saturating_sub(promised);
        }
        memory.check(memory_limit)?;
        if let Some((file, packed)) = file.zip(packed) {
            file.write(packed.bytes())?;
        }
        let bound = maps.into_iter().zip(biases).zip(&weights);
        parameters.linears = bound
            .map(|((map, bias), LinearWeights { kept, .. })| BoundLinear {
                outputs: map.outputs(),
                map,
                bias,
                kept: *kept,
            })
            .collect();
        checkpoint.settle();
        Ok(Network { plan, parameters, backend, memory, memory_limit, buffers: Spare::default() })
    }
}

/// The file of the packed weights of a model.
fn packed_file(
    path: &Path,
    plan: &Plan,
    checkpoint: &Checkpoint,
    weights: &[LinearWeights<'_>],
    backend: &dyn Backend,
) -> Result<PackedFile> {
    let Some(packing) = backend.packing() else {
        let message = format!("`{}` packs no weights that could be kept", backend.name());
        return Err(Error::new(ErrorKind::Input, message));
    };
    // Which hash it is may change with the compiler's version: then weights are packed once more.
    let mut hasher = DefaultHasher::new();
    checkpoint.identify(&mut hasher)?;
    plan.tensors.stored.hash(&mut hasher);
    plan.declared.linears.hash(&mut hasher);
    weights.iter().for_each(|map| map.kept.hash(&mut hasher));
    Ok(PackedFile::new(path, &format!("{packing}, {:016x}", hasher.finish())))
}

/// An error if tensors that are stored twice differ.
fn check_twins(plan: &Plan, checkpoint: &Checkpoint) -> Result<()> {
    for (one, other) in &plan.tensors.twins {
        let twins = [checkpoint.array(one)?, checkpoint.array(other)?];
        let is_same = same(&twins[0], &twins[1]);
        twins.iter().for_each(Array::release_storage);
        if !is_same {
            let message = format!("`{one}` and `{other}` are the same tensor and differ");
            return Err(Error::new(ErrorKind::Checkpoint, message));
        }
    }
    Ok(())
}

/// An error if a number becomes infinite in float16, where weights are to be kept in it.
fn check_f16(plan: &Plan, weights: &[LinearWeights<'_>]) -> Result<()> {
    for (linear, map) in plan.declared.linears.iter().zip(weights) {
        if map.kept == WeightType::F16 {
            let names = linear.parts.iter().map(|part| &plan.tensors.stored[part.weight.0]);
            names.zip(&map.parts).try_for_each(|(name, part)| fit_f16(name, part.weight))?;
        }
    }
    Ok(())
}

/// The biases of all parts side by side; zeros for a part without one beside a part that has one.
fn bias(linear: &LinearUse, arrays: &[Array]) -> Option<Vec<f32>> {
    linear.parts.iter().any(|part| part.bias.is_some()).then(|| {
        let mut whole = Vec::with_capacity(linear.outputs);
        for part in &linear.parts {
            let stored = match part.bias {
                Some(TensorId(i)) => match part.item {
                    Some(item) => arrays[i].item(item).to_f32(),
                    None => arrays[i].to_f32(),
                },
                None => vec![0.0; part.outputs],
            };
            match &part.order {
                Some(order) => whole.extend(order.iter().map(|row| stored[*row as usize])),
                None => whole.extend(stored),
            }
        }
        whole
    })
}

/// An error if a number becomes infinite in float16.
fn fit_f16(name: &str, weights: &Array) -> Result<()> {
    /// Is rounded to the number after the largest one.
    const TOO_LARGE: f32 = 65_520.0;
    if weights.dtype() == DType::F16 {
        return Ok(());
    }
    let mut some = vec![0.0; weights.len().min(1 << 16)];
    for start in (0..weights.len()).step_by(some.len().max(1)) {
        let some = &mut some[..(weights.len() - start).min(1 << 16)];
        weights.read_f32(start, some);
        if let Some(x) = some.iter().find(|x| x.is_finite() && x.abs() >= TOO_LARGE) {
            let message = format!("`{name}` has {x}, which is too large for float16");
            return Err(Error::new(ErrorKind::Checkpoint, message).help("keep weights in another type"));
        }
    }
    weights.release_storage();
    Ok(())
}

fn same(a: &Array, b: &Array) -> bool {
    if a.dtype() == b.dtype() { a.bytes() == b.bytes() } else { a.to_f32() == b.to_f32() }
}
