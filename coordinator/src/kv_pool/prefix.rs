//! Names for the contents of full blocks: a hash of everything that decides their bits.

use tramontane_cluster::engine::CacheScope;

/// What a full block of keys and values holds. Equal names mean equal bits, whoever computed them: a block's contents
/// follow from the tokens up to its end alone (decision 1 of the design), and the name hashes those.
///
/// It is a chain of BLAKE3 hashes, whole (256 bits): a block's is of its parent's and of its own tokens (little-endian u32);
/// the first block's parent is of the request's [`CacheScope`], so that scopes share nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockHash([u8; 32]);

impl BlockHash {
    /// The parent of a sequence's first block.
    pub fn root(scope: CacheScope) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("tramontane v1 kv block chain");
        hasher.update(&scope.0.to_le_bytes());
        Self(hasher.finalize().into())
    }

    /// The block after this one, with `tokens`.
    pub fn child(&self, tokens: &[u32]) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        tokens.iter().for_each(|token| {
            hasher.update(&token.to_le_bytes());
        });
        Self(hasher.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn scope_parent_and_tokens_all_count() {
        let roots = [0, 1, 1 << 100].map(|scope| BlockHash::root(CacheScope(scope)));
        let children =
            roots.iter().flat_map(|root| [vec![1, 2], vec![2, 1], vec![1]].map(|tokens| root.child(&tokens)));
        let grandchildren = roots.map(|root| root.child(&[1, 2]).child(&[1, 2]));
        let all: Vec<_> = roots.into_iter().chain(children).chain(grandchildren).collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
        assert_eq!(roots[0].child(&[7, 8]), BlockHash::root(CacheScope(0)).child(&[7, 8]));
    }
}
