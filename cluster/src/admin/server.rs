//! The coordinator's end.

use std::sync::Arc;

use tokio::net::TcpListener;
use tonic::{Request, Response, Status};
use tramontane_proto::v1 as pb;
use tramontane_proto::v1::admin_server::{Admin as Service, AdminServer};
use tramontane_router::NodeId;

use super::{Admin, AdminError, Cordon, Force, accounts, wire};
use crate::Malformed;
use crate::registry::RegistryError;
use crate::tls::{Role, Security};
use crate::transport::{self, MAX_MESSAGE, ServerError};

/// Serves `admin` to operators on `listener`, until `shutdown` completes and the calls under way are answered.
///
/// # Errors
/// The transport broke.
pub async fn serve_admin(
    admin: Arc<dyn Admin>,
    listener: TcpListener,
    security: Security,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServerError> {
    let service = AdminServer::new(Served(admin)).max_encoding_message_size(MAX_MESSAGE);
    let incoming = transport::incoming(listener, &security, Role::Admin)?;
    transport::server().serve_with_incoming_shutdown(service, incoming, shutdown).await?;
    Ok(())
}

struct Served(Arc<dyn Admin>);

#[tonic::async_trait]
impl Service for Served {
    async fn status(&self, _: Request<pb::StatusRequest>) -> Result<Response<pb::StatusReply>, Status> {
        Ok(Response::new(wire::status_to_pb(&self.0.status())))
    }

    async fn drain(&self, request: Request<pb::DrainRequest>) -> Result<Response<pb::DrainReply>, Status> {
        let pb::DrainRequest { node, force } = request.into_inner();
        let force = if force { Force::Yes } else { Force::No };
        self.0.drain(NodeId::from(node), force).await.map_err(refusal)?;
        Ok(Response::new(pb::DrainReply {}))
    }

    async fn cordon(&self, request: Request<pb::CordonRequest>) -> Result<Response<pb::CordonReply>, Status> {
        let pb::CordonRequest { node, lift } = request.into_inner();
        let cordon = if lift { Cordon::Lift } else { Cordon::Set };
        let changed = self.0.cordon(NodeId::from(node), cordon).await.map_err(refusal)?;
        Ok(Response::new(pb::CordonReply { changed }))
    }

    async fn rebalance(&self, _: Request<pb::RebalanceRequest>) -> Result<Response<pb::RebalanceReply>, Status> {
        let ordered = self.0.rebalance().await.map_err(refusal)?;
        let plan = Some(wire::rehearsal_to_pb(&ordered.plan));
        Ok(Response::new(pb::RebalanceReply { plan, order: ordered.order }))
    }

    async fn rehearse(&self, _: Request<pb::RehearseRequest>) -> Result<Response<pb::RehearseReply>, Status> {
        Ok(Response::new(wire::rehearsal_to_pb(&self.0.rehearse())))
    }

    async fn history(&self, _: Request<pb::HistoryRequest>) -> Result<Response<pb::HistoryReply>, Status> {
        let placements = self.0.history().iter().map(wire::past_to_pb).collect();
        Ok(Response::new(pb::HistoryReply { placements }))
    }

    async fn restore(&self, _: Request<pb::RestoreRequest>) -> Result<Response<pb::RestoreReply>, Status> {
        let epoch = self.0.restore().await.map_err(refusal)?;
        Ok(Response::new(pb::RestoreReply { epoch: epoch.0 }))
    }

    async fn create_key(&self, request: Request<pb::CreateKeyRequest>) -> Result<Response<pb::CreateKeyReply>, Status> {
        let key = request.into_inner().key.ok_or_else(|| malformed(Malformed::missing("key")))?;
        let key = accounts::key_from_pb(key).map_err(malformed)?;
        let accounts = accounts::of(self.0.as_ref()).map_err(refusal)?;
        accounts.create(key).await.map_err(|error| refusal(error.into()))?;
        Ok(Response::new(pb::CreateKeyReply {}))
    }

    async fn list_keys(&self, _: Request<pb::ListKeysRequest>) -> Result<Response<pb::ListKeysReply>, Status> {
        let accounts = accounts::of(self.0.as_ref()).map_err(refusal)?;
        let keys = accounts.watch().borrow().values().map(|key| accounts::key_to_pb(key)).collect();
        Ok(Response::new(pb::ListKeysReply { keys }))
    }

    async fn revoke_key(&self, request: Request<pb::RevokeKeyRequest>) -> Result<Response<pb::RevokeKeyReply>, Status> {
        let name = request.into_inner().name;
        let accounts = accounts::of(self.0.as_ref()).map_err(refusal)?;
        match accounts.revoke(&name).await.map_err(|error| refusal(error.into()))? {
            true => Ok(Response::new(pb::RevokeKeyReply {})),
            false => Err(refusal(AdminError::UnknownKey { name })),
        }
    }

    async fn list_usage(&self, request: Request<pb::ListUsageRequest>) -> Result<Response<pb::ListUsageReply>, Status> {
        let query = accounts::query_from_pb(request.get_ref()).map_err(malformed)?;
        let accounts = accounts::of(self.0.as_ref()).map_err(refusal)?;
        let rows = accounts.usage(query).await.map_err(|error| refusal(error.into()))?;
        Ok(Response::new(pb::ListUsageReply { rows: rows.iter().map(accounts::row_to_pb).collect() }))
    }
}

fn malformed(Malformed(why): Malformed) -> Status {
    Status::invalid_argument(why)
}

fn refusal(error: AdminError) -> Status {
    let why = error.to_string();
    match error {
        AdminError::UnknownNode { .. } | AdminError::UnknownKey { .. } => Status::not_found(why),
        AdminError::NoRoom { .. } | AdminError::NoAccounts => Status::failed_precondition(why),
        AdminError::Unreachable { .. } | AdminError::Registry(RegistryError::Lost { .. }) => Status::unavailable(why),
        AdminError::Registry(_) => Status::failed_precondition(why),
    }
}
