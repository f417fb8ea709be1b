//! What a checkpoint is and what it computes: configuration, safetensors, tokenizer, chat template, hashes.
//!
//! *Absent from here*: networking, async, clocks (but for when a cached file was last used), scheduling, sampling, and any trust in files: whatever comes from a
//! checkpoint is checked against named bounds, and what is wrong with it is an error that names the file and the tensor.

pub mod cache;
#[cfg_attr(feature = "candle", path = "candle/enabled.rs")]
#[cfg_attr(not(feature = "candle"), path = "candle/disabled.rs")]
pub mod candle;
pub mod chat;
pub mod checkpoint;
pub mod config;
pub mod decoder;
pub mod device;
pub mod expert;
pub mod manifest;
#[cfg(feature = "candle")]
pub mod reference;
pub mod tokenizer;
pub mod tools;
pub mod weights;
