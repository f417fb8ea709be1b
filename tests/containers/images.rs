//! Images, built from Debian's packages alone by the programs that Debian has for it, and what is in them. No registry is asked for anything.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::tools::{file, succeeds};

/// What `podman` and `buildah` are told: bounds that a machine's own may be below, and no service that a machine may lack.
const SETTINGS: &str = r#"[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"#;
/// The image that all others are made from.
const BASE: &str = "localhost/base";

/// Images and containers of the test's own, apart from those of the machine; they are gone when this is dropped.
pub(crate) struct Store {
    folder: TempDir,
}

/// An image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    /// The hash of its configuration, which has those of its layers.
    pub(crate) id: String,
    pub(crate) layers: Vec<String>,
    pub(crate) user: String,
    pub(crate) entrypoint: Vec<String>,
}

impl Store {
    /// An empty one but for the base.
    pub(crate) fn new() -> Self {
        let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder");
        let store = Self { folder };
        fs::write(store.path("containers.conf"), SETTINGS).expect("a file");
        succeeds(store.podman().arg("import").arg(base()).arg(BASE));
        store
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn program(&self, name: &str) -> Command {
        let mut program = Command::new(name);
        program.env("CONTAINERS_CONF", self.path("containers.conf"));
        // Nothing stays mounted, so that the folder can be removed.
        program.args(["--storage-driver", "overlay", "--storage-opt", "overlay.skip_mount_home=true"]);
        program.arg("--root").arg(self.path("images")).arg("--runroot").arg(self.path("run"));
        program
    }

    pub(crate) fn podman(&self) -> Command {
        self.program("podman")
    }

    /// Builds `containerfile` from the folder `context` as the image `name`. Twice the same is built twice.
    pub(crate) fn build(&self, containerfile: &str, context: &Path, name: &str, more: &[&str]) -> Image {
        let mut buildah = self.program("buildah");
        buildah.args(["build", "--isolation", "chroot", "--network", "host", "--pull-never", "--timestamp", "0"]);
        buildah.args(["--build-arg", &format!("BASE={BASE}"), "--tag", name]).args(more);
        succeeds(buildah.arg("--file").arg(file(containerfile)).arg(context));
        self.image(name)
    }

    fn image(&self, name: &str) -> Image {
        let told = succeeds(self.podman().args(["image", "inspect", name]));
        let told: Value = serde_json::from_str(&told).expect("JSON");
        let (image, config) = (&told[0], &told[0]["Config"]);
        let texts = |list: &Value| {
            list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>()
        };
        Image {
            id: image["Id"].as_str().expect("a hash").to_owned(),
            layers: texts(&image["RootFS"]["Layers"]),
            user: config["User"].as_str().unwrap_or_default().to_owned(),
            entrypoint: texts(&config["Entrypoint"]),
        }
    }

    /// Bytes of the image as a registry would send it.
    pub(crate) fn compressed(&self, name: &str) -> u64 {
        let archive = self.path("archive");
        succeeds(
            self.podman().args(["save", "--quiet", "--format", "oci-archive", "--output"]).arg(&archive).arg(name),
        );
        let bytes = fs::metadata(&archive).expect("an archive").len();
        fs::remove_file(archive).expect("it can be removed");
        bytes
    }

    /// The paths of all files in the image.
    pub(crate) fn files(&self, name: &str) -> BTreeSet<String> {
        let mounted = succeeds(self.podman().args(["image", "mount", name]));
        let root = PathBuf::from(mounted.trim());
        let mut files = BTreeSet::new();
        walk(&root, &root, &mut files);
        succeeds(self.podman().args(["image", "unmount", name]));
        files
    }

    /// What a container of the image prints that is run to its end with `args`.
    pub(crate) fn prints(&self, name: &str, args: &[&str]) -> String {
        let locked = ["run", "--rm", "--pull=never", "--network=none", "--read-only", "--read-only-tmpfs=false"];
        succeeds(self.podman().args(locked).args(["--cap-drop=all", name]).args(args))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // buildah leaves what it worked in, mounted; nothing of that may be beneath a folder that is to go.
        _ = self.program("buildah").args(["rm", "--all"]).output();
    }
}

/// Debian, packed. It is made once for all tests; how old its packages are does not matter to them.
fn base() -> PathBuf {
    let base = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bookworm.tar");
    if !base.exists() {
        let making = base.with_extension("making.tar");
        succeeds(Command::new("mmdebstrap").args(["--quiet", "--variant=minbase", "bookworm"]).arg(&making));
        fs::rename(making, &base).expect("it can be named");
    }
    base
}

/// Adds what lies below `folder`, as seen from `root`.
fn walk(root: &Path, folder: &Path, files: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let entry = entry.expect("an entry");
        if entry.file_type().expect("a type").is_dir() {
            walk(root, &entry.path(), files);
        } else {
            let path = entry.path();
            files.insert(path.strip_prefix(root).expect("it is below").display().to_string());
        }
    }
}
