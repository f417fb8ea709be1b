//! A node that answers wrongly: a real one in this process, whose answers are spoiled on their way out.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpListener;
use tramontane_cluster::exchange::grpc::serve_experts;
use tramontane_cluster::exchange::{ExpertServer, ServeError};
use tramontane_cluster::registry::etcd::{EtcdOptions, EtcdRegistry};
use tramontane_cluster::tls::Security;
use tramontane_expert_node::{ExpertStore, Node, NodeOptions};
use tramontane_kernels::{CONTRACT_VERSION, Compute, Isa};
use tramontane_model::checkpoint::Checkpoint;
use tramontane_model::expert::ExpertBackend;
use tramontane_model::manifest::Manifest;
use tramontane_model::weights::{ExpertTypes, Quantize};
use tramontane_router::{CPU_ARITHMETIC, ExpertBatch, ExpertId, ExpertRows, ModelId, NumericProfile, RowFormat};

use crate::etcd_server::How;
use crate::fleet::{Fleet, NAME, Size};
use crate::run::until;
use crate::traffic::{Quiet, Traffic};

/// How it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    /// The first value of each answer is not a number.
    NotANumber,
    /// The last row is not there.
    RowMissing,
    /// Finite values, but others: signs are turned round, or they are the rows that another batch was answered with.
    OtherValues,
}

struct Liar {
    store: Arc<ExpertStore>,
    lie: Lie,
    /// The answer before, as it should have been.
    before: Mutex<Bytes>,
}

impl ExpertServer for Liar {
    fn serve(&self, batches: &[ExpertBatch]) -> Vec<Result<ExpertRows, ServeError>> {
        let spoil = |answer: Result<ExpertRows, ServeError>| answer.map(|rows| self.spoiled(rows));
        self.store.serve(batches).into_iter().map(spoil).collect()
    }

    fn ensure_held(&self, model: &ModelId, experts: &[ExpertId]) -> Result<(), ServeError> {
        self.store.ensure_held(model, experts)
    }

    fn received(&self) -> BTreeMap<ExpertId, u64> {
        self.store.received()
    }

    fn leave(&self) {
        self.store.leave();
    }
}

impl Liar {
    fn spoiled(&self, mut answer: ExpertRows) -> ExpertRows {
        let rows = &mut answer.rows;
        let mut data = rows.data.to_vec();
        let row_bytes = rows.format.row_bytes(rows.width);
        match self.lie {
            Lie::NotANumber if rows.format == RowFormat::F32 => data[..4].copy_from_slice(&f32::NAN.to_le_bytes()),
            Lie::NotANumber => data[..2].copy_from_slice(&0x7fc0_u16.to_le_bytes()),
            Lie::RowMissing => data.truncate(data.len() - row_bytes),
            Lie::OtherValues => {
                let before = std::mem::replace(&mut *self.before.lock().expect("nobody panics"), rows.data.clone());
                if before.len() == data.len() && before != rows.data {
                    data = before.to_vec();
                } else {
                    // The first value of each row.
                    let sign = if rows.format == RowFormat::F32 { 3 } else { 1 };
                    data.chunks_exact_mut(row_bytes).for_each(|row| row[sign] ^= 0x80);
                }
            }
        }
        rows.data = Bytes::from(data);
        answer
    }
}

/// Has a liar join the cluster.
fn join(fleet: &mut Fleet, lie: Lie) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/breeze");
    let checkpoint = Checkpoint::open(&folder).expect("the demo model opens");
    let config = checkpoint.config().expect("its configuration is sound");
    let weights = Manifest::compute(&checkpoint).root().to_owned();
    let quantization = ExpertTypes::of(&checkpoint, &config, Quantize::AsStored).expect("types").name;
    let arithmetic = CPU_ARITHMETIC.to_owned();
    let profile = NumericProfile { contract: CONTRACT_VERSION, weights, quantization, arithmetic };
    let (model, backend) = (ModelId::from("breeze"), ExpertBackend::cpu(Compute::new(Isa::detect(), 1)));
    let checkpoint = Arc::new(checkpoint);
    let store = ExpertStore::new(model.clone(), checkpoint, config, Quantize::AsStored, u64::MAX, backend);
    let store = Arc::new(store);
    let mut options = EtcdOptions::parse(&fleet.registry(), NAME).expect("an address");
    options.ttl = Duration::from_secs(1);
    let served = Arc::new(Liar { store: store.clone(), lie, before: Mutex::default() });
    let runtime = fleet.runtime();
    let node = runtime.block_on(async {
        let registry = EtcdRegistry::connect(&options, model, profile.clone()).await.expect("etcd is there");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("its address").to_string();
        tokio::spawn(serve_experts(served, profile.clone(), listener, Security::Plaintext, std::future::pending()));
        let (id, zone) = ("liar".into(), String::new());
        let options = NodeOptions { id, addr, capacity: u64::MAX, zone, profile };
        let node = Node::join(options, store, &registry).await.expect("it joins");
        (node, registry)
    });
    runtime.spawn(async move {
        let (node, _registry) = node;
        node.follow().await
    });
    fleet.expect("liar");
    fleet.until_settled();
}

#[test]
fn answers_that_cannot_be_right_are_asked_of_others() {
    for lie in [Lie::NotANumber, Lie::RowMissing] {
        let mut fleet = Fleet::start(Size { nodes: 2, replicas: 2 });
        let quiet = Arc::new(Quiet::of(fleet.coordinator()));
        join(&mut fleet, lie);
        let traffic = Traffic::start(fleet.coordinator(), &quiet, 3);
        until("the liar is avoided", || fleet.status()["nodes"].to_string().contains("avoided"));
        thread::sleep(Duration::from_secs(1));
        assert!(traffic.is_well(), "{lie:?}");
        assert!(traffic.stop() > 0);
        quiet.check_all(fleet.coordinator().addr());
    }
}

#[test]
fn a_node_that_computes_other_values_is_found_by_audits_and_used_no_more() {
    let mut fleet = Fleet::start(Size { nodes: 2, replicas: 3 });
    let quiet = Quiet::of(fleet.coordinator());
    join(&mut fleet, Lie::OtherValues);
    // Until it is found its values are taken: only what is computed twice can be compared.
    until("the liar is quarantined", || {
        quiet.ask_all(fleet.coordinator().addr());
        fleet.status()["nodes"].to_string().contains("quarantined")
    });
    quiet.check_all(fleet.coordinator().addr());
    let status = fleet.status();
    assert_eq!(status["health"], "HEALTH_WARN");
    assert!(status["findings"].to_string().contains("node liar is quarantined"), "{status}");
}

#[test]
fn where_everything_is_confirmed_a_node_that_computes_other_values_spoils_no_stream() {
    let mut fleet = Fleet::start_with(Size { nodes: 2, replicas: 3 }, &["--audit", "1"], How::default());
    let quiet = Arc::new(Quiet::of(fleet.coordinator()));
    let traffic = Traffic::start(fleet.coordinator(), &quiet, 3);
    join(&mut fleet, Lie::OtherValues);
    until("the liar is quarantined", || fleet.status()["nodes"].to_string().contains("quarantined"));
    assert!(traffic.is_well());
    assert!(traffic.stop() > 0);
    quiet.check_all(fleet.coordinator().addr());
    let status = fleet.status();
    assert!(status["findings"].to_string().contains("node liar is quarantined"), "{status}");
    assert!(!status["findings"].to_string().contains("confirms"), "two honest nodes hold everything: {status}");
}
