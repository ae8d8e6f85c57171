//! Resampling as Pillow does it for 8 bits a channel, to the bit.
//!
//! Each direction is a sum over a window that grows with the reduction, so nothing is skipped when an image shrinks. Weights
//! are rounded to 22 bits behind the point, and the image is rounded to 8 bits between the two directions. These roundings
//! are part of the result: general resizing crates round elsewhere, and differ by one step in some of the pixels.

use std::borrow::Cow;

use super::image::Image;
use crate::error::{Error, ErrorKind, Result};

/// What neighbouring pixels weigh, by their distance in pixels of the smaller image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// A windowed sinc over three pixels to each side.
    Lanczos,
    /// A triangle over one pixel to each side.
    Bilinear,
    /// A cubic over two pixels to each side, with `a = -0.5`.
    Bicubic,
}

/// Bits behind the point of a weight: 8 for the pixel and 2 for sums that overshoot are left of 32.
const PRECISION: u32 = 22;

/// What makes cutting off those bits a rounding.
const HALF: i64 = 1 << (PRECISION - 1);

impl Filter {
    /// The filter that transformers and Pillow give this number.
    pub fn from_number(number: i64) -> Option<Filter> {
        match number {
            1 => Some(Filter::Lanczos),
            2 => Some(Filter::Bilinear),
            3 => Some(Filter::Bicubic),
            _ => None,
        }
    }

    /// How far it reaches to each side.
    fn support(self) -> f64 {
        match self {
            Filter::Lanczos => 3.0,
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let sinc = |x: f64| {
            let x = x * std::f64::consts::PI;
            if x == 0.0 { 1.0 } else { x.sin() / x }
        };
        let d = x.abs();
        match self {
            Filter::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Filter::Bilinear if d < 1.0 => 1.0 - d,
            // Keys, "Cubic Convolution Interpolation for Digital Image Processing", 1981, with a = -0.5.
            Filter::Bicubic if d < 1.0 => (1.5 * d - 2.5) * d * d + 1.0,
            Filter::Bicubic if d < 2.0 => ((d - 5.0) * d + 8.0) * d * -0.5 + 2.0,
            _ => 0.0,
        }
    }

    /// For each of `to` pixels the first of the `from` pixels that it is made of, and their weights.
    fn windows(self, from: usize, to: usize) -> Vec<(usize, Vec<i64>)> {
        let scale = from as f64 / to as f64;
        let stretch = scale.max(1.0);
        let reach = self.support() * stretch;
        let window = |i: usize| {
            let centre = (i as f64 + 0.5) * scale;
            let first = (centre - reach + 0.5).max(0.0) as usize;
            let end = ((centre + reach + 0.5) as usize).min(from);
            let weight = |j: usize| self.weight((j as f64 - centre + 0.5) * (1.0 / stretch));
            let weights: Vec<f64> = (first..end).map(weight).collect();
            let total: f64 = weights.iter().sum();
            let fixed = |w: &f64| {
                let w = if total == 0.0 { *w } else { w / total };
                (w * f64::from(1 << PRECISION)).round() as i64
            };
            (first, weights.iter().map(fixed).collect())
        };
        (0..to).map(window).collect()
    }
}

/// The image in another size.
///
/// # Errors
/// `Limit` when a size has no pixels, or the image would have more than [`Image::MAX_PIXELS`], on the way or in the end.
pub fn resize(image: &Image, width: usize, height: usize, filter: Filter) -> Result<Image> {
    let (old_width, old_height) = (image.width(), image.height());
    // Since version 13 Pillow begins with the height where that shrinks by more than twice as many pixels as the width: found by
    // comparing 18,000 sizes. Up to version 12 it always began with the width.
    let lost = |old: usize, new: usize| old as i128 - new as i128;
    let height_first = height < old_height && lost(old_height, height) > 2 * lost(old_width, width);
    let between = if height_first { (old_width, height) } else { (width, old_height) };
    let most =
        |(a, b): (usize, usize)| a > 0 && b > 0 && a.checked_mul(b).is_some_and(|n| n <= Image::MAX_PIXELS);
    if !most((width, height)) || !most(between) {
        let message = format!(
            "expected at most {} pixels at any time while an image of {old_width} x {old_height} is resized to {width} x {height}",
            Image::MAX_PIXELS
        );
        return Err(Error::new(ErrorKind::Limit, message));
    }
    let mut pixels = Cow::Borrowed(image.pixels());
    if height_first {
        pixels = rows(&pixels, old_width, &filter.windows(old_height, height)).into();
    }
    if width != old_width {
        pixels = columns(&pixels, old_width, &filter.windows(old_width, width)).into();
    }
    if height != old_height && !height_first {
        pixels = rows(&pixels, width, &filter.windows(old_height, height)).into();
    }
    Image::from_rgb(width, height, pixels.into_owned())
}

/// Pixels that a new one is made of, for each of them: the first, and the weights of it and those behind it.
type Windows = [(usize, Vec<i64>)];

/// Makes each row of `old_width` pixels one of as many as there are windows.
fn columns(pixels: &[u8], old_width: usize, windows: &Windows) -> Vec<u8> {
    let mut new = Vec::with_capacity(pixels.len() / old_width * windows.len());
    for row in pixels.chunks_exact(old_width * 3) {
        for (first, weights) in windows {
            let mut sums = [HALF; 3];
            for (pixel, weight) in row[first * 3..].chunks_exact(3).zip(weights) {
                sums.iter_mut().zip(pixel).for_each(|(sum, x)| *sum += i64::from(*x) * weight);
            }
            new.extend(sums.map(to_byte));
        }
    }
    new
}

/// Makes the rows of `width` pixels as many as there are windows.
fn rows(pixels: &[u8], width: usize, windows: &Windows) -> Vec<u8> {
    let mut new = Vec::with_capacity(windows.len() * width * 3);
    let mut sums = vec![0; width * 3];
    for (first, weights) in windows {
        sums.fill(HALF);
        for (row, weight) in pixels[first * width * 3..].chunks_exact(width * 3).zip(weights) {
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += i64::from(*x) * weight);
        }
        new.extend(sums.iter().map(|sum| to_byte(*sum)));
    }
    new
}

fn to_byte(sum: i64) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_a_window_add_up_to_one() {
        for filter in [Filter::Lanczos, Filter::Bilinear, Filter::Bicubic] {
            for (from, to) in [(1, 1), (1, 7), (7, 1), (5, 3), (3, 5), (1000, 3), (3, 1000)] {
                for (first, weights) in filter.windows(from, to) {
                    assert!(!weights.is_empty() && first + weights.len() <= from);
                    let total: i64 = weights.iter().sum();
                    assert!(
                        (total - (1 << PRECISION)).abs() <= weights.len() as i64,
                        "{filter:?} {from} {to}"
                    );
                }
            }
        }
    }

    #[test]
    fn one_colour_stays_and_sizes_are_checked() {
        let image = Image::from_rgb(5, 4, [200, 3, 77].repeat(20)).unwrap();
        for filter in [Filter::Lanczos, Filter::Bilinear, Filter::Bicubic] {
            let other = resize(&image, 3, 9, filter).unwrap();
            assert_eq!((other.width(), other.height(), other.pixels()), (3, 9, &[200, 3, 77].repeat(27)[..]));
        }
        for (width, height) in [(0, 1), (1, 0), (usize::MAX, 2), (1 << 20, 1 << 20), (1 << 30, 1)] {
            assert_eq!(resize(&image, width, height, Filter::Bilinear).unwrap_err().kind(), ErrorKind::Limit);
        }
    }
}
