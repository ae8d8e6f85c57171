//! Tasks on the fixtures: texts in, and what transformers computed for the same texts out.

mod common;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use smelt::tensor::Array;
use smelt::tokenizer::{Limit, Stream, Tokenizer};
use smelt::weights::read_bundle;
use smelt::{AnswerOptions, FinishReason, GenerateOptions, Model, OpenOptions, SamplingOptions, Text};
use tempfile::TempDir;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Directories of fixtures that hold `file`, with their `reference.json`.
fn fixtures(file: &str) -> Vec<(PathBuf, Value)> {
    let mut found = Vec::new();
    for family in std::fs::read_dir(golden()).unwrap().flatten().filter(|e| e.path().is_dir()) {
        for case in std::fs::read_dir(family.path()).unwrap().flatten() {
            let dir = case.path();
            if let Ok(text) = std::fs::read_to_string(dir.join("reference.json"))
                && dir.join(file).exists()
            {
                found.push((dir, serde_json::from_str(&text).unwrap()));
            }
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// The fixture whose `architectures` end so, with its reference.
fn of_class(class: &str) -> Vec<(PathBuf, Value, std::collections::BTreeMap<String, Array>)> {
    let of_class = |(dir, info): (PathBuf, Value)| {
        let is = info["model_class"].as_str()?.ends_with(class) && dir.join("tokenizer.json").exists();
        is.then(|| (dir.clone(), info, read_bundle(&dir.join("reference.safetensors")).unwrap()))
    };
    let found: Vec<_> = fixtures("reference.safetensors").into_iter().filter_map(of_class).collect();
    assert!(!found.is_empty(), "{class}");
    found
}

fn texts(info: &Value) -> Vec<Text<'_>> {
    fn text(value: &Value) -> Text<'_> {
        match value {
            Value::Array(pair) => Text { text: pair[0].as_str().unwrap(), pair: pair[1].as_str() },
            other => other.as_str().unwrap().into(),
        }
    }
    info["batch_texts"].as_array().unwrap().iter().map(text).collect()
}

/// A copy of a fixture, to be changed.
fn copy(dir: &Path) -> TempDir {
    fn fill(to: &Path, from: &Path) {
        for entry in std::fs::read_dir(from).unwrap().flatten() {
            let to = to.join(entry.file_name());
            if entry.path().is_dir() {
                std::fs::create_dir(&to).unwrap();
                fill(&to, &entry.path());
            } else {
                std::fs::copy(entry.path(), to).unwrap();
            }
        }
    }
    let copy = tempfile::tempdir().unwrap();
    fill(copy.path(), dir);
    copy
}

/// Files with the keys to set in them.
type Changes<'a> = &'a [(&'a str, Value)];

/// Sets keys of a JSON file, which is made if there is none; null takes a key away.
fn write(dir: &Path, file: &str, keys: Value) {
    let path = dir.join(file);
    let mut object = match std::fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).unwrap(),
        Err(_) => json!({}),
    };
    for (key, value) in keys.as_object().unwrap() {
        if value.is_null() {
            object.as_object_mut().unwrap().remove(key);
        } else {
            object[key] = value.clone();
        }
    }
    std::fs::write(path, object.to_string()).unwrap();
}

fn softmax(x: &[f32]) -> Vec<f32> {
    let largest = x.iter().copied().fold(f32::MIN, f32::max);
    let total: f32 = x.iter().map(|x| (x - largest).exp()).sum();
    x.iter().map(|x| (x - largest).exp() / total).collect()
}

#[test]
fn tokenizers_give_the_ids_of_transformers() {
    let mut seen = 0;
    for (dir, info) in fixtures("tokenizer.json") {
        let Some(rows) = info["tokenization"].as_array() else { continue };
        let text = std::fs::read_to_string(dir.join("tokenizer.json")).unwrap();
        let config = std::fs::read_to_string(dir.join("tokenizer_config.json")).ok();
        let tokenizer = Tokenizer::from_json(&text, "tokenizer.json", config.as_deref()).unwrap();
        for row in rows {
            seen += 1;
            let (text, pair) = (row["text"].as_str().unwrap(), row["pair"].as_str());
            let encoding = tokenizer.encode(text, pair, Limit::default()).unwrap();
            let ids: Vec<u64> = encoding.ids.iter().map(|id| u64::from(*id)).collect();
            assert_eq!(Value::from(ids), row["ids"], "{}: {text}", dir.display());
            if let Some(types) = row["type_ids"].as_array() {
                assert_eq!(encoding.type_ids.iter().map(|t| Value::from(*t)).collect::<Vec<_>>(), *types);
            }
            let Some(decoded) = row["decoded"].as_str() else { continue };
            assert_eq!(tokenizer.decode(&encoding.ids, true).unwrap(), decoded, "{}: {text}", dir.display());
            // Piece by piece it is the same text.
            let mut stream = Stream::new(&tokenizer);
            let mut pieces: String = encoding.ids.iter().map(|id| stream.push(*id).unwrap()).collect();
            pieces += &stream.finish().unwrap();
            assert_eq!(pieces, decoded, "{}: {text}, streamed", dir.display());
        }
    }
    assert!(seen > 100, "{seen} texts");
}

#[test]
fn texts_are_cut_only_when_asked_for() {
    let (dir, ..) = of_class("ForSequenceClassification").remove(0);
    let long = "the cat sat on the mat. ".repeat(20);
    let error = Model::open(&dir).unwrap().classify(&[long.as_str().into()]).unwrap_err().to_string();
    assert!(error.contains("takes at most 37") && error.contains("--truncate"), "{error}");
    let model = Model::open_with(&dir, &OpenOptions { truncate: true, ..OpenOptions::default() }).unwrap();
    assert!(model.classify(&[long.as_str().into()]).unwrap()[0].truncated > 100);
    // The special token at the end stays.
    let tokenizer = model.tokenizer().unwrap();
    let limit = Limit { max_tokens: Some(9), truncate: true };
    let whole = tokenizer.encode(&long, None, Limit::default()).unwrap();
    let cut = tokenizer.encode(&long, None, limit).unwrap();
    assert_eq!((cut.ids.len(), cut.ids[8]), (9, *whole.ids.last().unwrap()));
    assert_eq!(cut.truncated, whole.ids.len() - 9);
    assert_eq!(cut.ids[..8], whole.ids[..8]);
    assert!(tokenizer.encode(&long, None, Limit { max_tokens: Some(2), truncate: true }).is_err());
    // A length in `tokenizer.json` does not cut, the side that it names counts, unless the settings name one.
    let text = std::fs::read_to_string(dir.join("tokenizer.json")).unwrap();
    let mut json: Value = serde_json::from_str(&text).unwrap();
    json["truncation"] =
        json!({"direction": "Left", "max_length": 5, "strategy": "LongestFirst", "stride": 0});
    for (settings, same) in [(None, 8), (Some(r#"{"truncation_side": "right"}"#), 0)] {
        let tokenizer = Tokenizer::from_json(&json.to_string(), "tokenizer.json", settings).unwrap();
        assert_eq!(tokenizer.encode(&long, None, Limit::default()).unwrap(), whole);
        let found = tokenizer.encode(&long, None, limit).unwrap();
        let expected = if same > 0 { &whole.ids[whole.ids.len() - same..] } else { &cut.ids[1..] };
        assert_eq!(found.ids[1..], *expected, "{settings:?}");
    }
    for length in ["\"512\"", "0", "-1", "1.5"] {
        let settings = format!("{{\"model_max_length\": {length}}}");
        let error = Tokenizer::from_json(&text, "tokenizer.json", Some(&settings)).unwrap_err().to_string();
        assert!(error.contains("expected a positive whole number, found"), "{error}");
    }
}

#[test]
fn settings_of_a_tokenizer_are_named_where_they_are_wrong() {
    let (dir, ..) = of_class("ForSequenceClassification").remove(0);
    let text = std::fs::read_to_string(dir.join("tokenizer.json")).unwrap();
    for (settings, part) in [
        ("{\"model_max_length\": -5}", "`model_max_length`: expected a positive whole number, found `-5`"),
        ("{\"model_max_length\": }", "expected value"),
        ("[]", "expected a map of settings"),
        ("\"x\"", "expected a map of settings"),
        ("null", "expected a map of settings"),
    ] {
        let read = |label: &str| Tokenizer::from_json(&text, label, Some(settings)).unwrap_err().to_string();
        let error = read("some/model/tokenizer.json");
        let file = "invalid tokenizer settings `some/model/tokenizer_config.json`: ";
        assert!(error.strip_prefix(file).is_some_and(|what| what.starts_with(part)), "{error}");
        assert!(read("another name").contains("`tokenizer_config.json`"));
    }
}

#[test]
fn sequences_are_classified() {
    for (dir, info, reference) in of_class("ForSequenceClassification") {
        let model = Model::open(&dir).unwrap();
        let found = model.classify(&texts(&info)).unwrap();
        let logits = reference["output.logits"].to_f32();
        for (row, found) in logits.chunks(3).zip(&found) {
            let expected = softmax(row);
            assert!(found.labels.windows(2).all(|pair| pair[0].score >= pair[1].score), "the best first");
            for label in &found.labels {
                let id: usize = label.label.strip_prefix("LABEL_").unwrap().parse().unwrap();
                assert!(
                    (label.score - expected[id]).abs() < 1e-4,
                    "{}: {label:?} {expected:?}",
                    dir.display()
                );
            }
        }
        assert_eq!(found.len(), 3);
    }
}

#[test]
fn networks_see_which_text_of_a_pair_a_token_is_of_where_those_of_transformers_do() {
    let (dir, ..) = of_class("BertForSequenceClassification").remove(0);
    let file = "tokenizer_config.json";
    let scores = |dir: &Path, text: Text<'_>| {
        let mut labels = Model::open(dir).unwrap().classify(&[text]).unwrap().remove(0).labels;
        labels.sort_by(|a, b| a.label.cmp(&b.label));
        labels.iter().map(|label| label.score).collect::<Vec<_>>()
    };
    let pair: Text<'_> = ("who sat on the mat?", "the cat sat.").into();
    // What transformers 5.23 gives: with the classes of the model, and with those that take tokenizer.json as it is.
    let typed = [0.474068, 0.09573, 0.430202];
    let untyped = [0.684278, 0.064791, 0.250931];
    let names = json!(["input_ids", "attention_mask"]);
    let cases: &[(&str, Value, [f32; 3])] = &[
        ("as saved", json!({}), typed),
        ("no names", json!({"model_input_names": null}), untyped),
        ("the class", json!({"model_input_names": null, "tokenizer_class": "BertTokenizer"}), typed),
        ("its older name", json!({"model_input_names": null, "tokenizer_class": "BertTokenizerFast"}), typed),
        ("the model's", json!({"model_input_names": null, "tokenizer_class": null}), typed),
        ("any", json!({"model_input_names": null, "tokenizer_class": "PreTrainedTokenizerFast"}), untyped),
        ("names", json!({"model_input_names": names, "tokenizer_class": "BertTokenizer"}), untyped),
    ];
    for (case, keys, expected) in cases {
        let copy = copy(&dir);
        write(copy.path(), file, keys.clone());
        let found = scores(copy.path(), pair);
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-4), "{case}: {found:?}");
    }
    let copy = copy(&dir);
    std::fs::remove_file(copy.path().join(file)).unwrap();
    let found = scores(copy.path(), pair);
    assert!(found.iter().zip(typed).all(|(a, b)| (a - b).abs() < 1e-4), "no file: {found:?}");
}

/// A copy of a fixture whose tokenizer files have other keys.
fn with_tokenizer(dir: &Path, tokenizer: Value, settings: Value) -> TempDir {
    let copy = copy(dir);
    let text = std::fs::read_to_string(copy.path().join("tokenizer.json")).unwrap();
    let mut whole: Value = serde_json::from_str(&text).unwrap();
    whole.as_object_mut().unwrap().extend(tokenizer.as_object().unwrap().clone());
    std::fs::write(copy.path().join("tokenizer.json"), whole.to_string()).unwrap();
    std::fs::write(copy.path().join("tokenizer_config.json"), settings.to_string()).unwrap();
    copy
}

#[test]
fn tokenizers_are_made_anew_as_their_class_does() {
    let text = std::fs::read_to_string(golden().join("tokenizers.json")).unwrap();
    let all: Value = serde_json::from_str(&text).unwrap();
    let texts: Vec<&str> =
        all["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    let cases = all["cases"].as_array().unwrap();
    assert!(cases.len() > 50);
    for case in cases {
        let name = case["case"].as_str().unwrap();
        let named = format!("{name} {}", case["settings"]);
        let mut tokenizer = case["tokenizer"].clone();
        if let Some(from) = case["from"].as_str() {
            let text = std::fs::read_to_string(golden().join(from).join("tokenizer.json")).unwrap();
            let mut whole: Value = serde_json::from_str(&text).unwrap();
            whole.as_object_mut().unwrap().extend(tokenizer.as_object().unwrap().clone());
            tokenizer = whole;
        }
        let copy = with_tokenizer(&golden().join(name), tokenizer, case["settings"].clone());
        if case["names"].is_object() {
            write(copy.path(), "special_tokens_map.json", case["names"].clone());
        }
        let model = Model::open(copy.path()).unwrap_or_else(|e| panic!("{named}: {e}"));
        let tokenizer = model.tokenizer().unwrap();
        let inputs = texts.iter().map(|text| (*text, None)).chain([(texts[0], Some(texts[4]))]);
        for (i, (text, pair)) in inputs.enumerate() {
            let ids = tokenizer.encode(text, pair, Limit::default()).unwrap().ids;
            assert_eq!(json!(ids), case["ids"][i], "{named}: {text}");
            let Some(decoded) = case["decoded"][i].as_str() else { continue };
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), decoded, "{named}: {text}");
            let mut stream = Stream::new(tokenizer);
            let mut pieces: String = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
            pieces += &stream.finish().unwrap();
            assert_eq!(pieces, decoded, "{named}: {text}, streamed");
        }
    }
}

#[test]
fn tokenizers_that_their_class_cannot_use_are_refused() {
    let (dir, ..) = of_class("BertForSequenceClassification").remove(0);
    let unigram = json!({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]]}});
    for (settings, tokenizer, part) in [
        (json!({"tokenizer_class": "GPT2Tokenizer"}), json!({}), "of its class, `BPE`, found `WordPiece`"),
        (json!({"tokenizer_class": "T5Tokenizer"}), unigram, "unknown token of its class, 2, found 0"),
        (
            json!({"do_lower_case": "no"}),
            json!({}),
            "`do_lower_case`: expected true or false, found `\"no\"`",
        ),
        (json!({"cls_token": null}), json!({}), "expected a token that is `cls_token`"),
        (json!({"pad_token": "x".repeat(20_000)}), json!({}), "at most 16384 bytes, found one of 20000"),
    ] {
        let copy = with_tokenizer(&dir, tokenizer, settings);
        let error = Model::open(copy.path()).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("tokenizer"), "{error}");
    }
    let copy = with_tokenizer(&dir, json!({}), json!({}));
    std::fs::write(copy.path().join("special_tokens_map.json"), "[").unwrap();
    let error = Model::open(copy.path()).unwrap_err().to_string();
    assert!(
        error.contains("invalid special tokens `") && error.contains("special_tokens_map.json"),
        "{error}"
    );
}

#[test]
fn tokens_are_classified() {
    let (dir, info, reference) = of_class("ForTokenClassification").remove(0);
    let found = Model::open(&dir).unwrap().classify_tokens(&texts(&info)).unwrap();
    let (logits, shape) = (reference["output.logits"].to_f32(), reference["output.logits"].shape());
    // The first text has no special token but the first and those behind it.
    for (i, found) in found.iter().enumerate() {
        let token = &found.tokens[0];
        let row = &logits[(i * shape[1] + 1) * shape[2]..][..shape[2]];
        let best = (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap();
        assert_eq!(token.label.label, format!("LABEL_{best}"));
        assert!((token.label.score - softmax(row)[best]).abs() < 1e-4);
    }
    let text = texts(&info)[0];
    let first = &found[0].tokens[0];
    assert_eq!(first.text, text.text[first.start..first.end]);
}

#[test]
fn answers_are_the_best_spans() {
    let (dir, info, reference) = of_class("ForQuestionAnswering").remove(0);
    let texts = texts(&info);
    let options = AnswerOptions { n: 3, max_tokens: 4 };
    let found = Model::open(&dir).unwrap().answer(&texts[..2], options).unwrap();
    let width = reference["input.input_ids"].shape()[1];
    let types = reference["input.token_type_ids"].to_i64().unwrap();
    let mask = reference["input.attention_mask"].to_i64().unwrap();
    let (starts, ends) = (reference["output.start_logits"].to_f32(), reference["output.end_logits"].to_f32());
    for (i, found) in found.iter().enumerate() {
        // The context is what has type 1, without the separator at its end.
        let context: Vec<usize> =
            (i * width..(i + 1) * width).filter(|t| types[*t] == 1 && mask[*t] == 1).collect();
        let context = &context[..context.len() - 1];
        let p = |x: &[f32]| softmax(&context.iter().map(|t| x[*t]).collect::<Vec<_>>());
        let (starts, ends) = (p(&starts), p(&ends));
        let mut best: f32 = 0.0;
        for (s, start) in starts.iter().enumerate() {
            for end in ends.iter().skip(s).take(options.max_tokens) {
                best = best.max(start * end);
            }
        }
        let (found, truncated) = (&found.answers, found.truncated);
        assert_eq!((found.len(), truncated), (3, 0));
        assert!((found[0].score - best).abs() < 1e-4, "{found:?} {best}");
        assert_eq!(texts[i].pair.unwrap()[found[0].start..found[0].end], found[0].text);
    }
    let error = Model::open(&dir).unwrap().answer(&["who?".into()], options).unwrap_err().to_string();
    assert!(error.contains("has no context"), "{error}");
    // What is cut off is told.
    let long = "the cat sat on the mat. ".repeat(20);
    let model = Model::open_with(&dir, &OpenOptions { truncate: true, ..OpenOptions::default() }).unwrap();
    let pair = ("who sat?", long.as_str());
    let whole = model.tokenizer().unwrap().encode(pair.0, Some(pair.1), Limit::default()).unwrap();
    assert_eq!(model.answer(&[pair.into()], options).unwrap()[0].truncated, whole.ids.len() - 37);
}

#[test]
fn masks_are_filled() {
    for (dir, ..) in of_class("ForMaskedLM") {
        let model = Model::open(&dir).unwrap();
        let mask =
            model.tokenizer().unwrap().token(model.tokenizer().unwrap().roles().mask.unwrap()).unwrap();
        let text = format!("the {mask} sat on the {mask}.");
        let found = model.fill_mask(&[text.as_str().into()], 5).unwrap();
        assert_eq!(found[0].masks.len(), 2);
        for mask in &found[0].masks {
            assert_eq!(mask.len(), 5);
            assert!(mask.windows(2).all(|pair| pair[0].score >= pair[1].score));
        }
        let error = model.fill_mask(&["no mask".into()], 1).unwrap_err().to_string();
        assert!(error.contains(&mask), "{error}");
        let error = model.classify(&["x".into()]).unwrap_err().to_string();
        assert!(error.contains("expected a model for `sequence_classification`"), "{error}");
    }
}

#[test]
fn texts_have_the_vectors_that_a_model_gives_them() {
    for (dir, info, reference) in of_class("TextModelWithProjection") {
        let model = Model::open(&dir).unwrap();
        let expected = reference["output.text_embeds"].to_f32();
        let found = model.embed(&texts(&info), None).unwrap();
        let width = expected.len() / found.len();
        for (found, expected) in found.iter().zip(expected.chunks(width)) {
            let far = found.vector.iter().zip(expected).filter(|(a, b)| (*a - *b).abs() > 1e-4);
            assert!(found.vector.len() == width && far.count() == 0, "{}", dir.display());
        }
        let pooled = model.embed(&texts(&info), Some(smelt::Pooling::Mean)).unwrap();
        assert_ne!(pooled[0].vector.len(), width, "of token vectors");
    }
}

#[test]
fn sentences_are_embedded_as_their_repository_says() {
    let mut seen = 0;
    for (dir, info) in fixtures("expected.safetensors") {
        seen += 1;
        let expected = read_bundle(&dir.join("expected.safetensors")).unwrap();
        let expected = &expected["output.sentence_embedding"];
        let model = Model::open(&dir).unwrap();
        let found = model.embed(&texts(&info), None).unwrap();
        assert_eq!(expected.shape(), [found.len(), found[0].vector.len()], "{}", dir.display());
        let expected = expected.to_f32();
        let found_all: Vec<f32> = found.iter().flat_map(|e| e.vector.clone()).collect();
        for (a, b) in found_all.iter().zip(&expected) {
            assert!((a - b).abs() < 1e-4, "{}: {a} {b}", dir.display());
        }
    }
    assert!(seen >= 5, "{seen} pipelines");
}

#[test]
fn sentences_are_cut_where_sentence_transformers_cuts_them() {
    let (max, own) = ("sentence_bert_config.json", "tokenizer_config.json");
    let any = json!(1e30);
    // Tokens that stay, of 111; `tokenizer.json` says 16, there are 37 positions.
    let cases: &[(&str, Changes<'_>, usize)] = &[
        ("max_seq_length", &[(max, json!({"max_seq_length": 30}))], 30),
        ("a smaller one", &[(max, json!({"max_seq_length": 7}))], 7),
        ("both", &[(max, json!({"max_seq_length": 20})), (own, json!({"model_max_length": 9}))], 20),
        ("model_max_length", &[(own, json!({"model_max_length": 12}))], 12),
        ("max_len", &[(own, json!({"model_max_length": null, "max_len": 11}))], 11),
        ("any length", &[(own, json!({"model_max_length": any}))], 37),
        ("no length", &[(own, json!({"model_max_length": null}))], 37),
        ("an older name", &[("sentence_roberta_config.json", json!({"max_seq_length": 10}))], 16),
    ];
    let text = "the cat sat on the mat. ".repeat(16);
    let check = |case: &str, dir: &Path, kept: usize| {
        let model = Model::open(dir).unwrap();
        let found = &model.embed(&[text.as_str().into()], None).unwrap()[0];
        let limit = Limit { max_tokens: Some(kept), truncate: true };
        let cut = model.tokenizer().unwrap().encode(&text, None, limit).unwrap();
        assert_eq!((cut.ids.len(), found.truncated), (kept, cut.truncated), "{case}");
    };
    let dir = golden().join("variants/sentence-v6");
    for (case, files, kept) in cases {
        let copy = copy(&dir);
        files.iter().for_each(|(file, keys)| write(copy.path(), file, keys.clone()));
        check(case, copy.path(), *kept);
    }
    let copy = copy(&dir);
    std::fs::remove_file(copy.path().join(max)).unwrap();
    write(copy.path(), "sentence_roberta_config.json", json!({"max_seq_length": 10}));
    check("an older name alone", copy.path(), 10);
    // There it would end in an error too.
    write(copy.path(), "sentence_roberta_config.json", json!({"max_seq_length": 40}));
    let error =
        Model::open(copy.path()).unwrap().embed(&[text.as_str().into()], None).unwrap_err().to_string();
    assert!(error.contains("takes at most 37"), "{error}");
}

#[test]
fn sentence_modules_that_are_not_known_are_refused() {
    let dir = golden().join("variants/sentence-cls-dense");
    let text = ["the cat sat on the mat.".into()];
    let pooling = "1_Pooling/config.json";
    let (dense, normalize) = ("2_Dense/config.json", "3_Normalize/config.json");
    let (beside, defaults) = ("sentence_bert_config.json", "config_sentence_transformers.json");
    let modality = json!({"message": {"method": "forward", "method_output_name": "last_hidden_state"}});
    let prompts = json!({"search": "find this: "});
    for (file, keys, part) in [
        (pooling, json!({"pooling_mode_cls_token": false}), "no way of pooling"),
        (pooling, json!({"pooling_mode": ["cls", 3]}), "unsupported pooling `3`"),
        (
            pooling,
            json!({"pooling_mode": vec!["cls"; 1000]}),
            "expected at most 6 ways of pooling, found 1000",
        ),
        (pooling, json!({"pooling_mode_new_tokens": false}), "unsupported `pooling_mode_new_tokens`"),
        (pooling, json!({"include_prompt": 1}), "`include_prompt`: expected true or false"),
        (dense, json!({"use_residual": true}), "unsupported `use_residual`: expected false"),
        (dense, json!({"module_input_name": "token_embeddings"}), "unsupported `module_input_name`"),
        (dense, json!({"module_output_name": "token_embeddings"}), "unsupported `module_output_name`"),
        (dense, json!({"activation_function": "torch.nn.modules.activation.GELU"}), "unsupported activation"),
        (dense, json!({"activation_function": "mine.Identity"}), "unsupported activation"),
        (dense, json!({"out_features": 23}), "expected `linear.weight` of [23, 40], found [24, 40]"),
        (dense, json!({"bias": false}), "found `linear.bias` too"),
        (dense, json!({"scale": 2}), "unsupported `scale`"),
        (normalize, json!({"module_input_name": "token_embeddings"}), "unsupported `module_input_name`"),
        (beside, json!({"max_seq_length": 0}), "`max_seq_length`: expected a positive number"),
        (beside, json!({"do_lower_case": true}), "unsupported `do_lower_case`: expected false"),
        (beside, json!({"transformer_task": "fill-mask"}), "unsupported `transformer_task`"),
        (beside, json!({"module_output_name": "sentence_embedding"}), "unsupported `module_output_name`"),
        (beside, json!({"modality_config": modality}), "unsupported `modality_config`"),
        (beside, json!({"query_length": 8}), "unsupported `query_length`"),
        (beside, json!({"document_length": 8}), "unsupported `document_length`"),
        (beside, json!({"query_expansion": {"length": 8}}), "unsupported `query_expansion`"),
        (beside, json!({"tokenizer_args": {"model_max_length": 8}}), "unsupported `tokenizer_args`"),
        (defaults, json!({"default_prompt_name": "find"}), "in `prompts` (none), found `find`"),
        (defaults, json!({"default_prompt_name": "find", "prompts": prompts}), "(`search`), found `find`"),
        (defaults, json!({"model_type": "SparseEncoder"}), "unsupported `model_type`"),
        (defaults, json!({"truncate_dim": -1}), "`truncate_dim`: expected a positive number"),
    ] {
        let copy = copy(&dir);
        std::fs::create_dir_all(copy.path().join("3_Normalize")).unwrap();
        write(copy.path(), file, keys.clone());
        let found = Model::open(copy.path()).unwrap().embed(&text, None);
        let error = found.expect_err(part).to_string();
        assert!(error.contains(part) && error.contains(file), "{keys}: {error}");
    }
    let module = |class: &str, path: &str| json!({"type": format!("sentence_transformers.models.{class}"), "path": path});
    let first = module("Transformer", "");
    let pooling = module("Pooling", "1_Pooling");
    let dense = module("Dense", "2_Dense");
    let other = json!({"type": "mine.Pooling", "path": "1_Pooling"});
    for (modules, part) in [
        (json!([]), "expected a Transformer and a Pooling module"),
        (json!([first]), "expected a Transformer and a Pooling module"),
        (
            json!([first, dense]),
            "unsupported module 1 `sentence_transformers.models.Dense`: expected `Pooling`",
        ),
        (json!([first, other]), "unsupported module 1 `mine.Pooling`"),
        (json!([first, pooling, pooling]), "expected `Dense` or `Normalize`"),
        (json!(vec![dense.clone(); 1000]), "expected at most 64 modules, found 1000"),
        (json!([module("Transformer", "0_Transformer"), pooling]), "found it in `0_Transformer`"),
    ] {
        let copy = copy(&dir);
        std::fs::write(copy.path().join("modules.json"), modules.to_string()).unwrap();
        let error = Model::open(copy.path()).unwrap().embed(&text, None).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("modules.json"), "{modules}: {error}");
    }
    let copy = copy(&dir);
    write(copy.path(), "1_Pooling/config.json", json!({"pooling_mode_max_tokens": true}));
    let error = Model::open(copy.path()).unwrap().embed(&text, None).unwrap_err().to_string();
    assert!(error.contains("2_Dense/config.json`: expected vectors of 40 elements, found 80"), "{error}");
}

#[test]
fn what_a_repository_says_of_prompts_and_lengths_is_done() {
    let dir = golden().join("variants/sentence-mean");
    let (text, prompted) = ("the cat sat.", "find this: the cat sat.");
    let embed = |dir: &Path, text: &str| {
        Model::open(dir).unwrap().embed(&[text.into()], None).unwrap().remove(0).vector
    };
    let with = |keys: Value| {
        let copy = copy(&dir);
        write(copy.path(), "config_sentence_transformers.json", keys);
        embed(copy.path(), text)
    };
    let prompts = json!({"query": "find this: "});
    assert_eq!(with(json!({"prompts": prompts})), embed(&dir, text));
    assert_eq!(with(json!({"prompts": prompts, "default_prompt_name": "query"})), embed(&dir, prompted));
    // There without being written.
    assert_eq!(with(json!({"prompts": prompts, "default_prompt_name": "document"})), embed(&dir, text));
    assert_eq!(with(json!({"truncate_dim": 7})), embed(&dir, text)[..7]);
    // A special token at the end is not the prompt's.
    let dir = golden().join("variants/sentence-prompt");
    assert_eq!(embed(&dir, "").len(), 240);
    let copy = copy(&dir);
    write(copy.path(), "tokenizer.json", json!({"post_processor": null}));
    let error = Model::open(copy.path()).unwrap().embed(&["".into()], None).unwrap_err().to_string();
    assert!(error.contains("no tokens beside the prompt"), "{error}");
}

#[test]
fn prompts_are_continued() {
    let mut classes = of_class("ForCausalLM");
    classes.extend(of_class("LMHeadModel"));
    classes.extend(of_class("ForConditionalGeneration"));
    for (dir, info, reference) in classes {
        let Some(prompts) = info["prompts"].as_array() else { continue };
        let prompts: Vec<Text<'_>> = prompts.iter().map(|p| p.as_str().unwrap().into()).collect();
        let model = Model::open(&dir).unwrap();
        let steps = reference["generate.0.tokens"].len();
        let options = GenerateOptions { max_tokens: steps, ignore_eos: true, ..GenerateOptions::default() };
        let found = model.generate(&prompts, &options).unwrap();
        let mut streamed = vec![String::new(); prompts.len()];
        for piece in model.stream_batch(&prompts, &options).unwrap() {
            let (i, piece) = piece.unwrap();
            streamed[i] += &piece;
        }
        for (i, found) in found.iter().enumerate() {
            assert_eq!(streamed[i], found.text, "{}: prompt {i}, streamed with the others", dir.display());
            let tokens: Vec<i64> = found.tokens.iter().map(|t| i64::from(*t)).collect();
            let expected = reference[&format!("generate.{i}.tokens")].to_i64().unwrap();
            assert_eq!(tokens, expected, "{}: prompt {i}", dir.display());
            assert_eq!(found.finish, FinishReason::Length);
            // Streamed, it is the same text.
            let pieces: String = model.stream(prompts[i], &options).unwrap().map(Result::unwrap).collect();
            assert_eq!(pieces, found.text, "{}", dir.display());
            // A stop string in the middle of it ends it there.
            let middle: String = found.text.chars().skip(found.text.chars().count() / 2).take(2).collect();
            if middle.chars().count() == 2 && !middle.contains('\u{fffd}') {
                let options = GenerateOptions { stop: vec![middle.clone()], ..options.clone() };
                let stopped = &model.generate(&prompts[i..=i], &options).unwrap()[0];
                assert_eq!(stopped.finish, FinishReason::Stop);
                assert_eq!(stopped.text, found.text[..found.text.find(&middle).unwrap()]);
            }
        }
        // What is sampled for a prompt depends on the seed and its place, not on the others.
        let sampling =
            SamplingOptions { temperature: 1.0, top_k: Some(20), seed: 3, ..SamplingOptions::default() };
        let options = GenerateOptions { sampling, ..options };
        let both = model.generate(&prompts, &options).unwrap();
        assert_eq!(both, model.generate(&prompts, &options).unwrap());
        assert_eq!(both[..1], model.generate(&prompts[..1], &options).unwrap());
    }
}

#[test]
fn what_is_cut_leaves_room_for_what_comes() {
    let options = OpenOptions { truncate: true, ..OpenOptions::default() };
    let model = Model::open_with("examples/models/prose", &options).unwrap(); // takes 256 tokens
    let generate = |prompt: &str, max_tokens: usize| {
        let options = GenerateOptions { max_tokens, ignore_eos: true, ..GenerateOptions::default() };
        let found = &model.generate(&[prompt.into()], &options).unwrap()[0];
        (found.truncated, found.tokens.len())
    };
    let long = "the view ".repeat(300);
    let len = model.tokenizer().unwrap().encode(&long, None, Limit::default()).unwrap().ids.len();
    assert_eq!(generate(&long, 20), (len - 237, 20));
    assert_eq!(generate(&long, 1), (len - 256, 1));
    // Half of the window at most.
    assert_eq!(generate(&long, 1000), (len - 129, 128));
    // A prompt that fits is not cut.
    let whole = (1..).map(|n| "the view ".repeat(n)).take_while(|text| {
        let encoding = model.tokenizer().unwrap().encode(text, None, Limit::default()).unwrap();
        encoding.ids.len() <= 256
    });
    let (truncated, tokens) = generate(&whole.last().unwrap(), 20);
    assert!(truncated == 0 && tokens < 20, "{truncated}, {tokens}");
}

#[test]
fn a_text_ends_where_the_model_ends_it() {
    for (dir, _, reference) in of_class("LMHeadModel") {
        if !reference.contains_key("generate.0.tokens") {
            continue;
        }
        // The third token of the continuation is declared to end the text.
        let tokens = reference["generate.0.tokens"].to_i64().unwrap();
        let copy = copy(&dir);
        write(copy.path(), "generation_config.json", json!({"eos_token_id": [tokens[2]]}));
        let model = Model::open(copy.path()).unwrap();
        let found =
            &model.generate(&["the cat sat on the mat and".into()], &GenerateOptions::default()).unwrap()[0];
        let first = tokens.iter().position(|t| *t == tokens[2]).unwrap();
        assert_eq!((found.tokens.len(), found.finish), (first, FinishReason::Eos));
    }
}

#[test]
fn what_generation_config_says_of_tokens_is_obeyed() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let text = std::fs::read_to_string(golden.join("generations.json")).unwrap();
    let all: Value = serde_json::from_str(&text).unwrap();
    let options =
        GenerateOptions { max_tokens: all["steps"].as_u64().unwrap() as usize, ..GenerateOptions::default() };
    let generate = |fixture: &str, settings: &Value| {
        let dir = common::copy(&golden.join(fixture));
        std::fs::write(dir.path().join("generation_config.json"), settings.to_string()).unwrap();
        let model = Model::open(dir.path()).unwrap();
        model.generate(&[all["text"].as_str().unwrap().into()], &options)
    };
    let cases = all["cases"].as_array().unwrap();
    assert!(cases.len() > 20);
    for case in cases {
        let found = generate(case["fixture"].as_str().unwrap(), &case["settings"]).unwrap();
        assert_eq!(serde_json::json!(found[0].tokens), case["tokens"], "{}", case["settings"]);
    }
    let start = &cases[0]["settings"]["decoder_start_token_id"];
    // What is not implemented is refused, and so is what is no number.
    for (key, value, part) in [
        ("guidance_scale", serde_json::json!(1.5), "unsupported `guidance_scale`: `1.5`"),
        ("encoder_no_repeat_ngram_size", serde_json::json!(3), "unsupported `encoder_no_repeat_ngram_size`"),
        ("penalty_alpha", serde_json::json!(0.6), "unsupported `penalty_alpha`: `0.6`"),
        ("bad_words_ids", serde_json::json!([1]), "expected lists of token ids, found `1`"),
        ("min_length", serde_json::json!(-1), "expected a number from 0 on, found `-1`"),
        ("repetition_penalty", serde_json::json!("2"), "`repetition_penalty`: expected a positive number"),
        ("repetition_penalty", serde_json::json!(0), "expected a positive number, found `0`"),
        ("forced_eos_token_id", serde_json::json!("2"), "expected a token id"),
        ("token_healing", serde_json::json!(true), "unsupported `token_healing`"),
        ("max_time", serde_json::json!(0.5), "unsupported `max_time`"),
    ] {
        let settings = json!({ key: value, "decoder_start_token_id": start });
        let error = generate(cases[0]["fixture"].as_str().unwrap(), &settings);
        let error = error.unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("generation_config.json"), "{error}");
    }
    // What configs said before there was such a file.
    let forced = |settings: Value| {
        let dir = common::copy(&golden.join(cases[0]["fixture"].as_str().unwrap()));
        std::fs::remove_file(dir.path().join("generation_config.json")).ok();
        let path = dir.path().join("config.json");
        let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        config.as_object_mut().unwrap().remove("forced_bos_token_id");
        config.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        std::fs::write(path, config.to_string()).unwrap();
        let model = Model::open(dir.path()).unwrap();
        model.generate(&[all["text"].as_str().unwrap().into()], &options).unwrap().remove(0).tokens[0]
    };
    let free = forced(json!({"bos_token_id": 7}));
    assert_ne!(free, 7);
    assert_eq!(forced(json!({"bos_token_id": 7, "force_bos_token_to_be_generated": true})), 7);
    // So is what leaves nothing to be chosen.
    let every: Vec<u32> = (0..1000).collect();
    let settings = json!({ "suppress_tokens": every, "decoder_start_token_id": start });
    let error = generate(cases[0]["fixture"].as_str().unwrap(), &settings).unwrap_err().to_string();
    assert!(error.contains("no token may come next"), "{error}");
}
