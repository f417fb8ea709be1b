//! Who is let in and who is not, for every pair of roles; certificates that change while connections are open.

use std::time::SystemTime;

use tempfile::TempDir;
use tokio::sync::oneshot;
use tonic::service::Routes;
use tonic::{Code, Request};
use tramontane_proto::v1 as pb;
use tramontane_proto::v1::admin_client::AdminClient;

use super::*;
use crate::tls::{Authority, Identity, Issued, Reloaded, Subject, TlsFiles, Who};

const CLUSTER: &str = "prod";
const DAYS: u32 = 2;

/// An authority, and the certificate that others trust it by.
struct Signer {
    authority: Authority,
    issued: Issued,
}

impl Signer {
    fn new() -> Self {
        let (authority, issued) = Authority::create("test", DAYS, SystemTime::now()).expect("an authority");
        Self { authority, issued }
    }

    fn sign(&self, who: &Who, now: SystemTime) -> Issued {
        let subject = Subject { name: who.role.to_string(), who: who.clone(), hosts: Vec::new() };
        self.authority.issue(&subject, DAYS, now).expect("a certificate")
    }
}

/// Files in a folder of their own.
struct Files {
    folder: TempDir,
}

impl Files {
    fn new(issued: &Issued, trusted: &str) -> Self {
        let files = Self { folder: tempfile::tempdir().expect("a folder") };
        files.write(issued, trusted);
        files
    }

    fn write(&self, issued: &Issued, trusted: &str) {
        let write = |name: &str, text: &str| std::fs::write(self.folder.path().join(name), text).expect("a file");
        write("certificate", &issued.certificate);
        write("key", &issued.key);
        write("authority", trusted);
    }

    fn paths(&self) -> TlsFiles {
        let path = |name: &str| self.folder.path().join(name);
        TlsFiles { certificate: path("certificate"), key: path("key"), authority: path("authority") }
    }

    fn identity(&self) -> Identity {
        Identity::load(self.paths()).expect("an identity")
    }
}

fn member(role: Role) -> Who {
    Who { cluster: CLUSTER.to_owned(), role }
}

/// Whoever `signer` says it is, trusting `signer`.
fn security(signer: &Signer, who: &Who) -> Security {
    let issued = signer.sign(who, SystemTime::now());
    Security::Mutual(Files::new(&issued, &signer.issued.certificate).identity())
}

/// A server without services, for as long as the sender lives.
async fn listen(security: &Security, admitted: Role) -> (String, oneshot::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("its address").to_string();
    let (stop, stopped) = oneshot::channel();
    let incoming = incoming(listener, security, admitted).expect("a server");
    let stopped = async { _ = stopped.await };
    tokio::spawn(server().add_routes(Routes::default()).serve_with_incoming_shutdown(incoming, stopped));
    (addr, stop)
}

/// Whether a call gets as far as to be told that nobody serves it.
async fn reaches(addr: &str, security: &Security, far: Role) -> Result<(), String> {
    let channel = connect(addr, security, far).await?;
    match AdminClient::new(channel).status(Request::new(pb::StatusRequest {})).await {
        Err(status) if status.code() == Code::Unimplemented => Ok(()),
        Err(status) => Err(causes(&status)),
        Ok(_) => panic!("nobody serves it"),
    }
}

#[tokio::test]
async fn each_listener_lets_its_own_role_in_and_each_client_goes_to_its_own() {
    let signer = Signer::new();
    for listening in Role::ALL {
        let near = security(&signer, &member(listening));
        for admitted in Role::ALL {
            let (addr, _stop) = listen(&near, admitted).await;
            for coming in Role::ALL {
                let client = security(&signer, &member(coming));
                for wanted in Role::ALL {
                    let reached = reaches(&addr, &client, wanted).await;
                    let fits = coming == admitted && wanted == listening;
                    assert_eq!(reached.is_ok(), fits, "{coming} to {listening}: {reached:?}");
                }
            }
        }
    }
}

#[tokio::test]
async fn no_other_certificate_is_let_in_and_none_is_gone_to() {
    let (signer, other) = (Signer::new(), Signer::new());
    let (node, coordinator) = (member(Role::ExpertNode), member(Role::Coordinator));
    let trusted = &signer.issued.certificate;
    let at = |who: &Who, now| Security::Mutual(Files::new(&signer.sign(who, now), trusted).identity());
    let elsewhere = |who: &Who| Who { cluster: "staging".to_owned(), ..who.clone() };
    let long_ago = SystemTime::now() - Duration::from_secs(3 * 86_400);
    let soon = SystemTime::now() + Duration::from_secs(86_400);
    let stranger = |who: &Who| Security::Mutual(Files::new(&other.sign(who, SystemTime::now()), trusted).identity());
    let good = (at(&node, SystemTime::now()), at(&coordinator, SystemTime::now()));
    let bad = |who: &Who| {
        [
            ("none", Security::Plaintext),
            ("expired", at(who, long_ago)),
            ("not valid yet", at(who, soon)),
            ("of another authority", stranger(who)),
            ("of another cluster", at(&elsewhere(who), SystemTime::now())),
        ]
    };
    let (addr, _stop) = listen(&good.0, Role::Coordinator).await;
    assert_eq!(reaches(&addr, &good.1, Role::ExpertNode).await, Ok(()));
    for (what, client) in bad(&coordinator) {
        assert!(reaches(&addr, &client, Role::ExpertNode).await.is_err(), "{what}");
    }
    for (what, listening) in bad(&node) {
        let (addr, _stop) = listen(&listening, Role::Coordinator).await;
        assert!(reaches(&addr, &good.1, Role::ExpertNode).await.is_err(), "{what}");
    }
}

#[tokio::test]
async fn new_certificates_and_a_new_authority_are_taken_up_and_open_connections_stay() {
    let (before, after) = (Signer::new(), Signer::new());
    let (node, coordinator) = (member(Role::ExpertNode), member(Role::Coordinator));
    let now = SystemTime::now();
    let files = |who| Files::new(&before.sign(who, now), &before.issued.certificate);
    let (near, far) = (files(&node), files(&coordinator));
    let (here, there) = (near.identity(), far.identity());
    let (listening, coming) = (Security::Mutual(here.clone()), Security::Mutual(there.clone()));
    let (addr, _stop) = listen(&listening, Role::Coordinator).await;
    let channel = connect(&addr, &coming, Role::ExpertNode).await.expect("a connection");
    let mut client = AdminClient::new(channel);
    let mut still_answers = async || {
        let status = client.status(Request::new(pb::StatusRequest {})).await.expect_err("nobody serves it");
        assert_eq!(status.code(), Code::Unimplemented);
    };
    still_answers().await;
    let both = format!("{}{}", after.issued.certificate, before.issued.certificate);
    // Both are trusted first; then the new one signs; then the old one is forgotten. Each end is the first once.
    for (signer, trusted) in [(&before, &both), (&after, &both), (&after, &after.issued.certificate)] {
        for (files, identity, who) in [(&near, &here, &node), (&far, &there, &coordinator)] {
            files.write(&signer.sign(who, now), trusted);
            assert_eq!(identity.reload(), Ok(Reloaded::Changed));
            assert_eq!(reaches(&addr, &coming, Role::ExpertNode).await, Ok(()));
            still_answers().await;
        }
    }
    let old = Security::Mutual(files(&coordinator).identity());
    assert!(reaches(&addr, &old, Role::ExpertNode).await.is_err(), "the old authority is forgotten");
    // A process does not change its role.
    near.write(&after.sign(&member(Role::Admin), now), &after.issued.certificate);
    assert!(here.reload().expect_err("another role").why.contains("the one before was for expert-node"));
    assert_eq!(reaches(&addr, &coming, Role::ExpertNode).await, Ok(()));
}

#[test]
fn files_that_do_not_fit_are_refused_by_name() {
    let signer = Signer::new();
    let issued = signer.sign(&member(Role::Gateway), SystemTime::now());
    let other = signer.sign(&member(Role::Gateway), SystemTime::now());
    let refused =
        |issued: &Issued, trusted: &str| Identity::load(Files::new(issued, trusted).paths()).expect_err("not");
    let trusted = &signer.issued.certificate;
    let mixed = refused(&Issued { key: other.key, ..issued.clone() }, trusted);
    assert!(mixed.file.ends_with("key") && mixed.why.contains("does not belong"), "{mixed}");
    let empty = refused(&Issued { certificate: String::new(), ..issued.clone() }, trusted);
    assert!(empty.file.ends_with("certificate") && empty.why.contains("no certificate"), "{empty}");
    let nobody = refused(&issued, "");
    assert!(nobody.file.ends_with("authority") && nobody.why.contains("nobody to trust"), "{nobody}");
    let nameless = refused(&signer.issued, trusted);
    assert!(nameless.file.ends_with("certificate") && nameless.why.contains("names no role"), "{nameless}");
}

#[tokio::test]
async fn a_client_that_says_nothing_holds_nobody_up() {
    let signer = Signer::new();
    let (addr, _stop) = listen(&security(&signer, &member(Role::ExpertNode)), Role::Coordinator).await;
    let _silent = TcpStream::connect(&addr).await.expect("a connection");
    let coordinator = security(&signer, &member(Role::Coordinator));
    assert_eq!(reaches(&addr, &coordinator, Role::ExpertNode).await, Ok(()));
}

#[tokio::test]
async fn streams_stop_when_the_signal_completes_or_is_dropped() {
    let (signal, stop) = Stop::after(std::future::ready(()));
    tokio::join!(signal, stop.stopped());
    let (signal, stop) = Stop::after(std::future::pending());
    drop(signal);
    stop.stopped().await;
}

#[tokio::test]
async fn a_failed_connection_says_of_what() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("its address");
    let connect = async |addr: &str| connect(addr, &Security::Plaintext, Role::ExpertNode).await;
    let refused = connect(&nobody.to_string()).await.expect_err("nobody listens");
    assert!(refused.contains("refused"), "{refused}");
    assert!(connect("no address").await.expect_err("a space").contains("is no address"));
}
