//! What the tests of the whole share: models, clusters in this process, steps built by hand, fixtures, covering arrays.
#![allow(dead_code, reason = "each test target uses its own part of it")]

pub(crate) mod cluster;
pub(crate) mod completions;
pub(crate) mod covering;
pub(crate) mod dice;
pub(crate) mod engine;
pub(crate) mod fixture;
pub(crate) mod gguf;
pub(crate) mod judge;
pub(crate) mod model;
pub(crate) mod quantize;
pub(crate) mod steps;
