//! The model that a plan is about: a known one, a configuration, or a checkpoint.

use std::path::Path;

use anyhow::{Context, bail};
use tramontane_model::config::ModelConfig;
use tramontane_model::tools::{Like, Recipe};
use tramontane_model::weights::{ExpertTypes, Quantize};

use super::args::PlanArgs;
use crate::args::QuantizeArg;
use crate::cost::ModelWeights;
use crate::files::read_text;
use crate::model::{named, open_checkpoint};

/// Bytes of a configuration, at most.
const MAX_CONFIG: u64 = 1 << 20;

/// A model, as far as a plan needs it.
pub(super) struct Subject {
    pub(super) name: String,
    /// What its weights are stored in.
    pub(super) types: String,
    pub(super) config: ModelConfig,
    pub(super) weights: ModelWeights,
    /// Whether rows go to its experts as int8 blocks.
    pub(super) quantized: bool,
}

impl Subject {
    /// The model that `args` name.
    pub(super) fn of(args: &PlanArgs) -> anyhow::Result<Self> {
        let path = Path::new(&args.model);
        if let Some(like) = Like::ALL.into_iter().find(|like| like.name() == args.model) {
            return Self::of_config(args.model.clone(), like.config(), args);
        }
        if path.extension().is_some_and(|extension| extension == "json") {
            let text = read_text(path, MAX_CONFIG).with_context(|| format!("cannot read {}", args.model))?;
            return Self::of_config(args.model.clone(), ModelConfig::from_json(text.as_bytes(), &args.model)?, args);
        }
        if args.ty.is_some() {
            bail!("--type: {} is a checkpoint, which has its types; --quantize converts its experts", args.model);
        }
        let path = named(&args.model).map_err(anyhow::Error::msg)?;
        let (name, checkpoint) = open_checkpoint(Some(&path))?;
        let config = checkpoint.config()?;
        let quantize = args.quantize.map_or(Quantize::AsStored, QuantizeArg::quantize);
        let types = ExpertTypes::of(&checkpoint, &config, quantize)?;
        let weights = ModelWeights::of(&checkpoint, &config, quantize)?;
        Ok(Self { name, types: types.name, config, weights, quantized: types.quantized })
    }

    fn of_config(name: String, config: ModelConfig, args: &PlanArgs) -> anyhow::Result<Self> {
        if args.quantize.is_some() {
            bail!("--quantize: {name} is no checkpoint; --type says what its weights are stored in");
        }
        let recipe = args.ty.map_or(Recipe::Q8_0, |ty| ty.recipe());
        let weights = ModelWeights::by_recipe(&config, recipe);
        Ok(Self { name, types: recipe.name().to_owned(), config, weights, quantized: recipe != Recipe::F16 })
    }
}
