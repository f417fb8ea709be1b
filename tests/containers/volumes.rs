//! What pods find in their volumes, each a folder: certificates of all roles by `tramontane certs`, those of etcd by an authority of their
//! own, a file of keys; and an empty folder for what is claimed.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::run::run;

/// The key that clients have.
pub(crate) const KEY: &str = "sk-of-the-tests-of-containers";
/// Whoever has a pod's group reads its Secrets, and writes where it may.
const GROUP: u32 = 65532;
const ROLES: [&str; 4] = ["coordinator", "expert-node", "gateway", "admin"];

/// Volumes of a cluster, under the names of Secrets and of claims.
pub(crate) struct Volumes {
    pub(crate) folder: PathBuf,
}

impl Volumes {
    /// Makes them in `folder`; `etcd` are the hosts of its members, `claims` the names of what is claimed.
    pub(crate) fn make(folder: PathBuf, cluster: &str, etcd: &[String], claims: &[&str]) -> Self {
        fs::create_dir(&folder).expect("a folder");
        let volumes = Self { folder };
        let certs = volumes.folder.join("certs");
        volumes.certs(&certs, &["init"]);
        for role in ROLES {
            volumes.certs(&certs, &["issue", role, "--cluster", cluster]);
            let read = |file: String| fs::read(certs.join(file)).expect("a file");
            let [authority, certificate, key] =
                [read("ca.pem".to_owned()), read(format!("{role}.pem")), read(format!("{role}.key"))];
            volumes.tls(&format!("tramontane-{role}-tls"), &authority, &certificate, &key);
        }
        volumes.of_etcd(etcd);
        volumes.write("tramontane-api-keys", "keys", format!("test:{KEY}\n").as_bytes());
        claims.iter().for_each(|claim| volumes.claim(claim));
        volumes
    }

    fn claim(&self, name: &str) {
        let folder = self.folder.join(name);
        fs::create_dir(&folder).expect("a folder");
        chown(&folder, None, Some(GROUP)).expect("root may");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o2770)).expect("it is ours");
    }

    fn certs(&self, folder: &Path, args: &[&str]) {
        let folder = folder.to_str().expect("a path in UTF-8");
        let outcome = run(&[&["certs", "--dir", folder], args].concat());
        assert_eq!(outcome.code, Some(0), "{args:?}: {}", outcome.stderr);
    }

    /// What etcd shows to its clients and members, and what its clients show: as cert-manager is asked for them in `deploy/`.
    fn of_etcd(&self, members: &[String]) {
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let signed = authority.self_signed(&key).expect("an authority").pem();
        let issuer = Issuer::new(authority, key);
        for (secret, hosts) in [("tramontane-etcd-tls", members), ("tramontane-etcd-client", &[])] {
            let mut own = CertificateParams::new(hosts).expect("names");
            own.distinguished_name.push(DnType::CommonName, "tramontane");
            let key = KeyPair::generate().expect("a key");
            let certificate = own.signed_by(&key, &issuer).expect("a certificate").pem();
            self.tls(secret, signed.as_bytes(), certificate.as_bytes(), key.serialize_pem().as_bytes());
        }
    }

    fn tls(&self, secret: &str, authority: &[u8], certificate: &[u8], key: &[u8]) {
        for (file, bytes) in [("ca.crt", authority), ("tls.crt", certificate), ("tls.key", key)] {
            self.write(secret, file, bytes);
        }
    }

    fn write(&self, secret: &str, file: &str, bytes: &[u8]) {
        let folder = self.folder.join(secret);
        fs::create_dir_all(&folder).expect("a folder");
        let file = folder.join(file);
        fs::write(&file, bytes).expect("a file");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o440)).expect("it is ours");
        chown(&file, None, Some(GROUP)).expect("root may");
    }

    /// What makes a command an operator's.
    pub(crate) fn admin(&self) -> [String; 3] {
        let at = |file: &str| self.folder.join("tramontane-admin-tls").join(file).display().to_string();
        [
            format!("--tls-cert={}", at("tls.crt")),
            format!("--tls-key={}", at("tls.key")),
            format!("--tls-ca={}", at("ca.crt")),
        ]
    }
}
