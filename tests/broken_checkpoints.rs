//! Checkpoints that are damaged, incomplete or hostile: each is an error that says what to do, never a panic.

use std::fs;
use std::path::Path;

use smelt::tensor::DType;
use smelt::weights::{BundleData, Checkpoint, Index, Repository, StoredType, read_bundle, write_bundle};
use smelt::{Error, ErrorKind};
use tempfile::TempDir;

const AGAIN: &str = "the file is damaged or incomplete; download it again";
const WRITER: &str = "the file is damaged, or the program that wrote it is wrong; download it again or save it \
                      anew with the `safetensors` library";
const ANOTHER: &str =
    "this is probably not a safetensors file; is the name right, and the download complete?";
const MIXED: &str = "the files are not of one checkpoint; download all of them again";

/// A safetensors file of a header and `data` bytes.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend((0..data).map(|i| i as u8));
    bytes
}

/// The header entry of a float32 tensor.
fn f32(name: &str, shape: &str, from: u64, to: u64) -> String {
    format!(r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}"#)
}

/// A model directory of these files.
fn dir(files: &[(&str, &[u8])]) -> TempDir {
    let dir = TempDir::new().unwrap();
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

fn open(dir: &Path) -> smelt::Result<(Index, Checkpoint)> {
    let repository = Repository::open(dir)?;
    let index = Index::open(&repository)?;
    let checkpoint = Checkpoint::map(&repository, &index)?;
    Ok((index, checkpoint))
}

/// The message of an error of a checkpoint, with `DIR` for the directory.
fn message(error: &Error, dir: &Path) -> String {
    assert_eq!(error.kind(), ErrorKind::Checkpoint, "{error}");
    error.to_string().replace(&dir.display().to_string(), "DIR")
}

/// What opening these files says is `expected` and, as the next thing to do, `help`.
#[track_caller]
fn refused(files: &[(&str, &[u8])], expected: &str, help: &str) {
    let dir = dir(files);
    let error = open(dir.path()).expect_err("is refused");
    assert_eq!(message(&error, dir.path()), format!("{expected}\n = help: {help}"));
}

#[track_caller]
fn one_refused(bytes: &[u8], expected: &str, help: &str) {
    refused(&[("model.safetensors", bytes)], expected, help);
}

#[track_caller]
fn header_refused(entries: &[String], data: usize, expected: &str) {
    one_refused(&file(&format!("{{{}}}", entries.join(",")), data), expected, WRITER);
}

#[test]
fn truncated_files() {
    let whole = file(&format!("{{{}}}", f32("a", "[2,2]", 0, 16)), 16);
    assert_eq!(whole.len(), 81);
    let cases = [
        (80, "`DIR/model.safetensors` is cut off: expected 81 bytes, found 80"),
        (65, "`DIR/model.safetensors` is cut off: expected 81 bytes, found 65"),
        (64, "`DIR/model.safetensors` is cut off: expected a header of 57 bytes, found 56"),
        (8, "`DIR/model.safetensors` is cut off: expected a header of 57 bytes, found 0"),
        (7, "`DIR/model.safetensors` is cut off: expected 8 bytes or more, found 7"),
        (0, "`DIR/model.safetensors` is empty: expected a safetensors file"),
    ];
    for (len, expected) in cases {
        one_refused(&whole[..len], expected, AGAIN);
    }
    let mut longer = whole;
    longer.push(0);
    one_refused(&longer, "`DIR/model.safetensors` is too long: expected 81 bytes, found 82", AGAIN);
}

#[test]
fn header_lengths() {
    let with_length = |len: u64| {
        let mut bytes = file("{}", 100);
        bytes[..8].copy_from_slice(&len.to_le_bytes());
        bytes
    };
    one_refused(
        &with_length(103),
        "`DIR/model.safetensors` is cut off: expected a header of 103 bytes, found 102",
        AGAIN,
    );
    one_refused(
        &with_length(100_000_001),
        "`DIR/model.safetensors`: expected a header of at most 100000000 bytes, found a length of 100000001",
        ANOTHER,
    );
    one_refused(
        &with_length(u64::MAX),
        "`DIR/model.safetensors`: expected a header of at most 100000000 bytes, found a length of \
         18446744073709551615",
        ANOTHER,
    );
    one_refused(
        b"Entry not found",
        "`DIR/model.safetensors`: expected a header of at most 100000000 bytes, found a length of \
         8029390891631537733",
        ANOTHER,
    );
    one_refused(
        &with_length(0),
        "`DIR/model.safetensors`: invalid header: EOF while parsing a value at line 1 column 0",
        WRITER,
    );
}

#[test]
fn offsets() {
    header_refused(
        &[f32("a", "[2,2]", 0, 12)],
        12,
        "`DIR/model.safetensors`: tensor `a`: expected 16 bytes for [2, 2] of float32, found 12 at offsets [0, 12]",
    );
    header_refused(
        &[f32("a", "[2,2]", 16, 0)],
        16,
        "`DIR/model.safetensors`: tensor `a`: expected offsets that ascend, found [16, 0]",
    );
    header_refused(
        &[f32("b", "[2]", 8, 16), f32("a", "[3]", 0, 12)],
        16,
        "`DIR/model.safetensors`: tensor `b`: expected it at offset 12, right behind `a`, found it at 8: they \
         overlap",
    );
    header_refused(
        &[f32("a", "[2]", 0, 8), f32("b", "[2]", 0, 8)],
        8,
        "`DIR/model.safetensors`: tensor `b`: expected it at offset 8, right behind `a`, found it at 0: they overlap",
    );
    header_refused(
        &[f32("a", "[2]", 0, 8), f32("b", "[2]", 12, 20)],
        20,
        "`DIR/model.safetensors`: tensor `b`: expected it at offset 8, right behind `a`, found it at 12: the bytes \
         between belong to no tensor",
    );
    header_refused(
        &[f32("a", "[2]", 4, 12)],
        12,
        "`DIR/model.safetensors`: tensor `a`: expected it at offset 0, as the first, found it at 4: the bytes \
         between belong to no tensor",
    );
    let huge = u64::MAX - 3;
    one_refused(
        &file(
            &format!(
                "{{{},{}}}",
                f32("a", "[4611686018427387902]", 0, u64::MAX - 7),
                f32("b", "[1]", u64::MAX - 7, huge)
            ),
            16,
        ),
        "`DIR/model.safetensors` is cut off: expected 18446744073709551802 bytes, found 206",
        AGAIN,
    );
}

#[test]
fn shapes() {
    header_refused(
        &[f32("a", "[4294967296,4294967296,2]", 0, 16)],
        16,
        "`DIR/model.safetensors`: tensor `a`: expected a shape that fits into memory, found [4294967296, \
         4294967296, 2]",
    );
    // Counted without overflow, but not in bytes.
    header_refused(
        &[f32("a", "[4611686018427387904]", 0, 0)],
        0,
        "`DIR/model.safetensors`: tensor `a`: expected 18446744073709551616 bytes for [4611686018427387904] of \
         float32, found 0 at offsets [0, 0]",
    );
    header_refused(
        &[f32("a", "[-2,2]", 0, 16)],
        16,
        "`DIR/model.safetensors`: invalid header, at `a`: invalid type: integer `-2`, expected a whole number that \
         is not negative at line 1 column 31",
    );
    header_refused(
        &[f32("a", "[2.0,2]", 0, 16)],
        16,
        "`DIR/model.safetensors`: invalid header, at `a`: invalid type: floating point `2.0`, expected a whole \
         number that is not negative at line 1 column 32",
    );
    header_refused(
        &[f32("a", "[18446744073709551616]", 0, 16)],
        16,
        "`DIR/model.safetensors`: invalid header, at `a`: invalid type: floating point `1.8446744073709552e+19`, \
         expected a whole number that is not negative at line 1 column 49",
    );
}

#[test]
fn duplicates() {
    header_refused(
        &[f32("a", "[2]", 0, 8), f32("b", "[2]", 8, 16), f32("a", "[2]", 16, 24)],
        24,
        "`DIR/model.safetensors`: expected each tensor once in the header, found `a` twice",
    );
    header_refused(
        &[r#""a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"shape":[1]}"#.into()],
        4,
        "`DIR/model.safetensors`: invalid header, at `a`: duplicate field `shape` at line 1 column 60",
    );
}

#[test]
fn headers_that_are_no_headers() {
    let invalid = |what: &str| format!("`DIR/model.safetensors`: invalid header{what}");
    let deep = format!(r#"{{"a":{}"#, "[".repeat(1_000_000));
    let deep_field = format!(r#"{{"a":{{"dtype":{}"#, r#"{"x":"#.repeat(1_000_000));
    let ignored = format!(r#"{{"__metadata__":{}"#, "[".repeat(1_000_000));
    let cases = [
        ("[]", ": invalid type: sequence, expected a map at line 1 column 2"),
        ("{", ": EOF while parsing an object at line 1 column 1"),
        ("{}x", ": trailing characters at line 1 column 3"),
        ("{\"a\":5}", ", at `a`: invalid type: integer `5`, expected a map at line 1 column 6"),
        (
            "{\"a\":[\"F32\",[1],[0,4]]}",
            ", at `a`: invalid type: sequence, expected a map at line 1 column 6",
        ),
        ("{\"a\":{}}", ", at `a`: missing field `dtype` at line 1 column 7"),
        (
            r#"{"a\n":{"dtype":"F32","shape":[1],"data_offsets":[0]}}"#,
            ", at `a\\n`: invalid length 1, expected an array of length 2 at line 1 column 52",
        ),
        (&deep, ", at `a`: invalid type: sequence, expected a map at line 1 column 6"),
        (&deep_field, ", at `a`: invalid type: map, expected a string at line 1 column 14"),
        (&ignored, ": EOF while parsing a list at line 1 column 1000016"),
    ];
    for (header, expected) in cases {
        one_refused(&file(header, 0), &invalid(expected), WRITER);
    }
    let mut bytes = file("{\"a\":\"..\"}", 0);
    bytes[14] = 0xff;
    one_refused(
        &bytes,
        "`DIR/model.safetensors`: expected a header of UTF-8, found other bytes after its byte 6",
        AGAIN,
    );
}

#[test]
fn other_files_under_this_name() {
    let lfs = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
    let page =
        "download the file itself instead of the page that shows it, or log in first if the model is gated";
    let other = "smelt reads safetensors; download that version of the model, or convert it";
    let cases: [(&[u8], &str, &str); 6] = [
        (lfs.as_bytes(), "a Git LFS pointer", "run `git lfs pull` in the model directory"),
        (b"<!DOCTYPE html>\n<html>", "a web page", page),
        (b"\n\n <html lang=\"en\">", "a web page", page),
        (b"<?xml version=\"1.0\"?><Error>", "an XML page", page),
        (b"PK\x03\x04\0\0\x08\x08\0\0archive/data.pkl", "a zip file, as PyTorch writes it", other),
        (b"GGUF\x03\0\0\0\x10\0\0\0", "a GGUF file", other),
    ];
    for (bytes, what, help) in cases {
        let expected = format!("`DIR/model.safetensors`: expected a safetensors file, found {what}");
        one_refused(bytes, &expected, help);
    }
    refused(
        &[("model.safetensors.index.json", lfs.as_bytes())],
        "`DIR/model.safetensors.index.json`: expected the file itself, found a Git LFS pointer",
        "run `git lfs pull` in the model directory",
    );
}

#[test]
fn no_checkpoint() {
    let convert = "smelt reads safetensors: download that version of the model, or convert it with \
                   `save_pretrained` of transformers";
    refused(
        &[("config.json", b"{}")],
        "no `DIR/model.safetensors`",
        "is this the directory of a model, and its download complete?",
    );
    refused(
        &[("config.json", b"{}"), ("pytorch_model.bin", b"x")],
        "no `DIR/model.safetensors`\n = found: `pytorch_model.bin`",
        convert,
    );
    refused(&[("q4.gguf", b"x")], "no `DIR/model.safetensors`\n = found: `q4.gguf`", convert);
    refused(
        &[("adapter_model.safetensors", b"x")],
        "no `DIR/model.safetensors`\n = found: `adapter_model.safetensors`",
        "smelt reads `model.safetensors`, or the files that `model.safetensors.index.json` lists",
    );
}

#[test]
fn no_directory() {
    let dir = dir(&[("config.json", b"{}")]);
    let path = dir.path().join("config.json");
    let error = Repository::open(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    let expected = format!(
        "`{}`: expected a model directory, found a file\n = help: give the directory that holds `config.json`",
        path.display()
    );
    assert_eq!(error.to_string(), expected);
    let missing = Repository::open(&dir.path().join("none")).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::Io);
    fs::create_dir(dir.path().join("model.safetensors")).unwrap();
    let error = open(dir.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    let expected =
        format!("`{}/model.safetensors`: expected a file, found a directory", dir.path().display());
    assert_eq!(error.to_string(), expected);
}

const LIST: &str = "model.safetensors.index.json";

fn shard(name: &str) -> Vec<u8> {
    file(&format!("{{{}}}", f32(name, "[1]", 0, 4)), 4)
}

#[test]
fn sharded_checkpoints() {
    let (a, b) = (shard("a"), shard("b"));
    let list = br#"{"metadata":{"total_size":8},"weight_map":{"a":"one.safetensors"}}"#;
    // `b` is in a file of the checkpoint, though not in the list.
    let both = file(&format!("{{{},{}}}", f32("a", "[1]", 0, 4), f32("b", "[1]", 4, 8)), 8);
    let found = dir(&[(LIST, list), ("one.safetensors", &both)]);
    let (index, checkpoint) = open(found.path()).unwrap();
    assert_eq!(index.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(checkpoint.array("b").unwrap().bytes(), [4, 5, 6, 7]);

    let list = br#"{"weight_map":{"a":"one.safetensors","b":"two.safetensors"}}"#;
    let found = dir(&[(LIST, list), ("one.safetensors", &a), ("two.safetensors", &b)]);
    assert_eq!(open(found.path()).unwrap().0.len(), 2);
    refused(
        &[(LIST, list), ("two.safetensors", &b)],
        "1 file that `DIR/model.safetensors.index.json` lists cannot be found\n = `one.safetensors`",
        "download the missing files",
    );
    refused(
        &[(LIST, list)],
        "2 files that `DIR/model.safetensors.index.json` lists cannot be found\n = `one.safetensors`\n = \
         `two.safetensors`",
        "download the missing files",
    );
    refused(
        &[(LIST, list), ("one.safetensors", &a), ("two.safetensors", &a)],
        "expected tensor `a` in one file, found it in `DIR/one.safetensors` and in `DIR/two.safetensors`",
        MIXED,
    );
    refused(
        &[(LIST, list), ("one.safetensors", &b), ("two.safetensors", &shard("c"))],
        "2 tensors not where `DIR/model.safetensors.index.json` lists them\n = `a`: expected in \
         `DIR/one.safetensors`, not found\n = `b`: expected in `DIR/two.safetensors`, found in `DIR/one.safetensors`",
        MIXED,
    );
    refused(
        &[(LIST, list), ("one.safetensors", &a[..a.len() - 1]), ("two.safetensors", &b)],
        "`DIR/one.safetensors` is cut off: expected 66 bytes, found 65",
        AGAIN,
    );
}

#[test]
fn shard_names_stay_in_the_directory() {
    let names = ["../other.safetensors", "/etc/passwd", "sub/one.safetensors", "..", "C:one", ""];
    for name in names {
        let list = format!(r#"{{"weight_map":{{"a":"{name}"}}}}"#);
        refused(
            &[(LIST, list.as_bytes())],
            &format!(
                "`DIR/model.safetensors.index.json`: expected the name of a file beside it for tensor `a`, found \
                 `{name}`"
            ),
            "do not use this checkpoint; it reaches for files that are not its own",
        );
    }
}

#[test]
fn malformed_lists() {
    let deep = "[".repeat(1_000_000);
    let cases = [
        ("", "invalid index: EOF while parsing a value at line 1 column 0"),
        ("{", "invalid index: EOF while parsing an object at line 1 column 1"),
        ("[]", "invalid index: invalid type: sequence, expected a map at line 1 column 2"),
        ("{}", "invalid index: missing field `weight_map` at line 1 column 2"),
        (
            r#"{"weight_map":["a"]}"#,
            "invalid index: invalid type: sequence, expected a map at line 1 column 15",
        ),
        (
            r#"{"weight_map":{"a":1}}"#,
            "invalid index: invalid type: integer `1`, expected a string at line 1 column 20",
        ),
        (r#"{"weight_map":{"a":"x","a":"x"}}"#, "expected each tensor once, found `a` twice"),
        (&deep, "invalid index: invalid type: sequence, expected a map at line 1 column 1"),
    ];
    for (text, what) in cases {
        let expected = format!("`DIR/model.safetensors.index.json`: {what}");
        refused(&[(LIST, text.as_bytes())], &expected, "download it again");
    }
    refused(
        &[(LIST, b"{\"\xff\": 1}")],
        "`DIR/model.safetensors.index.json`: expected UTF-8 text, found other bytes after byte 2",
        "save it as UTF-8, or download it again",
    );
}

#[test]
fn unknown_types_are_an_error_when_asked_for() {
    let header = format!(
        r#"{{{},"b":{{"dtype":"F8_E4M3","shape":[2],"data_offsets":[4,6]}},"c":{{"dtype":"Q4_K","shape":[2],"data_offsets":[6,7]}}}}"#,
        f32("a", "[1]", 0, 4)
    );
    let dir = dir(&[("model.safetensors", &file(&header, 7))]);
    let (index, checkpoint) = open(dir.path()).unwrap();
    assert_eq!(index.get("b").unwrap().dtype, StoredType::Unknown("F8_E4M3".into()));
    assert_eq!(index.get("c").unwrap().dtype.to_string(), "Q4_K");
    assert_eq!(checkpoint.array("a").unwrap().bytes(), [0, 1, 2, 3]);
    let expected = "`DIR/model.safetensors`: tensor `b`: expected a type such as float32, float16 or bfloat16, found \
                    F8_E4M3\n = help: quantised checkpoints are not read; convert it to one of these types";
    assert_eq!(message(&checkpoint.array("b").unwrap_err(), dir.path()), expected);
    let expected = "expected a tensor `aa` in `DIR`, found none\n = help: did you mean `a`?".to_owned();
    assert_eq!(message(&checkpoint.array("aa").unwrap_err(), dir.path()), expected);
    // Its size is known, though smelt does not compute with it.
    let header = r#"{"b":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,1]}}"#;
    one_refused(
        &file(header, 1),
        "`DIR/model.safetensors`: tensor `b`: expected 2 bytes for [2] of F8_E4M3, found 1 at offsets [0, 1]",
        WRITER,
    );
}

#[test]
fn unusual_tensors_that_are_right() {
    let header = format!(
        r#"{{"__metadata__":{{"format":"pt"}},{},{},{},"":{{"dtype":"BOOL","shape":[2],"data_offsets":[4,6],"new":[{{}}]}}}}   "#,
        f32("zero", "[3,0,2]", 4, 4),
        f32("huge zero", "[18446744073709551615,0]", 0, 0),
        f32("scalar", "[]", 0, 4),
    );
    let dir = dir(&[("model.safetensors", &file(&header, 6))]);
    let (index, checkpoint) = open(dir.path()).unwrap();
    assert_eq!(index.len(), 4);
    let scalar = checkpoint.array("scalar").unwrap();
    assert_eq!((scalar.dtype(), scalar.shape(), scalar.len()), (DType::F32, &[][..], 1));
    let zero = checkpoint.array("zero").unwrap();
    assert_eq!((zero.shape(), zero.len()), (&[3, 0, 2][..], 0));
    assert_eq!(checkpoint.array("").unwrap().to_i64(), Some(vec![4, 5]));
    assert_eq!(index.get("huge zero").unwrap().shape, [usize::MAX, 0]);
    assert!(checkpoint.array("huge zero").unwrap().is_empty());
    let none = TempDir::new().unwrap();
    fs::write(none.path().join("model.safetensors"), file("{}", 0)).unwrap();
    assert!(open(none.path()).unwrap().0.is_empty());
}

#[test]
fn files_that_change_after_they_were_indexed() {
    let dir = dir(&[("model.safetensors", &shard("a"))]);
    let repository = Repository::open(dir.path()).unwrap();
    let index = Index::open(&repository).unwrap();
    let path = dir.path().join("model.safetensors");
    let help = "\n = help: start again when the download has ended";
    fs::write(&path, b"").unwrap();
    let error = Checkpoint::map(&repository, &index).unwrap_err();
    let expected =
        "`DIR/model.safetensors` has changed since its header was read: expected 66 bytes, found 0";
    assert_eq!(message(&error, dir.path()), format!("{expected}{help}"));
    fs::remove_file(&path).unwrap();
    let error = Checkpoint::map(&repository, &index).unwrap_err();
    let expected = "`DIR/model.safetensors` has gone since its header was read";
    assert_eq!(message(&error, dir.path()), format!("{expected}{help}"));
}

#[cfg(unix)]
#[test]
fn links_are_followed_and_dangling_ones_named() {
    use std::os::unix::fs::symlink;
    let blobs = dir(&[("0123", &shard("a"))]);
    let snapshot = dir(&[]);
    let link = snapshot.path().join("model.safetensors");
    symlink(blobs.path().join("0123"), &link).unwrap();
    assert_eq!(open(snapshot.path()).unwrap().0.len(), 1);
    fs::remove_file(blobs.path().join("0123")).unwrap();
    let error = open(snapshot.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    let expected = format!(
        "`{}` is a link to a file that does not exist\n = help: download the model again",
        link.display()
    );
    assert_eq!(error.to_string(), expected);
}

#[test]
fn a_folder_has_a_checkpoint_of_its_own() {
    let dir = dir(&[]);
    fs::create_dir(dir.path().join("2_Dense")).unwrap();
    fs::write(dir.path().join("2_Dense/model.safetensors"), shard("linear.weight")).unwrap();
    let repository = Repository::open(dir.path()).unwrap();
    let index = Index::open_in(&repository, "2_Dense").unwrap();
    assert_eq!(Checkpoint::map(&repository, &index).unwrap().array("linear.weight").unwrap().len(), 1);
    let error = Index::open_in(&repository, "../x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert_eq!(
        error.to_string().replace(&dir.path().display().to_string(), "DIR"),
        "expected a file inside `DIR`, found the name `../x/model.safetensors`\n = help: do not use this model"
    );
}

#[test]
fn bundles_are_read_as_they_were_written() {
    let dir = dir(&[]);
    let path = dir.path().join("out.safetensors");
    let tensors = [
        ("output.logits".to_owned(), vec![2, 1], BundleData::F32(vec![1.5, f32::NEG_INFINITY])),
        ("input_ids".to_owned(), vec![3], BundleData::I64(vec![-1, 0, i64::MAX])),
        ("none".to_owned(), vec![0, 4], BundleData::F32(vec![])),
    ];
    write_bundle(&path, &tensors).unwrap();
    let first = read_bundle(&path).unwrap();
    assert_eq!(first["output.logits"].to_f32(), [1.5, f32::NEG_INFINITY]);
    assert_eq!(first["input_ids"].to_i64(), Some(vec![-1, 0, i64::MAX]));
    assert_eq!(first["none"].shape(), [0, 4]);
    // Written again while it is mapped: what was read stays.
    write_bundle(&path, &[("x".to_owned(), vec![], BundleData::F32(vec![1.0]))]).unwrap();
    assert_eq!(first["output.logits"].to_f32(), [1.5, f32::NEG_INFINITY]);
    assert_eq!(read_bundle(&path).unwrap().len(), 1);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

    let wrong = |tensors: &[(String, Vec<usize>, BundleData)]| {
        let error = write_bundle(&path, tensors).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Input);
        error.to_string().replace(&path.display().to_string(), "OUT")
    };
    let x = ("x".to_owned(), vec![3, 1], BundleData::F32(vec![1.0]));
    let expected = "cannot write `OUT`: tensor `x`: expected the elements of [3, 1], found 1";
    assert_eq!(wrong(&[x]), expected);
    let x = ("x".to_owned(), vec![1], BundleData::F32(vec![1.0]));
    assert_eq!(wrong(&[x.clone(), x]), "cannot write `OUT`: expected each tensor once, found `x` twice");
    let missing = dir.path().join("none");
    let error = read_bundle(&missing).unwrap_err();
    let cause = fs::metadata(&missing).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert_eq!(error.to_string(), format!("cannot open `{}`: {cause}", missing.display()));
    fs::write(&path, &shard("a")[..20]).unwrap();
    let expected =
        format!("`{}` is cut off: expected a header of 54 bytes, found 12\n = help: {AGAIN}", path.display());
    assert_eq!(read_bundle(&path).unwrap_err().to_string(), expected);
}

/// A name may stand in a message only on one line and in part.
#[test]
fn long_and_strange_names_are_cut() {
    let name = format!("\\u0000\\n{}", "x".repeat(10_000));
    let dir = dir(&[("model.safetensors", &file(&format!("{{{}}}", f32(&name, "[1]", 0, 8)), 8))]);
    let text = open(dir.path()).unwrap_err().to_string();
    assert!(text.len() < 1000 && !text.contains('\0') && text.lines().count() == 2, "{text}");
}

#[test]
fn no_change_of_a_header_panics() {
    let header = format!(
        r#"{{"__metadata__":{{"format":"pt"}},{},{},"c":{{"dtype":"I64","shape":[1,2],"data_offsets":[12,28]}}}}"#,
        f32("a", "[]", 0, 4),
        f32("b", "[2,1]", 4, 12)
    );
    let whole = file(&header, 28);
    // In memory, as some thousand files on a disk take seconds.
    let try_all = |bytes: &[u8]| {
        let repository = Repository::from_files("DIR", [("model.safetensors", bytes.to_vec())]);
        let Ok(index) = Index::open(&repository) else { return false };
        let checkpoint = Checkpoint::map(&repository, &index).unwrap();
        for (name, entry) in index.iter() {
            if let Ok(array) = checkpoint.array(name) {
                assert_eq!(array.shape(), entry.shape);
                array.to_f32();
            }
        }
        true
    };
    assert!(try_all(&whole));
    for i in 0..whole.len() {
        assert!(!try_all(&whole[..i]), "cut at {i}");
        let dir = dir(&[("model.safetensors", &whole[..i])]);
        assert!(open(dir.path()).is_err(), "cut at {i}");
    }
    let replacements = b"\0\xff \"{}[],:-.0129eFx\\";
    for i in 0..8 + header.len() {
        let mut bytes = whole.clone();
        for bit in 0..8 {
            bytes[i] = whole[i] ^ (1 << bit);
            try_all(&bytes);
        }
        for replacement in replacements {
            bytes[i] = *replacement;
            try_all(&bytes);
        }
        let mut shorter = whole.clone();
        shorter.remove(i);
        try_all(&shorter);
    }
}
