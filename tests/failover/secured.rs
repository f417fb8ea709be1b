//! An etcd that asks who we are: TLS with certificates on both sides, and a user with a password.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::json;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::etcd_server::{Certificates, Etcd, How};
use crate::fleet::NAME;
use crate::run::{Outcome, Running, run};
use crate::serving::Serving;

const PASSWORD: &str = "swordfish-of-the-test";

/// Certificates that an authority of their own has signed, in `folder` under `name`.
fn certificates(folder: &Path, name: &str) -> Certificates {
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let signed = authority.self_signed(&key).expect("an authority").pem();
    let issuer = Issuer::new(authority, key);
    let key = KeyPair::generate().expect("a key");
    let own = CertificateParams::new(["127.0.0.1".to_owned()]).expect("an address");
    let own = own.signed_by(&key, &issuer).expect("a certificate").pem();
    let file = |what: &str, text: String| write(folder, &format!("{name}-{what}.pem"), &text);
    Certificates {
        authority: file("authority", signed),
        certificate: file("certificate", own),
        key: file("key", key.serialize_pem()),
    }
}

fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).expect("a file");
    path
}

/// What a process is told to be let in.
fn flags(registry: &str, certificates: &Certificates, password: &Path) -> Vec<String> {
    let Certificates { authority, certificate, key } = certificates;
    let path = |path: &Path| path.display().to_string();
    let named = [
        ("--registry", registry.to_owned()),
        ("--cluster", NAME.to_owned()),
        ("--etcd-ca-file", path(authority)),
        ("--etcd-cert-file", path(certificate)),
        ("--etcd-key-file", path(key)),
        ("--etcd-user", "root".to_owned()),
        ("--etcd-password-file", path(password)),
    ];
    named.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
}

fn with<'a>(role: &'a [&'a str], flags: &'a [String]) -> Vec<&'a str> {
    role.iter().copied().chain(flags.iter().map(String::as_str)).collect()
}

#[test]
fn an_etcd_with_certificates_and_passwords_lets_in_who_has_them_and_others_hear_why_not() {
    let folder = TempDir::new().expect("a folder");
    let (right, wrong) = (certificates(folder.path(), "right"), certificates(folder.path(), "wrong"));
    let runtime = Runtime::new().expect("a runtime");
    let how = How { tls: Some(right.clone()), ..How::default() };
    let mut etcd = runtime.block_on(Etcd::start_as(how));
    let user = format!("root:{PASSWORD}");
    for command in [&["user", "add", user.as_str()][..], &["user", "grant-role", "root", "root"], &["auth", "enable"]] {
        let (well, said) = etcd.ctl(command);
        assert!(well, "{command:?}: {said}");
    }
    etcd.how.user = Some(user);
    let registry = format!("etcd://{}", etcd.endpoint());
    let password = write(folder.path(), "password", &format!("{PASSWORD}\n"));
    let known = flags(&registry, &right, &password);

    let node = Running::start(&with(&["expert-node", "--id", "n0", "--threads", "1"], &known));
    let role = ["coordinator", "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--threads", "1", "--json"];
    let coordinator = Serving::start_role(&with(&role, &known));
    let body = json!({"prompt": "The capital of France is", "max_tokens": 8});
    coordinator.ask("/v1/completions", &body);
    // Tokens that etcd has handed out end with it.
    etcd.kill();
    runtime.block_on(etcd.run());
    let late = Running::start(&with(&["expert-node", "--id", "n1", "--threads", "1"], &known));
    crate::run::until("a node joins", || etcd.ctl(&["get", &format!("/tramontane/{NAME}/nodes/n1")]).1.contains("n1"));
    coordinator.ask("/v1/completions", &body);

    let other = write(folder.path(), "other", "swordfish");
    for (known, why) in [
        (flags(&registry, &wrong, &password), "invalid peer certificate"),
        (flags(&registry, &Certificates { authority: right.authority.clone(), ..wrong.clone() }, &password), "alert"),
        (flags(&registry, &right, &other), "authentication failed"),
    ] {
        for role in [&["expert-node", "--id", "n2"][..], &role] {
            let Outcome { code, stderr, .. } = run(&with(role, &known));
            assert_eq!(code, Some(1), "{stderr}");
            assert!(stderr.contains(why) && stderr.contains(&registry), "{why}: {stderr}");
            assert!(!stderr.contains("swordfish"), "{stderr}");
        }
    }
    drop((node, late));
}
