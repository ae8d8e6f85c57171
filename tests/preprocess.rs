//! Images and sounds, as files: what networks see of them, and what models answer, beside what transformers does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use smelt::plan::Config;
use smelt::preprocess::ImageProcessor;
use smelt::tensor::Array;
use smelt::weights::{Repository, read_bundle};
use smelt::{ErrorKind, Image, Model};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn media(file: &str) -> PathBuf {
    golden().join("media").join(file)
}

fn cases(kind: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(media("cases.json")).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()[kind].as_array().unwrap().clone()
}

fn expected() -> BTreeMap<String, Array> {
    read_bundle(&media("expected.safetensors")).unwrap()
}

/// A directory with these settings and nothing else.
fn settings(text: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("preprocessor_config.json"), text).unwrap();
    folder
}

fn processor(dir: &Path) -> smelt::Result<ImageProcessor> {
    ImageProcessor::open(&Repository::open(dir)?, &Config::parse("config.json", "{}")?)
}

#[test]
fn pixel_values_are_those_of_transformers() {
    let expected = expected();
    for case in cases("images") {
        let name = case["name"].as_str().unwrap();
        let image = Image::open(media(case["image"].as_str().unwrap())).unwrap();
        let folder = settings(&case["settings"].to_string());
        let dir = case["directory"].as_str().map_or(folder.path().to_owned(), |dir| golden().join(dir));
        let values = processor(&dir).unwrap().pixel_values(&[image]).unwrap();
        let reference = &expected[&format!("{name}.pixel_values")];
        let [1, 3, height, width] = *values.shape() else { panic!("{name}: {:?}", values.shape()) };
        let kept = height.div_ceil(reference.shape()[2]); // every how many rows are kept
        let rows = values.to_f32();
        let rows =
            rows.chunks_exact(height * width).flat_map(|plane| plane.chunks_exact(width).step_by(kept));
        let found: Vec<f32> = rows.flatten().copied().collect();
        let reference = reference.to_f32();
        assert_eq!(found.len(), reference.len(), "{name}");
        if name.ends_with(".png") {
            assert!(found == reference, "{name}: not the same bits");
            continue;
        }
        // JPEG leaves roundings to the decoder. One step is one of 255.
        let uniform = |x| Image::from_rgb(64, 64, vec![x; 64 * 64 * 3]).unwrap();
        let ends = [0, 255].map(|x| processor(&dir).unwrap().pixel_values(&[uniform(x)]).unwrap().to_f32());
        let steps = |i: usize| {
            let colour = i * 3 / found.len();
            let [least, most] = [0, 1].map(|end| ends[end][colour * ends[end].len() / 3]);
            (found[i] - reference[i]).abs() * 255.0 / (most - least)
        };
        let differences: Vec<f32> = (0..found.len()).map(steps).collect();
        let largest = differences.iter().copied().fold(0.0, f32::max);
        let mean = differences.iter().sum::<f32>() / differences.len() as f32;
        println!("{name}: by at most {largest:.2} of 255, by {mean:.3} in the mean");
        assert!(largest < 3.5 && mean < 0.5, "{name}: by {largest} of 255, by {mean} in the mean");
    }
}

#[test]
fn images_are_classified_embedded_and_described() {
    let expected = expected();
    let mut seen = 0;
    for case in cases("images") {
        let (Some(dir), name) = (case["directory"].as_str(), case["name"].as_str().unwrap()) else {
            continue;
        };
        let model = Model::open(golden().join(dir)).unwrap();
        let image = Image::open(media(case["image"].as_str().unwrap())).unwrap();
        let labels: Vec<&str> =
            case["labels"].as_array().into_iter().flatten().map(|l| l.as_str().unwrap()).collect();
        let found: Vec<(String, f32)> = match model.task() {
            Some("image_embedding") => {
                let vector = model.embed_images(&[image.clone(), image], None).unwrap().remove(1).vector;
                vector.into_iter().enumerate().map(|(i, x)| (format!("LABEL_{i}"), x)).collect()
            }
            task => {
                let mut answers = match task {
                    Some("similarity") => model.describe_images(&[image], &labels).unwrap(),
                    _ => model.classify_images(&[image]).unwrap(),
                };
                let found = answers.remove(0).labels;
                assert!(found.windows(2).all(|pair| pair[0].score >= pair[1].score), "the best first");
                found.into_iter().map(|label| (label.label, label.score)).collect()
            }
        };
        let reference = expected
            .get(&format!("{name}.probabilities"))
            .unwrap_or_else(|| &expected[&format!("{name}.image_embeds")])
            .to_f32();
        assert_eq!(found.len(), reference.len(), "{name}");
        // The network is good to 1e-4; what a decoder of JPEG rounds otherwise makes more, in vectors of size 1 to 3.
        let tolerance = if name.ends_with(".png") { 1e-4 } else { 0.1 };
        for (label, score) in found {
            let i = labels.iter().position(|l| *l == label).unwrap_or_else(|| label[6..].parse().unwrap());
            assert!((score - reference[i]).abs() < tolerance, "{name}: {score} instead of {}", reference[i]);
        }
        seen += 1;
    }
    assert_eq!(seen, 10);
}

#[test]
fn what_is_not_implemented_is_refused() {
    let known = |rest: &str| {
        let cases = cases("images");
        let class = cases[0]["settings"]["image_processor_type"].as_str().unwrap().to_owned();
        format!("{{\"image_processor_type\": \"{class}\"{rest}}}")
    };
    let cases = [
        (known(", \"size\": {\"shortest_edge\": 30, \"longest_edge\": 40}"), "`size`: expected"),
        (known(", \"size\": 0"), "`size`: expected"),
        (known(", \"size\": -5"), "`size`: expected"),
        (known(", \"size\": 1e300"), "`size`: expected"),
        (known(", \"size\": 99999999999999999999"), "`size`: expected"),
        (known(", \"size\": {\"height\": 1, \"width\": 9223372036854775807}"), "`size`: expected"),
        (known(", \"size\": {\"height\": 30}"), "`size`: expected"),
        (known(", \"resample\": 0"), "`resample`: expected"),
        (known(", \"resample\": \"bicubic\""), "`resample`: expected"),
        (known(", \"do_resize\": 1"), "`do_resize`: expected true or false"),
        (known(", \"do_pad\": true"), "unsupported `do_pad`"),
        (known(", \"data_format\": \"channels_last\""), "unsupported `data_format`"),
        (known(", \"crop_pct\": 0.9"), "unsupported `crop_pct` (0.9)"),
        (known(", \"do_resise\": false"), "did you mean `do_resize`?"),
        (known(", \"image_mean\": [0.5, 0.5]"), "`image_mean`: expected a list of three numbers"),
        (known(", \"image_mean\": [0.5, 0.5, 1e300]"), "`image_mean`: expected"),
        (known(", \"image_std\": [0.5, 0, 0.5]"), "other than zero"),
        (known(", \"rescale_factor\": \"a\""), "`rescale_factor`: expected a number"),
        (known(", \"do_center_crop\": true, \"crop_size\": {\"shortest_edge\": 3}"), "`crop_size`: expected"),
        (known(", \"do_resize\": true, \"do_resize\": false"), "repeated key `do_resize`"),
        ("{\"image_processor_type\": \"MyImageProcessor\"}".into(), "found `MyImageProcessor`"),
        ("{}".into(), "it names no processor"),
        ("[]".into(), "expected a map"),
        ("{".into(), "preprocessor_config.json"),
        ("[".repeat(100_000), "preprocessor_config.json"),
    ];
    for (text, part) in cases {
        let message = processor(settings(&text).path()).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
    let empty = tempfile::tempdir().unwrap();
    assert!(processor(empty.path()).unwrap_err().to_string().contains("no `"));

    let image = Image::from_rgb(40, 30, vec![7; 3600]).unwrap();
    let limits = [
        (", \"size\": 89000000", ErrorKind::Limit),
        (", \"size\": {\"height\": 3, \"width\": 80000000}", ErrorKind::Limit),
        (", \"do_center_crop\": true, \"crop_size\": 500", ErrorKind::Input),
    ];
    for (rest, kind) in limits {
        let found =
            processor(settings(&known(rest)).path()).unwrap().pixel_values(std::slice::from_ref(&image));
        assert_eq!(found.unwrap_err().kind(), kind, "{rest}");
    }
    let as_is = processor(settings(&known(", \"do_resize\": false")).path()).unwrap();
    assert!(as_is.pixel_values(&[]).unwrap_err().to_string().contains("at least one image"));
    let other = Image::from_rgb(30, 40, vec![7; 3600]).unwrap();
    assert!(as_is.pixel_values(&[image, other]).unwrap_err().to_string().contains("images of one size"));
}

/// A file with these bytes, and what opening it gives.
fn opened<T>(bytes: &[u8], open: impl Fn(&Path) -> smelt::Result<T>) -> smelt::Result<T> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, bytes).unwrap();
    open(&file)
}

/// Bytes changed in one place, all over the front and here and there behind it, and cut off.
fn spoilt(bytes: &[u8]) -> Vec<Vec<u8>> {
    let places = (0..bytes.len().min(120)).chain((120..bytes.len()).step_by(bytes.len() / 60 + 1));
    let mut all = Vec::new();
    for at in places {
        for change in [0x00, 0xff, bytes[at] ^ 0x01, bytes[at] ^ 0x80] {
            let mut other = bytes.to_vec();
            other[at] = change;
            all.push(other);
        }
        all.push(bytes[..at].to_vec());
    }
    all
}

#[test]
fn broken_images_are_errors() {
    let open = |path: &Path| Image::open(path);
    for file in ["palette.png", "grey.jpg", "photo.jpg"] {
        let bytes = std::fs::read(media(file)).unwrap();
        let spoilt = spoilt(&bytes);
        let (mut refused, count) = (0, spoilt.len());
        for other in spoilt {
            // Whatever it is now, it is no panic, and not larger than allowed.
            match opened(&other, open) {
                Ok(image) => assert!(image.width() * image.height() <= Image::MAX_PIXELS),
                Err(_) => refused += 1,
            }
        }
        assert!(refused > count / 4, "{file}: {refused} of {count}");
        for end in [0, 1, 10, bytes.len() / 2] {
            let error = opened(&bytes[..end], open).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Input | ErrorKind::Unsupported), "{file}: {error}");
        }
    }
    // A width and a height that no memory holds, with their check sum.
    let mut huge = std::fs::read(media("palette.png")).unwrap();
    huge[16..24].copy_from_slice(&[0x7f, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff]);
    let sum = check_sum(&huge[12..29]).to_be_bytes();
    huge[29..33].copy_from_slice(&sum);
    assert_eq!(opened(&huge, open).unwrap_err().kind(), ErrorKind::Limit);
    huge[16..24].copy_from_slice(&[0, 0, 0x27, 0x10, 0, 0, 0x27, 0x10]);
    let sum = check_sum(&huge[12..29]).to_be_bytes();
    huge[29..33].copy_from_slice(&sum);
    let error = opened(&huge, open).unwrap_err().to_string();
    assert!(error.contains("at most 89478485 pixels, found 10000 x 10000"), "{error}");
    for (file, part) in
        [("transparent.png", "without transparency"), ("cases.json", "expected a PNG or JPEG")]
    {
        assert!(Image::open(media(file)).unwrap_err().to_string().contains(part), "{file}");
    }
    assert_eq!(Image::open(media("none.png")).unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(Image::open(golden()).unwrap_err().kind(), ErrorKind::Io);
}

/// The check sum of a PNG chunk.
fn check_sum(bytes: &[u8]) -> u32 {
    let mut sum = u32::MAX;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg());
        }
    }
    !sum
}

fn smelt_run(arguments: &[&str]) -> std::process::Output {
    let program = env!("CARGO_BIN_EXE_smelt-run");
    let root = env!("CARGO_MANIFEST_DIR");
    std::process::Command::new(program)
        .args(arguments)
        .current_dir(root)
        .env("NO_COLOR", "1")
        .output()
        .unwrap()
}

fn stdout(output: &std::process::Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &std::process::Output) -> String {
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The directories of fixtures for a task, as `smelt-run` is given them.
fn directories(kind: &str, task: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for case in cases(kind) {
        let Some(dir) = case["directory"].as_str() else { continue };
        let dir = format!("tests/golden/{dir}");
        if !found.contains(&dir) && Model::open(&dir).unwrap().task() == Some(task) {
            found.push(dir);
        }
    }
    found
}

#[test]
fn the_program_sees() {
    let photo = "tests/golden/media/photo.jpg";
    let dir = &directories("images", "image_classification")[0];
    let text = stdout(&smelt_run(&["-m", dir, photo]));
    assert!(text.contains(" LABEL_") && text.lines().count() == 1, "{text}");
    assert_eq!(stdout(&smelt_run(&["-m", dir, "-n", "3", photo])).lines().count(), 3);
    let text = stdout(&smelt_run(&["-m", dir, "--json", photo, "tests/golden/media/colours.png"]));
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines.len(), &lines[0]["file"]), (2, &Value::from(photo)));
    assert!(lines[1]["labels"][0]["score"].as_f64().unwrap() > 0.14);
    assert!(stderr(&smelt_run(&["-m", dir, "--pair", photo, photo])).contains("`--pair` is for texts"));
    assert!(stderr(&smelt_run(&["-m", dir, "none.jpg"])).contains("cannot open `none.jpg`"));

    let message = stderr(&smelt_run(&["-m", dir, "--task", "embed", photo]));
    assert!(message.contains("--pooling"), "{message}");
    let text = stdout(&smelt_run(&["-m", dir, "--task", "embed", "--pooling", "cls", "--json", photo]));
    let line: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(line["embedding"].as_array().unwrap().len(), 40);
    let dir = &directories("images", "image_embedding")[0];
    let text = stdout(&smelt_run(&["-m", dir, "--json", photo]));
    let line: Value = serde_json::from_str(&text).unwrap();
    assert!(line["embedding"].as_array().unwrap().len() > 20);

    let dir = &directories("images", "similarity")[0];
    let text = stdout(&smelt_run(&["-m", dir, "-n", "2", photo, "--label", "a cat", "--label", "a dog"]));
    assert!(text.contains(" a cat\n") && text.contains(" a dog\n"), "{text}");
    assert!(stderr(&smelt_run(&["-m", dir, photo])).contains("--label"));
}
