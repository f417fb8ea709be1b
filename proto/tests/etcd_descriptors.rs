//! Holds what `tools/protoc` answers to the `.proto` files in etcd-client's own package. `UPDATE_PROTO=1` rewrites it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use prost::Message;

/// The package whose build script is answered: name, exact version.
const PACKAGE: (&str, &str) = ("etcd-client", "0.21.1");
/// The files its build script compiles, relative to its folder `proto`.
const FILES: [&str; 5] = [
    "etcd/api/authpb/auth.proto",
    "etcd/api/etcdserverpb/rpc.proto",
    "etcd/api/mvccpb/kv.proto",
    "etcd/server/etcdserver/api/v3election/v3electionpb/v3election.proto",
    "etcd/server/etcdserver/api/v3lock/v3lockpb/v3lock.proto",
];

/// This machine, as cargo calls it: of packages for others nothing need have been fetched.
fn host() -> String {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let asked = Command::new(rustc).arg("-vV").output().expect("rustc starts");
    let said = String::from_utf8_lossy(&asked.stdout);
    said.lines().find_map(|line| line.strip_prefix("host: ")).expect("a host").to_owned()
}

/// Where cargo unpacked the package.
fn package() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let asked = Command::new(cargo)
        .args(["metadata", "--offline", "--locked", "--format-version", "1", "--filter-platform", &host()])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo starts");
    assert!(asked.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&asked.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&asked.stdout).expect("cargo metadata prints JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let of_it: Vec<_> = packages.iter().filter(|package| package["name"] == PACKAGE.0).collect();
    assert_eq!(of_it.len(), 1, "one version of {}", PACKAGE.0);
    assert_eq!(
        of_it[0]["version"], PACKAGE.1,
        "pin the version that tools/protoc answers, or make it answer the new one"
    );
    let manifest = of_it[0]["manifest_path"].as_str().expect("a path");
    Path::new(manifest).parent().expect("a folder").to_owned()
}

#[test]
fn the_committed_descriptors_are_those_of_the_packages_proto_files() {
    let root = package().join("proto");
    let mut compiler = protox::Compiler::new([&root]).expect("the folder is there");
    compiler.include_imports(true).include_source_info(false);
    compiler.open_files(FILES).expect("the .proto files compile");
    let fresh = compiler.file_descriptor_set().encode_to_vec();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../tools/{}-{}.descriptors", PACKAGE.0, PACKAGE.1));
    if std::env::var_os("UPDATE_PROTO").is_some() {
        fs::write(&path, &fresh).expect("the committed file can be written");
    }
    let committed = fs::read(&path).unwrap_or_default();
    assert!(committed == fresh, "{} is stale: run `UPDATE_PROTO=1 cargo test -p tramontane-proto`", path.display());
}

#[test]
fn any_other_call_of_protoc_is_refused_with_what_to_do() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/protoc");
    let called = Command::new(script).args(["-o", "out", "other.proto"]).output().expect("the script starts");
    let said = String::from_utf8_lossy(&called.stderr);
    assert!(!called.status.success() && said.contains("other.proto") && said.contains("install protoc"), "{said}");
}
