//! A front door that speaks TLS with its clients.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, ProtocolVersion, RootCertStore, StreamOwned, SupportedProtocolVersion};

use crate::cluster::Certs;
use crate::run::{Running, until};
use crate::serving::Serving;

/// What `GET path` brings over TLS of `version`, from a server that is to be `localhost`, by whoever trusts `certs`' authority.
fn get(
    server: &Serving,
    certs: &Certs,
    version: &'static SupportedProtocolVersion,
    path: &str,
) -> std::io::Result<String> {
    let mut roots = RootCertStore::empty();
    let authority = rustls::pki_types::CertificateDer::from_pem_file(certs.path("ca.pem")).expect("a certificate");
    roots.add(authority).expect("an authority");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]).expect("a version");
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from("localhost").expect("a name");
    let connection = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut stream = StreamOwned::new(connection, TcpStream::connect(server.addr())?);
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    match stream.read_to_string(&mut answer) {
        Err(error) if answer.is_empty() => return Err(error),
        _ => {}
    }
    let expected = if version == &TLS12 { ProtocolVersion::TLSv1_2 } else { ProtocolVersion::TLSv1_3 };
    assert_eq!(stream.conn.protocol_version(), Some(expected));
    Ok(answer)
}

#[test]
fn clients_are_served_over_tls_by_a_certificate_that_may_change() {
    let (certs, other) = (Certs::new("test"), Certs::new("test"));
    let [certificate, key] = ["gateway.pem", "gateway.key"].map(|file| certs.path(file));
    let path = |path: &std::path::Path| path.to_str().expect("a path in UTF-8").to_owned();
    let flags = ["--http-tls-cert", &path(&certificate), "--http-tls-key", &path(&key)];
    let server = Serving::start(&flags);
    for version in [&TLS12, &TLS13] {
        let answer = get(&server, &certs, version, "/v1/models").expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("breeze"), "{answer}");
    }
    get(&server, &other, &TLS13, "/healthz").expect_err("another authority");
    // By command, of which the system's authorities are asked for; here a file stands for them.
    let chat = |trusted: &Certs| {
        let trusted = format!("SSL_CERT_FILE={}", path(&trusted.path("ca.pem")));
        let port = server.addr().rsplit_once(':').map_or("", |(_, port)| port);
        let endpoint = format!("https://localhost:{port}");
        Running::start_in(&[&trusted], &["chat", "--endpoint", &endpoint, "--max-tokens", "2", "Hello"]).outcome()
    };
    let answered = chat(&certs);
    assert!(answered.code == Some(0) && !answered.stdout.is_empty(), "{}", answered.stderr);
    let refused = chat(&other);
    assert!(refused.code == Some(3) && refused.stderr.contains("certificate"), "{}", refused.stderr);
    let mut plain = TcpStream::connect(server.addr()).expect("a connection");
    plain.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").expect("it is read");
    let mut answer = Vec::new();
    _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "it was answered without TLS");
    for file in ["gateway.key", "gateway.pem"] {
        std::fs::copy(other.path(file), certs.path(file)).expect("a file");
    }
    until("the new certificate is shown", || get(&server, &other, &TLS13, "/healthz").is_ok());
}
