//! Where etcd is and how to be let in.

use std::fmt;
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};

use super::{CALL_TIMEOUT, MAX_ANSWER, lost};
use crate::registry::RegistryError;

/// What an etcd registry's address begins with.
const SCHEME: &str = "etcd://";
/// Endpoints of one etcd cluster, at most.
pub const MAX_ENDPOINTS: usize = 16;
/// Bytes of a cluster's name, at most.
const MAX_CLUSTER: usize = 63;
/// How long a node's record outlives the last sign of life.
const TTL: Duration = Duration::from_secs(10);
/// A silent connection is pinged this often, and given up after as long without an answer.
const PING: Duration = Duration::from_secs(5);

/// How to reach a cluster's registry in etcd.
#[derive(Clone)]
pub struct EtcdOptions {
    /// `host:port` of etcd's members.
    pub endpoints: Vec<String>,
    /// The cluster's name: its keys' prefix.
    pub cluster: String,
    /// User and password, where etcd asks for them.
    pub user: Option<(String, String)>,
    /// Certificates, where etcd speaks TLS.
    pub tls: Option<EtcdTls>,
    /// How long a node's record, and a leadership, outlive the last sign of life; whole seconds, at least one.
    pub ttl: Duration,
}

/// Certificates for etcd, as PEM.
#[derive(Clone)]
pub struct EtcdTls {
    /// The authority that signed etcd's certificate.
    pub authority: Vec<u8>,
    /// This client's certificate and key, where etcd asks for them.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// The name in etcd's certificate, where it is not that of the endpoint.
    pub domain: Option<String>,
}

impl fmt::Debug for EtcdOptions {
    /// Without passwords and keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdOptions").field("endpoints", &self.endpoints).field("cluster", &self.cluster).finish()
    }
}

impl EtcdOptions {
    /// `url` is `etcd://host:port[,host:port…]`. Without user and TLS.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] for an address or a cluster's name that is none.
    pub fn parse(url: &str, cluster: &str) -> Result<Self, RegistryError> {
        let refused = |why: String| RegistryError::Refused { what: format!("registry {url}"), why };
        let list =
            url.strip_prefix(SCHEME).ok_or_else(|| refused(format!("its address does not begin with {SCHEME}")))?;
        let endpoints: Vec<String> = list.split(',').map(str::to_owned).collect();
        let is_address = |endpoint: &String| {
            endpoint.rsplit_once(':').is_some_and(|(host, port)| {
                !host.is_empty() && !host.contains(['/', '@']) && port.parse::<u16>().is_ok_and(|port| port > 0)
            })
        };
        if let Some(wrong) = endpoints.iter().find(|endpoint| !is_address(endpoint)) {
            return Err(refused(format!("{wrong:?} is no host:port")));
        }
        if endpoints.len() > MAX_ENDPOINTS {
            return Err(refused(format!("{} endpoints, over {MAX_ENDPOINTS}", endpoints.len())));
        }
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if cluster.is_empty() || cluster.len() > MAX_CLUSTER || !cluster.chars().all(legal) {
            return Err(refused(format!(
                "{cluster:?} names no cluster: letters, digits, - _ . are wanted, at most {MAX_CLUSTER}"
            )));
        }
        Ok(Self { endpoints, cluster: cluster.to_owned(), user: None, tls: None, ttl: TTL })
    }

    /// A client. Contacts etcd only where there is a user to log in.
    pub(super) async fn client(&self) -> Result<Client, RegistryError> {
        // A member cut off from the others must not answer with what it alone believes.
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CALL_TIMEOUT)
            .with_keep_alive(PING, PING)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        if let Some((name, password)) = &self.user {
            options = options.with_user(name, password).with_auto_token_refresh(true);
        }
        if let Some(EtcdTls { authority, identity, domain }) = &self.tls {
            let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(authority));
            if let Some((certificate, key)) = identity {
                tls = tls.identity(Identity::from_pem(certificate, key));
            }
            if let Some(domain) = domain {
                tls = tls.domain_name(domain);
            }
            options = options.with_tls(tls);
        }
        match tokio::time::timeout(CALL_TIMEOUT, Client::connect(&self.endpoints, Some(options))).await {
            Ok(client) => client.map_err(|error| lost(&error)),
            Err(_) => Err(RegistryError::Lost { why: format!("etcd did not answer within {CALL_TIMEOUT:?}") }),
        }
    }

    pub(super) fn ttl_seconds(&self) -> i64 {
        self.ttl.as_secs().max(1).try_into().unwrap_or(i64::MAX)
    }
}

/// The part of `client` that reads and writes, for answers of any size we write.
pub(super) fn kv(client: &Client) -> etcd_client::KvClient {
    client.kv_client().max_decoding_message_size(MAX_ANSWER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_lists_of_host_and_port() {
        let options = EtcdOptions::parse("etcd://a:2379,10.0.0.1:1,[::1]:2379", "prod-1").expect("an address");
        assert_eq!(options.endpoints, ["a:2379", "10.0.0.1:1", "[::1]:2379"]);
        for wrong in
            ["http://a:1", "etcd://", "etcd://a", "etcd://a:0", "etcd://a:1,", "etcd://u:p@a:1", "etcd://a:1/x"]
        {
            let refused = EtcdOptions::parse(wrong, "c");
            assert!(
                matches!(&refused, Err(RegistryError::Refused { what, .. }) if what.contains(wrong)),
                "{refused:?}"
            );
        }
        for wrong in ["", "a/b", "ä", &"x".repeat(64)] {
            assert!(EtcdOptions::parse("etcd://a:1", wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let mut options = EtcdOptions::parse("etcd://a:1", "c").expect("an address");
        options.user = Some(("root".into(), "swordfish".into()));
        assert!(!format!("{options:?}").contains("swordfish"));
    }
}
