//! The store on the demo model's experts.

use std::path::Path;

use bytes::Bytes;
use tramontane_cluster::exchange::{Batches, LocalNodes};
use tramontane_kernels::{Compute, Isa, Q8Buf};
use tramontane_router::{Epoch, ExpertWork, NodeId, Rows};

use super::*;

const HIDDEN: usize = 256;

fn store(quantize: Quantize, capacity: u64) -> ExpertStore {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/breeze");
    let checkpoint = Arc::new(Checkpoint::open(&folder).unwrap());
    let config = checkpoint.config().unwrap();
    let backend = ExpertBackend::cpu(Compute::new(Isa::detect(), 1));
    ExpertStore::new(ModelId::from("breeze"), checkpoint, config, quantize, capacity, backend)
}

/// `count` rows in the form that the experts take, times `scale`.
fn rows(quantize: Quantize, count: usize, seed: usize, scale: f32) -> Rows {
    let values: Vec<f32> = (0..count * HIDDEN).map(|i| ((i * 7 + seed * 13) % 23) as f32 - 11.0).collect();
    let values: Vec<f32> = values.iter().map(|v| v * scale).collect();
    let (format, data) = if quantize == Quantize::AsStored {
        (RowFormat::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    } else {
        let mut blocks = Q8Buf::default();
        blocks.quantize(&Compute::new(Isa::Portable, 1), &values, HIDDEN).unwrap();
        let mut data = Vec::new();
        (0..count).for_each(|row| blocks.write_wire(row, &mut data));
        (RowFormat::Q8, data)
    };
    Rows { format, width: HIDDEN, data: Bytes::from(data) }
}

fn batch(rows: Rows, layer: u32, work: &[(u32, &[u32])]) -> ExpertBatch {
    let work = work.iter().map(|&(expert, rows)| ExpertWork { expert, rows: rows.to_vec() }).collect();
    ExpertBatch { model: ModelId::from("breeze"), epoch: Epoch(1), layer, rows, work, trace: None }
}

#[test]
fn a_batch_is_answered_alike_alone_and_among_others() {
    for quantize in [Quantize::AsStored, Quantize::Q8_0, Quantize::Q4_0] {
        let store = store(quantize, u64::MAX);
        (0..3).for_each(|expert| store.load(ExpertId::new(1, expert)).unwrap());
        let batches = [
            batch(rows(quantize, 3, 1, 0.1), 1, &[(0, &[0, 2]), (2, &[1])]),
            batch(rows(quantize, 7, 2, 0.2), 1, &[(0, &[6]), (1, &[0, 1, 2, 3, 4, 5])]),
            batch(rows(quantize, 1, 3, 0.3), 1, &[(2, &[0])]),
        ];
        let together = store.serve(&batches);
        for (batch, answer) in batches.iter().zip(&together) {
            assert_eq!(store.serve(std::slice::from_ref(batch))[0], *answer);
            let answer = answer.as_ref().unwrap();
            assert_eq!(answer.rows.count(), Some(batch.answers()));
            let format = if quantize == Quantize::AsStored { RowFormat::F32 } else { RowFormat::Bf16 };
            assert_eq!(answer.rows.format, format);
        }
        let received: Vec<u64> = (0..3).map(|e| store.received()[&ExpertId::new(1, e)]).collect();
        assert_eq!(received, [6, 12, 4], "each row was computed twice");
    }
}

#[test]
fn what_it_cannot_answer_it_refuses_and_answers_the_rest() {
    let store = store(Quantize::AsStored, u64::MAX);
    store.load(ExpertId::new(0, 0)).unwrap();
    let good = || batch(rows(Quantize::AsStored, 1, 1, 0.1), 0, &[(0, &[0])]);
    let mut other_model = good();
    other_model.model = ModelId::from("mixtral");
    let mut narrow = good();
    narrow.rows = Rows { width: HIDDEN / 2, ..narrow.rows };
    let blocks = batch(rows(Quantize::Q8_0, 1, 1, 0.1), 0, &[(0, &[0])]);
    let elsewhere = batch(rows(Quantize::AsStored, 1, 1, 0.1), 0, &[(0, &[0]), (5, &[0])]);
    let answers = store.serve(&[other_model, good(), narrow, blocks, elsewhere]);
    assert!(matches!(answers[0], Err(ServeError::WrongModel { .. })));
    assert!(answers[1].is_ok());
    assert!(matches!(answers[2], Err(ServeError::Corrupt { .. })));
    assert!(matches!(&answers[3], Err(ServeError::Corrupt { why }) if why.contains("takes F32 rows")));
    assert_eq!(answers[4], Err(ServeError::NotHeld { expert: ExpertId::new(0, 5) }));
}

#[test]
fn a_row_that_overflows_costs_its_own_batch_only() {
    let store = store(Quantize::Q8_0, u64::MAX);
    store.load(ExpertId::new(0, 0)).unwrap();
    let good = batch(rows(Quantize::Q8_0, 2, 1, 0.1), 0, &[(0, &[0, 1])]);
    let overflowing = batch(rows(Quantize::Q8_0, 1, 2, 1e30), 0, &[(0, &[0])]);
    let answers = store.serve(&[good.clone(), overflowing, good.clone()]);
    assert!(matches!(&answers[1], Err(ServeError::Corrupt { why }) if why.contains("L0/E0")));
    assert_eq!((&answers[0], &answers[2]), (&store.serve(&[good])[0], &answers[0]));
}

#[test]
fn it_holds_what_it_has_room_for() {
    let room = store(Quantize::AsStored, u64::MAX);
    room.load(ExpertId::new(0, 0)).unwrap();
    let one: usize = room.held.read().unwrap().values().map(|e| e.bytes()).sum();
    let tight = store(Quantize::AsStored, 2 * one as u64);
    let wanted: Vec<_> = (0..3).map(|e| ExpertId::new(0, e)).collect();
    let refused = tight.ensure_held(&ModelId::from("breeze"), &wanted).unwrap_err();
    assert!(matches!(refused, ServeError::CannotHold { expert, .. } if expert == wanted[2]));
    assert_eq!(tight.held(), wanted[..2].iter().copied().collect());
    tight.retain(|id| id.expert == 1);
    tight.load(wanted[2]).unwrap();
    assert_eq!(tight.held(), wanted[1..].iter().copied().collect());
    let absent = tight.load(ExpertId::new(4, 0)).unwrap_err();
    assert!(absent.to_string().contains("4 layers of 8 experts"), "{absent}");
    assert!(matches!(tight.ensure_held(&ModelId::from("x"), &[]), Err(ServeError::WrongModel { .. })));
}

#[test]
fn neighbours_answer_as_each_does_alone() {
    for quantize in [Quantize::AsStored, Quantize::Q4_0] {
        let stores: Vec<_> = (0..3).map(|_| Arc::new(store(quantize, u64::MAX))).collect();
        for (expert, store) in (0..).zip(&stores) {
            store.load(ExpertId::new(1, expert)).unwrap();
        }
        let names: Vec<NodeId> = ["a", "b", "c", "d"].map(NodeId::from).to_vec();
        let neighbours = Neighbours::new(names.iter().cloned().zip(stores.iter().cloned()).collect());
        let batches = Batches::from([
            (names[0].clone(), vec![batch(rows(quantize, 3, 1, 0.1), 1, &[(0, &[0, 2])])]),
            (
                names[1].clone(),
                vec![
                    batch(rows(quantize, 1, 2, 1e30), 1, &[(1, &[0])]),
                    batch(rows(quantize, 2, 3, 0.2), 1, &[(1, &[1])]),
                    batch(rows(quantize, 2, 3, 0.2), 1, &[(0, &[1])]),
                ],
            ),
            (names[2].clone(), Vec::new()),
        ]);
        let together = neighbours.serve(&batches);
        assert_eq!(together.keys().collect::<Vec<_>>(), names[..3].iter().collect::<Vec<_>>());
        for ((id, store), own) in names.iter().zip(&stores).zip(batches.values()) {
            assert_eq!(together[id], store.serve(own), "{id}");
        }
        assert!(together[&names[0]][0].is_ok() && together[&names[1]][1].is_ok() && together[&names[1]][2].is_err());
        assert_eq!(together[&names[1]][0].is_err(), quantize != Quantize::AsStored, "one overflows");
        assert!(neighbours.node(&names[2]).is_some() && neighbours.node(&names[3]).is_none());
        let received = stores[0].received()[&ExpertId::new(1, 0)];
        assert_eq!(received, 4, "each row was computed twice");
    }
}
