//! The messages and services of package `tramontane.v1`, as Rust: generated from `tramontane/v1/*.proto` and committed,
//! so that a build needs no code generator. `tests/regenerate.rs` makes the code anew (`UPDATE_PROTO=1` writes it).
//!
//! Payloads are [`bytes::Bytes`]: a row's bytes are not copied out of the message they came in.
//!
//! *Absent from here*: logic, conversions, validation (they live in `cluster` and `gateway`).

/// Package `tramontane.v1`.
#[allow(missing_docs, unreachable_pub, clippy::all)] // Generated: its comments and shape are the generator's.
pub mod v1 {
    include!("gen/tramontane.v1.rs");
}

/// The descriptors of the service `Inference`, for reflection: an encoded `google.protobuf.FileDescriptorSet`.
pub const INFERENCE_DESCRIPTORS: &[u8] = include_bytes!("gen/inference.bin");
