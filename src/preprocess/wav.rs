//! WAV files to samples.

use std::path::Path;

use super::file::{self, Wrong};
use super::sound::Sound;
use crate::error::{ErrorKind, Result};

/// Bytes that a file may have: those of the samples, and room for what stands beside them.
const MAX_BYTES: u64 = 4 * Sound::MAX_SAMPLES as u64 + (1 << 20);

/// What follows the kind of samples in its longer form.
const IDENTIFIER: &[u8] = b"\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71";

/// The size that programs write where they do not know it yet, because they write to a pipe.
const UNKNOWN: u32 = u32::MAX;

pub(super) fn open(path: &Path) -> Result<Sound> {
    file::read(path, MAX_BYTES, decode)
}

/// A file is `RIFF`, a size, `WAVE`, and then chunks. `fmt ` says what samples there are, and `data` has them.
pub(super) fn decode(bytes: &[u8]) -> std::result::Result<Sound, Wrong> {
    let broken = |what: &str| Wrong(ErrorKind::Input, format!("broken sound: {what}"));
    let (Some(b"RIFF"), Some(riff), Some(b"WAVE")) = (bytes.get(..4), long(bytes, 4), bytes.get(8..12))
    else {
        return Err(Wrong(ErrorKind::Input, "no WAV file: expected `RIFF`, a size and `WAVE` first".into()));
    };
    let mut format = None;
    let mut rest = &bytes[12..];
    loop {
        let (Some(name), Some(size)) = (rest.get(..4), long(rest, 4)) else {
            return Err(broken("it ends before its samples"));
        };
        rest = &rest[8..];
        let whole = rest.get(..size as usize);
        match name {
            b"fmt " => {
                let fields = whole.ok_or_else(|| broken("it ends within its format"))?;
                format = Some(Format::read(fields)?);
            }
            b"data" => {
                let format = format.ok_or_else(|| broken("expected a chunk `fmt ` before its samples"))?;
                let streamed = size == UNKNOWN || (size == 0 && matches!(riff, 0 | UNKNOWN));
                let data = if streamed { rest } else { whole.unwrap_or(rest) };
                if data.len() / format.bytes > Sound::MAX_SAMPLES {
                    let most = Sound::MAX_SAMPLES;
                    return Err(Wrong(ErrorKind::Limit, format!("expected at most {most} samples")));
                }
                if !streamed && whole.is_none() {
                    let found = data.len();
                    return Err(broken(&format!("expected {size} bytes of samples, found {found}")));
                }
                if data.len() % format.bytes != 0 {
                    return Err(broken("its last sample is not whole"));
                }
                return Sound::from_samples(format.rate, format.samples(data))
                    .map_err(|e| broken(&e.to_string()));
            }
            _ => {}
        }
        // Chunks begin at even places.
        let skipped = (size as usize).saturating_add(size as usize % 2);
        rest = rest.get(skipped..).ok_or_else(|| broken("it ends before its samples"))?;
    }
}

/// How samples are stored.
struct Format {
    rate: u32,
    float: bool,
    /// Bytes of a sample.
    bytes: usize,
}

impl Format {
    /// What the chunk `fmt ` says: kind, channels, rate, bytes a second, bytes and bits of a sample. The longer form of it has the
    /// number of bits in use, of no use as they are the upper ones, and the kind at the beginning of an identifier.
    fn read(fields: &[u8]) -> std::result::Result<Format, Wrong> {
        let number = |at: usize| {
            short(fields, at)
                .ok_or_else(|| Wrong(ErrorKind::Input, "broken sound: its format is too short".into()))
        };
        let unsupported = |found: String| {
            let expected = "whole numbers of 8, 16, 24 or 32 bits, or float32";
            Err(Wrong(ErrorKind::Unsupported, format!("expected {expected}, found {found}")))
        };
        let (kind, channels, bytes, bits) = (number(0)?, number(2)?, number(12)?, number(14)?);
        let kind = match kind {
            0xfffe if fields.get(26..40) == Some(IDENTIFIER) => number(24)?,
            kind => kind,
        };
        if channels != 1 {
            let message = format!("expected a sound of one channel, found {channels}");
            return Err(Wrong(ErrorKind::Unsupported, message));
        }
        let float = match (kind, bits) {
            (1, 8 | 16 | 24 | 32) => false,
            (3, 32) => true,
            (1, _) => return unsupported(format!("whole numbers of {bits} bits")),
            (3, _) => return unsupported(format!("float{bits}")),
            _ => return unsupported(format!("samples of the kind {kind}")),
        };
        if bytes != bits / 8 {
            return unsupported(format!("{bits} bits in {bytes} bytes"));
        }
        let rate = u32::from(number(4)?) | u32::from(number(6)?) << 16;
        Ok(Format { rate, float, bytes: bytes.into() })
    }

    fn samples(&self, data: &[u8]) -> Vec<f32> {
        let sample = |bytes: &[u8]| {
            // At the upper end of 32 bits.
            let mut whole = [0; 4];
            whole[4 - bytes.len()..].copy_from_slice(bytes);
            match self.bytes {
                // Those of 8 bits have no sign.
                1 => (f32::from(bytes[0]) - 128.0) / 128.0,
                _ if self.float => f32::from_le_bytes(whole),
                _ => (f64::from(i32::from_le_bytes(whole)) / f64::from(1u32 << 31)) as f32,
            }
        };
        data.chunks_exact(self.bytes).map(sample).collect()
    }
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
