//! Network namespaces: each an island with two bridges to the mainland, where the test, etcd and the coordinators are. Over one
//! coordinators reach what is on the island, over the other what is on the island reaches etcd; each can be taken down by
//! itself. They are gone when this is dropped.
#![allow(dead_code, reason = "each test target uses its own part of it")]

use std::io::Write;
use std::process::Command;

/// Addresses of the first bridge and of the second: of the blocks that are set aside for tests of networks.
const NETS: [&str; 2] = ["198.18", "198.19"];

/// One of an island's two links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// To coordinators.
    Coordinators = 0,
    /// To etcd.
    Registry = 1,
}

/// A namespace with its links.
pub(crate) struct Island {
    pub(crate) namespace: String,
    /// Its address for coordinators.
    pub(crate) addr: String,
    /// etcd's address, as it is seen from here.
    pub(crate) registry_at: String,
    /// The mainland's ends of its links.
    links: [String; 2],
}

/// Islands and bridges.
pub(crate) struct Archipelago {
    tag: String,
    pub(crate) islands: Vec<Island>,
}

impl Archipelago {
    /// So many islands; `None`, loudly, where the system gives us no namespaces.
    pub(crate) fn make(islands: usize) -> Option<Self> {
        let process = std::process::id();
        let mut made = Self { tag: format!("tm{process}"), islands: Vec::new() };
        match made.build(islands, process % 256) {
            Ok(()) => Some(made),
            Err(why) => {
                // Not through `eprintln`: that is shown of failed tests only.
                _ = writeln!(std::io::stderr(), "test: NOT TESTED HERE: partitions by network namespaces: {why}");
                None
            }
        }
    }

    /// The mainland's address on a bridge.
    fn mainland(way: Way, net: u32) -> String {
        format!("{}.{net}.1", NETS[way as usize])
    }

    /// Where etcd has to listen.
    pub(crate) fn registry_host(&self) -> String {
        self.islands[0].registry_at.clone()
    }

    fn build(&mut self, islands: usize, net: u32) -> Result<(), String> {
        let tag = self.tag.clone();
        for way in [Way::Coordinators, Way::Registry] {
            let bridge = format!("{tag}b{}", way as usize);
            ip(&["link", "add", &bridge, "type", "bridge"])?;
            ip(&["addr", "add", &format!("{}/24", Self::mainland(way, net)), "dev", &bridge])?;
            ip(&["link", "set", &bridge, "up"])?;
        }
        for number in 0..islands {
            let namespace = format!("{tag}n{number}");
            ip(&["netns", "add", &namespace])?;
            let links = [Way::Coordinators, Way::Registry].map(|way| format!("{tag}l{number}{}", way as usize));
            let addr = |way: Way| format!("{}.{net}.{}", NETS[way as usize], number + 2);
            self.islands.push(Island {
                namespace: namespace.clone(),
                addr: addr(Way::Coordinators),
                registry_at: Self::mainland(Way::Registry, net),
                links: links.clone(),
            });
            ip(&["-n", &namespace, "link", "set", "lo", "up"])?;
            for way in [Way::Coordinators, Way::Registry] {
                let (link, inner) = (&links[way as usize], format!("eth{}", way as usize));
                ip(&["link", "add", link, "type", "veth", "peer", "name", &inner, "netns", &namespace])?;
                ip(&["link", "set", link, "master", &format!("{tag}b{}", way as usize), "up"])?;
                ip(&["-n", &namespace, "addr", "add", &format!("{}/24", addr(way)), "dev", &inner])?;
                ip(&["-n", &namespace, "link", "set", &inner, "up"])?;
            }
        }
        Ok(())
    }
}

impl Island {
    /// Nothing comes over that link any more, and nobody is told.
    pub(crate) fn cut(&self, way: Way) {
        ip(&["link", "set", &self.links[way as usize], "down"]).expect("a link can be set down");
    }

    /// Everything does again.
    pub(crate) fn mend(&self, way: Way) {
        ip(&["link", "set", &self.links[way as usize], "up"]).expect("a link can be set up");
    }
}

impl Drop for Archipelago {
    fn drop(&mut self) {
        // A namespace's links go with it. What fails was never made.
        for island in &self.islands {
            _ = ip(&["netns", "del", &island.namespace]);
            island.links.iter().for_each(|link| _ = ip(&["link", "del", link]));
        }
        (0..NETS.len()).for_each(|way| _ = ip(&["link", "del", &format!("{}b{way}", self.tag)]));
    }
}

fn ip(args: &[&str]) -> Result<(), String> {
    let ran = Command::new("ip").args(args).output().map_err(|error| format!("ip: {error}"))?;
    let said = || format!("ip {}: {}", args.join(" "), String::from_utf8_lossy(&ran.stderr).trim());
    if ran.status.success() { Ok(()) } else { Err(said()) }
}
