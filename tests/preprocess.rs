//! Images and sounds, as files: what networks see of them, and what models answer, beside what transformers does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use smelt::plan::Config;
use smelt::preprocess::{ImageProcessor, SoundProcessor};
use smelt::tensor::Array;
use smelt::weights::{Repository, read_bundle};
use smelt::{ErrorKind, Image, Model, Sound, Text, TranscribeOptions};

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
        // The network is good to 1e-4; what a decoder of JPEG rounds otherwise makes more, in vectors of size 1 to 3.
        let tolerance = if name.ends_with(".png") { 1e-4 } else { 0.1 };
        if model.task() == Some("similarity") {
            // One model has vectors of both sides.
            let texts: Vec<Text<'_>> = labels.iter().map(|label| (*label).into()).collect();
            for (side, vectors) in [
                ("text_embeds", model.embed(&texts, None).unwrap()),
                ("image_embeds", model.embed_images(std::slice::from_ref(&image), None).unwrap()),
            ] {
                let found: Vec<f32> = vectors.into_iter().flat_map(|embedding| embedding.vector).collect();
                let reference = expected[&format!("{name}.{side}")].to_f32();
                assert_eq!(found.len(), reference.len(), "{name}: {side}");
                let difference = found.iter().zip(&reference).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
                assert!(difference < tolerance, "{name}: {side} by {difference}");
            }
        }
        let found: Vec<(String, f32)> = match model.task() {
            Some("image_embedding" | "features") => {
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
        for (label, score) in found {
            let i = labels.iter().position(|l| *l == label).unwrap_or_else(|| label[6..].parse().unwrap());
            assert!((score - reference[i]).abs() < tolerance, "{name}: {score} instead of {}", reference[i]);
        }
        seen += 1;
    }
    assert_eq!(seen, 14);
}

#[test]
fn settings_may_be_part_of_another_file() {
    let case = &cases("images")[1]; // with settings that are not the defaults
    let alone = settings(&case["settings"].to_string());
    let other = settings(r#"{"do_resize": "of no use"}"#);
    let joint = serde_json::json!({"image_processor": case["settings"], "processor_class": "Anything"});
    std::fs::write(other.path().join("processor_config.json"), joint.to_string()).unwrap();
    let (alone, joined) = (processor(alone.path()).unwrap(), processor(other.path()).unwrap());
    assert_eq!(alone, joined);
    // A file without the part stands for nothing.
    std::fs::write(other.path().join("processor_config.json"), r#"{"processor_class": "Anything"}"#).unwrap();
    let message = processor(other.path()).unwrap_err().to_string();
    assert!(message.contains("/preprocessor_config.json`"), "{message}");
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
        (known(", \"use_square_size\": true"), "unsupported `use_square_size`"),
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

#[test]
fn null_is_no_value() {
    let cases = cases("images");
    let class = cases[0]["settings"]["image_processor_type"].as_str().unwrap();
    let with = |rest: &str| {
        let text = format!(r#"{{"image_processor_type": "{class}", "size": 20{rest}}}"#);
        processor(settings(&text).path())
    };
    for key in ["do_resize", "do_rescale", "do_normalize"] {
        let [null, off] = ["null", "false"].map(|x| with(&format!(", \"{key}\": {x}")).unwrap());
        assert_eq!(null, off, "{key}");
        assert_ne!(null, with("").unwrap(), "{key}");
    }
    // Without a default null says nothing, and a square is no longer one.
    for key in ["do_center_crop", "do_pad", "data_format", "do_convert_rgb", "crop_size"] {
        assert_eq!(with(&format!(", \"{key}\": null")).unwrap(), with("").unwrap(), "{key}");
    }
    let edge = with(", \"default_to_square\": null").unwrap();
    assert_eq!(edge, with(", \"default_to_square\": false").unwrap());
    for key in ["resample", "rescale_factor", "image_mean", "image_std"] {
        let message = with(&format!(", \"{key}\": null")).unwrap_err().to_string();
        assert!(message.contains(&format!("preprocessor_config.json`: `{key}`: expected")), "{message}");
        assert!(message.contains("found `null`"), "{message}");
    }
    let message =
        processor(settings(&format!(r#"{{"image_processor_type": "{class}", "size": null}}"#)).path());
    assert!(message.unwrap_err().to_string().contains("`size`: expected"));
    // Keys that change nothing are not missed, nor are values that are not needed.
    let unread = with(", \"use_square_size\": false, \"_valid_processor_keys\": [\"size\"]").unwrap();
    assert_eq!(unread, with("").unwrap());
    let rest =
        ", \"do_rescale\": false, \"rescale_factor\": null, \"do_normalize\": false, \"image_mean\": null";
    assert_eq!(with(rest).unwrap(), with(", \"do_rescale\": false, \"do_normalize\": false").unwrap());
}

/// A file with these bytes, and what opening it gives.
fn opened<T>(bytes: &[u8], open: impl Fn(&Path) -> smelt::Result<T>) -> smelt::Result<T> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, bytes).unwrap();
    open(&file)
}

#[test]
fn bytes_are_read_as_files_are() {
    for file in ["photo.jpg", "turned.png"] {
        let bytes = std::fs::read(media(file)).unwrap();
        assert_eq!(Image::from_bytes(&bytes).unwrap(), Image::open(media(file)).unwrap());
    }
    let bytes = std::fs::read(media("speech.wav")).unwrap();
    assert_eq!(Sound::from_bytes(&bytes).unwrap(), Sound::open(media("speech.wav")).unwrap());
    let error = Image::from_bytes(&bytes).unwrap_err();
    assert_eq!(error.to_string(), "expected a PNG or JPEG file");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let error = Sound::from_bytes(&bytes[..100]).unwrap_err();
    assert_eq!(error.to_string(), "broken sound: expected 24000 bytes of samples, found 56");
    assert_eq!(error.kind(), ErrorKind::Input);
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

/// A PNG file with one more chunk, before the one of this name.
fn with_chunk(bytes: &[u8], next: &[u8], name: &[u8], data: &[u8]) -> Vec<u8> {
    let at = bytes.windows(4).position(|window| window == next).unwrap() - 4;
    let chunk = [name, data].concat();
    let (size, sum) = ((data.len() as u32).to_be_bytes(), check_sum(&chunk).to_be_bytes());
    [&bytes[..at], &size, &chunk, &sum, &bytes[at..]].concat()
}

#[test]
fn images_are_turned_wherever_it_is_said() {
    let plain = std::fs::read(media("colours.png")).unwrap();
    let image = opened(&plain, |path| Image::open(path)).unwrap();
    let (width, height) = (image.width(), image.height());
    let exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"; // orientation 6
    let digits: String = exif.iter().map(|byte| format!("{byte:02x}")).collect();
    let raw = |digits: &str| {
        let (front, back) = digits.split_at(digits.len() / 2);
        format!("Raw profile type exif\0\nexif\n      {}\n{front}\n{back}\n", exif.len())
    };
    let xmp = |it: &str| format!("XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta {it}/>");
    let turned = xmp("a=\"tiff:Orientation\" tiff:Orientation=\"6\"");
    let cases: [(&[u8], &[u8]); 4] = [
        (b"eXIf", exif),
        (b"tEXt", &raw(&digits).into_bytes()),
        (b"iTXt", turned.as_bytes()),
        (b"tEXt", b"XML:com.adobe.xmp\0<tiff:Orientation>6</tiff:Orientation>"),
    ];
    for (name, data) in cases {
        for next in [&b"IDAT"[..], b"IEND"] {
            let found = opened(&with_chunk(&plain, next, name, data), |path| Image::open(path)).unwrap();
            assert_eq!((found.width(), found.height()), (height, width), "{name:?} before {next:?}");
            // The first row is the first column, from below.
            let below = (height - 1) * width * 3;
            assert_eq!(found.pixels()[..3], image.pixels()[below..below + 3]);
        }
    }
    // Of two segments of a JPEG file the first counts.
    let photo = std::fs::read(media("grey.jpg")).unwrap();
    let size = Image::from_bytes(&photo).unwrap();
    let segment = |orientation: u8| {
        let mut exif = exif.to_vec();
        exif[19] = orientation;
        let size = 8 + exif.len() as u8;
        [&[0xff, 0xe1, 0, size], &b"Exif\0\0"[..], &exif].concat()
    };
    for (two, width) in [([6, 1], size.height()), ([1, 6], size.width())] {
        let segments = two.map(segment).concat();
        let other = [&photo[..2], &segments, &photo[2..]].concat();
        assert_eq!(Image::from_bytes(&other).unwrap().width(), width, "{two:?}");
    }
    let upright = with_chunk(&plain, b"IEND", b"iTXt", xmp("tiff:Orientation=\"1\"").as_bytes());
    assert_eq!(opened(&upright, |path| Image::open(path)).unwrap(), image);
    // EXIF data count before XMP, and are hexadecimal in a text.
    let both = with_chunk(&upright, b"IDAT", b"eXIf", exif);
    assert_eq!(opened(&both, |path| Image::open(path)).unwrap().width(), height);
    let other = with_chunk(&plain, b"IEND", b"tEXt", raw("4d4g").as_bytes());
    let message = opened(&other, |path| Image::open(path)).unwrap_err().to_string();
    assert!(message.contains("no hexadecimal digits"), "{message}");
}

#[test]
fn long_jpeg_files_are_read() {
    // 17000 x 8 pixels of one grey: each block of 8 x 8 is two bits, with tables of one code each.
    let tables = [
        &b"\xff\xd8\xff\xdb\0\x43\0"[..],
        &[1; 64],
        b"\xff\xc0\0\x0b\x08\0\x08\x42\x68\x01\x01\x11\0",
        b"\xff\xc4\0\x14\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        b"\xff\xc4\0\x14\x10\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        b"\xff\xda\0\x08\x01\x01\0\0\x3f\0",
        &[0; 531],
        b"\x3f\xff\xd9",
    ];
    let image = opened(&tables.concat(), |path| Image::open(path)).unwrap();
    assert_eq!((image.width(), image.height()), (17_000, 8));
    assert!(image.pixels().iter().all(|x| *x == 128));
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

fn ear(text: &str) -> smelt::Result<SoundProcessor> {
    SoundProcessor::open(&Repository::open(settings(text).path())?, &Config::parse("config.json", "{}")?)
}

#[test]
fn input_features_are_those_of_transformers() {
    let expected = expected();
    let speech = Sound::open(media("speech.wav")).unwrap();
    for case in cases("sounds") {
        let (name, frames) = (case["name"].as_str().unwrap(), case["frames"].as_u64().unwrap() as usize);
        let rate = case["settings"]["sampling_rate"].as_u64().unwrap_or(16_000);
        let sound = Sound::from_samples(rate as u32, speech.samples().to_vec()).unwrap();
        let features = ear(&case["settings"].to_string()).unwrap().input_features(&[sound]).unwrap();
        let found = features.to_f32();
        // The spectra in float64 agree to the rounding of the result; transformers usually computes them in float32, where
        // quiet bands beside loud ones lose digits.
        for (precision, tolerance) in [("float64", 5e-7), ("float32", 5e-5)] {
            let reference = &expected[&format!("{name}.{precision}")];
            let [1, bins, kept] = *reference.shape() else { panic!("{name}") };
            assert_eq!(features.shape(), [1, bins, frames], "{name}");
            let rows = found.chunks_exact(frames).flat_map(|row| &row[..kept]);
            let largest = rows.zip(reference.to_f32()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            println!("{name}: {largest:.1e} from {precision}");
            assert!(largest < tolerance, "{name}: {largest} from {precision}");
        }
    }
}

#[test]
fn speech_is_written_down_as_transformers_does() {
    let sound = Sound::open(media("speech.wav")).unwrap();
    let mut seen = 0;
    for case in cases("speech") {
        let name = case["name"].as_str().unwrap();
        let folder = tempfile::tempdir().unwrap();
        for file in std::fs::read_dir(golden().join(case["directory"].as_str().unwrap())).unwrap().flatten() {
            std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
        }
        std::fs::write(folder.path().join("generation_config.json"), case["generation"].to_string()).unwrap();
        let model = Model::open(folder.path()).unwrap();
        let option = |key: &str| case["options"][key].as_str().map(str::to_owned);
        let options = TranscribeOptions {
            language: option("language"),
            task: option("task"),
            ..TranscribeOptions::default()
        };
        let found = model.transcribe(std::slice::from_ref(&sound), &options).unwrap().remove(0);
        let tokens: Vec<u32> =
            case["tokens"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        if case["generation"]["max_length"].is_null() {
            // Without a limit transformers stops after 20 tokens, smelt where the model's positions end.
            assert_eq!((&found.tokens[..20], found.tokens.len()), (&tokens[..], 29), "{name}");
        } else {
            assert_eq!(found.tokens, tokens, "{name}");
            assert_eq!(found.text, case["text"].as_str().unwrap(), "{name}");
        }
        if name == "told" {
            assert_eq!(found.language.as_deref(), Some("de"));
            let unknown = TranscribeOptions { language: Some("xx".into()), ..TranscribeOptions::default() };
            let message = model.transcribe(std::slice::from_ref(&sound), &unknown).unwrap_err().to_string();
            assert!(message.contains("unknown language `xx`: expected"), "{message}");
        }
        seen += 1;
    }
    assert_eq!(seen, 11);
}

#[test]
fn absurd_generation_settings_are_errors() {
    let case = &cases("speech")[0];
    let dir = golden().join(case["directory"].as_str().unwrap());
    let sound = Sound::open(media("speech.wav")).unwrap();
    let cases = [
        ("{}", "no `decoder_start_token_id`"),
        (r#"{"decoder_start_token_id": -1}"#, "expected a token id"),
        (r#"{"decoder_start_token_id": 4294967295}"#, "expected a token id"),
        (r#"{"decoder_start_token_id": 4000000}"#, "4000000"),
        (r#"{"decoder_start_token_id": 0, "num_beams": 5}"#, "unsupported `num_beams`"),
        (r#"{"decoder_start_token_id": 0, "return_timestamps": true}"#, "unsupported `return_timestamps`"),
        (r#"{"decoder_start_token_id": 0, "forced_decoder_ids": [[2, 5]]}"#, "for the places 1, 2"),
        (r#"{"decoder_start_token_id": 0, "forced_decoder_ids": 7}"#, "for the places 1, 2"),
        (r#"{"decoder_start_token_id": 0, "suppress_tokens": [1, "a"]}"#, "expected a token id, found `a`"),
        (r#"{"decoder_start_token_id": 0, "lang_to_id": [1]}"#, "expected ids by their names"),
        (r#"{"decoder_start_token_id": 0, "lang_to_id": {"<|en|>": 9000000}}"#, "9000000"),
        (r#"{"decoder_start_token_id": 0, "max_length": -3}"#, "`max_length`: expected a number from 0 on"),
        (r#"{"decoder_start_token_id": 0, "max_length": "8"}"#, "a number from 0 on, found the text `8`"),
        (
            r#"{"decoder_start_token_id": 0, "max_length": 8, "max_new_tokens": 8.0}"#,
            "generation_config.json`: `max_new_tokens`: expected a number from 0 on, found `8.0`",
        ),
        (r#"{"decoder_start_token_id": 0, "language": "en"}"#, "unknown language `en`"),
        (r#"{"decoder_start_token_id": 0, "task": "sing"}"#, "unknown task `sing`"),
    ];
    for (text, part) in cases {
        let folder = tempfile::tempdir().unwrap();
        for file in std::fs::read_dir(&dir).unwrap().flatten() {
            std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
        }
        std::fs::write(folder.path().join("generation_config.json"), text).unwrap();
        let model = Model::open(folder.path()).unwrap();
        let result = model.transcribe(std::slice::from_ref(&sound), &TranscribeOptions::default());
        let message = result.map(|found| found[0].text.clone()).unwrap_err().to_string();
        assert!(message.contains(part), "{text}: {message}");
    }
}

#[test]
fn settings_of_sounds_are_checked() {
    let cases = cases("sounds");
    let class = cases[0]["settings"]["feature_extractor_type"].as_str().unwrap();
    let cases = [
        (r#""sampling_rate": 0"#, "`sampling_rate`: expected"),
        (r#""sampling_rate": 16000.5"#, "`sampling_rate`: expected"),
        (r#""chunk_length": 99999999"#, "`chunk_length`: expected"),
        (r#""chunk_length": -1"#, "`chunk_length`: expected"),
        (r#""hop_length": 0"#, "`hop_length`: expected"),
        (r#""hop_length": 1, "n_fft": 60000"#, "`hop_length`: expected fewer frames"),
        (r#""feature_size": 1e9"#, "`feature_size`: expected"),
        (r#""n_fft": 0"#, "`n_fft`: expected"),
        (
            r#""n_fft": 60000, "sampling_rate": 1000, "chunk_length": 2, "hop_length": 2000"#,
            "`n_fft`: expected",
        ),
        (r#""padding_side": "left""#, "unsupported `padding_side`"),
        (r#""padding_side": null"#, "unsupported `padding_side`: expected `right`, found `null`"),
        (r#""n_fft": null"#, "`n_fft`: expected a whole number of 1 to 65536, found `null`"),
        (r#""dither": 0.001"#, "unsupported `dither`"),
        (r#""do_normalize": true"#, "unsupported `do_normalize`"),
        (r#""padding_value": 1e300"#, "`padding_value`: expected"),
        (r#""win_length": 400"#, "unsupported `win_length`"),
    ];
    for (rest, part) in cases {
        let message =
            ear(&format!(r#"{{"feature_extractor_type": "{class}", {rest}}}"#)).unwrap_err().to_string();
        assert!(message.contains(part), "{rest}: {message}");
    }
    let ear = ear(&format!(r#"{{"feature_extractor_type": "{class}", "chunk_length": 1}}"#)).unwrap();
    let sound = |rate, n| Sound::from_samples(rate, vec![0.5; n]).unwrap();
    let message = ear.input_features(&[sound(44_100, 9)]).unwrap_err().to_string();
    assert!(message.contains("expected a sound of 16000 samples a second, found 44100"), "{message}");
    let message = ear.input_features(&[sound(16_000, 16_001)]).unwrap_err().to_string();
    assert!(message.contains("at most 1 seconds"), "{message}");
    assert!(ear.input_features(&[]).is_err());
    assert_eq!(ear.input_features(&[sound(16_000, 1), sound(16_000, 16_000)]).unwrap().shape(), [2, 80, 100]);
    assert!(
        Sound::from_samples(16_000, vec![f32::NAN]).is_err() && Sound::from_samples(0, vec![1.0]).is_err()
    );
}

/// A WAV file.
fn wav(format: u16, channels: u16, bits: u16, data: &[u8]) -> Vec<u8> {
    let each = channels * bits / 8;
    let mut bytes = b"RIFF".to_vec();
    bytes.extend((36 + data.len() as u32).to_le_bytes());
    bytes.extend(b"WAVEfmt \x10\0\0\0");
    bytes.extend([format.to_le_bytes(), channels.to_le_bytes()].concat());
    bytes.extend([16_000u32.to_le_bytes(), (16_000 * u32::from(each)).to_le_bytes()].concat());
    bytes.extend([each.to_le_bytes(), bits.to_le_bytes()].concat());
    bytes.extend(b"data");
    bytes.extend((data.len() as u32).to_le_bytes());
    bytes.extend(data);
    bytes
}

#[test]
fn samples_are_read_and_broken_sounds_are_errors() {
    let open = |path: &Path| Sound::open(path);
    let cases: [(u16, u16, &[u8], [f32; 2]); 5] = [
        (1, 8, &[0, 192], [-1.0, 0.5]),
        (1, 16, &[0, 0x80, 0, 0x40], [-1.0, 0.5]),
        (1, 24, &[0, 0, 0x80, 0, 0, 0x40], [-1.0, 0.5]),
        (1, 32, &[0, 0, 0, 0x80, 0, 0, 0, 0x40], [-1.0, 0.5]),
        (3, 32, &[0, 0, 0x80, 0xbf, 0, 0, 0, 0x3f], [-1.0, 0.5]),
    ];
    for (format, bits, data, expected) in cases {
        let sound = opened(&wav(format, 1, bits, data), open).unwrap();
        assert_eq!((sound.rate(), sound.samples()), (16_000, &expected[..]), "{bits} bits");
    }
    let message = opened(&wav(1, 2, 16, &[0; 8]), open).unwrap_err().to_string();
    assert!(message.contains("one channel, found 2"), "{message}");
    assert!(opened(&wav(3, 1, 32, &[0, 0, 0xc0, 0x7f]), open).is_err(), "not a number");
    assert!(opened(&wav(1, 1, 16, &[]), open).is_err(), "no samples");
    // More data than there are.
    let sized = |riff: u32, data: u32| {
        let mut bytes = wav(1, 1, 16, &[0, 0x80, 0, 0x40, 0, 0x40]);
        bytes[4..8].copy_from_slice(&riff.to_le_bytes());
        bytes[40..44].copy_from_slice(&data.to_le_bytes());
        opened(&bytes, open)
    };
    for (size, kind) in [(0xffff_fff0, ErrorKind::Input), (8, ErrorKind::Input), (5, ErrorKind::Input)] {
        assert_eq!(sized(42, size).unwrap_err().kind(), kind, "{size}");
    }
    let message = sized(42, 8).unwrap_err().to_string();
    assert!(message.contains("expected 8 bytes of samples, found 6"), "{message}");
    // Programs that write to a pipe do not know how many there will be.
    for (riff, data) in [(0, 0), (u32::MAX, u32::MAX), (u32::MAX, 0), (42, u32::MAX)] {
        assert_eq!(sized(riff, data).unwrap().samples(), [-1.0, 0.5, 0.5]);
    }
    assert!(sized(42, 0).is_err() && sized(42, 2).unwrap().samples() == [-1.0]);
    // Chunks beside these two, also of odd sizes; and those that end behind the file.
    let listed = |size: u32, list: &[u8]| {
        let mut bytes = wav(1, 1, 16, &[0, 0x80]);
        let list = [b"LIST", &size.to_le_bytes()[..], list].concat();
        bytes.splice(36..36, list);
        opened(&bytes, open)
    };
    for (size, list) in [(0, &b""[..]), (4, b"INFO"), (5, b"INFOx\0")] {
        assert_eq!(listed(size, list).unwrap().samples(), [-1.0], "{size}");
    }
    for size in [5, 9, u32::MAX] {
        let message = listed(size, b"INFO").unwrap_err().to_string();
        assert!(message.contains("it ends before its samples"), "{message}");
    }
    // The longer form says how many bits are in use: the upper ones.
    let longer = |bits: u16, kind: u16, data: &[u8], end: u8| {
        let mut bytes = wav(0xfffe, 1, bits, data);
        bytes[16] = 40;
        let kind = kind.to_le_bytes();
        let rest = [
            &[22, 0, 20, 0, 4, 0, 0, 0, kind[0], kind[1]],
            &b"\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b"[..],
            &[end],
        ];
        bytes.splice(36..36, rest.concat());
        opened(&bytes, open)
    };
    let data = [0, 0, 0, 0x80, 0, 0, 0, 0x40];
    assert_eq!(longer(32, 1, &data, 0x71).unwrap().samples(), [-1.0, 0.5]);
    assert_eq!(longer(24, 1, &data[1..7], 0x71).unwrap().samples(), [-1.0, 0.0]);
    assert_eq!(longer(32, 3, &data, 0x71).unwrap().samples(), [-0.0, 2.0]);
    assert_eq!(longer(32, 1, &data, 0x70).unwrap_err().kind(), ErrorKind::Unsupported);
    let refused = [
        (3, 64, "or float32, found float64"),
        (1, 64, "found whole numbers of 64 bits"),
        (1, 12, "found whole numbers of 12 bits"),
        (7, 8, "found samples of the kind 7"),
        (0xfffe, 16, "found samples of the kind 65534"),
    ];
    for (kind, bits, part) in refused {
        let message = opened(&wav(kind, 1, bits, &[0; 16]), open).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
    let mut other = wav(1, 1, 16, &[0; 4]);
    other[32] = 4;
    assert!(opened(&other, open).unwrap_err().to_string().contains("found 16 bits in 4 bytes"));
    other[32] = 2;
    other[24..28].fill(0);
    assert!(opened(&other, open).unwrap_err().to_string().contains("one sample a second, found 0"));
    let whole = wav(1, 1, 16, &[7; 40]);
    for other in spoilt(&whole) {
        if let Ok(sound) = opened(&other, open) {
            assert!(sound.samples().len() <= 40);
        }
    }
    assert_eq!(opened(b"no sound", open).unwrap_err().kind(), ErrorKind::Input);
    assert_eq!(Sound::open(media("none.wav")).unwrap_err().kind(), ErrorKind::Io);
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
    assert!(
        stderr(&smelt_run(&["-m", dir, "--pair", photo, photo])).contains("`--pair` is for models that read")
    );
    assert!(stderr(&smelt_run(&["-m", dir, "none.jpg"])).contains("cannot open `none.jpg`"));
    assert!(stderr(&smelt_run(&["-m", dir, "--label", "a cat", photo])).contains("`--label` is for models"));
    assert!(
        stderr(&smelt_run(&["-m", dir, "--language", "en", photo])).contains("`--language` is for models")
    );

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

#[test]
fn the_program_hears() {
    let speech = "tests/golden/media/speech.wav";
    let dir = &directories("speech", "speech_recognition")[0];
    let text = stdout(&smelt_run(&["-m", dir, speech, "--max-tokens", "9"]));
    assert!(text.starts_with('#') && text.lines().count() == 1, "{text}");
    let text = stdout(&smelt_run(&["-m", dir, "--json", speech, speech]));
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines.len(), &lines[1]["file"]), (2, &Value::from(speech)));
    assert_eq!(lines[0]["generated"], lines[1]["generated"]);
    let message = stderr(&smelt_run(&["-m", dir, speech, "--language", "de"]));
    assert!(message.contains("unknown language `de`: expected none to be chosen"), "{message}");
    assert!(stderr(&smelt_run(&["-m", dir, "tests/golden/media/photo.jpg"])).contains("no WAV file"));
}
