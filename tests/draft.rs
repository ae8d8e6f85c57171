//! Drafts of the models in `tests/golden`, each without the description of its own family, beside that description.
//!
//! `SMELT_BLESS=1 cargo test --test draft -- --nocapture` writes `docs/drafts.md`.
//! `SMELT_DRAFT_ONLY=/causal` takes only paths with that in them, `SMELT_DRAFTS=DIR` writes the drafts there.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use smelt::OpenOptions;
use smelt::cpu::Cpu;
use smelt::draft::{draft, yaml};
use smelt::plan::{Config, builtin};
use smelt::spec::{Problems, Source, Spec, Tree};
use smelt::task::Bundle;
use smelt::weights::{BundleData, Index, Repository, read_bundle, write_bundle};

struct Row {
    family: String,
    case: String,
    skeleton: String,
    right: usize,
    lines: usize,
    checks: bool,
    loads: bool,
    verifies: bool,
}

/// The built-in descriptions by the model types that they are for.
fn by_type() -> BTreeMap<String, &'static str> {
    let mut found = BTreeMap::new();
    for name in builtin::names() {
        let source = Source::yaml(name, builtin::text(name).unwrap()).unwrap();
        for test in Spec::parse(source, &mut Problems::default()).matches {
            found.extend(test.accepted.iter().filter_map(Tree::as_text).map(|t| (t.to_owned(), name)));
        }
    }
    found
}

/// One or two cases of each family.
fn cases() -> Vec<(String, PathBuf)> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut found: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for dir in common::cases() {
        let relative = dir.strip_prefix(&golden).unwrap();
        let family = relative.iter().next().unwrap().to_str().unwrap().to_owned();
        if family != "variants" {
            found.entry(family).or_default().push(dir);
        }
    }
    found
        .into_iter()
        .flat_map(|(family, dirs)| dirs.into_iter().take(2).map(move |d| (family.clone(), d)))
        .collect()
}

/// The lines of `weights`, `model` and `heads`, with each bound name as the first of its keys that the config has.
fn lines(text: &str, config: &Config) -> Vec<String> {
    let tree = Tree::from_yaml(text).unwrap();
    let mut names: Vec<(String, String)> = Vec::new();
    for (name, value) in tree.get("config").map_or(&[][..], Tree::entries) {
        let keys: Vec<&str> = match value.get("key").unwrap_or(value) {
            Tree::Text(key) if !key.contains('$') => vec![key],
            Tree::List(keys) => keys.iter().filter_map(Tree::as_text).collect(),
            _ => continue,
        };
        let key = keys.iter().find(|key| config.find(key).is_some()).or(keys.first());
        names.extend(key.map(|key| (name.clone(), key.replace('.', "_"))));
    }
    let kept: Vec<(String, Tree)> = ["weights", "model", "heads"]
        .iter()
        .filter_map(|s| Some(((*s).to_owned(), tree.get(s)?.clone())))
        .collect();
    let renamed = |line: &str| -> String {
        if !line.contains('$') {
            return line.trim().to_owned();
        }
        let mut out = String::new();
        let mut word = String::new();
        for c in line.trim().chars().chain(['\n']) {
            if c.is_alphanumeric() || c == '_' {
                word.push(c);
            } else {
                // Only behind a dollar sign or in an expression is a word a name.
                let is_name = out.ends_with('$') || out.rfind("${") > out.rfind('}');
                let bound = names.iter().find(|(name, _)| is_name && *name == word);
                out += bound.map_or(word.as_str(), |(_, key)| key);
                word.clear();
                out.push(c);
            }
        }
        out.trim_end().to_owned()
    };
    yaml(&Tree::Map(kept)).lines().filter(|l| !l.trim().starts_with('#')).map(renamed).collect()
}

/// How many lines of `real` the draft has too, each counted as often as in both.
fn common_lines(real: &[String], draft: &[String]) -> usize {
    let mut left: BTreeMap<&str, usize> = BTreeMap::new();
    draft.iter().for_each(|line| *left.entry(line).or_default() += 1);
    real.iter()
        .filter(|line| match left.get_mut(line.as_str()) {
            Some(n) if *n > 0 => {
                *n -= 1;
                true
            }
            _ => false,
        })
        .count()
}

fn measure(family: &str, dir: &Path, own: &str, scratch: &Path) -> Row {
    let repository = Repository::open(dir).unwrap();
    let config = Config::parse("config.json", repository.text("config.json").unwrap().unwrap()).unwrap();
    let draft = draft(&config, &Index::open(&repository).unwrap(), &[own]).unwrap();
    let real = lines(builtin::text(own).unwrap(), &config);
    let case = dir.file_name().unwrap().to_str().unwrap().to_owned();
    let path = scratch.join(format!("{family}-{case}.yaml"));
    std::fs::write(&path, &draft.text).unwrap();
    let arch = Some(path.to_str().unwrap().into());
    let options = OpenOptions { arch, ..OpenOptions::default() };
    let network = smelt::task::open_network(&repository, &options, Arc::new(Cpu::new(Some(2))));
    let verifies = network.as_ref().is_ok_and(|network| {
        let bundle = Bundle::new(read_bundle(&dir.join("reference.safetensors")).unwrap()).unwrap();
        bundle.compare(network).is_ok_and(|all| !all.is_empty() && all.iter().all(|c| c.largest <= 1e-3))
    });
    if let Err(error) = &network {
        let message = error.to_string();
        println!("{family}/{case} from {}: {}", draft.skeleton, message.lines().next().unwrap_or_default());
    }
    Row {
        family: family.into(),
        case,
        skeleton: draft.skeleton,
        right: common_lines(&real, &lines(&draft.text, &config)),
        lines: real.len(),
        checks: draft.refused.is_none(),
        loads: network.is_ok(),
        verifies,
    }
}

#[test]
fn drafts_are_as_good_as_they_were() {
    let types = by_type();
    let scratch = match std::env::var_os("SMELT_DRAFTS") {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(env!("CARGO_TARGET_TMPDIR")).join("drafts"),
    };
    std::fs::create_dir_all(&scratch).unwrap();
    let only = std::env::var("SMELT_DRAFT_ONLY").unwrap_or_default();
    let row = |(family, dir): &(String, PathBuf)| {
        let text = std::fs::read_to_string(dir.join("config.json")).unwrap();
        let config = Config::parse("config.json", text).unwrap();
        let own = config.text("model_type").and_then(|t| types.get(t))?;
        dir.to_str().unwrap().contains(&only).then(|| measure(family, dir, own, &scratch))
    };
    let cases = cases();
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
    let next = AtomicUsize::new(0);
    let mut rows: Vec<(usize, Row)> = std::thread::scope(|scope| {
        let work = || {
            let numbers = std::iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed));
            let mine = numbers.take_while(|i| *i < cases.len());
            mine.filter_map(|i| Some((i, row(&cases[i])?))).collect::<Vec<_>>()
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|w| w.join().unwrap()).collect()
    });
    rows.sort_by_key(|(i, _)| *i);
    let rows: Vec<Row> = rows.into_iter().map(|(_, row)| row).collect();
    let mark = |x: bool| if x { "yes" } else { "no" };
    let mut table = String::from(
        "| model | made from | lines right | accepted | loads | verifies |\n|---|---|---|---|---|---|\n",
    );
    for row in &rows {
        table += &format!(
            "| {}, {} | {} | {} of {} | {} | {} | {} |\n",
            row.family,
            row.case,
            row.skeleton,
            row.right,
            row.lines,
            mark(row.checks),
            mark(row.loads),
            mark(row.verifies)
        );
    }
    let count = |test: &dyn Fn(&Row) -> bool| rows.iter().filter(|row| test(row)).count();
    let (right, lines) =
        (rows.iter().map(|r| r.right).sum::<usize>(), rows.iter().map(|r| r.lines).sum::<usize>());
    let (checks, loads, verifies) = (count(&|r| r.checks), count(&|r| r.loads), count(&|r| r.verifies));
    let families: BTreeSet<&str> = rows.iter().map(|r| r.family.as_str()).collect();
    let totals = format!(
        "{} models of {} families: {right} of {lines} lines are right ({} %); `smelt check` accepts {checks}, {loads} load, \
         {verifies} verify.",
        rows.len(),
        families.len(),
        100 * right / lines
    );
    println!("{table}\n{totals}");
    if std::env::var_os("SMELT_BLESS").is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/drafts.md");
        std::fs::write(path, format!("{HEAD}{totals}\n\n{table}")).unwrap();
    }
    // What holds now; only better drafts may change it.
    assert_eq!(checks, rows.len(), "`smelt check` refuses drafts");
    assert!(loads >= 57 && verifies >= 18 && 100 * right >= 64 * lines, "{totals}");
}

/// The head that a tower with a projection gets is that of another description, with all that it needs.
#[test]
fn drafts_with_the_head_of_another_are_accepted() {
    let mut seen = 0;
    for dir in common::cases() {
        let repository = Repository::open(&dir).unwrap();
        let config = Config::open(&repository).unwrap();
        if !config.texts("architectures").unwrap().iter().any(|class| class.ends_with("ModelWithProjection"))
        {
            continue;
        }
        let draft = draft(&config, &Index::open(&repository).unwrap(), &[]).unwrap();
        assert!(draft.refused.is_none(), "{}: {}", dir.display(), draft.refused.unwrap());
        seen += 1;
    }
    assert!(seen >= 2, "{seen} models");
}

/// The draft of a model of six layers, of which some have no norm before their attention.
fn draft_without_norms(without: &[usize]) -> String {
    const LAYER: [(&str, &[usize]); 9] = [
        ("input_layernorm", &[8]),
        ("self_attn.q_proj", &[8, 8]),
        ("self_attn.k_proj", &[4, 8]),
        ("self_attn.v_proj", &[4, 8]),
        ("self_attn.o_proj", &[8, 8]),
        ("post_attention_layernorm", &[8]),
        ("mlp.gate_proj", &[12, 8]),
        ("mlp.up_proj", &[12, 8]),
        ("mlp.down_proj", &[8, 12]),
    ];
    let zeros = |path: &str, shape: &[usize]| {
        (format!("{path}.weight"), shape.to_vec(), BundleData::F32(vec![0.0; shape.iter().product()]))
    };
    let mut tensors = vec![zeros("model.embed_tokens", &[10, 8]), zeros("model.norm", &[8])];
    for i in 0..6 {
        let there = LAYER.iter().filter(|(path, _)| *path != LAYER[0].0 || !without.contains(&i));
        tensors.extend(there.map(|(path, shape)| zeros(&format!("model.layers.{i}.{path}"), shape)));
    }
    let folder = tempfile::tempdir().unwrap();
    write_bundle(&folder.path().join("model.safetensors"), &tensors).unwrap();
    let config = r#"{"model_type": "unheard_of", "architectures": ["UnheardOfForCausalLM"], "hidden_size": 8,
        "intermediate_size": 12, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 10,
        "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 16,
        "tie_word_embeddings": true}"#;
    let index = Index::open(&Repository::open(folder.path()).unwrap()).unwrap();
    draft(&Config::parse("config.json", config).unwrap(), &index, &[]).unwrap().text
}

#[test]
fn a_norm_is_left_out_of_the_first_layer_if_all_others_have_it() {
    // Of layers that are alike only the first few are planned: the last one counts too.
    for (without, expected) in [(&[][..], false), (&[0], true), (&[0, 5], false), (&[5], false)] {
        let text = draft_without_norms(without);
        let found = text.contains("when: \"${i > 0}\"");
        assert_eq!(found, expected, "{without:?}\n{text}");
    }
}

const HEAD: &str = "\
# How good drafts are

`smelt new` drafts an architecture from `config.json` and the names and shapes of tensors. This table is what it makes of
models in `tests/golden` if the file of their own architecture is withheld, as it is for a model that none describes. The
test that writes it is `tests/draft.rs`: `SMELT_BLESS=1 cargo test --test draft`.

- *lines right*: lines of the real file, in `weights`, `model` and `heads`, that the draft has too. Both are laid out the
  same way first; comments and the names of bindings do not count.
- *accepted*: `smelt check` has nothing to say against it.
- *loads*: all tensors are there, with the right shapes, and all are used.
- *verifies*: the draft, as it is, computes what transformers computes, within 1e-3.

";
