//! What the writer writes, the reader reads; what the writer refuses; a file that the package `gguf` wrote
//! (`sample.py`); split models.

use std::collections::BTreeMap;
use std::fs;

use proptest::prelude::*;
use tramontane_kernels::WeightType;

use super::super::testing::{Model, open};
use super::super::*;
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::manifest::Manifest;

fn info(name: &str, ty: WeightType, shape: &[usize]) -> TensorInfo {
    TensorInfo { name: name.to_owned(), ty, shape: shape.to_vec() }
}

#[test]
fn data_of_every_type_come_back_under_their_shapes() {
    let infos: Vec<_> = WeightType::ALL.into_iter().map(|ty| info(ty.name(), ty, &[2, 3, 256])).collect();
    let data = |ty: WeightType| vec![ty.block_bytes() as u8; 6 * ty.row_bytes(256).unwrap()];
    let mut writer = GgufWriter::new(Vec::new(), &BTreeMap::new(), &infos).unwrap();
    for ty in WeightType::ALL {
        for piece in data(ty).chunks(100) {
            writer.append(ty.name(), piece).unwrap();
        }
    }
    let bytes = writer.finish().unwrap();
    assert!(bytes.len().is_multiple_of(32), "the last tensor is padded too");
    let checkpoint = open(bytes).unwrap();
    for ty in WeightType::ALL {
        let tensor = checkpoint.tensor(ty.name()).unwrap();
        assert_eq!((tensor.ty, tensor.shape, tensor.data), (ty, &[2, 3, 256][..], &data(ty)[..]));
    }
    assert_eq!(Manifest::compute(&checkpoint).tensors()["q4_k"].dtype, "Q4_K");
}

#[test]
fn a_file_of_the_reference_implementation_is_read_and_written_again_to_the_byte() {
    let sample: &'static [u8] = include_bytes!("sample.gguf");
    let checkpoint = open(sample.to_vec()).unwrap();
    let metadata = checkpoint.gguf_metadata().unwrap();
    assert_eq!(metadata.string("general.architecture").unwrap(), Some("llama"));
    assert_eq!(metadata.string("general.name").unwrap(), Some("sämple"));
    assert_eq!(metadata.u32("llama.block_count").unwrap(), Some(7));
    assert_eq!((metadata.bool("k.bool").unwrap(), metadata.f32("k.f32").unwrap()), (Some(true), Some(0.5)));
    let integer = |key: &str| match metadata.values()[key] {
        Value::Number(number) => number.as_integer(),
        _ => None,
    };
    let integers = ["k.i16", "k.i64", "k.i8", "k.u64", "k.u8"].map(integer);
    assert_eq!(integers, [-2, -(1 << 40), -3, 1 << 63, 255].map(Some));
    assert_eq!(metadata.f32s("tokenizer.ggml.scores").unwrap().unwrap(), [0.25, -1.5]);
    assert_eq!(metadata.i32s("tokenizer.ggml.token_type").unwrap().unwrap(), [1, 2, -3]);
    assert_eq!(metadata.strings("tokenizer.ggml.tokens").unwrap().unwrap(), ["<s>", "", "é"]);

    let tensors = ["stacked", "q8", "f16"].map(|name| checkpoint.tensor(name).unwrap());
    let values: Vec<u8> = (0..24).flat_map(|i| (i as f32).to_le_bytes()).collect();
    assert_eq!((tensors[0].shape, tensors[0].data), (&[2, 3, 4][..], &values[..]));
    let mut row = [0.0; 64];
    tensors[1].ty.decode_row(&tensors[1].data[68..], &mut row);
    assert!((0..64).all(|i| (row[i] - (i as f32 / 8.0 + 4.0)).abs() < 0.06), "{row:?}");

    let infos = tensors.map(|tensor| info(tensor.name, tensor.ty, tensor.shape));
    let mut writer = GgufWriter::new(Vec::new(), metadata.values(), &infos).unwrap();
    for tensor in tensors {
        writer.append(tensor.name, tensor.data).unwrap();
    }
    assert!(writer.finish().unwrap() == sample);
}

#[test]
fn tensors_without_values_and_other_alignments_are_written() {
    let metadata = BTreeMap::from([("general.alignment".to_owned(), Value::from(256))]);
    let infos = [("a", 0), ("b", 1), ("c", 0), ("d", 2), ("e", 0)].map(|(name, n)| info(name, WeightType::F32, &[n]));
    let mut writer = GgufWriter::new(Vec::new(), &metadata, &infos).unwrap();
    writer.append("b", &[1; 4]).unwrap();
    writer.append("d", &[2; 8]).unwrap();
    let checkpoint = open(writer.finish().unwrap()).unwrap();
    assert_eq!(checkpoint.tensor("d").unwrap().data, [2; 8]);
    assert_eq!(checkpoint.tensor("e").unwrap().data, [0u8; 0]);
    assert_eq!(checkpoint.gguf_metadata().unwrap().values(), &metadata);
}

#[test]
fn the_writer_refuses_what_would_be_no_file() {
    let new = |infos: &[TensorInfo]| GgufWriter::new(Vec::new(), &BTreeMap::new(), infos);
    for shape in [&[33][..], &[usize::MAX, usize::MAX, 32], &[1, 1, 1, 1, 32]] {
        let refused = new(&[info("a", WeightType::Q8_0, shape)]);
        assert!(matches!(refused, Err(GgufWriteError::Shape { .. })), "{shape:?}");
    }
    let twice = info("a", WeightType::F32, &[2]);
    assert!(matches!(new(&[twice.clone(), twice.clone()]), Err(GgufWriteError::DuplicateTensor { .. })));
    for value in [Value::from(48), Value::from(0), Value::from("32")] {
        let metadata = BTreeMap::from([("general.alignment".to_owned(), value)]);
        assert!(matches!(GgufWriter::new(Vec::new(), &metadata, &[]), Err(GgufWriteError::Alignment)));
    }

    let mut writer = new(&[twice, info("b", WeightType::F32, &[1])]).unwrap();
    let text = writer.append("b", &[0; 4]).unwrap_err().to_string();
    assert_eq!(text, "data of tensor b, while 8 bytes of a are still to come");
    writer.append("a", &[0; 6]).unwrap();
    let text = writer.append("a", &[0; 3]).unwrap_err().to_string();
    assert_eq!(text, "tensor a: 1 bytes more than its shape and type make");
    writer.append("a", &[0; 2]).unwrap();
    assert!(matches!(writer.append("a", &[]), Err(GgufWriteError::Order { missing: 4, .. })));
    assert!(matches!(writer.finish(), Err(GgufWriteError::Order { missing: 4, .. })));
}

#[test]
fn an_error_of_the_system_stops_the_writer() {
    let mut room = [0u8; 40];
    let written = GgufWriter::new(&mut room[..], &BTreeMap::new(), &[info("a", WeightType::F32, &[1])]);
    assert!(matches!(written, Err(GgufWriteError::Io(_))));
}

/// Any value that a file can hold.
fn value() -> impl Strategy<Value = Value> {
    let number = |ty, bytes: Vec<u8>| Array::Numbers { ty, bytes };
    let numbers =
        (prop::sample::select(vec![0u32, 1, 2, 3, 4, 5, 6, 10, 11, 12]), 0usize..4).prop_flat_map(move |(id, n)| {
            let ty = NumberType::of_id(id).unwrap();
            prop::collection::vec(any::<u8>(), n * ty.bytes()).prop_map(move |bytes| number(ty, bytes))
        });
    let texts = prop::collection::vec(".{0,4}", 0..3).prop_map(Array::Strings);
    let array = prop_oneof![numbers, texts]
        .prop_recursive(2, 8, 3, |inner| prop::collection::vec(inner, 0..3).prop_map(Array::Arrays));
    prop_oneof![
        any::<u32>().prop_map(Value::from),
        any::<f32>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        ".{0,8}".prop_map(|text| Value::from(&*text)),
        array.prop_map(Value::Array),
    ]
}

proptest! {
    #[test]
    fn metadata_come_back_as_they_were(metadata in prop::collection::btree_map("[a-z.]{1,8}", value(), 0..6)) {
        let bytes = GgufWriter::new(Vec::new(), &metadata, &[]).unwrap().finish().unwrap();
        let checkpoint = open(bytes.clone()).unwrap();
        let read = checkpoint.gguf_metadata().unwrap().values();
        prop_assert_eq!(read, &metadata);
        prop_assert_eq!(GgufWriter::new(Vec::new(), read, &[]).unwrap().finish().unwrap(), bytes);
    }
}

/// File `number` of `count` with the tensor `t<number>`.
fn shard(number: u32, count: u32, tensors: u32) -> Model {
    let mut model = Model::default();
    model.set("split.no", number).set("split.count", count).set("split.tensors.count", tensors);
    model.tensors.push((format!("t{number}"), vec![1]));
    model
}

fn folder(files: &[(&str, &Model)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, model) in files {
        fs::write(folder.path().join(name), model.bytes()).unwrap();
    }
    folder
}

#[test]
fn a_split_model_is_opened_by_its_folder_or_any_of_its_files() {
    let [one, two] = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"];
    let both = folder(&[(one, shard(0, 2, 2).set("general.name", "first")), (two, &shard(1, 2, 2))]);
    for path in [both.path().to_owned(), both.path().join(one), both.path().join(two)] {
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(checkpoint.tensor_names().collect::<Vec<_>>(), ["t0", "t1"]);
        assert_eq!(checkpoint.weight_files().map(|(name, _)| name).collect::<Vec<_>>(), [one, two]);
        assert_eq!(checkpoint.tensor("t1").unwrap().file, two);
        assert_eq!(checkpoint.gguf_metadata().unwrap().string("general.name").unwrap(), Some("first"));
    }
    fs::remove_file(both.path().join(two)).unwrap();
    for path in [both.path().to_owned(), both.path().join(one)] {
        let error = Checkpoint::open(&path).unwrap_err();
        assert!(matches!(&error, CheckpointError::MissingFile { file } if file == two), "{error}");
    }
}

#[test]
fn split_files_that_disagree_are_refused() {
    let [one, two] = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"];
    for (first, second, key, file) in [
        (shard(1, 2, 2), shard(1, 2, 2), "split.no", one),
        (shard(0, 2, 2), shard(1, 3, 2), "split.count", two),
        (shard(0, 2, 2), shard(1, 0, 2), "split.count", two),
        (shard(0, 2, 2), shard(1, 2, 3), "split.tensors.count", two),
    ] {
        let mut second = second;
        second.tensors[0].0 = "t9".to_owned();
        let folder = folder(&[(one, &first), (two, &second)]);
        match Checkpoint::open(folder.path()) {
            Err(CheckpointError::Gguf { file: at, error: GgufError::SplitDisagrees { key: found, .. } }) => {
                assert_eq!((&*at, found), (file, key));
            }
            other => panic!("{key}: {other:?}"),
        }
    }
    let twice = folder(&[(one, &shard(0, 2, 2)), (two, &shard(0, 2, 2))]);
    assert!(matches!(Checkpoint::open(twice.path()), Err(CheckpointError::DuplicateTensor { .. })));
    let mut keyless = shard(0, 2, 2);
    keyless.metadata.remove("split.no");
    let keyless = folder(&[(one, &keyless), (two, &shard(1, 2, 2))]);
    let error = Checkpoint::open(keyless.path()).unwrap_err().to_string();
    assert_eq!(error, format!("{one}: key split.no is missing"));
    let alone = folder(&[("m.gguf", &shard(0, 2, 1))]);
    let error = Checkpoint::open(alone.path()).unwrap_err().to_string();
    assert_eq!(error, "m.gguf: key split.count: 1 expected in this file of a split model, 2 found");
    let merged = folder(&[("m.gguf", &shard(0, 0, 1))]);
    assert!(Checkpoint::open(merged.path()).is_ok());
}

#[test]
fn a_file_or_its_folder_is_a_checkpoint() {
    let model = folder(&[("m.gguf", &shard(0, 0, 1))]);
    fs::write(model.path().join("config.json"), "of something else").unwrap();
    for path in [model.path().to_owned(), model.path().join("m.gguf")] {
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(checkpoint.tensor("t0").unwrap().file, "m.gguf");
        assert!(matches!(checkpoint.config_json(), Err(CheckpointError::MissingFile { .. })));
        assert!(matches!(checkpoint.tokenizer_json(), Err(CheckpointError::MissingFile { .. })));
        assert_eq!(checkpoint.chat_template().unwrap(), None);
    }
    fs::write(model.path().join("n.gguf"), Model::default().bytes()).unwrap();
    assert!(matches!(Checkpoint::open(model.path()), Err(CheckpointError::SeveralModels { .. })));
    assert!(Checkpoint::open(&model.path().join("n.gguf")).is_ok());
    let other = Checkpoint::open(&model.path().join("config.json"));
    assert!(matches!(other, Err(CheckpointError::Gguf { error: GgufError::Magic { .. }, .. })));
}
