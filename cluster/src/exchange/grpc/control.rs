//! What is asked of a node beside rows: to load experts, and what it has counted.

use std::collections::BTreeMap;
use std::time::Duration;

use tonic::transport::Channel;
use tonic::{Request, Status};
use tramontane_proto::v1 as pb;
use tramontane_proto::v1::experts_client::ExpertsClient;
use tramontane_router::{ExpertId, ModelId, NodeId};

use super::{LOAD_TIMEOUT, REPLY_TIMEOUT, wire};
use crate::convert::{expert_from_pb, expert_to_pb};
use crate::exchange::ExchangeError;
use crate::tls::{Role, Security};
use crate::transport::{MAX_MESSAGE, causes, connect};

/// A connection to one node, apart from its exchange stream.
pub struct NodeControl {
    node: NodeId,
    client: ExpertsClient<Channel>,
}

impl NodeControl {
    /// Connects to `node` at `host:port`.
    ///
    /// # Errors
    /// [`ExchangeError::NodeGone`].
    pub async fn connect(node: NodeId, addr: &str, security: &Security) -> Result<Self, ExchangeError> {
        match connect(addr, security, Role::ExpertNode).await {
            Ok(channel) => {
                let client = ExpertsClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
                Ok(Self { node, client })
            }
            Err(why) => Err(ExchangeError::NodeGone { node, why }),
        }
    }

    /// Has the node load those of `experts` it does not hold, and returns when it answers for all of them.
    ///
    /// # Errors
    /// What kept it from that; [`ExchangeError::NotHeld`] names the first expert it cannot load.
    pub async fn ensure_held(&mut self, model: &ModelId, experts: &[ExpertId]) -> Result<(), ExchangeError> {
        let experts = experts.iter().copied().map(expert_to_pb).collect();
        let request = within(LOAD_TIMEOUT, pb::EnsureHeldRequest { model: model.as_str().to_owned(), experts });
        let reply = self.client.ensure_held(request).await.map_err(|status| self.gone(&status))?;
        match reply.into_inner().error {
            None => Ok(()),
            Some(error) => Err(wire::error_from_pb(error, &self.node)),
        }
    }

    /// Rows each expert of the node has received since it started.
    ///
    /// # Errors
    /// [`ExchangeError::NodeGone`], or [`ExchangeError::Corrupt`] for an answer that makes no sense.
    pub async fn received(&mut self) -> Result<BTreeMap<ExpertId, u64>, ExchangeError> {
        let request = within(REPLY_TIMEOUT, pb::StatsRequest {});
        let reply = self.client.stats(request).await.map_err(|status| self.gone(&status))?;
        let counts = reply.into_inner().experts.into_iter();
        counts
            .map(|count| Ok((expert_from_pb(count.expert)?, count.rows)))
            .collect::<Result<_, crate::Malformed>>()
            .map_err(|malformed| ExchangeError::Corrupt { node: self.node.clone(), why: malformed.0 })
    }

    /// Has the node leave once others hold what it is placed to hold.
    ///
    /// # Errors
    /// [`ExchangeError::NodeGone`].
    pub async fn leave(&mut self) -> Result<(), ExchangeError> {
        let request = within(REPLY_TIMEOUT, pb::LeaveRequest {});
        self.client.leave(request).await.map_err(|status| self.gone(&status))?;
        Ok(())
    }

    fn gone(&self, status: &Status) -> ExchangeError {
        ExchangeError::NodeGone { node: self.node.clone(), why: causes(status) }
    }
}

fn within<T>(timeout: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}
