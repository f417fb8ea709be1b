//! What a weight file's header says of one tensor, whatever the file's format.

use std::ops::Range;

use tramontane_kernels::WeightType;

/// One tensor of a file.
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) dtype: StoredType,
    /// Its dimensions, outermost first (row-major).
    pub(crate) shape: Vec<usize>,
    /// Its bytes in the file.
    pub(crate) bytes: Range<usize>,
}

/// A tensor's type as its file names it.
pub(crate) struct StoredType {
    pub(crate) name: String,
    /// `None` for types that weights here cannot have.
    pub(crate) weights: Option<WeightType>,
}
