//! Which way up a photograph is.

use super::image::Image;

/// The tag of the orientation in EXIF data.
const ORIENTATION: u16 = 0x0112;

/// The orientation, 1 to 8, that EXIF or XMP data state; 1, upright, if they state none.
pub(super) fn orientation(exif: Option<&[u8]>, xmp: Option<&[u8]>) -> u8 {
    let stated = exif.and_then(of_exif).or_else(|| xmp.and_then(of_xmp));
    stated.filter(|o| (1..=8).contains(o)).unwrap_or(1)
}

/// EXIF data are a TIFF file: a byte order, the offset of a directory, and there entries of 12 bytes.
fn of_exif(mut data: &[u8]) -> Option<u8> {
    for _ in 0..2 {
        data = data.strip_prefix(b"Exif\0\0").unwrap_or(data);
    }
    // Pillow takes the number behind the letters in both byte orders.
    let big = match data.get(..4)? {
        b"MM\0*" | b"MM*\0" => true,
        b"II*\0" | b"II\0*" => false,
        _ => return None,
    };
    let short = |at: usize| {
        let bytes: [u8; 2] = data.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if big { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    };
    let long = |at: usize| {
        let bytes: [u8; 4] = data.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(if big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    };
    let start = long(4)? as usize;
    let entry = |i: usize| start.checked_add(2 + 12 * i);
    // The value of an entry, if it is an orientation: a number of 16 bits (types 3 and 8, with sign) or of 32 (4, 9 and 13), in
    // the entry's last four bytes. Entries without a value do not count, nor do those that are cut off.
    let value = |at: usize| {
        let (tag, kind, count, last) = (short(at)?, short(at + 2)?, long(at + 4)?, long(at + 8)?);
        match (tag, kind, count) {
            (ORIENTATION, 3 | 8, 1 | 2) => short(at + 8).map(u32::from),
            (ORIENTATION, 4 | 9 | 13, 1) => Some(last),
            _ => None,
        }
    };
    let found = (0..usize::from(short(start)?)).filter_map(entry).find_map(value)?;
    Some(u8::try_from(found).unwrap_or(0))
}

/// XMP data are XML with an attribute or an element `tiff:Orientation`.
fn of_xmp(data: &[u8]) -> Option<u8> {
    let digit = |from: usize| {
        let rest = data[from..].strip_prefix(b"tiff:Orientation")?;
        let digit = rest.strip_prefix(b"=\"").or(rest.strip_prefix(b">"))?.first()?;
        digit.is_ascii_digit().then(|| digit - b'0')
    };
    (0..data.len()).find_map(digit)
}

/// The image turned upright.
pub(super) fn upright(image: Image, orientation: u8) -> crate::Result<Image> {
    let (w, h) = (image.width(), image.height());
    let swapped = orientation >= 5;
    let (width, height) = if swapped { (h, w) } else { (w, h) };
    // Where the pixel at (x, y) comes from.
    let source = |x: usize, y: usize| match orientation {
        2 => (w - 1 - x, y),
        3 => (w - 1 - x, h - 1 - y),
        4 => (x, h - 1 - y),
        5 => (y, x),
        6 => (y, h - 1 - x),
        7 => (w - 1 - y, h - 1 - x),
        8 => (w - 1 - y, x),
        _ => (x, y),
    };
    if !(2..=8).contains(&orientation) {
        return Ok(image);
    }
    let mut pixels = Vec::with_capacity(image.pixels().len());
    for y in 0..height {
        for x in 0..width {
            let (from_x, from_y) = source(x, y);
            let at = (from_y * w + from_x) * 3;
            pixels.extend_from_slice(&image.pixels()[at..at + 3]);
        }
    }
    Image::from_rgb(width, height, pixels)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// EXIF data with one entry.
    fn exif(big: bool, tag: u16, kind: u16, value: u16) -> Vec<u8> {
        let short = |x: u16| if big { x.to_be_bytes() } else { x.to_le_bytes() };
        let long = |x: u32| if big { x.to_be_bytes() } else { x.to_le_bytes() };
        let mut data = if big { b"MM\0*".to_vec() } else { b"II*\0".to_vec() };
        data.extend(long(8));
        data.extend([short(1), short(tag), short(kind)].concat());
        data.extend(long(1));
        data.extend(if [4, 13].contains(&kind) {
            long(value.into()).to_vec()
        } else {
            [short(value), [0, 0]].concat()
        });
        data
    }

    #[test]
    fn orientations_are_read() {
        for big in [false, true] {
            for kind in [3, 4] {
                assert_eq!(orientation(Some(&exif(big, ORIENTATION, kind, 6)), None), 6);
            }
            for kind in [8, 13] {
                assert_eq!(orientation(Some(&exif(big, ORIENTATION, kind, 6)), None), 6);
            }
            assert_eq!(orientation(Some(&exif(big, ORIENTATION, 2, 6)), None), 1);
            assert_eq!(orientation(Some(&exif(big, 0x0113, 3, 6)), None), 1);
            assert_eq!(orientation(Some(&exif(big, ORIENTATION, 3, 9)), None), 1);
            let whole = exif(big, ORIENTATION, 3, 8);
            let mut other = whole.clone();
            other.swap(2, 3); // the number behind the letters
            assert_eq!(orientation(Some(&other), None), 8);
            other[if big { 17 } else { 14 }] = 0; // no values
            assert_eq!(orientation(Some(&other), None), 1);
            assert_eq!(orientation(Some(&[&b"Exif\0\0"[..], &whole].concat()), None), 8);
            for end in 0..whole.len() {
                assert_eq!(orientation(Some(&whole[..end]), None), 1);
            }
        }
        assert_eq!(orientation(Some(b"II*\0\xff\xff\xff\xff"), None), 1);
        assert_eq!(orientation(None, Some(b"<x tiff:Orientation=\"3\"/>")), 3);
        assert_eq!(orientation(None, Some(b"<tiff:Orientation>8<")), 8);
        assert_eq!(orientation(None, Some(b"tiff:Orientation")), 1);
        assert_eq!(orientation(None, Some(b"<tiff:Orientation>\n6<")), 1);
        assert_eq!(
            orientation(None, Some(b"a tiff:Orientation tiff:Orientation='3' <tiff:Orientation>6<")),
            6
        );
    }

    #[test]
    fn images_are_turned() {
        let pixels = |names: &str| names.bytes().flat_map(|b| [b; 3]).collect::<Vec<u8>>();
        // a b c
        // d e f
        let image = Image::from_rgb(3, 2, pixels("abcdef")).unwrap();
        let cases = [
            (1, 3, "abcdef"),
            (2, 3, "cbafed"),
            (3, 3, "fedcba"),
            (4, 3, "defabc"),
            (5, 2, "adbecf"),
            (6, 2, "daebfc"),
            (7, 2, "fcebda"),
            (8, 2, "cfbead"),
        ];
        for (orientation, width, expected) in cases {
            let turned = upright(image.clone(), orientation).unwrap();
            assert_eq!((turned.width(), turned.pixels()), (width, &pixels(expected)[..]), "{orientation}");
        }
    }
}
