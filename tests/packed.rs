//! Files of packed weights: the same bits with them, and never those of something else.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{cases, copy, levels, load_with};
use smelt::backend::{Backend, Epilogue, Layout, LinearPart, LinearWeights};
use smelt::cpu::{Cpu, SimdLevel};
use smelt::model::Batch;
use smelt::reference::Reference;
use smelt::task::Bundle;
use smelt::tensor::{Array, DType, Tensor};
use smelt::weights::read_bundle;
use smelt::{Compute, ErrorKind, OpenOptions, Result, WeightType};
use tempfile::TempDir;

fn cpu(compute: Compute) -> Arc<dyn Backend> {
    Arc::new(Cpu::new(Some(2)).with_compute(compute))
}

/// All outputs for the inputs of a fixture, of which `dir` is or was a copy.
fn outputs(fixture: &Path, dir: &Path, backend: Arc<dyn Backend>, options: &OpenOptions) -> Result<Vec<u32>> {
    let bundle = Bundle::new(read_bundle(&fixture.join("reference.safetensors"))?)?;
    let outputs = load_with(dir, backend, options)?.forward(bundle.batch(), &[], true)?;
    Ok(outputs.iter().flat_map(|output| output.value.data()).map(|x| x.to_bits()).collect())
}

fn options(dtype: Option<WeightType>, packed: Option<&Path>) -> OpenOptions {
    OpenOptions { dtype, packed: packed.map(Path::to_owned), ..OpenOptions::default() }
}

/// A small fixture of a model that generates.
fn fixture() -> PathBuf {
    cases().into_iter().find(|dir| dir.ends_with("causal")).unwrap()
}

/// Changes numbers in the middle of a file.
fn change(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 1024].fill(0x3e);
    fs::write(file, bytes).unwrap();
}

#[test]
fn models_give_the_same_bits_from_a_file() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("packed");
    let dtypes = [None, Some(WeightType::Bf16), Some(WeightType::Q8), Some(WeightType::Q4)];
    for (i, case) in cases().iter().enumerate() {
        let dtype = dtypes[i % dtypes.len()];
        let compute = if i % 3 == 0 { Compute::Bf16 } else { Compute::F32 };
        let run = |packed| outputs(case, case, cpu(compute), &options(dtype, packed)).unwrap();
        let expected = run(None);
        // Written over what is there of the model before.
        assert!(run(Some(&file)) == expected, "{}: when it is written", case.display());
        let written = fs::read(&file).unwrap();
        assert!(run(Some(&file)) == expected, "{}: when it is read", case.display());
        assert!(fs::read(&file).unwrap() == written, "{}", case.display());
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn packed_weights_are_what_is_computed_with() {
    let (case, dir) = (fixture(), TempDir::new().unwrap());
    let file = dir.path().join("packed");
    for dtype in [None, Some(WeightType::Bf16), Some(WeightType::Q8)] {
        let run = |packed| outputs(&case, &case, cpu(Compute::F32), &options(dtype, packed)).unwrap();
        let expected = run(Some(&file));
        change(&file);
        let changed = fs::read(&file).unwrap();
        assert!(run(Some(&file)) != expected, "{dtype:?}");
        assert!(fs::read(&file).unwrap() == changed, "{dtype:?}: it is used as it is");
    }
}

#[test]
fn weights_kept_in_another_way_or_for_another_processor_are_packed_anew() {
    let (case, dir) = (fixture(), TempDir::new().unwrap());
    let file = dir.path().join("packed");
    let mut seen = Vec::new();
    for level in levels() {
        for dtype in [WeightType::F32, WeightType::F16, WeightType::Bf16, WeightType::Q8, WeightType::Q4] {
            for compute in [Compute::F32, Compute::Bf16] {
                let backend =
                    || Arc::new(Cpu::with_level(level, Some(1)).unwrap().with_compute(compute)) as Arc<_>;
                let run = |packed| outputs(&case, &case, backend(), &options(Some(dtype), packed)).unwrap();
                assert!(run(Some(&file)) == run(None), "{level:?}, {dtype}, {compute:?}");
                let name = read_bundle(&file).unwrap().into_keys().next().unwrap();
                assert!(!seen.contains(&name), "{level:?}, {dtype}, {compute:?}: {name}");
                seen.push(name);
            }
        }
    }
}

#[test]
fn a_checkpoint_that_has_changed_is_packed_anew() {
    let case = fixture();
    for in_secret in [false, true] {
        let copy = copy(&case);
        let (dir, file) = (copy.path(), copy.path().join("packed"));
        let run = |packed| outputs(&case, dir, cpu(Compute::F32), &options(None, packed)).unwrap();
        let before = run(Some(&file));
        let model = dir.join("model.safetensors");
        let modified = fs::metadata(&model).unwrap().modified().unwrap();
        change(&model);
        if in_secret {
            // As in an image of a file system that has one time for all files.
            fs::File::options().append(true).open(&model).unwrap().set_modified(modified).unwrap();
        }
        let after = run(None);
        assert!(before != after);
        assert!(run(Some(&file)) == after, "in secret: {in_secret}");
    }
}

#[test]
fn a_change_of_any_tensor_is_seen() {
    let copy = copy(&fixture());
    let (dir, file) = (copy.path(), copy.path().join("packed"));
    let model = dir.join("model.safetensors");
    let (bytes, modified) = (fs::read(&model).unwrap(), fs::metadata(&model).unwrap().modified().unwrap());
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensors: serde_json::Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    let mut seen = Vec::new();
    for (name, tensor) in tensors.as_object().unwrap() {
        let Some(end) = tensor["data_offsets"][1].as_u64() else { continue };
        let mut changed = bytes.clone();
        changed[header + end as usize - 4..][..4].copy_from_slice(&0.25f32.to_le_bytes());
        fs::write(&model, changed).unwrap();
        fs::File::options().append(true).open(&model).unwrap().set_modified(modified).unwrap();
        load_with(dir, cpu(Compute::F32), &options(None, Some(&file))).unwrap();
        let identity = read_bundle(&file).unwrap().into_keys().next().unwrap();
        assert!(!seen.contains(&identity), "{name}");
        seen.push(identity);
    }
    assert!(seen.len() > 10);
}

#[test]
fn a_description_that_has_changed_is_packed_anew() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let dir = TempDir::new().unwrap();
    let (file, arch) = (dir.path().join("packed"), dir.path().join("mine.yaml"));
    let text = fs::read_to_string(examples.join("classifier.yaml")).unwrap();
    // Queries and values have the same shape.
    let swapped =
        text.replace("self.query", "?").replace("self.value", "self.query").replace('?', "self.value");
    assert_ne!(text, swapped);
    let run = |packed: Option<&Path>| {
        let arch = Some(arch.to_str().unwrap().into());
        let options = OpenOptions { arch, ..options(None, packed) };
        let model = load_with(&examples.join("models/language-id"), cpu(Compute::F32), &options).unwrap();
        let outputs = model.forward(&Batch::of([&[5, 60, 70, 80][..]]), &[], false).unwrap();
        outputs[0].value.data().to_vec()
    };
    fs::write(&arch, text).unwrap();
    let before = run(Some(&file));
    fs::write(&arch, swapped).unwrap();
    let after = run(None);
    assert!(before != after);
    assert!(run(Some(&file)) == after);
}

#[test]
fn a_file_is_written_by_many_at_once_and_through_a_link() {
    let (case, dir) = (fixture(), TempDir::new().unwrap());
    let file = dir.path().join("packed");
    let run = |packed| outputs(&case, &case, cpu(Compute::F32), &options(None, packed)).unwrap();
    let expected = run(None);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert!(run(Some(&file)) == expected));
        }
    });
    assert!(run(Some(&file)) == expected);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    #[cfg(unix)]
    {
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let q8 = options(Some(WeightType::Q8), Some(&link));
        outputs(&case, &case, cpu(Compute::F32), &q8).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(fs::read(&file).unwrap() == fs::read(&link).unwrap());
    }
}

#[test]
fn other_files_are_left_alone() {
    let case = fixture();
    let copy = copy(&case);
    let (dir, file) = (copy.path(), copy.path().join("packed"));
    let run = |file: &Path| outputs(&case, dir, cpu(Compute::F32), &options(None, Some(file)));
    run(&file).unwrap();
    let packed = fs::read(&file).unwrap();
    fs::write(dir.join("cut"), &packed[..packed.len() - 1]).unwrap();
    fs::write(dir.join("cut-early"), &packed[..20]).unwrap();
    fs::write(dir.join("empty"), "").unwrap();
    for (name, part) in [
        ("model.safetensors", " tensors"),
        ("config.json", "expected a header of at most"),
        ("cut", "is cut off"),
        ("cut-early", "is cut off"),
        ("empty", "is empty"),
    ] {
        let before = fs::read(dir.join(name)).unwrap();
        let error = run(&dir.join(name)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Checkpoint, "{error}");
        let text = error.to_string();
        for part in [part, "expected packed weights, found", "name another file, or remove this one"] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(fs::read(dir.join(name)).unwrap(), before);
    }
    let error = run(&dir.join("no/such/directory/packed")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    assert_eq!(run(dir).unwrap_err().kind(), ErrorKind::Io);
    let error = outputs(&case, dir, Arc::new(Reference), &options(None, Some(&file))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Input, "{error}");
}

#[test]
fn bytes_that_cannot_be_packed_weights_are_not_taken() {
    let array = Array::from_f32(vec![40, 24], &vec![0.5; 960]);
    let parts = vec![LinearPart { weight: &array, layout: Layout::OutIn, outputs: None }];
    let maps = [LinearWeights { parts, kept: WeightType::F32 }];
    let cpu = Cpu::new(Some(1));
    let packed = cpu.linears(&maps, None).packed.unwrap();
    let is_taken = |packed: Array| cpu.linears(&maps, Some(packed)).packed.is_none();
    assert!(is_taken(packed.clone()));
    let len = packed.len();
    let zeros = |start: usize, len: usize| {
        let memory = vec![0u8; len + 128];
        let start = memory.as_ptr().align_offset(64) + start;
        Array::new(DType::U8, vec![len], Arc::new(memory), start..start + len).unwrap()
    };
    assert!(is_taken(zeros(0, len)));
    for len in [0, len - 1, len + 64] {
        assert!(!is_taken(zeros(0, len)), "{len}");
    }
    assert!(!is_taken(zeros(1, len)), "not where a vector could be read");
}

#[test]
fn maps_that_cannot_be_coded_are_told_from_those_that_can() {
    let number = |i: usize, uneven: bool| match i % 5 {
        0 if uneven => 1e-9,
        _ => ((i * 7919 % 1009) as f32 - 504.0) / 512.0,
    };
    let array = |uneven| {
        let numbers: Vec<f32> = (0..40 * 300).map(|i| number(i, uneven)).collect();
        Array::from_f32(vec![40, 300], &numbers)
    };
    // Behind the panels of the first there is not enough room.
    let arrays = [array(true), array(false)];
    let maps = arrays.each_ref().map(|weight| {
        let parts = vec![LinearPart { weight, layout: Layout::OutIn, outputs: None }];
        LinearWeights { parts, kept: WeightType::Bf16 }
    });
    let x = Tensor::from_vec(50, 300, (0..50 * 300).map(|i| (i % 11) as f32 - 5.0).collect());
    for level in levels() {
        let cpu = Cpu::with_level(level, Some(1)).unwrap();
        let outputs = |packed| {
            let laid = cpu.linears(&maps, packed);
            let outputs = laid.maps.iter().map(|map| {
                let mut out = Tensor::zeros(50, 40);
                map.apply(&x, &Epilogue::default(), &mut out);
                out.data().iter().map(|x| x.to_bits()).collect::<Vec<_>>()
            });
            (outputs.collect::<Vec<_>>(), laid.packed)
        };
        let (expected, packed) = outputs(None);
        let packed = packed.unwrap();
        let (found, again) = outputs(Some(packed.clone()));
        assert!(found == expected && again.is_none(), "{level:?}");
        // Bytes that say something else of the maps, or nothing that can be.
        let with = |change: &dyn Fn(&mut [u8])| {
            let mut memory = vec![0u8; packed.len() + 64];
            let start = memory.as_ptr().align_offset(64);
            memory[start..][..packed.len()].copy_from_slice(packed.bytes());
            change(&mut memory[start..][..packed.len()]);
            Array::new(DType::U8, vec![packed.len()], Arc::new(memory), start..start + packed.len()).unwrap()
        };
        for mark in [2, 255] {
            let marked = with(&|bytes| *bytes.last_mut().unwrap() = mark);
            assert!(outputs(Some(marked)).1.is_some(), "{level:?}, {mark}");
        }
        // What a changed file holds is computed with, and nothing outside of it.
        for filling in [0x7f, 0xff] {
            let filled = with(&|bytes| {
                let end = bytes.len() - 2;
                bytes[..end].fill(filling);
            });
            assert!(outputs(Some(filled)).1.is_none(), "{level:?}, {filling}");
        }
    }
}

#[test]
fn what_cannot_be_coded_counts_in_the_limit_of_memory() {
    let dir = copy(&fixture());
    let file = dir.path().join("model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for (i, number) in bytes[header..].chunks_exact_mut(4).enumerate() {
        number.copy_from_slice(&2f32.powi(i as i32 * 7 % 61 - 30).to_le_bytes());
    }
    fs::write(&file, bytes).unwrap();
    let load = |level, memory_limit| {
        let cpu = Arc::new(Cpu::with_level(level, Some(1)).unwrap());
        load_with(dir.path(), cpu, &OpenOptions { memory_limit, ..options(Some(WeightType::Bf16), None) })
    };
    let kept = |level| load(level, None).unwrap().memory().weights;
    let least = kept(SimdLevel::Portable);
    for level in levels() {
        let kept = kept(level);
        assert!(kept >= least, "{level:?}: {kept}, {least}");
        assert!(load(level, Some(kept)).is_ok(), "{level:?}");
        assert_eq!(load(level, Some(kept - 1)).unwrap_err().kind(), ErrorKind::Limit, "{level:?}");
    }
}

/// Who changes one of these numbers by intent raises that of the layout in `cpu/pack.rs` too: files that were written before would be read as
/// something else.
#[test]
fn the_same_weights_are_packed_to_the_same_bytes() {
    let number = |i: usize| if i % 2003 == 7 { 1e-6 } else { ((i * 7919 % 1009) as f32 - 504.0) / 512.0 };
    let numbers: Vec<f32> = (0..40 * 300).map(number).collect();
    let array = Array::from_f32(vec![40, 300], &numbers);
    let parts = vec![LinearPart { weight: &array, layout: Layout::OutIn, outputs: None }];
    for level in levels() {
        let hash = |(kept, compute)| {
            let cpu = Cpu::with_level(level, Some(1)).unwrap().with_compute(compute);
            assert!(cpu.packing().unwrap().starts_with("2, "));
            let packed = cpu.linears(&[LinearWeights { parts: parts.clone(), kept }], None).packed.unwrap();
            // Fowler, Noll and Vo's.
            packed
                .bytes()
                .iter()
                .fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3))
        };
        let plain = match level {
            SimdLevel::Avx512Bf16 | SimdLevel::Avx512Vnni | SimdLevel::Avx512 => {
                [0xf0c1_fef6_a16e_286a, 0xae81_ee42_df04_784f, 0x8a33_ae7e_6319_2e45, 0xf7f7_d799_7f89_2f0f]
            }
            SimdLevel::AvxVnni | SimdLevel::Avx2 | SimdLevel::Portable => {
                [0xf238_7dee_1243_1482, 0xd0fe_9945_458e_f3d7, 0xa0c3_a782_f2b8_cd9b, 0x9812_1d51_9a15_b7b7]
            }
            SimdLevel::NeonDot | SimdLevel::Neon => continue,
        };
        let quantised = match level {
            SimdLevel::Avx512Bf16 | SimdLevel::Avx512Vnni => [0xe844_34b0_c522_65b8, 0xf53e_bcc1_da48_a058],
            SimdLevel::Avx512 => [0x645f_94c1_c4d3_b92c, 0x4636_92a9_1243_aeac],
            SimdLevel::AvxVnni | SimdLevel::Avx2 => [0x5bc5_a7ec_a528_8ccc, 0xa8a7_898b_ed1c_27d0],
            _ => [0xe781_1660_09b9_a1d0, 0xeae0_afc8_a1a3_31cc],
        };
        let formats = [
            (WeightType::F32, Compute::F32),
            (WeightType::F16, Compute::F32),
            (WeightType::Bf16, Compute::F32),
            (WeightType::Bf16, Compute::Bf16),
            (WeightType::Q8, Compute::F32),
            (WeightType::Q4, Compute::F32),
        ];
        assert_eq!(formats.map(hash)[..], [&plain[..], &quantised].concat(), "{level:?}");
    }
}
