//! Malformed headers, one by one and at random.

use proptest::prelude::*;

use super::super::testing::{FILE, Forged, array, open, string, strings, tiny};
use super::super::*;
use crate::checkpoint::CheckpointError;
use crate::checkpoint::testing::damage;

const U32: u32 = 4;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// The fault found in `file`.
fn fault(file: Forged) -> GgufError {
    match file.open().expect_err("must be refused") {
        CheckpointError::Gguf { file, error } if file == FILE => error,
        other => panic!("{other:?}"),
    }
}

fn refusal(file: Forged) -> CheckpointError {
    file.open().expect_err("must be refused")
}

#[test]
fn other_files_and_versions_are_refused() {
    assert!(Forged::new(0).open().is_ok());
    assert!(Forged { version: 2, ..Forged::new(0) }.open().is_ok());
    for found in [0, 1, 4, 3u32.swap_bytes()] {
        assert_eq!(fault(Forged { version: found, ..Forged::new(0) }), GgufError::Version { found });
    }
    let error = refusal(Forged { magic: *b"ggml", ..Forged::new(0) }).to_string();
    assert_eq!(error, r#"m.gguf: no GGUF file: it begins with [67, 67, 6d, 6c], not "GGUF""#);
}

#[test]
fn a_truncated_header_is_named_with_the_offset() {
    let whole = Forged::new(32).key("a", STRING, &string(b"text")).f32("t", &[8], 0).bytes();
    let header = whole.len() - 32;
    for length in 0..header {
        match open(whole[..length].to_vec()) {
            Err(CheckpointError::Truncated { needed, found, .. }) => {
                assert!(found == length as u64 && needed > found, "{length}");
            }
            // Within the padding the header is whole.
            Err(CheckpointError::OutsideFile { begin: 0, end: 32, available: 0, .. }) => assert!(header - length < 32),
            other => panic!("{length}: {other:?}"),
        }
    }
    assert!(matches!(open(whole[..header + 31].to_vec()), Err(CheckpointError::OutsideFile { available: 31, .. })));
    assert!(open(whole).is_ok());
}

#[test]
fn counts_and_lengths_are_bounded_before_they_are_believed() {
    let too_large = |file: Forged| match fault(file) {
        GgufError::TooLarge { item, limit, .. } => (item, limit),
        other => panic!("{other:?}"),
    };
    let huge = u64::MAX;
    let keys = Forged { key_count: Some(huge), ..Forged::new(0) };
    assert_eq!(too_large(keys), ("the metadata".into(), MAX_METADATA));
    let tensors = Forged { tensor_count: Some(huge), ..Forged::new(0) };
    assert_eq!(too_large(tensors), ("the file".into(), MAX_TENSORS));
    let text = Forged::new(0).key("a", STRING, &huge.to_le_bytes());
    assert_eq!(too_large(text), ("key a".into(), MAX_STRING_BYTES));
    let values = Forged::new(0).key("a", ARRAY, &array(U32, huge, &[]));
    assert_eq!(too_large(values), ("key a".into(), MAX_ARRAY_VALUES));
    let many = array(BOOL, MAX_ARRAY_VALUES / 2 + 1, &vec![0; MAX_ARRAY_VALUES as usize / 2 + 1]);
    let both = Forged::new(0).key("a", ARRAY, &many).key("b", ARRAY, &many);
    assert_eq!(too_large(both), ("key b".into(), MAX_ARRAY_VALUES));
    let name = "n".repeat(MAX_NAME_BYTES as usize + 1);
    assert_eq!(too_large(Forged::new(0).key(&name, U32, &[0; 4])), ("key number 0".into(), MAX_NAME_BYTES));
    assert_eq!(too_large(Forged::new(0).f32(&name, &[], 0)), ("tensor number 0".into(), MAX_NAME_BYTES));
    assert_eq!(too_large(Forged::new(0).f32("t", &[1; 5], 0)), ("tensor t".into(), MAX_DIMENSIONS));

    // What is within the bounds and not in the file allocates nothing, and is an end too early.
    for (key_count, tensor_count) in [(Some(MAX_METADATA), None), (None, Some(MAX_TENSORS))] {
        let file = Forged { key_count, tensor_count, ..Forged::new(0) };
        assert!(matches!(refusal(file), CheckpointError::Truncated { .. }));
    }
    for ty in [U32, STRING, ARRAY] {
        let file = Forged::new(0).key("a", ARRAY, &array(ty, MAX_ARRAY_VALUES - 1, &[]));
        assert!(matches!(refusal(file), CheckpointError::Truncated { .. } | CheckpointError::Gguf { .. }));
    }
}

#[test]
fn arrays_stand_within_each_other_to_a_bound() {
    let mut nested = strings(&["a"]);
    for _ in 1..MAX_ARRAY_DEPTH {
        nested = array(ARRAY, 1, &nested);
    }
    assert!(Forged::new(0).key("a", ARRAY, &nested).open().is_ok());
    let deeper = Forged::new(0).key("a", ARRAY, &array(ARRAY, 1, &nested));
    assert!(matches!(fault(deeper), GgufError::TooLarge { unit: "levels of arrays", limit: MAX_ARRAY_DEPTH, .. }));
    let endless = array(ARRAY, 1, &[]).repeat(100_000);
    assert!(matches!(fault(Forged::new(0).key("a", ARRAY, &endless)), GgufError::TooLarge { .. }));
}

#[test]
fn values_that_are_none_are_refused_by_key() {
    assert_eq!(fault(Forged::new(0).key("a", 13, &[0; 8])), GgufError::UnknownValueType { key: "a".into(), found: 13 });
    let within = Forged::new(0).key("a", ARRAY, &array(99, 1, &[0; 8]));
    assert_eq!(fault(within), GgufError::UnknownValueType { key: "a".into(), found: 99 });
    assert_eq!(fault(Forged::new(0).key("a", BOOL, &[2])), GgufError::NotBool { key: "a".into(), found: 2 });
    let within = Forged::new(0).key("a", ARRAY, &array(BOOL, 3, &[0, 1, 7]));
    assert_eq!(fault(within), GgufError::NotBool { key: "a".into(), found: 7 });
    let text = Forged::new(0).key("a", STRING, &string(b"\xff"));
    assert_eq!(fault(text), GgufError::NotUtf8 { item: "key a".into() });
    let mut key = Forged::new(0).key("a", U32, &[0; 4]);
    key.keys[0].0 = vec![0xff];
    assert_eq!(fault(key), GgufError::NotUtf8 { item: "key number 0".into() });
    let mut tensor = Forged::new(4).f32("a", &[1], 0);
    tensor.tensors[0].0 = vec![0xff];
    assert_eq!(fault(tensor), GgufError::NotUtf8 { item: "tensor number 0".into() });
}

#[test]
fn names_that_stand_twice_are_refused() {
    let keys = Forged::new(0).key("a", U32, &[0; 4]).key("b", U32, &[0; 4]).key("a", BOOL, &[0]);
    assert_eq!(fault(keys), GgufError::DuplicateKey { key: "a".into() });
    let tensors = Forged::new(64).f32("a", &[1], 0).f32("b", &[1], 32).f32("a", &[0], 0);
    let error = refusal(tensors);
    assert!(matches!(&error, CheckpointError::DuplicateTensor { tensor, .. } if tensor == "a"), "{error}");
}

#[test]
fn the_alignment_is_a_power_of_two_that_tensors_keep() {
    let aligned = |value: u32, offset| {
        let mut file = Forged::new(128).key("general.alignment", U32, &value.to_le_bytes());
        file = file.f32("a", &[1], 0).f32("b", &[1], offset);
        Forged { alignment: if value == 8 { 8 } else { 64 }, ..file }
    };
    assert!(aligned(64, 64).open().is_ok() && aligned(8, 8).open().is_ok());
    let misaligned = GgufError::Misaligned { tensor: "b".into(), offset: 32, alignment: 64 };
    assert_eq!(fault(aligned(64, 32)), misaligned);
    for found in [0, 3, 48] {
        assert_eq!(fault(aligned(found, 64)), GgufError::Alignment { found: found.into() });
    }
    let text = Forged::new(0).key("general.alignment", STRING, &string(b"32"));
    assert!(matches!(fault(text), GgufError::WrongType { .. }));
    let unaligned = GgufError::Misaligned { tensor: "a".into(), offset: 4, alignment: 32 };
    assert_eq!(fault(Forged::new(64).f32("a", &[1], 4)), unaligned);
    let far = Forged::new(0).key("general.alignment", U32, &(1u32 << 31).to_le_bytes()).f32("a", &[1], 0);
    assert!(matches!(refusal(far), CheckpointError::OutsideFile { available: 0, .. }));
}

#[test]
fn tensors_lie_within_the_file_and_apart() {
    let outside = |file: Forged| assert!(matches!(refusal(file), CheckpointError::OutsideFile { .. }));
    outside(Forged::new(31).f32("a", &[8], 0));
    outside(Forged::new(32).f32("a", &[8], 32));
    outside(Forged::new(32).f32("a", &[8], u64::MAX - 31));
    outside(Forged::new(32).f32("a", &[0], 64));
    outside(Forged::new(32).f32("a", &[1 << 60], 0));
    outside(Forged::new(32).tensor("a", &[1], 999, 64));
    let error = refusal(Forged::new(96).f32("b", &[8], 32).f32("a", &[9], 0)).to_string();
    assert_eq!(error, "m.gguf: tensors b and a overlap");
    assert!(matches!(refusal(Forged::new(96).f32("b", &[8], 0).f32("a", &[8], 0)), CheckpointError::Overlap { .. }));
    assert!(Forged::new(200).f32("a", &[1], 0).f32("b", &[1], 128).open().is_ok(), "padding may be of any length");
    assert!(Forged::new(32).f32("a", &[0, 3], 0).f32("b", &[8], 0).open().is_ok(), "a tensor without values");
}

#[test]
fn shapes_that_cannot_be_are_refused() {
    for dims in [&[1 << 33, 1 << 33][..], &[u64::MAX, 2], &[1 << 62]] {
        let error = refusal(Forged::new(32).f32("a", dims, 0));
        assert!(matches!(error, CheckpointError::ShapeOverflow { .. }), "{error}");
    }
    let partial = fault(Forged::new(64).tensor("a", &[33, 2], 8, 0));
    assert_eq!(partial, GgufError::PartialBlock { tensor: "a".into(), ty: "Q8_0", width: 33, block: 32 });
    let partial = fault(Forged::new(64).tensor("a", &[32, 8], 12, 0));
    assert_eq!(partial, GgufError::PartialBlock { tensor: "a".into(), ty: "Q4_K", width: 32, block: 256 });
}

#[test]
fn a_type_is_refused_only_when_the_tensor_is_asked_for() {
    let file = Forged::new(200).tensor("q2", &[256], 10, 0).tensor("new", &[7], 999, 96).f32("f", &[1], 160);
    let checkpoint = file.open().unwrap();
    assert_eq!(checkpoint.tensor("f").unwrap().shape, [1]);
    let error = checkpoint.tensor("q2").unwrap_err().to_string();
    assert!(error.starts_with("m.gguf: tensor q2: type Q2_K is not supported (F32, F16, "), "{error}");
    let error = checkpoint.tensor("new").unwrap_err().to_string();
    assert!(error.starts_with("m.gguf: tensor new: type number 999 is not supported"), "{error}");
    let sizes: Vec<_> = checkpoint.stored().map(|tensor| (tensor.name, tensor.dtype, tensor.data.len())).collect();
    // A tensor of unknown size reaches to the next one.
    assert_eq!(sizes, [("f", "F32", 4), ("new", "number 999", 64), ("q2", "Q2_K", 84)]);
    let last = Forged::new(70).tensor("new", &[7], 999, 32).open().unwrap();
    assert_eq!(last.stored().next().unwrap().data.len(), 38, "or to the end of the file");
}

/// Opens `bytes` and looks at everything in it: must come to an end without a panic.
fn look_at_everything(bytes: Vec<u8>) {
    let honest = tiny("qwen3moe").open().unwrap().config().unwrap();
    if let Ok(checkpoint) = open(bytes) {
        let _ = checkpoint.chat_template();
        let _ = checkpoint.validate(&honest);
        let _ = checkpoint.config().map(|config| checkpoint.validate(&config));
        for name in checkpoint.tensor_names() {
            if let Ok(tensor) = checkpoint.tensor(name) {
                let (width, rows) =
                    tensor.shape.split_last().map_or((1, 1), |(w, r)| (*w, r.iter().product::<usize>()));
                assert_eq!(tensor.ty.row_bytes(width).map(|row| row * rows), Some(tensor.data.len()));
                let _ = tensor.check_finite();
            }
        }
        assert!(checkpoint.stored().all(|tensor| tensor.name.len() < 1 << 16));
    }
}

proptest! {
    #[test]
    fn damaged_files_never_panic(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
        architecture in prop::sample::select(vec!["llama", "qwen3moe"]),
    ) {
        let mut model = tiny(architecture);
        model.set("tokenizer.chat_template", "t").set("tokenizer.ggml.tokens", vec!["a".to_owned(), "b".to_owned()]);
        look_at_everything(damage(model.bytes(), &flips, cut));
    }

    #[test]
    fn invented_tensors_never_panic(
        tensors in prop::collection::vec(
            ("[ab]", prop::collection::vec(prop_oneof![0u64..40, any::<u64>()], 0..6), 0u32..40,
             prop_oneof![(0u64..4).prop_map(|i| i * 32), any::<u64>()]), 0..3),
        data in 0usize..200,
    ) {
        let file = tensors.iter().fold(Forged::new(data), |file, (name, dims, ty, offset)| {
            file.tensor(name, dims, *ty, *offset)
        });
        look_at_everything(file.bytes());
    }

    #[test]
    fn invented_values_never_panic(ty in 0u32..14, bytes in prop::collection::vec(0u8..14, 0..80)) {
        look_at_everything(Forged::new(0).key("general.architecture", ty, &bytes).bytes());
    }
}
