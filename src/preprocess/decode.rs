//! PNG and JPEG files to pixels.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use png::{BitDepth, ColorType, Limits, Transformations};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::exif::{orientation, upright};
use super::file::{self, Wrong};
use super::image::Image;
use crate::error::{ErrorKind, Result};

/// Bytes that a file may have.
const MAX_BYTES: u64 = 256 << 20;

type Decoded = std::result::Result<Image, Wrong>;

pub(super) fn open(path: &Path) -> Result<Image> {
    file::read(path, MAX_BYTES, decode)
}

pub(super) fn decode(bytes: &[u8]) -> Decoded {
    // The decoders are safe code, but theirs: whatever bytes make them do, it is an error.
    catch_unwind(AssertUnwindSafe(|| by_format(bytes))).unwrap_or_else(|_| Err(broken("the decoder failed")))
}

fn by_format(bytes: &[u8]) -> Decoded {
    if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        of_png(bytes)
    } else if bytes.starts_with(b"\xff\xd8\xff") {
        of_jpeg(bytes)
    } else {
        Err(Wrong(ErrorKind::Unsupported, "expected a PNG or JPEG file".into()))
    }
}

fn broken(cause: impl std::fmt::Display) -> Wrong {
    Wrong(ErrorKind::Input, format!("broken image: {cause}"))
}

fn check_size(width: usize, height: usize) -> std::result::Result<(), Wrong> {
    match width.checked_mul(height) {
        Some(n) if n <= Image::MAX_PIXELS => Ok(()),
        _ => {
            let most = Image::MAX_PIXELS;
            Err(Wrong(ErrorKind::Limit, format!("expected at most {most} pixels, found {width} x {height}")))
        }
    }
}

fn finished(
    width: usize,
    height: usize,
    pixels: Vec<u8>,
    exif: Option<&[u8]>,
    xmp: Option<&[u8]>,
) -> Decoded {
    let image =
        Image::from_rgb(width, height, pixels).and_then(|image| upright(image, orientation(exif, xmp)));
    image.map_err(broken)
}

fn of_png(bytes: &[u8]) -> Decoded {
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), Limits { bytes: MAX_BYTES as usize });
    decoder.set_transformations(Transformations::EXPAND);
    let header = decoder.read_header_info().map_err(broken)?;
    let (width, height) = (header.width as usize, header.height as usize);
    check_size(width, height)?;
    if header.bit_depth == BitDepth::Sixteen {
        // Pillow cuts them to 8 bits for some kinds of images, and to white for others.
        return Err(Wrong(ErrorKind::Unsupported, "expected 8 bits a colour, found 16".into()));
    }
    let mut reader = decoder.read_info().map_err(broken)?;
    let mut samples = vec![0; reader.output_buffer_size().ok_or_else(|| broken("no size"))?];
    reader.next_frame(&mut samples).map_err(broken)?;
    let channels = match reader.output_color_type().0 {
        ColorType::Grayscale => 1,
        ColorType::GrayscaleAlpha => 2,
        ColorType::Rgb => 3,
        ColorType::Rgba => 4,
        ColorType::Indexed => return Err(broken("a palette is left")),
    };
    if channels % 2 == 0 && samples.chunks_exact(channels).any(|pixel| pixel[channels - 1] != 255) {
        // transformers takes the hidden colours, or white, by the way it is given the image and by how it is stored.
        return Err(Wrong(ErrorKind::Unsupported, "expected an image without transparency".into()));
    }
    let pixels = match channels {
        3 => samples,
        4 => samples.chunks_exact(4).flat_map(|s| [s[0], s[1], s[2]]).collect(),
        each => samples.chunks_exact(each).flat_map(|s| [s[0]; 3]).collect(),
    };
    // What says which way up it is may stand behind the pixels.
    reader.finish().map_err(broken)?;
    let info = reader.info();
    let profile = match (&info.exif_metadata, text_of(info, "Raw profile type exif")?) {
        (None, Some(text)) => {
            Some(from_digits(&text).ok_or_else(|| broken("its EXIF data are no hexadecimal digits"))?)
        }
        _ => None,
    };
    let exif = info.exif_metadata.as_deref().or(profile.as_deref());
    let xmp = text_of(info, "XML:com.adobe.xmp")?;
    finished(width, height, pixels, exif, xmp.as_deref().map(str::as_bytes))
}

/// The text of a PNG file with this name; of several the last one.
fn text_of(info: &png::Info<'_>, name: &str) -> std::result::Result<Option<String>, Wrong> {
    if let Some(text) = info.utf8_text.iter().rfind(|text| text.keyword == name) {
        return text.get_text().map(Some).map_err(broken);
    }
    if let Some(text) = info.compressed_latin1_text.iter().rfind(|text| text.keyword == name) {
        return text.get_text().map(Some).map_err(broken);
    }
    let text = info.uncompressed_latin1_text.iter().rfind(|text| text.keyword == name);
    Ok(text.map(|text| text.text.clone()))
}

/// EXIF data as ImageMagick writes them: an empty line, one with their name, one with their length, and then hexadecimal digits.
fn from_digits(text: &str) -> Option<Vec<u8>> {
    let digits = text.split('\n').skip(3).flat_map(str::chars).filter(|c| !c.is_ascii_whitespace());
    let digits: Vec<u8> = digits.map(|c| Some(c.to_digit(16)? as u8)).collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[upper, lower]| upper << 4 | lower).collect())
}

fn of_jpeg(bytes: &[u8]) -> Decoded {
    let most = usize::from(u16::MAX); // whatever the format allows; what the pixels need is checked below
    let options = DecoderOptions::default().set_strict_mode(true).jpeg_set_out_colorspace(ColorSpace::RGB);
    let options = options.set_max_width(most).set_max_height(most);
    let mut decoder = JpegDecoder::new_with_options(Cursor::new(bytes), options);
    decoder.decode_headers().map_err(|e| broken(format!("{e:?}")))?;
    let (width, height) = decoder.dimensions().ok_or_else(|| broken("no size"))?;
    check_size(width, height)?;
    match decoder.input_colorspace() {
        Some(ColorSpace::YCbCr | ColorSpace::Luma | ColorSpace::RGB) => {}
        found => {
            let found = found.map_or_else(|| "none".into(), |found| format!("{found:?}"));
            let message = format!("expected the colours YCbCr, RGB or grey, found {found}");
            return Err(Wrong(ErrorKind::Unsupported, message));
        }
    }
    let pixels = decoder.decode().map_err(|e| broken(format!("{e:?}")))?;
    // Where several segments have EXIF data, those of the first count; the decoder gives the last.
    let exif = first_exif(bytes).or(decoder.exif().map(Vec::as_slice));
    finished(width, height, pixels, exif, decoder.xmp().map(Vec::as_slice))
}

/// The first EXIF data of a JPEG file: segments are a marker of two bytes, their size, and data.
fn first_exif(bytes: &[u8]) -> Option<&[u8]> {
    let mut rest = bytes.get(2..)?;
    loop {
        while rest.starts_with(b"\xff\xff") {
            rest = &rest[1..];
        }
        let [0xff, marker, upper, lower, data @ ..] = rest else { return None };
        let data = data.get(..usize::from(u16::from_be_bytes([*upper, *lower])).checked_sub(2)?)?;
        match marker {
            0xe1 if data.starts_with(b"Exif\0\0") => return Some(data),
            0xda => return None, // the pixels
            _ => rest = &rest[4 + data.len()..],
        }
    }
}
