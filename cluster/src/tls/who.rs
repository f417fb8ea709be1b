//! Who a certificate is for. Pure.

use std::fmt;
use std::str::FromStr;

/// What the names in certificates begin with.
const SCHEME: &str = "spiffe://tramontane/";

/// What a process, or a person, may do in a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Sends rows to expert nodes; answers gateways and operators.
    Coordinator,
    /// Answers coordinators.
    ExpertNode,
    /// Sends requests to coordinators.
    Gateway,
    /// Commands coordinators.
    Admin,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Coordinator, Self::ExpertNode, Self::Gateway, Self::Admin];

    /// As it stands in certificates, and as commands take it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator",
            Self::ExpertNode => "expert-node",
            Self::Gateway => "gateway",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// There is no such role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no role: coordinator, expert-node, gateway and admin are")]
pub struct NoRole(String);

impl FromStr for Role {
    type Err = NoRole;

    fn from_str(text: &str) -> Result<Self, NoRole> {
        Self::ALL.into_iter().find(|role| role.name() == text).ok_or_else(|| NoRole(text.to_owned()))
    }
}

/// Whom a certificate names: a role in a cluster, as the URI `spiffe://tramontane/<cluster>/<role>` among its alternative names
/// (the form is SPIFFE's: <https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md>).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    /// The cluster.
    pub cluster: String,
    /// What it may do there.
    pub role: Role,
}

impl Who {
    /// The name in its certificate.
    pub fn uri(&self) -> String {
        format!("{SCHEME}{}/{}", self.cluster, self.role)
    }

    /// The one whom `uri` names; `None` where it names none of ours.
    pub fn parse(uri: &str) -> Option<Self> {
        let (cluster, role) = uri.strip_prefix(SCHEME)?.split_once('/')?;
        Some(Self { cluster: cluster.to_owned(), role: role.parse().ok()? }).filter(|_| !cluster.is_empty())
    }

    /// The one whom a certificate names whose alternative names in the form of URIs are `uris`: exactly one of them is ours.
    pub fn of<'a>(uris: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let mut ours = uris.into_iter().filter_map(Self::parse);
        let one = ours.next()?;
        ours.next().is_none().then_some(one)
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of cluster {}", self.role, self.cluster)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for role in Role::ALL {
            let who = Who { cluster: "prod".to_owned(), role };
            assert_eq!(Who::parse(&who.uri()), Some(who));
        }
    }

    #[test]
    fn what_is_not_a_name_of_ours_names_nobody() {
        for uri in [
            "spiffe://tramontane/prod/root",
            "spiffe://tramontane//admin",
            "spiffe://tramontane/admin",
            "spiffe://tramontane/prod/admin/x",
            "spiffe://other/prod/admin",
            "https://tramontane/prod/admin",
            "",
        ] {
            assert_eq!(Who::parse(uri), None, "{uri}");
        }
    }

    #[test]
    fn two_roles_in_one_certificate_are_none() {
        let (admin, node) = ("spiffe://tramontane/prod/admin", "spiffe://tramontane/prod/expert-node");
        assert_eq!(Who::of([admin, node]), None);
        assert_eq!(Who::of(["spiffe://mesh/ns/prod/sa/default", node]).map(|who| who.role), Some(Role::ExpertNode));
    }
}
