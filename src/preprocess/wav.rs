//! WAV files to samples.

use std::fs::File;
use std::io::{BufReader, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use hound::{Error as WavError, SampleFormat, WavReader};

use super::sound::Sound;
use crate::error::{Error, ErrorKind, Result};

pub(super) fn open(path: &Path) -> Result<Sound> {
    let named = |kind, what: String| Error::new(kind, format!("`{}`: {what}", path.display()));
    let file = File::open(path).map_err(|e| Error::io(path, &e))?;
    // The reader is safe code, but not ours: whatever a file makes it do, it is an error.
    match catch_unwind(AssertUnwindSafe(|| read(BufReader::new(file)))) {
        Ok(Ok(sound)) => Ok(sound),
        Ok(Err((kind, what))) => Err(named(kind, what)),
        Err(_) => Err(named(ErrorKind::Input, "broken sound: the reader failed".into())),
    }
}

fn read(file: impl Read) -> std::result::Result<Sound, (ErrorKind, String)> {
    let wrong = |e: WavError| match e {
        WavError::IoError(e)
            if e.kind() != std::io::ErrorKind::UnexpectedEof && e.raw_os_error().is_some() =>
        {
            (ErrorKind::Io, e.to_string())
        }
        WavError::Unsupported => {
            (ErrorKind::Unsupported, "expected a WAV file of samples, found a compressed one".into())
        }
        e => (ErrorKind::Input, format!("broken sound, or no WAV file: {e}")),
    };
    let mut reader = WavReader::new(file).map_err(wrong)?;
    let spec = reader.spec();
    if spec.channels != 1 {
        let message = format!("expected a sound of one channel, found {}", spec.channels);
        return Err((ErrorKind::Unsupported, message));
    }
    if reader.len() as usize > Sound::MAX_SAMPLES {
        let message = format!("expected at most {} samples, found {}", Sound::MAX_SAMPLES, reader.len());
        return Err((ErrorKind::Limit, message));
    }
    let samples: std::result::Result<Vec<f32>, WavError> = match (spec.sample_format, spec.bits_per_sample) {
        (SampleFormat::Float, 32) => reader.samples::<f32>().collect(),
        (SampleFormat::Int, bits @ (8 | 16 | 24 | 32)) => {
            let whole = f64::from(1u32 << (bits - 1));
            reader.samples::<i32>().map(|x| Ok((f64::from(x?) / whole) as f32)).collect()
        }
        (_, bits) => return Err((ErrorKind::Unsupported, format!("unsupported samples of {bits} bits"))),
    };
    let found = samples.map_err(wrong)?;
    Sound::from_samples(spec.sample_rate, found).map_err(|e| (ErrorKind::Input, format!("broken sound: {e}")))
}
