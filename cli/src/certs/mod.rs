//! `tramontane certs`: a certificate authority in a folder.

mod args;
mod folder;

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use serde_json::json;
use tramontane_cluster::tls::{Authority, Certificate, Subject, Who};

pub(crate) use args::CertsArgs;
use args::{CertsCommand, IssueArgs, RotateArgs};
use folder::Folder;

use crate::output::out;

/// Days for which an authority holds that takes another's place.
const AUTHORITY_DAYS: u32 = 3650;
const DAY: i64 = 86_400;

/// Makes what is asked for, and says which files it wrote.
pub(crate) fn run(args: &CertsArgs) -> anyhow::Result<()> {
    let folder = Folder::new(&args.dir);
    match &args.command {
        CertsCommand::Init { name, days } => init(&folder, name, *days),
        CertsCommand::Issue(args) => issue(&folder, args),
        CertsCommand::Rotate(args) => rotate(&folder, args),
        CertsCommand::List { json } => list(&folder, *json),
    }
}

fn init(folder: &Folder, name: &str, days: u32) -> anyhow::Result<()> {
    if folder.has_authority() {
        bail!("{}: there is an authority; `certs rotate --authority` makes another beside it", folder.path().display());
    }
    let (_, issued) = Authority::create(name, days, SystemTime::now())?;
    folder.write_authority(&issued.certificate, &issued.key)?;
    out(&format!("{}\n", folder.authority().display()))
}

fn issue(folder: &Folder, args: &IssueArgs) -> anyhow::Result<()> {
    let name = args.name.clone().unwrap_or_else(|| args.role.to_string());
    if folder.has(&name)? {
        bail!("{name} is there; `certs rotate {name}` signs it anew");
    }
    let who = Who { cluster: args.cluster.clone(), role: args.role };
    if Who::parse(&who.uri()).as_ref() != Some(&who) {
        bail!("--cluster {}: no name of a cluster", args.cluster);
    }
    sign(folder, Subject { name, who, hosts: args.hosts.clone() }, args.days)
}

fn sign(folder: &Folder, subject: Subject, days: u32) -> anyhow::Result<()> {
    let authority = Authority::from_pem(&folder.read_authority()?)?;
    let issued = authority.issue(&subject, days, SystemTime::now())?;
    let written = folder.write(&subject.name, &issued)?;
    out(&format!("{}\n", written.display()))
}

fn rotate(folder: &Folder, args: &RotateArgs) -> anyhow::Result<()> {
    if args.authority {
        let before = folder.read_authority()?;
        let name = folder.trusted()?.first().map_or_else(String::new, |authority| authority.name.clone());
        let (_, issued) = Authority::create(&name, AUTHORITY_DAYS, SystemTime::now())?;
        folder.write_authority(&format!("{}{}", issued.certificate, before.certificate), &issued.key)?;
        return out(&format!("{}\n", folder.authority().display()));
    }
    if args.retire {
        let before = folder.read_authority()?;
        folder.write_authority(&folder.newest()?, &before.key)?;
        return out(&format!("{}\n", folder.authority().display()));
    }
    let names = if args.names.is_empty() { folder.names()? } else { args.names.clone() };
    if names.is_empty() {
        bail!("{}: nothing has been signed", folder.path().display());
    }
    for name in names {
        let before = folder.read(&name)?;
        let who = before.who.with_context(|| format!("{name}.pem names no role"))?;
        sign(folder, Subject { name, who, hosts: before.hosts }, args.days)?;
    }
    Ok(())
}

fn list(folder: &Folder, as_json: bool) -> anyhow::Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    let days_left = |certificate: &Certificate| (certificate.valid.1 - now).div_euclid(DAY);
    let mut signed = Vec::new();
    for name in folder.names()? {
        let certificate = folder.read(&name)?;
        signed.push((name, certificate));
    }
    let authorities = folder.trusted()?;
    if as_json {
        let ends =
            |certificate: &Certificate| json!({"ends": certificate.valid.1, "days_left": days_left(certificate)});
        let signed = signed.iter().map(|(name, certificate)| {
            let who = certificate.who.as_ref();
            let mut object = ends(certificate);
            object["name"] = json!(name);
            object["cluster"] = json!(who.map(|who| &who.cluster));
            object["role"] = json!(who.map(|who| who.role.name()));
            object["hosts"] = json!(certificate.hosts);
            object
        });
        let all = json!({"authorities": authorities.iter().map(ends).collect::<Vec<_>>(), "certificates": signed.collect::<Vec<_>>()});
        return out(&format!("{all:#}\n"));
    }
    let mut lines = format!("{:<20} {:<12} {:<16} {:>9}  {}\n", "NAME", "ROLE", "CLUSTER", "DAYS LEFT", "HOSTS");
    for authority in &authorities {
        lines += &format!("{:<20} {:<12} {:<16} {:>9}\n", authority.name, "(authority)", "", days_left(authority));
    }
    for (name, certificate) in &signed {
        let (role, cluster) =
            certificate.who.as_ref().map_or(("?", "?"), |who| (who.role.name(), who.cluster.as_str()));
        let (left, hosts) = (days_left(certificate), certificate.hosts.join(" "));
        lines += &format!("{name:<20} {role:<12} {cluster:<16} {left:>9}  {hosts}\n");
    }
    out(&lines)
}
