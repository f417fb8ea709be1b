//! Arithmetic on slices: the numeric contract, its portable implementation, and faster ones that give the same bits.
//!
//! *Absent from here*: model names, allocation in a hot path, threads of its own choosing (a caller makes a [`Pool`] and
//! hands it in), networking, anything that knows what a token is.
//!
//! # The numeric contract, version 1
//!
//! A result depends on its inputs alone: not on the instruction set, the number of threads, the rows computed beside it,
//! or the machine. What follows is exact enough to write a second implementation from. All arithmetic is IEEE 754 in
//! round-to-nearest-even without flushing of subnormals; `fma` is the fused operation, rounded once; every other `+ − × ÷ √`
//! is rounded by itself. `f16` is IEEE binary16, `bf16` the upper half of an f32; both convert to f32 exactly, and from f32
//! by round-to-nearest-even. A NaN or an infinity in a hidden state is an error, found where rows are quantised, gated,
//! combined or sampled; results for such input are not specified.
//!
//! **Float matmul** ([`matmul`](fn@matmul) with f32, bf16, f16 weights): `y[r][n] = acc_k`, with `acc_0 = +0` and
//! `acc_{i+1} = fma(f32(w[n][i]), x[r][i], acc_i)` for i ascending over the whole of k. One partial sum, no tree.
//!
//! **Activations for quantised weights** ([`Q8Buf`]): a row is cut in blocks of 32 values. `amax` is the largest magnitude of
//! the block; `scale = amax ÷ 127`, `inverse = 127 ÷ amax`, `q_i = round_half_even(x_i × inverse)`, where the product is rounded
//! to f32 first. Values are in −127…127; −128 is never made and is refused from outside. A block whose `inverse` is not finite
//! (all zeros, or `amax` below 127 ÷ `f32::MAX`) is a zero block: scale +0, all `q` 0.
//!
//! **Quantised matmul**: weights stand in blocks of 32 (those of K types in super-blocks of eight), and blocks are added in ascending
//! order from `acc = +0`. `dot = Σ q_i·a_i` and `sum = Σ a_i` are exact integers, in any order; `d`, `m`, `dmin` are f16, widened; `d_a`
//! is the activation's scale; every product of scales is rounded, from left to right as written.
//! - Q8_0, Q4_0, Q5_0 (q is int8; nibble − 8; 5 bits − 16): `acc = fma(f32(dot), d × d_a, acc)`.
//! - Q4_1, Q5_1 (q unsigned): `acc = fma(f32(dot), d × d_a, acc)`, then `acc = fma(f32(sum), m × d_a, acc)`.
//! - Q4_K, Q5_K (q unsigned; 6-bit scale `sc` and minimum `mn` of the block): `acc = fma(f32(dot), (d × f32(sc)) × d_a, acc)`,
//!   then `acc = fma(f32(−sum), (dmin × f32(mn)) × d_a, acc)`.
//! - Q6_K (q is 6 bits − 32; int8 scales `sc_0`, `sc_1` of the block's halves): `acc = fma(f32(sc_0·dot_0 + sc_1·dot_1), d × d_a, acc)`, where
//!   the integer is exact in f32 (below 2^24).
//!
//! How q stands in a stored block is ggml's layout, read by `blocks.rs`.
//!
//! **RMSNorm**: `s_j = fma(x_i, x_i, s_j)` for i ascending with `j = i mod 16`, from +0; then `s_j += s_{j+8}` for j < 8, `+4`, `+2`,
//! `+1`. `inverse = 1 ÷ √(s_0 ÷ n + ε)`; `y_i = (x_i × inverse) × w_i`.
//!
//! **exp**: `t = x × 1.442695 + 12582912` (two roundings), `n = t − 12582912`, `r = fma(n, −0.69314575, x)`,
//! `r = fma(n, −1.4286068e-6, r)`; Horner by fma over the f32 values of 1/7!, 1/6!, … 1/1!, 1; times 2^n. Below
//! −87.33654 the result is +0, above 88.376 it is +∞. See [`math`] for exact constants.
//!
//! **SwiGLU**: `silu(g) = g ÷ (1 + exp(−g))`; `y = silu(g) × u`.
//!
//! **RoPE**: angle and table in f64 by [`math::RopeTable`] (our own `sin`, `cos`, `exp`, `ln`, from + − × ÷ alone), rounded to f32. A pair
//! `(a, b)` becomes `(fma(a, c, −(b × s)), fma(b, c, a × s))`.
//!
//! **Attention** ([`attention`](fn@attention)): K and V are read as stored (rounded to the KV type), also for tokens of the same chunk. Keys are cut
//! in blocks of [`KV_BLOCK`] aligned to absolute positions; a query sees the positions `max(0, p − window + 1) …= p`. In a block:
//! `s_j = dot_j × scale` with `dot_j` as in float matmul over the head's width, `m = max s_j`, `e_j = exp(s_j − m)`,
//! `o_d = fma(e_j, v[j][d], o_d)` for visible j ascending from +0; `l` is the sum of the 32 `e_j` (+0 where not visible): `t_i = (e_i + e_{i+8}) + (e_{i+16} +
//! e_{i+24})` for i < 8, then `t_i += t_{i+4}`, `+2`, `+1`. Blocks merge in ascending order, the first one as it is: `M = max(m_a, m_b)`, `α =
//! exp(m_a − M)`, `β = exp(m_b − M)`, `l = fma(l_a, α, l_b × β)`, `o_d = fma(o_a, α, o_b × β)`. A block with no visible slot is not merged. The
//! result is `o_d × (1 ÷ l)`. `scale` is `1 ÷ √head_dim`.
//!
//! **Top-k** ([`top_k`](fn@top_k)): by value descending, ties by the lower index.
//!
//! The gate's weights and the combination of experts are pinned in the crate `router` (`gate`, `combine`), sampling in `coordinator`.

mod activations;
mod arch;
mod attention;
mod blocks;
mod compute;
mod gated;
mod kv;
pub mod math;
mod matmul;
mod memory;
mod packed;
pub mod peak;
mod pool;
mod quantize_weights;
mod rms_norm;
mod rope;
mod round;
mod strips;
mod swiglu;
mod top_k;
mod weights;

pub use activations::{Activations, F32Buf, NotFinite, Q8Buf};
pub use attention::{AttentionScratch, AttentionShape, QueryRow, attention};
pub use compute::{Compute, Isa};
pub use gated::{Gated, Inner, gated_all};
pub use kv::{KV_BLOCK, KvLayer, KvType};
pub use matmul::{Product, matmul, matmul_all};
pub use memory::SharedBytes;
pub use packed::{PACKED_VERSION, PackError, PackedMatrix};
pub use pool::Pool;
pub use quantize_weights::{Unquantizable, encode_row, quantize_row};
pub use rms_norm::rms_norm;
pub use rope::{Angles, RopePairs, rope};
pub use round::{bf16_from_f32, bf16_to_f32};
pub use swiglu::swiglu;
pub use top_k::top_k;
pub use weights::WeightType;

/// The version of the numeric contract that this crate implements. Results of different versions are never mixed.
pub const CONTRACT_VERSION: u32 = 1;

/// Values in a quantisation block.
pub const QUANT_BLOCK: usize = 32;

/// Values in a super-block of the K types.
pub const SUPER_BLOCK: usize = 256;
