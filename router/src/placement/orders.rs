//! What operators have ordered: intent beside the placement. The leader places by it, and whoever leads next does too.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::NodeId;

/// Nodes that may be cordoned at a time: as many as a cluster may have, and as many again that are not there.
pub const MAX_CORDONED: usize = 2048;

/// The document. Each change is one version more, so that a change made from an old one is noticed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orders {
    /// This document's version; 0 before the first order.
    pub version: u64,
    /// Nodes that keep what they hold and get nothing new, whether they are there or not.
    #[serde(default)]
    pub cordoned: BTreeSet<NodeId>,
    /// The version that ordered experts to be moved at once; absent when that is done.
    #[serde(default)]
    pub rebalance: Option<u64>,
    /// The last rebalance that could not be done, until another is ordered.
    #[serde(default)]
    pub blocked: Option<BlockedRebalance>,
}

/// A rebalance that could not be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockedRebalance {
    /// The version that ordered it.
    pub order: u64,
    /// What stood in the way, for the operator.
    pub why: String,
}

/// One change to the document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// The node gets nothing new.
    Cordon(NodeId),
    /// It does again.
    Uncordon(NodeId),
    /// Experts go where they should be, whatever else the leader would wait for.
    Rebalance,
    /// What a version ordered is done, or cannot be.
    Rebalanced {
        /// The version.
        order: u64,
        /// Why it cannot be; `None`: it is done.
        blocked: Option<String>,
    },
}

/// Why an order is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{MAX_CORDONED} nodes are cordoned already; uncordon some that are not there any more")]
pub struct TooManyCordoned;

impl Orders {
    /// The document after `order`; itself, with its version, where nothing would change. Who orders what was ordered already waits
    /// for the same.
    ///
    /// # Errors
    /// [`TooManyCordoned`].
    pub fn after(&self, order: &Order) -> Result<Self, TooManyCordoned> {
        let mut next = self.clone();
        match order {
            Order::Cordon(node) => {
                next.cordoned.insert(node.clone());
            }
            Order::Uncordon(node) => {
                next.cordoned.remove(node);
            }
            Order::Rebalance if self.rebalance.is_none() => {
                (next.rebalance, next.blocked) = (Some(self.version.saturating_add(1)), None);
            }
            Order::Rebalanced { order, blocked } if self.rebalance == Some(*order) => {
                next.rebalance = None;
                next.blocked = blocked.clone().map(|why| BlockedRebalance { order: *order, why });
            }
            Order::Rebalance | Order::Rebalanced { .. } => {}
        }
        if next.cordoned.len() > MAX_CORDONED {
            return Err(TooManyCordoned);
        }
        if next != *self {
            next.version = self.version.saturating_add(1);
        }
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(orders: &Orders, order: Order) -> Orders {
        orders.after(&order).expect("there is room")
    }

    #[test]
    fn an_order_is_one_version_and_what_stands_already_is_none() {
        let first = after(&Orders::default(), Order::Cordon("a".into()));
        assert_eq!((first.version, first.cordoned.len()), (1, 1));
        assert_eq!(after(&first, Order::Cordon("a".into())), first);
        assert_eq!(after(&first, Order::Uncordon("b".into())), first);
        let second = after(&first, Order::Uncordon("a".into()));
        assert_eq!(second, Orders { version: 2, ..Orders::default() });
    }

    #[test]
    fn a_rebalance_stands_until_that_very_one_is_done() {
        let ordered = after(&Orders::default(), Order::Rebalance);
        assert_eq!(ordered.rebalance, Some(1));
        assert_eq!(after(&ordered, Order::Rebalance), ordered, "who asks again waits for the same");
        assert_eq!(after(&ordered, Order::Rebalanced { order: 7, blocked: None }), ordered);
        let done = after(&ordered, Order::Rebalanced { order: 1, blocked: None });
        assert_eq!((done.version, done.rebalance), (2, None));
        assert_eq!(after(&done, Order::Rebalance).rebalance, Some(3));
    }

    #[test]
    fn what_stood_in_the_way_is_known_until_another_is_ordered() {
        let ordered = after(&Orders::default(), Order::Rebalance);
        let blocked = after(&ordered, Order::Rebalanced { order: 1, blocked: Some("no room".into()) });
        assert_eq!(blocked.rebalance, None);
        assert_eq!(blocked.blocked, Some(BlockedRebalance { order: 1, why: "no room".into() }));
        assert_eq!(after(&blocked, Order::Cordon("a".into())).blocked, blocked.blocked);
        assert_eq!(after(&blocked, Order::Rebalance).blocked, None);
    }

    #[test]
    fn cordons_have_a_bound() {
        let cordoned = (0..MAX_CORDONED).map(|i| NodeId::from(format!("n{i}"))).collect();
        let full = Orders { version: 9, cordoned, ..Orders::default() };
        assert_eq!(full.after(&Order::Cordon("one more".into())), Err(TooManyCordoned));
        assert_eq!(full.after(&Order::Cordon("n0".into())), Ok(full));
    }
}
