//! The operator's end.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tramontane_proto::v1 as pb;
use tramontane_proto::v1::admin_client::AdminClient as Client;
use tramontane_router::placement::Placement;
use tramontane_router::{Epoch, NodeId};

use super::{ClusterStatus, Cordon, Force, Rebalance, Rehearsal, accounts, wire};
use crate::Malformed;
use crate::registry::accounts::{Day, KeyRecord, Usage, UsageId};
use crate::tls::{Role, Security};
use crate::transport::{MAX_MESSAGE, causes, connect};

/// How long a coordinator may take to answer.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to one coordinator.
pub struct AdminClient {
    endpoint: String,
    client: Client<Channel>,
}

/// Why an operator got no answer, or another than was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdminClientError {
    /// Look at the address, or ask another coordinator.
    #[error("coordinator {endpoint} cannot be reached: {why}")]
    Unreachable {
        /// Where it was asked.
        endpoint: String,
        /// What failed.
        why: String,
    },
    /// Do as it says.
    #[error("{0}")]
    Refused(String),
    /// A defect, or another version.
    #[error("coordinator {endpoint} does not make sense: {why}")]
    Malformed {
        /// Where it was asked.
        endpoint: String,
        /// What is wrong.
        why: String,
    },
}

impl AdminClient {
    /// Connects to a coordinator's admin listener at `host:port`.
    ///
    /// # Errors
    /// [`AdminClientError::Unreachable`].
    pub async fn connect(endpoint: &str, security: &Security) -> Result<Self, AdminClientError> {
        let unreachable = |why| AdminClientError::Unreachable { endpoint: endpoint.to_owned(), why };
        let channel = connect(endpoint, security, Role::Coordinator).await.map_err(unreachable)?;
        let client = Client::new(channel).max_decoding_message_size(MAX_MESSAGE);
        Ok(Self { endpoint: endpoint.to_owned(), client })
    }

    /// How the cluster fares.
    ///
    /// # Errors
    /// [`AdminClientError`].
    pub async fn status(&mut self) -> Result<ClusterStatus, AdminClientError> {
        let reply = self.client.status(within(pb::StatusRequest {})).await;
        let reply = reply.map_err(|status| self.failed(&status))?.into_inner();
        wire::status_from_pb(reply).map_err(|malformed| self.malformed(malformed))
    }

    /// Has `node` leave once others hold what it holds; does not wait for that.
    ///
    /// # Errors
    /// [`AdminClientError`].
    pub async fn drain(&mut self, node: &NodeId, force: Force) -> Result<(), AdminClientError> {
        let request = pb::DrainRequest { node: node.as_str().to_owned(), force: force == Force::Yes };
        let reply = self.client.drain(within(request)).await;
        reply.map_err(|status| self.failed(&status))?;
        Ok(())
    }

    /// Has `node` get no new experts, or get them again; says whether that is new.
    ///
    /// # Errors
    /// [`AdminClientError`].
    pub async fn cordon(&mut self, node: &NodeId, cordon: Cordon) -> Result<bool, AdminClientError> {
        let request = pb::CordonRequest { node: node.as_str().to_owned(), lift: cordon == Cordon::Lift };
        let reply = self.client.cordon(within(request)).await;
        Ok(reply.map_err(|status| self.failed(&status))?.into_inner().changed)
    }

    /// Has experts moved to where they should be; does not wait for that.
    ///
    /// # Errors
    /// [`AdminClientError`].
    pub async fn rebalance(&mut self) -> Result<Rebalance, AdminClientError> {
        let reply = self.client.rebalance(within(pb::RebalanceRequest {})).await;
        let reply = reply.map_err(|status| self.failed(&status))?.into_inner();
        let plan = wire::rehearsal_from_pb(reply.plan.unwrap_or_default());
        let plan = plan.map_err(|malformed| self.malformed(malformed))?;
        Ok(Rebalance { plan, order: reply.order })
    }

    /// What a rebalance would move.
    ///
    /// # Errors
    /// [`AdminClientError`].
    pub async fn rehearse(&mut self) -> Result<Rehearsal, AdminClientError> {
        let reply = self.client.rehearse(within(pb::RehearseRequest {})).await;
        let reply = reply.map_err(|status| self.failed(&status))?.into_inner();
        wire::rehearsal_from_pb(reply).map_err(|malformed| self.malformed(malformed))
    }

    /// The placements seen, oldest first.
    ///
    /// # Errors
    /// [`AdminClientError`].
    pub async fn history(&mut self) -> Result<Vec<(SystemTime, Arc<Placement>)>, AdminClientError> {
        let reply = self.client.history(within(pb::HistoryRequest {})).await;
        let placements = reply.map_err(|status| self.failed(&status))?.into_inner().placements;
        let placements = placements.into_iter().map(wire::past_from_pb).collect::<Result<_, _>>();
        placements.map_err(|malformed| self.malformed(malformed))
    }

    /// Has the newest placement seen written over an older one that the registry came back with.
    ///
    /// # Errors
    /// [`AdminClientError`].
    pub async fn restore(&mut self) -> Result<Epoch, AdminClientError> {
        let reply = self.client.restore(within(pb::RestoreRequest {})).await;
        Ok(Epoch(reply.map_err(|status| self.failed(&status))?.into_inner().epoch))
    }

    /// Makes a key known to all front doors.
    ///
    /// # Errors
    /// [`AdminClientError`].
    pub async fn create_key(&mut self, key: &KeyRecord) -> Result<(), AdminClientError> {
        let request = pb::CreateKeyRequest { key: Some(accounts::key_to_pb(key)) };
        let reply = self.client.create_key(within(request)).await;
        reply.map_err(|status| self.failed(&status))?;
        Ok(())
    }

    /// The keys that are known, by name.
    ///
    /// # Errors
    /// [`AdminClientError`].
    pub async fn keys(&mut self) -> Result<Vec<KeyRecord>, AdminClientError> {
        let reply = self.client.list_keys(within(pb::ListKeysRequest {})).await;
        let keys = reply.map_err(|status| self.failed(&status))?.into_inner().keys;
        let keys = keys.into_iter().map(accounts::key_from_pb).collect::<Result<_, _>>();
        keys.map_err(|malformed| self.malformed(malformed))
    }

    /// Has all front doors forget the key `name`.
    ///
    /// # Errors
    /// [`AdminClientError`].
    pub async fn revoke_key(&mut self, name: &str) -> Result<(), AdminClientError> {
        let reply = self.client.revoke_key(within(pb::RevokeKeyRequest { name: name.to_owned() })).await;
        reply.map_err(|status| self.failed(&status))?;
        Ok(())
    }

    /// What keys have used from one day to another, by key, day, then model.
    ///
    /// # Errors
    /// [`AdminClientError`].
    pub async fn usage(&mut self, from: Day, to: Day) -> Result<Vec<(UsageId, Usage)>, AdminClientError> {
        let request = pb::ListUsageRequest { from: from.to_string(), to: to.to_string() };
        let reply = self.client.list_usage(within(request)).await;
        let rows = reply.map_err(|status| self.failed(&status))?.into_inner().rows;
        let rows = rows.into_iter().map(accounts::row_from_pb).collect::<Result<_, _>>();
        rows.map_err(|malformed| self.malformed(malformed))
    }

    fn failed(&self, status: &Status) -> AdminClientError {
        match status.code() {
            Code::NotFound | Code::FailedPrecondition | Code::InvalidArgument => {
                AdminClientError::Refused(status.message().to_owned())
            }
            // Said by the coordinator itself: it is there, and what it wanted to reach is not.
            Code::Unavailable if std::error::Error::source(status).is_none() => {
                AdminClientError::Refused(status.message().to_owned())
            }
            _ => AdminClientError::Unreachable { endpoint: self.endpoint.clone(), why: causes(status) },
        }
    }

    fn malformed(&self, malformed: Malformed) -> AdminClientError {
        AdminClientError::Malformed { endpoint: self.endpoint.clone(), why: malformed.0 }
    }
}

fn within<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(REPLY_TIMEOUT);
    request
}
