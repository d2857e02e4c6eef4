//! The certificates of the listeners, kept up to date while they are served.
//!
//! Handshakes take the configuration that is current, an atomic load. A task looks at the files every
//! few seconds, and at once when it is told to (SIGHUP); new ones are served from the next handshake on, and
//! connections that are open go on as they are.
//!
//! Invariants:
//! * Files that are not right never replace ones that are: the old go on being served, and an error says so.
//! * A change is acted on when the files have not changed for one interval more: certificate and key are
//!   written one after the other.

use std::{
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_rustls::rustls::ServerConfig;

use super::{
    super::{options::TlsOptions, stats::Stats},
    tls::{self, TlsError},
};

/// Signs by which a changed file is known without reading it.
type Fingerprint = Vec<Option<(SystemTime, u64, u64)>>;

struct Watched {
    /// Of the files that were read last, well or not.
    read: Fingerprint,
    /// When they were looked at last.
    seen: Fingerprint,
}

/// The certificates of one listener.
pub(crate) struct Certificates {
    listener: Box<str>,
    options: TlsOptions,
    current: ArcSwap<ServerConfig>,
    watched: Mutex<Watched>,
}

impl Certificates {
    /// Reads the files of a listener.
    pub(crate) fn load(listener: &str, options: &TlsOptions) -> Result<Self, TlsError> {
        let fingerprint = fingerprint(options);
        let loaded = tls::load(options).map_err(|problem| problem.of(listener))?;
        for warning in loaded.warnings {
            tracing::warn!(listener, file = &*warning.file, "{}", warning.problem);
        }
        Ok(Self {
            listener: listener.into(),
            options: options.clone(),
            current: ArcSwap::new(loaded.config),
            watched: Mutex::new(Watched { read: fingerprint.clone(), seen: fingerprint }),
        })
    }

    /// Current configuration of handshakes.
    pub(super) fn current(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }

    /// Reads the files again if they have changed; `at_once` without waiting for them to be at rest, and even
    /// if they look the same.
    fn look(&self, at_once: bool, stats: &Stats) {
        let now = fingerprint(&self.options);
        let mut watched = self.watched.lock();
        let at_rest = watched.seen == now;
        let changed = watched.read != now;
        watched.seen.clone_from(&now);
        let due = at_once || (changed && at_rest);
        if !due {
            return;
        }
        watched.read = now;
        drop(watched);
        match tls::load(&self.options) {
            Ok(loaded) => {
                self.current.store(loaded.config);
                Stats::add(&stats.certificates_reloaded, 1);
                tracing::info!(listener = &*self.listener, "certificates read again");
                for warning in loaded.warnings {
                    tracing::warn!(listener = &*self.listener, file = &*warning.file, "{}", warning.problem);
                }
            }
            Err(problem) => {
                Stats::add(&stats.certificates_refused, 1);
                let error = problem.of(&self.listener);
                tracing::error!(%error, "the new certificates are not used; the old ones go on being served");
            }
        }
    }
}

fn fingerprint(options: &TlsOptions) -> Fingerprint {
    use std::os::unix::fs::MetadataExt;
    let look = |path: &PathBuf| {
        let metadata = fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
    };
    options.files().map(look).collect()
}

/// Keeps certificates up to date until it is aborted.
pub(crate) async fn keep_up_to_date(
    certificates: Vec<Arc<Certificates>>,
    every: Duration,
    reload: Arc<Notify>,
    stats: Arc<Stats>,
) {
    if certificates.is_empty() {
        return;
    }
    let certificates: Arc<[_]> = certificates.into();
    loop {
        let at_once = tokio::select! {
            () = tokio::time::sleep(every) => false,
            () = reload.notified() => true,
        };
        let (certificates, stats) = (certificates.clone(), stats.clone());
        let looked = tokio::task::spawn_blocking(move || {
            for certificates in &*certificates {
                certificates.look(at_once, &stats);
            }
        });
        if let Err(error) = looked.await {
            tracing::error!(%error, "certificates could not be looked at");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::super::options::CertificateFiles, *};

    /// A new certificate and its key, put in place one after the other.
    fn issue(files: &CertificateFiles, between: impl FnOnce()) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let place = |path: &PathBuf, text: String| {
            // Another file under the same name: it differs however coarse the clock of the file system is.
            let new = path.with_extension("new");
            fs::write(&new, text).unwrap();
            fs::rename(&new, path).unwrap();
        };
        place(&files.certificate, params.self_signed(&key).unwrap().pem());
        between();
        place(&files.key, key.serialize_pem());
    }

    #[test]
    fn a_pair_is_read_when_it_has_come_to_rest() {
        let folder = tempfile::tempdir().unwrap();
        let files = CertificateFiles {
            certificate: folder.path().join("server.pem"),
            key: folder.path().join("server.key"),
        };
        issue(&files, || {});
        let certificates = Certificates::load("test", &TlsOptions::new(files.clone())).unwrap();
        let (first, stats) = (certificates.current(), Stats::default());
        let same = |one: &Arc<ServerConfig>| Arc::ptr_eq(one, &certificates.current());
        let look = || {
            certificates.look(false, &stats);
            let now = stats.snapshot();
            (now.certificates_reloaded, now.certificates_refused)
        };
        assert_eq!(look(), (0, 0), "nothing has changed");
        issue(&files, || assert_eq!(look(), (0, 0), "half of a pair is not looked at"));
        assert_eq!(look(), (0, 0), "the key has just come");
        assert!(same(&first));
        assert_eq!(look(), (1, 0), "both are at rest");
        assert!(!same(&first));
        assert_eq!(look(), (1, 0), "once");
    }
}
