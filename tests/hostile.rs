//! Broken and absurd inputs: each ends in an error of the right kind, soon and without much memory, never in a panic.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use smelt::backend::{Span, WeightType};
use smelt::model::{Batch, LoadOptions, Network, Session};
use smelt::nn::Tokens;
use smelt::plan::{Config, Plan, Target, builtin, inspect};
use smelt::spec::Source;
use smelt::task::Bundle;
use smelt::tensor::Array;
use smelt::weights::{BundleData, Checkpoint, Index, Repository, read_bundle, write_bundle};
use smelt::{Error, ErrorKind, GenerateOptions, Model, OpenOptions, Text};
use tempfile::TempDir;

/// A fixture: its case, a config key that its family has, and one that it lacks; the first family of which that holds.
type Fixture = (&'static str, &'static str, &'static str);

/// An encoder with a classifier.
const ENCODER: Fixture = ("sequence-classification", "type_vocab_size", "embedding_size");
/// A decoder with rotary positions and grouped heads.
const ROTARY: Fixture = ("causal", "mlp_bias", "embedding_multiplier");
/// A decoder with learned positions.
const LEARNED: Fixture = ("causal", "scale_attn_by_inverse_layer_idx", "multi_query");
/// A decoder whose experts' gates are clamped.
const CLAMPED: Fixture = ("causal", "swiglu_limit", "");
/// A decoder whose queries, keys and values are clamped.
const CLIPPED: Fixture = ("causal", "attn_config", "");
/// A decoder whose layers are of two kinds, each with a rope of its own.
const MIXED: Fixture = ("causal", "query_pre_attn_scalar", "attn_logit_softcapping");
/// An encoder-decoder of sounds.
const HEARING: Fixture = ("conditional-generation", "num_mel_bins", "");
/// An encoder of images with a classifier.
const SEEING: Fixture = ("image-classification", "encoder_stride", "");
/// An encoder of images of any size.
const ANY_SIZE: Fixture = ("image-classification", "use_swiglu_ffn", "");
/// Encoders of images and of texts, which are compared.
const COMPARING: Fixture = ("model", "projection_dim", "");
/// The same, with texts that are filled up.
const FILLED: Fixture = ("model", "initializer_factor", "projection_dim");
/// An encoder-decoder.
const PAIRED: Fixture = ("conditional-generation", "d_kv", "");

/// What an error takes at most, in a debug build on a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// Most bytes that the tests of this file may have in memory at once, all together.
const LITTLE: u64 = 1 << 30;

fn fixture((case, key, not): Fixture) -> PathBuf {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut dirs: Vec<_> =
        fs::read_dir(golden).unwrap().map(|entry| entry.unwrap().path().join(case)).collect();
    dirs.sort();
    let fits = |dir: &PathBuf| {
        dir.exists() && {
            let config = json_of(&dir.join("config.json"));
            !config[key].is_null() && config[not].is_null()
        }
    };
    dirs.into_iter().find(fits).unwrap()
}

/// A copy of a fixture.
fn copy(name: Fixture) -> TempDir {
    common::copy(&fixture(name))
}

fn json_of(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// A copy of a fixture with this value at a JSON pointer of one of its files.
fn with(name: Fixture, file: &str, pointer: &str, value: Value) -> TempDir {
    let dir = copy(name);
    let path = dir.path().join(file);
    let mut json = json_of(&path);
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    json.pointer_mut(parent).expect(pointer).as_object_mut().unwrap().insert(key.into(), value);
    fs::write(path, json.to_string()).unwrap();
    dir
}

/// A copy of a fixture with another text in one of its files.
fn with_text(name: Fixture, file: &str, text: &str) -> TempDir {
    let dir = copy(name);
    fs::write(dir.path().join(file), text).unwrap();
    dir
}

/// Asserts that it ends in this error, soon.
#[track_caller]
fn refused<T>(case: &str, kind: ErrorKind, part: &str, run: impl FnOnce() -> smelt::Result<T>) {
    let start = Instant::now();
    let error: Error = match run() {
        Ok(_) => panic!("{case}: expected an error with `{part}`, found none"),
        Err(error) => error,
    };
    assert!(start.elapsed() < SOON, "{case}: took {:?}", start.elapsed());
    assert_eq!(error.kind(), kind, "{case}: {error}");
    assert!(error.to_string().contains(part), "{case}: expected `{part}`, found\n{error}");
    // A line of a hostile file must not flood a terminal.
    assert!(error.to_string().len() < 20_000, "{case}: {} bytes of message", error.to_string().len());
}

/// Asserts that the peak of this process is small, where the system tells.
fn assert_little_memory() {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    if let Some(kilobytes) = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok()) {
        assert!(kilobytes * 1024 < LITTLE, "{kilobytes} kB at once");
    }
}

fn network(name: Fixture) -> Network {
    let repository = Repository::open(&fixture(name)).unwrap();
    let config = Config::parse("config.json", repository.text("config.json").unwrap().unwrap()).unwrap();
    let index = Index::open(&repository).unwrap();
    let plan = Plan::new(builtin::find(&config).unwrap(), &config, &index, &Target::Config).unwrap();
    let checkpoint = Checkpoint::map(&repository, &index).unwrap();
    let backend = std::sync::Arc::new(smelt::reference::Reference);
    Network::load(plan, &checkpoint, backend, &LoadOptions::default()).unwrap()
}

#[test]
fn absurd_configs_are_refused() {
    use ErrorKind::{Checkpoint, Config};
    let most = "expected at most 4294967296";
    let positive = "expected a positive integer";
    let cases: &[(Fixture, &str, Value, ErrorKind, &str)] = &[
        (ENCODER, "/hidden_size", json!(1_000_000_000_000u64), Config, most),
        (ENCODER, "/hidden_size", json!(1e300), Config, positive),
        (ENCODER, "/hidden_size", json!(u64::MAX), Config, positive),
        (ENCODER, "/hidden_size", json!(4_000_000_000u64), Checkpoint, "shape mismatch"),
        (ENCODER, "/vocab_size", json!(1_000_000_000_000_000u64), Config, most),
        (ENCODER, "/vocab_size", json!(4_294_967_296u64), Checkpoint, "expected [4294967296, 40]"),
        (ENCODER, "/intermediate_size", json!(4_294_967_296u64), Checkpoint, "shape mismatch"),
        (ENCODER, "/num_hidden_layers", json!(1_000_000_000), Config, "repeat 0 to 4096 times"),
        (ENCODER, "/num_hidden_layers", json!(4096), Checkpoint, "missing 4094 tensors"),
        (ENCODER, "/num_hidden_layers", json!(-1), Config, "repeat 0 to 4096 times"),
        (ENCODER, "/num_attention_heads", json!(0), Config, positive),
        (ENCODER, "/num_attention_heads", json!(-1), Config, positive),
        (ENCODER, "/num_attention_heads", json!(1.5), Config, positive),
        (ENCODER, "/num_attention_heads", json!("x"), Config, positive),
        (ENCODER, "/num_attention_heads", json!(null), Config, "expected `heads` to divide"),
        (ENCODER, "/num_attention_heads", json!([]), Config, positive),
        (ENCODER, "/num_attention_heads", json!({"a": [1, {}]}), Config, positive),
        (ENCODER, "/layer_norm_eps", json!("1e-12"), Config, "expected a number"),
        (ENCODER, "/id2label", json!(3), Config, "expected a map from numbers to names, found `3`"),
        (ENCODER, "/id2label", json!([]), Config, "expected a map from numbers to names, found `[]`"),
        (
            ENCODER,
            "/id2label",
            json!(["a", "b"]),
            Config,
            "expected a map from numbers to names, found `[a, b]`",
        ),
        (
            ENCODER,
            "/id2label",
            json!({"a": 0}),
            Config,
            "expected a map from numbers to names, found the key `a`",
        ),
        (ENCODER, "/id2label", json!({}), Config, positive),
        (
            ENCODER,
            "/architectures",
            json!(5),
            Config,
            "`architectures`: expected a list of strings, found `5`",
        ),
        (ENCODER, "/architectures", json!({}), Config, "expected a list of strings, found `{}`"),
        (ENCODER, "/architectures", json!([1, 2]), Config, "expected a list of strings, found `[1, 2]`"),
        (LEARNED, "/n_head", json!(0), Config, positive),
        (LEARNED, "/n_embd", json!(i64::MAX), Config, "expected a whole number of at most 64 bits"),
        (ROTARY, "/head_dim", json!(1_000_000_000), Config, "rotated columns up to 65536"),
        (ROTARY, "/head_dim", json!(4_294_967_296u64), Config, "columns are too many"),
        (ROTARY, "/num_key_value_heads", json!(0), Config, positive),
        (ROTARY, "/rope_parameters", json!("yes"), Config, "expected a map"),
        (ROTARY, "/rope_parameters", json!({"rope_theta": -1.0}), Config, "expected a positive `rope_theta`"),
        (CLAMPED, "/sliding_window", json!(0), Config, positive),
        (CLAMPED, "/swiglu_limit", json!(-7), Config, "wrong value of `clamp`: expected a number from 0 on"),
        (CLIPPED, "/attn_config/clip_qkv", json!(-1.5), Config, "wrong value of `clamp`"),
        (PAIRED, "/relative_attention_num_buckets", json!(4_294_967_296u64), Config, "at most 1048576"),
        (PAIRED, "/dense_act_fn", json!([1]), Config, "wrong value of `act`"),
        (PAIRED, "/dense_act_fn", json!("gated-"), Config, "wrong value of `act`"),
    ];
    for (name, pointer, value, kind, part) in cases {
        let dir = with(*name, "config.json", pointer, value.clone());
        refused(&format!("{name:?} {pointer} = {value}"), *kind, part, || Model::open(dir.path()));
    }
    assert_little_memory();
}

#[test]
fn broken_configs_are_refused() {
    let deep = format!("{{\"a\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let objects = "{\"a\":".repeat(100_000);
    let cases: &[(&str, &str)] = &[
        ("", "EOF"),
        ("[]", "expected a map"),
        ("null", "expected a map"),
        ("{\"model_type\": \"a\"", "EOF"),
        ("\u{feff}", "EOF"),
        ("{\"model_type\": \"a\", \"model_type\": \"b\"}", "repeated key `model_type`"),
        (&deep, "recursion limit"),
        (&objects, "recursion limit"),
    ];
    for (text, part) in cases {
        let dir = with_text(ENCODER, "config.json", text);
        let case = text.chars().take(40).collect::<String>();
        refused(&case, ErrorKind::Config, part, || Model::open(dir.path()));
    }
    let keys = |n: usize| format!("{{{}}}", vec!["\"some key\": 1"; n].join(","));
    refused("many repeated keys", ErrorKind::Config, "repeated key `some key`", || {
        Config::parse("config.json", keys(400_000))
    });
    refused("too long", ErrorKind::Limit, "expected at most 8388608 bytes", || {
        Config::parse("config.json", keys(800_000))
    });
    assert_little_memory();
}

#[test]
fn many_names_that_do_not_fit_are_reported_soon() {
    let dir = copy(ENCODER);
    // A name for a number, all of one length.
    let letters = |mut n: usize| {
        let digit = |_| {
            let letter = b'a' + (n % 26) as u8;
            n /= 26;
            char::from(letter)
        };
        (0..30).map(digit).collect::<String>()
    };
    let tensors: Vec<_> = (0..30_000).map(|i| (letters(i), vec![1], BundleData::F32(vec![0.0]))).collect();
    write_bundle(&dir.path().join("model.safetensors"), &tensors).unwrap();
    refused("many names", ErrorKind::Checkpoint, "missing", || Model::open(dir.path()));
}

#[test]
fn many_shapes_that_do_not_fit_are_reported_soon() {
    let layers = 500;
    let dir = with(ENCODER, "config.json", "/num_hidden_layers", json!(layers));
    let path = dir.path().join("model.safetensors");
    let stored: Vec<String> = read_bundle(&path).unwrap().into_keys().collect();
    let names = stored.iter().filter(|name| name.contains(".layer.0."));
    let all = names.flat_map(|name| (0..layers).map(|i| name.replace(".layer.0.", &format!(".layer.{i}."))));
    // No shape is like another, and none has an element.
    let tensors: Vec<_> =
        all.enumerate().map(|(i, name)| (name, vec![0, i], BundleData::F32(vec![]))).collect();
    write_bundle(&path, &tensors).unwrap();
    let part = "shape mismatch for tensor `";
    refused("many shapes", ErrorKind::Checkpoint, part, || Model::open(dir.path()));
    assert_little_memory();
}

#[test]
fn long_lists_in_a_config_are_read_soon() {
    let layers = 512;
    let dir = with(MIXED, "config.json", "/num_hidden_layers", json!(layers));
    let config = json_of(&dir.path().join("config.json"));
    // More kinds than there are layers do no harm.
    let mut kinds = vec!["full_attention"; layers];
    kinds.resize(1_000_000, "");
    let mut many_kinds = config.clone();
    many_kinds["layer_types"] = json!(kinds);
    let mut long_setting = config;
    long_setting["layer_types"] = json!(vec!["sliding_attention"; layers]);
    long_setting["rope_parameters"]["sliding_attention"]["mscale"] = json!(vec![1; 1_000_000]);
    let open = |config: Value| {
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        Model::open(dir.path())
    };
    refused("many kinds", ErrorKind::Checkpoint, "missing", || open(many_kinds));
    refused("a long setting", ErrorKind::Config, "expected at most 20000 items", || open(long_setting));
    assert_little_memory();
}

#[test]
fn ends_that_are_no_tokens_are_refused() {
    let generate = |dir: &TempDir| {
        let model = Model::open(dir.path())?;
        model.generate(&["the".into()], &GenerateOptions { max_tokens: 2, ..GenerateOptions::default() })
    };
    for (value, shown) in [(json!("x"), "x"), (json!([2, "y"]), "y"), (json!(2.5), "2.5")] {
        let dir = with_text(ROTARY, "generation_config.json", &json!({"eos_token_id": value}).to_string());
        let part = format!("`eos_token_id`: expected a token id, found `{shown}`");
        refused(shown, ErrorKind::Config, &part, || generate(&dir));
    }
    for value in [json!(null), json!(-1), json!([2, 3])] {
        let dir = with_text(ROTARY, "generation_config.json", &json!({"eos_token_id": value}).to_string());
        generate(&dir).unwrap();
    }
    // Where there is such a file, `config.json` says nothing of tokens.
    let all: Vec<u32> = (0..10_000).collect();
    let dir = with(ROTARY, "config.json", "/eos_token_id", json!(all));
    fs::remove_file(dir.path().join("generation_config.json")).ok();
    assert!(generate(&dir).unwrap()[0].tokens.is_empty());
    for said in [json!({}), json!({"eos_token_id": null}), json!({"eos_token_id": [-1]})] {
        fs::write(dir.path().join("generation_config.json"), said.to_string()).unwrap();
        assert_eq!(generate(&dir).unwrap()[0].tokens.len(), 2, "{said}");
    }
}

#[test]
fn hostile_descriptions_are_refused() {
    let bomb: String = ('b'..='i')
        .zip('a'..)
        .map(|(name, last)| format!("{name}: &{name} [{}]\n", vec![format!("*{last}"); 10].join(", ")))
        .collect();
    let bomb = format!("a: &a [x, x, x, x, x, x, x, x, x, x]\n{bomb}");
    let small_bomb: String = bomb.lines().take(3).map(|line| format!("{line}\n")).collect();
    let cycle = "a: &a [*a]".to_owned();
    let repeats = |depth: usize, body: &str| {
        let mut text = String::from(
            "smelt: 1\nmatch: {hidden_size: 40}\nmodel:\n  hidden:\n    - embedding: {at: e, of: token_ids, rows: 203, width: 40}\n",
        );
        for i in 0..depth {
            let indent = "  ".repeat(i + 2);
            text += &format!("{indent}- repeat: 4096\n{indent}  as: i{i}\n{indent}  body:\n");
        }
        text + &"  ".repeat(depth + 2) + body + "\n"
    };
    // Each value needs the one before it, inside of as many steps as YAML allows.
    let values = |count: usize, depth: usize| {
        let (open, close) = ("[{residual: ".repeat(depth), "}]".repeat(depth));
        let mut text = String::from("smelt: 1\nmatch: {hidden_size: 40}\nmodel:\n");
        for i in (1..count).rev() {
            text += &format!(
                "  v{i}: [{{from: v0}}, {{residual: {open}{{sum: [{{from: v{}}}]}}{close}}}]\n",
                i - 1
            );
        }
        text + "  v0: {embedding: {at: e, of: token_ids, rows: 203, width: 40}}\n"
    };
    let branches = |branch: &str| repeats(2, &format!("- product: [[], {}]", branch.repeat(2000)));
    let model = "model:\n  hidden: {embedding: {at: e, of: token_ids, rows: 203, width: $v0}}\n";
    // Each is twice as long as the one before it.
    let doubled = |section: &str, line: &dyn Fn(usize) -> String| {
        let lines: String = (0..40).map(|i| format!("{}\n", line(i))).collect();
        format!("smelt: 1\nmatch: {{hidden_size: 40}}\n{section}{lines}{model}")
    };
    let texts = |next: &str| {
        doubled("config:\n  v0: {key: none, default: 40}\n", &|i| {
            format!("  v{}: \"{}\"", i + 1, next.replace('v', &format!("v{i}")))
        })
    };
    let renamed = doubled("config: {v0: {key: hidden_size}}\nweights:\n  rename:\n    weight: b0\n", &|i| {
        format!("    b{i}: b{}.b{}", i + 1, i + 1)
    });
    let many: String = (0..3000).map(|i| format!("  v{i}: {{key: k{i}, default: 40}}\n")).collect();
    let scales: String = (0..3000).map(|i| format!("    - scale: $v{i}\n")).collect();
    let many = format!(
        "smelt: 1\nmatch: {{hidden_size: 40}}\nconfig:\n{many}{model}  w:\n    - from: hidden\n{scales}"
    );
    let cases: &[(&str, String, &str)] = &[
        ("texts that double", texts("$v$v"), "texts of at most 1000 bytes"),
        ("expressions that double", texts("${v ~ v}"), "texts of at most 1000 bytes"),
        ("lists that double", texts("${[v, v]}"), "at most 20000 items"),
        ("names that double", renamed, "missing tensor"),
        ("many names", many, "missing tensor"),
        ("alias bomb", bomb, "aliases repeat too much"),
        ("values in a row", values(2000, 0), "more than 128 steps that wait for each other"),
        ("steps and values in a row", values(300, 25), "more than 128 steps that wait for each other"),
        ("small alias bomb", small_bomb, "unknown section"),
        ("alias to itself", cycle, "invalid YAML"),
        ("nested lists", format!("a: {}{}", "[".repeat(100_000), "]".repeat(100_000)), "invalid YAML"),
        ("nested maps", "{a: ".repeat(100_000), "invalid YAML"),
        ("nested sequences", "- ".repeat(100_000), "invalid YAML"),
        ("loops in loops", repeats(3, "- rms_norm: {at: n, eps: 1}"), "more than 100000 blocks"),
        ("loops of what is left out", repeats(2, "- {rms_norm: n, when: false}"), "more than 100000 blocks"),
        ("loops of nothing", repeats(2, "  []"), "more than 100000 blocks"),
        ("loops of empty branches", branches("[], "), "more than 100000 blocks"),
        ("loops of branches left out", branches("{scale: 1, when: '${1 > 2}'}, "), "more than 100000 blocks"),
        ("a long expression", format!("smelt: \"${{{}1}}\"", "1+".repeat(100_000)), "unsupported language"),
    ];
    let config =
        || Config::parse("config.json", fs::read_to_string(fixture(ENCODER).join("config.json")).unwrap());
    for (case, text, part) in cases {
        let start = Instant::now();
        let index = Index::open(&Repository::open(&fixture(ENCODER)).unwrap()).unwrap();
        let plan =
            || Plan::new(Source::yaml("hostile.yaml", text.as_str())?, &config()?, &index, &Target::Features);
        let error = plan().expect_err(case).to_string();
        assert!(start.elapsed() < SOON, "{case}: took {:?}", start.elapsed());
        assert!(error.contains(part), "{case}: expected `{part}`, found\n{error}");
    }
    assert_little_memory();
}

#[test]
fn weights_that_are_not_numbers_are_reported() {
    let experts = "model.layers.0.mlp.experts.gate_up_proj_bias";
    let cases = [
        (ENCODER, "classifier.weight", f32::NAN),
        (CLAMPED, experts, f32::NAN),
        (ENCODER, "classifier.bias", f32::INFINITY),
    ];
    for (name, tensor, value) in cases {
        let dir = copy(name);
        spoil(&dir.path().join("model.safetensors"), tensor, value);
        let model = Model::open(dir.path()).unwrap();
        refused(tensor, ErrorKind::Checkpoint, "`logits` is not a finite number", || {
            model.network().forward(&Batch::of([&[1, 2, 3, 4][..]]), &["logits"], false)
        });
    }
}

#[test]
fn weights_too_large_for_their_type_are_refused() {
    let open = |weight: f32, dtype: WeightType| {
        let dir = copy(ENCODER);
        spoil(&dir.path().join("model.safetensors"), "classifier.weight", weight);
        Model::open_with(dir.path(), &OpenOptions { dtype: Some(dtype), ..OpenOptions::default() })
            .map(|_| ())
    };
    let part = "`classifier.weight` has 70000, which is too large for float16";
    refused("too large", ErrorKind::Checkpoint, part, || open(7e4, WeightType::F16));
    open(7e4, WeightType::Bf16).unwrap();
    open(65_519.0, WeightType::F16).unwrap();
}

/// Gives every other element of a tensor this value.
fn spoil(path: &Path, tensor: &str, value: f32) {
    let mut tensors: Vec<(String, Vec<usize>, BundleData)> = read_bundle(path)
        .unwrap()
        .into_iter()
        .map(|(name, array)| (name, array.shape().to_vec(), BundleData::F32(array.to_f32())))
        .collect();
    let (.., BundleData::F32(data)) = tensors.iter_mut().find(|(name, ..)| name == tensor).unwrap() else {
        unreachable!("all are float32")
    };
    data.iter_mut().step_by(2).for_each(|x| *x = value);
    write_bundle(path, &tensors).unwrap();
}

#[test]
fn batches_that_do_not_fit_are_refused() {
    use ErrorKind::Input;
    let (encoder, paired) = (network(ENCODER), network(PAIRED));
    let typed = |type_ids: &[u32]| {
        let mut batch = Batch::of([&[1, 2, 3][..]]);
        batch.input.type_ids = type_ids.to_vec();
        batch
    };
    let spans = |rows: [std::ops::Range<usize>; 2]| {
        let mut batch = Batch::of([&[1, 2, 3, 4][..]]);
        batch.input.spans = rows.map(|rows| Span { rows, past: 0 }).to_vec();
        batch
    };
    let pair = |decoder: &[&[u32]]| Batch {
        input: Tokens::of([&[1, 2][..]]),
        decoder: Tokens::of(decoder.iter().copied()),
        ..Batch::default()
    };
    let mut later = Batch::of([&[1, 2][..]]);
    later.input.spans[0].past = 3;
    let mut last = Batch::of([&[1, 2][..]]);
    last.input.spans[0].past = usize::MAX;
    let cases: Vec<(&str, &Network, Batch, &str)> = vec![
        ("what goes on", &encoder, later, "from their first token on, found one with 3 before"),
        ("what goes on without end", &encoder, last, "found one with 18446744073709551615 before"),
        (
            "id of the next row",
            &encoder,
            Batch::of([&[203][..]]),
            "`token_ids` out of range: expected below 203",
        ),
        ("largest id", &encoder, Batch::of([&[1, u32::MAX][..]]), "found 4294967295"),
        ("no sequences", &encoder, Batch::default(), "at least one sequence in the input"),
        ("no tokens", &encoder, Batch::of([&[][..]]), "at least one token"),
        ("no tokens in one", &encoder, Batch::of([&[1, 2][..], &[]]), "at least one token"),
        ("sequences that overlap", &encoder, spans([0..4, 3..4]), "end to end in 4 tokens"),
        ("a gap", &encoder, spans([0..2, 3..4]), "end to end in 4 tokens"),
        ("tokens of no sequence", &encoder, spans([0..2, 2..3]), "end to end in 4 tokens"),
        ("more tokens than there are", &encoder, spans([0..2, 2..5]), "end to end in 4 tokens"),
        ("too long", &encoder, Batch::of([&[1; 38][..]]), "at most 37 tokens"),
        ("type out of range", &encoder, typed(&[0, 0, 2]), "`type_ids` out of range: expected below 2"),
        ("too few types", &encoder, typed(&[0]), "type"),
        ("too many types", &encoder, typed(&[0; 9]), "type"),
        ("types that nothing reads", &paired, typed(&[0, 1, 1]), "reads no `type_ids`"),
        ("no decoder ids", &paired, pair(&[]), "at least one sequence in the decoder's input"),
        ("decoder without tokens", &paired, pair(&[&[]]), "at least one token"),
        ("decoder of two", &paired, pair(&[&[0], &[0]]), "decoder tokens for 1 sequences, found 2"),
        ("decoder id out of range", &paired, pair(&[&[100]]), "`decoder_token_ids` out of range"),
    ];
    for (case, network, batch, part) in cases {
        refused(case, Input, part, || network.forward(&batch, &[], false));
    }
    refused("unknown output", Input, "no output `logit`", || {
        encoder.forward(&Batch::of([&[1][..]]), &["logit"], false)
    });
}

#[test]
fn bundles_of_absurd_sizes_are_refused_or_read() {
    let dir = fixture(HEARING);
    let network = network(HEARING);
    let read = || read_bundle(&dir.join("reference.safetensors")).unwrap();
    let named = |name: &str, shape: Vec<usize>, data: BundleData| {
        let file = TempDir::new().unwrap();
        let path = file.path().join("one.safetensors");
        write_bundle(&path, &[(name.to_owned(), shape, data)]).unwrap();
        read_bundle(&path).unwrap()
    };
    let ids = |shape: [usize; 2]| BundleData::I64(vec![1; shape[0] * shape[1]]);
    // More continuations than sounds, but not than other inputs, which the model does not take.
    let mut tensors = read();
    let sounds = tensors["input.input_features"].shape()[0];
    tensors.extend(named("input.input_ids", vec![sounds + 1, 1], ids([sounds + 1, 1])));
    let continuation = format!("generate.{sounds}");
    tensors.extend(named(&format!("{continuation}.tokens"), vec![1], BundleData::I64(vec![1])));
    tensors.extend(named(&format!("{continuation}.logits"), vec![1], BundleData::F32(vec![1.0])));
    let compared = Bundle::new(tensors).unwrap().compare(&network).unwrap();
    assert!(compared.iter().all(|c| !c.name.starts_with(&continuation)));
    // Sounds without a frame, of which a small file has any number.
    let mut tensors = read();
    tensors.extend(named("input.input_features", vec![1 << 40, 0, 1], BundleData::F32(Vec::new())));
    let bundle = Bundle::new(tensors).unwrap();
    refused("sounds without a frame", ErrorKind::Input, "expected spectra", || bundle.greedy(&network, 1));
    refused("sounds without a frame", ErrorKind::Input, "expected spectra", || bundle.compare(&network));
}

#[test]
fn references_of_other_shapes_take_no_memory() {
    // A mask leaves eight tokens, whose vectors are large: those of all tokens would take half a terabyte.
    let (rows, cols, width) = (8, 1 << 17, 1 << 17);
    let mask: Vec<i64> = (0..rows * cols).map(|i| i64::from(i % cols == 0)).collect();
    let tensors = [
        ("e.weight".to_owned(), vec![2, width], BundleData::F32(vec![1.0; 2 * width])),
        ("input.input_ids".to_owned(), vec![rows, cols], BundleData::I64(vec![1; rows * cols])),
        ("input.attention_mask".to_owned(), vec![rows, cols], BundleData::I64(mask)),
        ("output.result".to_owned(), vec![1], BundleData::F32(vec![1.0])),
    ];
    let dir = TempDir::new().unwrap();
    let (weights, bundle) = (dir.path().join("model.safetensors"), dir.path().join("bundle.safetensors"));
    write_bundle(&weights, &tensors[..1]).unwrap();
    write_bundle(&bundle, &tensors[1..]).unwrap();
    let text = format!(
        "smelt: 1\nmatch: {{model_type: test}}\nmodel: {{}}\nheads:\n  features: {{match: Test, result: \
         {{embedding: {{at: e, of: token_ids, rows: 2, width: {width}}}}}}}\n"
    );
    let config =
        Config::parse("config.json", r#"{"model_type": "test", "architectures": ["Test"]}"#).unwrap();
    let repository = Repository::open(dir.path()).unwrap();
    let index = Index::open(&repository).unwrap();
    let plan = Plan::new(Source::yaml("test.yaml", text).unwrap(), &config, &index, &Target::Config).unwrap();
    let checkpoint = Checkpoint::map(&repository, &index).unwrap();
    let backend = std::sync::Arc::new(smelt::reference::Reference);
    let network = Network::load(plan, &checkpoint, backend, &LoadOptions::default()).unwrap();
    let bundle = Bundle::new(read_bundle(&bundle).unwrap()).unwrap();
    refused("few tokens", ErrorKind::Input, "expected shape [1], found [8, 131072, 131072]", || {
        bundle.compare(&network)
    });
    assert_little_memory();
}

#[test]
fn streams_that_a_model_does_not_take_change_nothing() {
    let decoder = network(LEARNED);
    let batch = Batch::of([&[1, 2, 3, 4][..]]);
    let stray = Batch { decoder: Tokens::of([&[1, 2][..], &[3]]), ..batch.clone() };
    let [expected, found] = [batch, stray].map(|batch| decoder.forward(&batch, &["logits"], false).unwrap());
    assert_eq!(found[0].value, expected[0].value);
    // Also where a batch is computed in groups.
    let options = OpenOptions { threads: Some(1), ..OpenOptions::default() };
    let model = Model::open_with(fixture(LEARNED), &options).unwrap();
    let ids: Vec<u32> = (1..30).collect();
    let batch = Batch::of(vec![&ids[..]; 20]);
    assert!(model.network().backend().rows_at_once() < batch.input.ids.len());
    let stray = Batch { decoder: Tokens::of(vec![&ids[..]; 40]), ..batch.clone() };
    let [expected, found] = [batch, stray].map(|batch| model.forward(&batch, &["logits"], false).unwrap());
    assert_eq!(found[0].value, expected[0].value);
}

#[test]
fn images_may_have_another_size_where_the_model_says_so() {
    let pixels = |shape: [usize; 3]| {
        let shape = [&[1], &shape[..]].concat();
        let pixels = vec![0.5; shape.iter().product()];
        Batch { images: Some(Array::from_f32(shape, &pixels)), ..Batch::default() }
    };
    let any = network(ANY_SIZE);
    for shape in [[3, 30, 30], [3, 6, 6], [3, 11, 70]] {
        assert_eq!(any.forward(&pixels(shape), &["logits"], false).unwrap()[0].value.rows(), 1, "{shape:?}");
    }
    for shape in [[3, 5, 30], [3, 30, 0], [1, 30, 30]] {
        refused("a size", ErrorKind::Input, "expected images of [3, 6 or more, 6 or more]", || {
            any.forward(&pixels(shape), &["logits"], false)
        });
    }
    let one = network(SEEING);
    let size = one.plan().declared.items[0].shape[1];
    refused("another size", ErrorKind::Input, "expected images of [3, ", || {
        one.forward(&pixels([3, size + 6, size]), &["logits"], false)
    });
    let limit = any.memory().weights + (1 << 20);
    let options = OpenOptions { memory_limit: Some(limit), ..OpenOptions::default() };
    let model = Model::open_with(fixture(ANY_SIZE), &options).unwrap();
    refused("a large one", ErrorKind::Limit, "beside the weights", || {
        model.forward(&pixels([3, 600, 600]), &["logits"], false)
    });
}

#[test]
fn one_text_describes_many_images() {
    let both = network(COMPARING);
    let shape = &both.plan().declared.items[0].shape;
    let images = |n: usize| {
        let shape = [&[n], &shape[..]].concat();
        let pixels: Vec<f32> = (0..shape.iter().product()).map(|i: usize| (i % 7) as f32 / 7.0).collect();
        Batch { images: Some(Array::from_f32(shape, &pixels)), ..Batch::of([&[1, 2, 168][..]]) }
    };
    let [one, three] = [1, 3].map(|n| both.forward(&images(n), &["logits_per_image"], false).unwrap());
    assert_eq!((one[0].value.rows(), three[0].value.rows()), (1, 3));
    assert_eq!(three[0].value.row(0), one[0].value.row(0));
    // What is computed from one side needs no other.
    let texts = Batch { images: None, ..images(3) };
    let [alone, beside] =
        [&texts, &images(3)].map(|batch| both.forward(batch, &["text_embeds"], false).unwrap());
    assert_eq!(alone[0].value, beside[0].value);
    refused("one side of two", ErrorKind::Input, "expected images", || {
        both.forward(&texts, &["logits_per_image"], false)
    });
}

#[test]
fn steps_that_cannot_be_are_refused() {
    use ErrorKind::Input;
    let (encoder, paired) = (network(ENCODER), network(PAIRED));
    let mut session = encoder.session(1);
    refused("one row per sequence", Input, "`logits` has no row for each token", || {
        session.step(&[&[1, 2]], "logits")
    });
    let mut session = paired.session(1);
    session.encode(&[&[1, 2]]).unwrap();
    session.encode(&[&[3, 4]]).unwrap();
    session.step(&[&[0]], "logits").unwrap();
    let model = Model::open(fixture(PAIRED)).unwrap();
    assert!(model.generate(&[], &GenerateOptions::default()).unwrap().is_empty());
    refused("an encoder that comes late", Input, "the decoder has read", || session.encode(&[&[1, 2]]));
}

#[test]
fn tokens_that_are_refused_leave_a_session_as_it_was() {
    let paired = network(PAIRED);
    let step = |session: &mut Session<'_>, id: u32| session.step(&[&[id]], "logits");
    let mut session = paired.session(1);
    refused("an id that the encoder lacks", ErrorKind::Input, "`token_ids` out of range", || {
        session.encode(&[&[1, 999_999]])
    });
    session.encode(&[&[1, 2]]).unwrap();
    refused("an id that the decoder lacks", ErrorKind::Input, "`decoder_token_ids` out of range", || {
        step(&mut session, 999_999)
    });
    step(&mut session, 0).unwrap();
    refused("an id that the decoder lacks", ErrorKind::Input, "out of range", || step(&mut session, 999_999));
    let mut other = paired.session(1);
    other.encode(&[&[1, 2]]).unwrap();
    step(&mut other, 0).unwrap();
    assert_eq!(step(&mut session, 5).unwrap(), step(&mut other, 5).unwrap());
}

#[test]
fn outputs_of_other_rows_than_the_task_wants_are_refused() {
    use ErrorKind::{Config as Fit, Spec};
    let cases = [
        (
            ENCODER,
            "{pool: first}, ",
            "",
            Fit,
            "`logits` of `sequence_classification` needs a row for each sequence",
        ),
        (
            LEARNED,
            "    logits:\n      - from: hidden\n",
            "    logits:\n      - from: hidden\n      - pool: first\n",
            Fit,
            "needs a row for each token",
        ),
        (
            LEARNED,
            "    logits:\n      - from: hidden\n",
            "    logit:\n      - from: hidden\n",
            Spec,
            "`causal_lm` needs an output `logits`",
        ),
        (
            SEEING,
            "logits: [{from: hidden}, {pool: first}, ",
            "logits: [{from: hidden}, ",
            Fit,
            "needs a row for each image, and has one for each patch or frame",
        ),
        (COMPARING, "logits_per_image:", "logits:", Spec, "`similarity` needs an output `logits_per_image`"),
        (
            COMPARING,
            "logits_per_image: [{from: image_embeds}, {similarity: {with: text_embeds, scale: logit_scale}}]",
            "logits_per_image: [{from: image_embeds}]",
            Fit,
            "needs a row for each image, with a column for each text, and has one for each image",
        ),
        (
            COMPARING,
            "logits_per_image: [{from: image_embeds}, {similarity: {with: text_embeds",
            "logits_per_image: [{from: text_embeds}, {similarity: {with: image_embeds",
            Fit,
            "needs a row for each image, with a column for each text, and has",
        ),
        (
            ANY_SIZE,
            "image: $image,",
            "image: \"${[image, image - 6]}\",",
            Fit,
            "expected a square of patches, found 5 by 4",
        ),
        (
            FILLED,
            "pad_to: $positions",
            "pad_to: \"${positions - positions}\"",
            Fit,
            "expected a number of tokens from 1 on, found `0`",
        ),
    ];
    for (name, old, new, kind, part) in cases {
        let dir = copy(name);
        let text = fs::read_to_string(dir.path().join("config.json")).unwrap();
        let config = Config::parse("config.json", text).unwrap();
        let source = builtin::find(&config).unwrap();
        assert!(source.text.contains(old), "{}", source.name);
        let arch = dir.path().join("mine.yaml");
        fs::write(&arch, source.text.replace(old, new)).unwrap();
        refused(old, kind, part, || smelt::load_from_spec(&arch, dir.path()));
        let findings = inspect(
            smelt::plan::load_source(arch.to_str().unwrap()).unwrap(),
            Some(&config),
            None,
            &Target::Config,
        );
        assert!(findings.iter().any(|finding| finding.problem.message.contains(part)), "{findings:?}");
    }
}

#[test]
fn quantised_configs_are_refused() {
    let dir = with(ROTARY, "config.json", "/quantization_config", json!({"quant_method": "gptq", "bits": 4}));
    refused("gptq", ErrorKind::Unsupported, "quantised checkpoints are not read (gptq)", || {
        Model::open(dir.path())
    });
}

#[test]
fn long_texts_are_refused_or_cut() {
    let text = "the station is near ".repeat(50);
    let texts = [Text::from(text.as_str())];
    let model = Model::open(fixture(ENCODER)).unwrap();
    refused("too long", ErrorKind::Input, "--truncate", || model.classify(&texts));
    refused("one of two", ErrorKind::Input, "--truncate", || model.classify(&["the".into(), texts[0]]));
    let options = OpenOptions { truncate: true, ..OpenOptions::default() };
    let model = Model::open_with(fixture(ENCODER), &options).unwrap();
    let answers = model.classify(&texts).unwrap();
    assert!(answers[0].truncated > 0, "{answers:?}");
    let answers = model.classify(&[(text.as_str(), text.as_str()).into()]).unwrap();
    assert!(answers[0].truncated > 0, "{answers:?}");
}

#[test]
fn the_memory_limit_is_obeyed() {
    for dtype in [None, Some(WeightType::F16)] {
        let options = OpenOptions { memory_limit: Some(1000), dtype, ..OpenOptions::default() };
        refused("1 kB", ErrorKind::Limit, "more than the limit of 1.0 kB", || {
            Model::open_with(fixture(ENCODER), &options)
        });
    }
    // Enough for the weights, not for a batch.
    let model = Model::open(fixture(ENCODER)).unwrap();
    let weights = model.network().memory().weights;
    let options = OpenOptions { memory_limit: Some(weights + 1), ..OpenOptions::default() };
    let model = Model::open_with(fixture(ENCODER), &options).unwrap();
    refused("a batch", ErrorKind::Limit, "beside the weights", || model.classify(&["the".into()]));
    // Hidden states count.
    let memory = model.network().memory();
    let limit = memory.weights + 32 * (memory.activations_per_token + memory.passing_cache_per_token);
    let options = OpenOptions { memory_limit: Some(limit), ..OpenOptions::default() };
    let model = Model::open_with(fixture(ENCODER), &options).unwrap();
    let forward = |hidden_states| {
        model.network().forward(&Batch::of([&[1; 32][..]]), &["logits"], hidden_states).map(|_| ())
    };
    forward(false).unwrap();
    refused("hidden states", ErrorKind::Limit, "beside the weights", || forward(true));
    // Keys and values lie in pages: sequences of one token take as much as those of a whole page.
    let memory = Model::open(fixture(ROTARY)).unwrap().network().memory();
    let limit = memory.weights + 100 * (memory.activations_per_token + 16 * memory.cache_per_token);
    let options = OpenOptions { memory_limit: Some(limit), ..OpenOptions::default() };
    let model = Model::open_with(fixture(ROTARY), &options).unwrap();
    let step = |sequences| model.network().session(sequences).step(&vec![&[1][..]; sequences], "logits");
    assert!(step(100).is_ok());
    refused("pages", ErrorKind::Limit, "beside the weights", || step(101));
    // What an encoder reads counts as well, be it tokens or numbers.
    let opened = |fixture: Fixture| {
        let weights = Model::open(self::fixture(fixture)).unwrap().network().memory().weights;
        let options = OpenOptions { memory_limit: Some(weights + 10_000), ..OpenOptions::default() };
        Model::open_with(self::fixture(fixture), &options).unwrap()
    };
    let model = opened(PAIRED);
    refused("an encoder's tokens", ErrorKind::Limit, "beside the weights", || {
        model.network().session(1).encode(&[&[1; 30]])
    });
    let model = opened(HEARING);
    let shape = model.network().plan().declared.items[0].shape.clone();
    let spectra = Array::from_f32([&[1][..], &shape].concat(), &vec![0.0; shape.iter().product()]);
    refused("an encoder's numbers", ErrorKind::Limit, "beside the weights", || {
        model.network().session(1).encode_audio(spectra.clone())
    });
}

#[test]
fn broken_tokenizers_are_refused() {
    let text = fs::read_to_string(fixture(ENCODER).join("tokenizer.json")).unwrap();
    let deep = format!("{{\"model\": {}", "[".repeat(100_000));
    let cases: &[(&str, &str)] = &[
        ("truncated", &text[..text.len() / 2]),
        ("empty", ""),
        ("a list", "[]"),
        ("no model", "{}"),
        ("wrong types", "{\"version\": 1, \"model\": 3}"),
        ("unknown model", "{\"version\": \"1.0\", \"model\": {\"type\": \"Mystery\"}}"),
        ("deep nesting", &deep),
    ];
    for (case, text) in cases {
        let dir = with_text(ENCODER, "tokenizer.json", text);
        refused(case, ErrorKind::Tokenizer, "tokenizer.json", || Model::open(dir.path()));
    }
    let wrong: &[(&str, Value)] = &[
        ("/model/vocab", json!(["a", "b"])),
        ("/model/vocab", json!({"a": -1})),
        ("/model/vocab", json!({"a": 4_294_967_296u64})),
        ("/added_tokens", json!({"id": 1})),
        ("/pre_tokenizer", json!({"type": "Nothing"})),
        ("/truncation", json!({"max_length": -1})),
    ];
    // A table of 4 GiB, it says: there are two bytes of it.
    let table = r#"{"type": "Precompiled", "precompiled_charsmap": "/////wAA"}"#;
    for (case, normalizer, part) in [
        ("a table", table.to_owned(), "ends within its table"),
        ("written otherwise", table.replace("charsmap", r"\u0063harsmap"), "ends within its table"),
        (
            "in a list",
            format!(r#"{{"type": "Sequence", "normalizers": [{table}]}}"#),
            "ends within its table",
        ),
        ("one of two", format!(r#"{table}, "normalizer": null"#), "duplicate field"),
    ] {
        let text =
            format!(r#"{{"normalizer": {normalizer}, {}"#, &text[1..].replace("\"normalizer\"", "\"of\""));
        let dir = with_text(ENCODER, "tokenizer.json", &text);
        refused(case, ErrorKind::Tokenizer, part, || Model::open(dir.path()));
    }
    for (pointer, value) in wrong {
        let dir = with(ENCODER, "tokenizer.json", pointer, value.clone());
        let case = format!("{pointer} = {value}");
        refused(&case, ErrorKind::Tokenizer, "tokenizer.json", || Model::open(dir.path()));
    }
    let dir = copy(ENCODER);
    fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    let model = Model::open(dir.path()).unwrap();
    refused("missing", ErrorKind::Tokenizer, "no `", || model.classify(&["the".into()]));
    assert_little_memory();
}

#[test]
fn texts_that_rules_make_too_long_are_refused() {
    let replace = |pattern: Value, len: usize| json!({"type": "Replace", "pattern": pattern, "content": "a".repeat(len)});
    let sequence = |rules: Vec<Value>| json!({"type": "Sequence", "normalizers": rules});
    let (a, any) = (json!({"String": "a"}), json!({"Regex": ""}));
    let prepend = json!({"type": "Prepend", "prepend": "a".repeat(200)});
    let open =
        |pointer: &str, value: Value| Model::open(with(ENCODER, "tokenizer.json", pointer, value).path());
    let thrice = vec![replace(a.clone(), 3000); 3];
    let decoders = json!({"type": "Sequence", "decoders": thrice.clone()});
    // A table of no letters, and one text.
    let table = |len: usize| {
        let charsmap = "AAAAAGFh".to_owned() + &"YWFh".repeat(len / 3);
        json!({"type": "Precompiled", "precompiled_charsmap": charsmap})
    };
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let token = json!({"SpecialToken": {"id": "x", "type_id": 0}});
    let template = |pieces: Vec<Value>, n: usize| {
        let pair = [text.clone(), json!({"Sequence": {"id": "B", "type_id": 1}})];
        let tokens = json!({"x": {"id": "x", "ids": vec![1; n], "tokens": vec!["x"; n]}});
        json!({"type": "TemplateProcessing", "single": pieces, "pair": pair, "special_tokens": tokens})
    };
    for (case, pointer, value) in [
        ("three of 3000", "/normalizer", sequence(thrice)),
        (
            "one in another",
            "/normalizer",
            sequence(vec![sequence(vec![replace(a.clone(), 300)]), replace(a.clone(), 300)]),
        ),
        ("between all bytes", "/normalizer", sequence(vec![replace(any, 1); 30])),
        ("prepended", "/normalizer", sequence(vec![prepend, replace(a.clone(), 200)])),
        ("decoder", "/decoder", decoders),
        ("a table", "/normalizer", table(1 << 20)),
        ("a table in a list", "/normalizer", sequence(vec![table(200), replace(a.clone(), 200)])),
        ("a text many times", "/post_processor", template(vec![text.clone(); 20_000], 1)),
        ("tokens many times", "/post_processor", template(vec![token.clone(); 200], 200)),
    ] {
        refused(case, ErrorKind::Tokenizer, "at most 16384 times as long, found", || open(pointer, value));
    }
    // What files that are in use do.
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let runs = json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "});
    let shorter = json!({"type": "Replace", "pattern": {"String": "``"}, "content": "\""});
    let mut rules = vec![shorter; 50];
    rules.extend([spaces.clone(), spaces, runs.clone(), runs, json!({"type": "Prepend", "prepend": "▁"})]);
    open("/normalizer", sequence(rules)).unwrap();
    assert_little_memory();
}

#[test]
fn ids_beyond_the_vocabulary_are_refused() {
    for id in [203, 70_000, u32::MAX] {
        // Whatever the text, the tokenizer adds its first special token.
        let dir = copy(ENCODER);
        let path = dir.path().join("tokenizer.json");
        let mut json = json_of(&path);
        let vocab = json.pointer_mut("/model/vocab").unwrap().as_object_mut().unwrap();
        vocab.insert("the".into(), json!(id));
        fs::write(&path, json.to_string()).unwrap();
        let case = format!("id {id}");
        refused(&case, ErrorKind::Input, &format!("found {id}"), || {
            Model::open(dir.path())?.classify(&["the".into()])
        });
    }
    assert_little_memory();
}

#[test]
#[ignore = "takes minutes: every number of every family's config"]
fn absurd_numbers_in_any_config_do_no_harm() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut seen = 0;
    for family in fs::read_dir(golden).unwrap().map(|entry| entry.unwrap().path()) {
        // One case of each family has the keys of all.
        let mut cases: Vec<PathBuf> = match fs::read_dir(&family) {
            Ok(entries) => entries.map(|entry| entry.unwrap().path()).collect(),
            Err(_) => continue,
        };
        cases.sort();
        let Some(dir) = cases.into_iter().find(|case| case.join("model.safetensors").exists()) else {
            continue;
        };
        let json = json_of(&dir.join("config.json"));
        let index = Index::open(&Repository::open(&dir).unwrap()).unwrap();
        let keys: Vec<&String> = json
            .as_object()
            .unwrap()
            .iter()
            .filter(|(_, value)| value.is_number())
            .map(|(key, _)| key)
            .collect();
        for key in keys {
            for number in
                [json!(0), json!(-1), json!(3), json!(65_536), json!(4_294_967_296u64), json!(1e300)]
            {
                let mut edited = json.clone();
                edited[key] = number.clone();
                let config = Config::parse("config.json", edited.to_string()).unwrap();
                let start = Instant::now();
                let source = builtin::find(&config).unwrap();
                // Whether it is refused depends on the key; it may not panic, hang or take memory.
                let _ = Plan::new(source, &config, &index, &Target::Config);
                assert!(
                    start.elapsed() < SOON,
                    "{}: {key} = {number} took {:?}",
                    dir.display(),
                    start.elapsed()
                );
                seen += 1;
            }
        }
        assert_little_memory();
    }
    assert!(seen > 500, "{seen} configs");
}
