//! A certificate authority of the tests' own, with a server of it on the loopback and a client.

use std::{fs, path::Path};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd,
};

/// Writes ca.pem and, each with its key, server.pem and client.pem into the folder, which it makes; besides elsewhere.pem of
/// a server of another name, and expired.pem.
pub fn write(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "mqspan's tests");
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    fs::write(folder.join("ca.pem"), authority.pem())?;
    let here = || vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    for (name, hosts, usage) in [
        ("server", here(), ExtendedKeyUsagePurpose::ServerAuth),
        ("client", here(), ExtendedKeyUsagePurpose::ClientAuth),
        ("elsewhere", vec!["backend.example".into()], ExtendedKeyUsagePurpose::ServerAuth),
        ("expired", here(), ExtendedKeyUsagePurpose::ServerAuth),
    ] {
        let mut params = CertificateParams::new(hosts)?;
        if name == "expired" {
            params.not_after = date_time_ymd(2020, 1, 1);
        }
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate()?;
        fs::write(folder.join(format!("{name}.pem")), params.signed_by(&key, &authority)?.pem())?;
        fs::write(folder.join(format!("{name}.key")), key.serialize_pem())?;
    }
    Ok(())
}
