//! What operators have ordered, in etcd.

use etcd_client::{Client, Compare, CompareOp, Txn, TxnOp};
use tramontane_router::placement::{Order, Orders};

use super::keys::{Keys, decode, encode};
use super::{options::kv, within};
use crate::registry::{RegistryError, rules};

/// How often an order is tried again that another one came before.
const TRIES: usize = 16;

/// Applies `order` to the newest orders: what stands in etcd, or, if that is older (etcd was restored), what was `seen`.
pub(super) async fn order(client: &Client, keys: &Keys, seen: &Orders, order: &Order) -> Result<Orders, RegistryError> {
    change(client, keys, seen, |orders| orders.after(order).map_err(rules::disobeyed)).await
}

/// Writes what was `seen` over what is older.
pub(super) async fn restore(client: &Client, keys: &Keys, seen: &Orders) -> Result<Orders, RegistryError> {
    change(client, keys, seen, |orders| Ok(orders.clone())).await
}

async fn change(
    client: &Client,
    keys: &Keys,
    seen: &Orders,
    change: impl Fn(&Orders) -> Result<Orders, RegistryError>,
) -> Result<Orders, RegistryError> {
    let key = keys.orders();
    for _ in 0..TRIES {
        let read = within(kv(client).get(key.as_str(), None)).await?;
        let stored = read.kvs().first();
        let revision = stored.map_or(0, |kv| kv.mod_revision());
        let stored: Option<Orders> = stored.map(|kv| decode(&key, kv.value())).transpose()?;
        let newest = stored.as_ref().filter(|stored| stored.version >= seen.version).unwrap_or(seen);
        let next = change(newest)?;
        if next == stored.unwrap_or_default() {
            return Ok(next);
        }
        let put = TxnOp::put(key.as_str(), encode("orders", &next)?, None);
        let unchanged = Compare::mod_revision(key.as_str(), CompareOp::Equal, revision);
        if within(kv(client).txn(Txn::new().when([unchanged]).and_then([put]))).await?.succeeded() {
            return Ok(next);
        }
    }
    Err(RegistryError::Refused { what: "order".into(), why: "others are ordered all the time; try again".into() })
}
