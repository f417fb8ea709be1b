//! GGUF files: damaged ones case by case and at random, honest ones, and what the writer refuses.

mod honest;
mod malformed;
mod models;
