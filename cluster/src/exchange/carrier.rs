//! By what rows travel between processes: an operator's choice, by name.

use tokio::runtime::Handle;
use tramontane_router::NumericProfile;

use super::grpc::GrpcExchange;
use super::nccl::{self, NcclExchange};
use super::{Exchange, NcclError};
use crate::metrics::ExchangeMetrics;
use crate::tls::Security;

/// What carries rows between a coordinator and its nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Carrier {
    /// TCP.
    #[default]
    Grpc,
    /// NCCL between GPUs, and gRPC where and while that cannot be.
    Nccl,
}

impl Carrier {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Grpc, Self::Nccl];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Nccl => "nccl",
        }
    }

    /// The one of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|carrier| carrier.name() == name)
    }

    /// Whether this build and this machine can have rows carried so.
    ///
    /// # Errors
    /// What is missing, and how to get it.
    pub fn available(self) -> Result<(), NcclError> {
        match self {
            Self::Grpc => Ok(()),
            Self::Nccl => nccl::available(),
        }
    }

    /// An exchange that knows no nodes yet. `runtime` carries its bytes, or those that order NCCL's; `profile` is what
    /// every answer must be of; `metrics` counts.
    pub fn exchange(
        self,
        runtime: &Handle,
        profile: NumericProfile,
        security: Security,
        metrics: ExchangeMetrics,
    ) -> Box<dyn Exchange> {
        match self {
            Self::Grpc => Box::new(GrpcExchange::new(runtime.clone(), profile, security).counted_by(metrics)),
            Self::Nccl => Box::new(NcclExchange::new(runtime, profile, security, metrics)),
        }
    }
}
