//! An authority of a test and what it has signed, as PEM files in a folder that goes with it.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

/// See the module. The authority is `ca.pem`; a server's certificate for `localhost` is there from the start.
#[derive(Debug)]
pub struct Certificates {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Certificates {
    /// A new authority, with `server.pem` and `server.key`.
    pub fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("causeway-certificates-").tempdir()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "Test Authority");
        let key = KeyPair::generate()?;
        fs::write(folder.path().join("ca.pem"), params.self_signed(&key)?.pem())?;
        let certificates = Self { folder, issuer: Issuer::new(params, key) };
        certificates.issue("server", ExtendedKeyUsagePurpose::ServerAuth)?;
        Ok(certificates)
    }

    /// Makes `NAME.pem` and `NAME.key`, or makes them anew.
    pub fn issue(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> Result<()> {
        let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate()?;
        fs::write(self.path(&format!("{name}.pem")), params.signed_by(&key, &self.issuer)?.pem())?;
        fs::write(self.path(&format!("{name}.key")), key.serialize_pem())?;
        Ok(())
    }

    /// Where a file is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The same as text.
    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Options of a listener with the server's certificate, for the configuration.
    pub fn ssl_options(&self, more: &str) -> String {
        format!(
            "ssl_options {{ certfile = \"{}\", keyfile = \"{}\", {more} }}",
            self.text("server.pem"),
            self.text("server.key")
        )
    }
}
