//! The plain backend: one obvious loop per operation, sums in float64. Slow, and the truth that `cpu` is
//! tested against.
