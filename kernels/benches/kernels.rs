//! Matrix products and an expert's first half, one type and row count each, and a token's attention, one depth each, at Mixtral
//! 8x7B's shapes: `cargo bench -p tramontane-kernels`. `items` are multiply-adds, `bytes` those of the weights, or keys and values.

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use tramontane_kernels::{
    Activations, AttentionScratch, AttentionShape, Compute, F32Buf, Gated, Inner, Isa, KV_BLOCK, KvLayer, KvType,
    PackedMatrix, Pool, Q8Buf, QueryRow, WeightType, attention, gated_all, matmul,
};

fn main() {
    divan::main();
}

const WIDTH: usize = 4096;
/// A seventh of an expert's inner width: more than the caches hold of a 16-bit matrix.
const OUTPUTS: usize = 2048;

/// Cores given to the process.
fn compute(isa: Isa) -> Compute {
    Compute::new(isa, std::thread::available_parallelism().map_or(1, usize::from))
}

fn matrix(ty: WeightType, seed: u64) -> PackedMatrix {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    // Upper bytes below 0x40: no NaN, whatever a field is.
    let bytes = ty.row_bytes(WIDTH).unwrap_or(0) * OUTPUTS;
    let stored: Vec<u8> = (0..bytes).map(|i| if i % 2 == 1 { next() & 0x3f } else { next() }).collect();
    PackedMatrix::pack(&Pool::new(2), ty, OUTPUTS, WIDTH, &stored).expect("whole rows")
}

struct Rows {
    blocks: Q8Buf,
    floats: F32Buf,
}

impl Rows {
    fn new(rows: usize, compute: &Compute) -> Self {
        let x: Vec<f32> = (0..rows * WIDTH).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.01).collect();
        let (mut blocks, mut floats) = (Q8Buf::default(), F32Buf::default());
        blocks.quantize(compute, &x, WIDTH).expect("finite");
        floats.fill(&x, WIDTH);
        Self { blocks, floats }
    }

    fn of(&self, ty: WeightType) -> Activations<'_> {
        if ty.is_quantized() { Activations::Q8(&self.blocks) } else { Activations::F32(&self.floats) }
    }
}

const TYPES: [WeightType; 6] =
    [WeightType::Q4_0, WeightType::Q8_0, WeightType::Q4K, WeightType::Q5K, WeightType::Q6K, WeightType::F16];

fn cases() -> impl Iterator<Item = String> {
    let isas = Isa::available().into_iter().filter(|isa| *isa != Isa::Portable);
    isas.flat_map(|isa| {
        TYPES.iter().flat_map(move |ty| [1, 4, 8, 16, 128].map(|rows| format!("{isa} {} {rows}", ty.name())))
    })
}

fn parse(case: &str) -> (Isa, WeightType, usize) {
    let mut words = case.split(' ');
    let mut word = || words.next().unwrap_or_default();
    let (isa, ty, rows) = (word(), word(), word());
    (
        Isa::available().into_iter().find(|i| i.to_string() == isa).expect("listed"),
        TYPES.into_iter().find(|t| t.name() == ty).expect("listed"),
        rows.parse().expect("a number"),
    )
}

#[divan::bench(args = cases())]
fn product(bencher: Bencher<'_, '_>, case: &str) {
    let (isa, ty, rows) = parse(case);
    let compute = compute(isa);
    // Several matrices in turn, so that weights come from memory as they do in a model.
    let matrices: Vec<PackedMatrix> = (0..8).map(|seed| matrix(ty, seed)).collect();
    let x = Rows::new(rows, &compute);
    let mut out = vec![0.0; rows * OUTPUTS];
    bencher
        .counter(ItemsCount::new(8 * rows * OUTPUTS * WIDTH))
        .counter(BytesCount::new(8 * matrices[0].bytes()))
        .bench_local(|| matrices.iter().for_each(|m| matmul(&compute, m, x.of(ty), &mut out)));
}

#[divan::bench(args = cases())]
fn first_half(bencher: Bencher<'_, '_>, case: &str) {
    let (isa, ty, rows) = parse(case);
    let compute = compute(isa);
    let matrices: Vec<PackedMatrix> = (0..8).map(|seed| matrix(ty, seed)).collect();
    let x = Rows::new(rows, &compute);
    let (mut blocks, mut floats) = (Q8Buf::default(), F32Buf::default());
    bencher
        .counter(ItemsCount::new(8 * rows * OUTPUTS * WIDTH))
        .counter(BytesCount::new(8 * matrices[0].bytes()))
        .bench_local(|| {
            for two in matrices.chunks_exact(2) {
                let to = if ty.is_quantized() { Inner::Q8(&mut blocks) } else { Inner::F32(&mut floats) };
                gated_all(&compute, &mut [Gated::new(&two[0], &two[1], x.of(ty), to)]);
            }
        });
}

/// KV heads and their width; four query heads share one.
const KV_HEADS: usize = 8;
const HEAD_DIM: usize = 128;

/// The last token of a sequence, in eight layers in turn. In parts where the machine has three times as many cores as there are KV heads.
#[divan::bench(args = [512, 4096, 32_768])]
fn token(bencher: Bencher<'_, '_>, positions: usize) {
    let compute = compute(Isa::detect());
    let used = positions / KV_BLOCK;
    let layers: Vec<KvLayer> = (0..8).map(|_| KvLayer::new(KvType::F16, used, KV_HEADS, HEAD_DIM)).collect();
    let blocks: Vec<u32> = (0..used as u32).collect();
    let row = [QueryRow { position: positions - 1, blocks: &blocks }];
    let shape = AttentionShape { heads: 4 * KV_HEADS, window: None };
    let queries = vec![0.01; shape.heads * HEAD_DIM];
    let (mut scratch, mut out) = (AttentionScratch::default(), vec![0.0; queries.len()]);
    bencher.counter(BytesCount::new(8 * 2 * 2 * positions * KV_HEADS * HEAD_DIM)).bench_local(|| {
        layers.iter().for_each(|kv| attention(&compute, kv, shape, &row, &queries, &mut scratch, &mut out));
    });
}
