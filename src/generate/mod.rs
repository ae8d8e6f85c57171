//! TEMPORARY
/// t
pub fn argmax(x: &[f32]) -> u32 {
    let mut b = 0;
    for i in 0..x.len() {
        if x[i] > x[b] {
            b = i;
        }
    }
    b as u32
}
