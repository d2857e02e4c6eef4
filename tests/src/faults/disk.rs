//! A small disk of its own for the node, which can be filled: a tmpfs, where mounting one is permitted.

use std::fs::{File, remove_file};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::process;

const PATIENCE: Duration = Duration::from_secs(10);

/// See the module. It is unmounted when it is dropped.
pub struct SmallDisk {
    directory: Option<TempDir>,
    mount: PathBuf,
}

impl SmallDisk {
    /// A disk of so many MB.
    pub fn mount(megabytes: u32) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("causeway-disk-").tempdir()?;
        let mount = directory.path().join("disk");
        std::fs::create_dir(&mount)?;
        process::remove_at_exit(directory.path());
        process::unmount_at_exit(&mount);
        let size = format!("size={megabytes}m");
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&mount);
        let mounted = process::run(&mut command, b"", PATIENCE).and_then(process::Finished::successful);
        let disk = Self { directory: Some(directory), mount };
        mounted.context("mounting a tmpfs is not permitted here")?;
        Ok(disk)
    }

    /// Where a node can keep its data.
    pub fn data(&self) -> PathBuf {
        self.mount.join("data")
    }

    fn ballast(&self) -> PathBuf {
        self.mount.join("ballast")
    }

    /// Takes up all the room that is left.
    pub fn fill(&self) -> Result<()> {
        let mut file = File::create(self.ballast())?;
        let block = vec![0; 4096];
        loop {
            match file.write_all(&block) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Gives the room back.
    pub fn empty(&self) -> Result<()> {
        match remove_file(self.ballast()) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Whatever fails here, the reaper tries again.
        let unmounted = process::run(Command::new("umount").arg("-l").arg(&self.mount), b"", PATIENCE)
            .and_then(process::Finished::successful);
        if unmounted.is_ok() {
            process::unmounted(&self.mount);
        }
        if let Some(directory) = self.directory.take() {
            let path = directory.path().to_owned();
            if directory.close().is_ok() {
                process::removed(&path);
            }
        }
    }
}
