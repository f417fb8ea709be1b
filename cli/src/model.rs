//! Opens the model that the command line names, far enough to know what it is.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use tramontane_cluster::engine::EngineInfo;
use tramontane_coordinator::{AUDIT_EVERY, Auditing};
use tramontane_expert_node::{ExpertStore, NodeOptions};
use tramontane_kernels::{CONTRACT_VERSION, Compute, KvType, WeightType};
use tramontane_model::cache::PackedCache;
use tramontane_model::checkpoint::Checkpoint;
use tramontane_model::config::ModelConfig;
use tramontane_model::device::Device;
use tramontane_model::expert::ExpertBackend;
use tramontane_model::manifest::Manifest;
use tramontane_model::weights::{ExpertTypes, Quantize};
use tramontane_router::{ExpertId, ModelId, NodeId, NumericProfile};

use crate::args::ModelArgs;
use crate::{demo, hub};

/// Bytes of a checkpoint from which it is worth saying that they are all read.
const LONG_READ: u64 = 4 << 30;

/// A checkpoint that is known to be whole, and what follows from its headers.
pub(crate) struct Model {
    pub(crate) id: ModelId,
    pub(crate) checkpoint: Arc<Checkpoint>,
    pub(crate) config: ModelConfig,
    pub(crate) quantize: Quantize,
    /// Where it is computed.
    pub(crate) device: Device,
    pub(crate) experts: ExpertTypes,
    pub(crate) profile: NumericProfile,
    /// Where its packed weights are kept, if they are.
    pub(crate) cache: Option<Arc<PackedCache>>,
}

impl Model {
    /// Opens and validates the checkpoint, and finds its hash: from its manifest where it has one, else by reading it all.
    pub(crate) fn open(args: &ModelArgs) -> anyhow::Result<Self> {
        let device = Device::open(args.device)?;
        let path = on_disk(args.model.as_deref());
        let (name, checkpoint) = open_checkpoint(path)?;
        let manifest = match path {
            None => None,
            Some(path) => Manifest::load(path, &checkpoint).with_context(|| cannot_open(path))?,
        };
        let config = checkpoint.config()?;
        checkpoint.validate(&config)?;
        let quantize = args.quantize();
        let experts = ExpertTypes::of(&checkpoint, &config, quantize)?;
        let manifest = manifest.unwrap_or_else(|| {
            let bytes: u64 = checkpoint.weight_files().map(|(_, bytes)| bytes).sum();
            if bytes >= LONG_READ {
                let once = "`tramontane models verify --write-manifest` reads it once for all starts";
                tracing::warn!(bytes, "{name} has no manifest, so all of it is read now: {once}");
            }
            Manifest::compute(&checkpoint)
        });
        let profile = NumericProfile {
            contract: CONTRACT_VERSION,
            weights: manifest.root().to_owned(),
            quantization: experts.name.clone(),
            arithmetic: args.device.arithmetic().to_owned(),
        };
        let cache = args.cache_dir.as_deref().map(|dir| {
            let opened = PackedCache::open(dir, args.cache_bytes, Arc::new(manifest));
            opened.map(Arc::new).with_context(|| format!("cannot use the cache {}", dir.display()))
        });
        let (id, checkpoint, cache) = (ModelId::from(name), Arc::new(checkpoint), cache.transpose()?);
        Ok(Self { id, checkpoint, config, quantize, device, experts, profile, cache })
    }

    /// The same, whose experts are computed by `arithmetic`, if that is not its own device's.
    pub(crate) fn with_experts(mut self, arithmetic: Option<&str>) -> Self {
        if let Some(arithmetic) = arithmetic {
            self.profile.arithmetic = arithmetic.to_owned();
        }
        self
    }

    /// Bytes of one expert as it is held, to within the padding of its panels.
    pub(crate) fn expert_bytes(&self) -> u64 {
        let per_value = |ty: WeightType| ty.block_bytes() as f64 / ty.block_values() as f64;
        let widest = WeightType::ALL.into_iter().find(|ty| ty.name() == self.experts.name).map_or(4.0, per_value);
        (3.0 * self.config.hidden as f64 * self.config.inner as f64 * widest) as u64
    }

    /// What has so much of its experts' work done twice, as `asked`.
    ///
    /// # Errors
    /// When that is asked for, and two nodes need not answer with equal bits.
    pub(crate) fn auditing(&self, asked: Option<u32>) -> anyhow::Result<Auditing> {
        match asked {
            _ if self.profile.is_exact() => Ok(asked.unwrap_or(AUDIT_EVERY).into()),
            None | Some(0) => Ok(0.into()),
            Some(n) => {
                bail!("--audit {n}: nodes that compute by {} need not agree to the bit", self.profile.arithmetic)
            }
        }
    }

    /// A store for its experts, of at most `capacity` bytes, that computes on `compute`.
    pub(crate) fn expert_store(&self, capacity: u64, compute: Compute) -> Arc<ExpertStore> {
        let (id, checkpoint, config) = (self.id.clone(), self.checkpoint.clone(), self.config.clone());
        let backend = ExpertBackend::new(self.device.clone(), compute, self.cache.clone());
        Arc::new(ExpertStore::new(id, checkpoint, config, self.quantize, capacity, backend))
    }

    /// What a node `id` at `addr` that holds its experts says of itself when it joins.
    pub(crate) fn node(&self, id: NodeId, addr: String, capacity: u64) -> NodeOptions {
        NodeOptions { id, addr, capacity, zone: String::new(), profile: self.profile.clone() }
    }

    /// What an engine that stores keys and values as `kv` says of itself.
    pub(crate) fn engine_info(&self, kv: KvType) -> EngineInfo {
        EngineInfo {
            model: self.id.clone(),
            context: self.config.context,
            vocab: self.config.vocab,
            fingerprint: EngineInfo::fingerprint(&self.profile, self.device.arithmetic(), kv.name()),
        }
    }

    /// All its experts.
    pub(crate) fn expert_ids(&self) -> impl Iterator<Item = ExpertId> {
        let experts = self.config.experts as u32;
        (0..self.config.layers as u32).flat_map(move |l| (0..experts).map(move |e| ExpertId::new(l, e)))
    }
}

/// `path`, unless it means the demo model, which is in the binary.
fn on_disk(path: Option<&Path>) -> Option<&Path> {
    path.filter(|path| *path != Path::new(demo::WORD))
}

/// The checkpoint at `path`, the demo model without one, and what it is called. No weights are read.
pub(crate) fn open_checkpoint(path: Option<&Path>) -> anyhow::Result<(String, Checkpoint)> {
    match on_disk(path) {
        None => Ok((demo::NAME.to_owned(), Checkpoint::from_files(&demo::FILES)?)),
        Some(path) => Ok((name_of(path), Checkpoint::open(path).with_context(|| cannot_open(path))?)),
    }
}

fn cannot_open(path: &Path) -> String {
    format!("cannot open the model {}", path.display())
}

/// What the command line names: a path, or a model in the folder of models. What is there as a path is that path.
pub(crate) fn named(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if text == demo::WORD || path.exists() {
        return Ok(path);
    }
    let models = hub::default_folder(|name| std::env::var_os(name));
    Ok(hub::resolve(&models, text)?.unwrap_or(path))
}

/// What a checkpoint at `path` is called: its file or folder, links followed; a folder that was pulled, like its repository.
pub(crate) fn name_of(path: &Path) -> String {
    let pulled = hub::record_of(path).filter(|_| path.is_dir()).and_then(|(record, _)| hub::Repo::parse(&record.repo));
    if let Some(repo) = pulled {
        return repo.name;
    }
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    path.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}
