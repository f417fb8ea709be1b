//! Holds the committed code to the `.proto` files it is made from. `UPDATE_PROTO=1` rewrites it instead.

use std::fs;
use std::path::Path;

use prost::Message;

/// The generated file, relative to the crate.
const GENERATED: &str = "src/gen/tramontane.v1.rs";

/// The descriptors of the service that is reflected, and what it needs.
const DESCRIPTORS: &str = "src/gen/inference.bin";

fn generate(root: &Path) -> String {
    let files =
        ["experts", "admin", "engine", "inference"].map(|file| root.join(format!("tramontane/v1/{file}.proto")));
    let descriptors = protox::compile(files, [root]).expect("the .proto files compile");
    let out = tempfile::tempdir().expect("a temporary directory");
    tonic_prost_build::configure()
        .bytes(".")
        .out_dir(out.path())
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)
        .expect("the code generator accepts the descriptors");
    fs::read_to_string(out.path().join("tramontane.v1.rs")).expect("one file a package")
}

#[test]
fn the_committed_code_is_what_the_protos_generate() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (fresh, committed) = (generate(root), root.join(GENERATED));
    if std::env::var_os("UPDATE_PROTO").is_some() {
        fs::write(&committed, &fresh).expect("the committed file can be written");
    }
    let committed = fs::read_to_string(committed).unwrap_or_default();
    assert!(committed == fresh, "{GENERATED} is stale: run `UPDATE_PROTO=1 cargo test -p tramontane-proto`");
}

#[test]
fn the_committed_descriptors_are_what_the_proto_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let descriptors = protox::compile([root.join("tramontane/v1/inference.proto")], [root]).expect("it compiles");
    let (fresh, committed) = (descriptors.encode_to_vec(), root.join(DESCRIPTORS));
    if std::env::var_os("UPDATE_PROTO").is_some() {
        fs::write(&committed, &fresh).expect("the committed file can be written");
    }
    let committed = fs::read(committed).unwrap_or_default();
    assert!(committed == fresh, "{DESCRIPTORS} is stale: run `UPDATE_PROTO=1 cargo test -p tramontane-proto`");
}
