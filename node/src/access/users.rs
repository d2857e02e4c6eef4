//! The built-in user database: `users.redb` in the data directory.
//!
//! A user is a name, an argon2id hash, whether the rules count for it, and, where SCRAM is on, what SCRAM
//! needs ([`Verifier`]). A change is on the disk before it is confirmed, and in force from then on.

use std::{fmt, path::Path, sync::Arc};

use base64::{Engine, prelude::BASE64_STANDARD};
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};
use serde::{Deserialize, Serialize};

use super::{
    passwords::{Cost, PasswordError, PasswordHash},
    scram::Verifier,
};

/// Users by name, as JSON of [`v1::User`].
const USERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("users_v1");
/// Keys of the database itself.
const KEYS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("keys_v1");
const STRANGERS: &str = "strangers";

/// Memory for pages; a user is looked up once a CONNECT.
const CACHE: usize = 8 << 20;

/// The longest name.
const LONGEST_NAME: usize = 512;

/// Stored form.
mod v1 {
    use super::{Deserialize, Serialize};

    #[derive(Serialize, Deserialize)]
    pub(super) struct User {
        pub(super) hash: String,
        #[serde(default)]
        pub(super) superuser: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub(super) scram: Option<Scram>,
    }

    #[derive(Serialize, Deserialize)]
    pub(super) struct Scram {
        pub(super) salt: String,
        pub(super) iterations: u32,
        pub(super) stored_key: String,
        pub(super) server_key: String,
    }
}

/// Why something with the users did not work.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// The file.
    #[error("the user database failed: {0}")]
    Database(#[from] redb::Error),
    /// Its entry.
    #[error(
        "the user database has a damaged entry for {0:?}; set its password anew with `causeway ctl users passwd`"
    )]
    Damaged(String),
    /// A new user who exists.
    #[error("the user {0:?} exists already; `causeway ctl users passwd` sets another password")]
    Exists(String),
    /// A user who does not.
    #[error("there is no user {0:?}; `causeway ctl users list` shows those there are")]
    Unknown(String),
    /// A name that cannot be one.
    #[error("a user name has 1 to {LONGEST_NAME} bytes and no control characters")]
    Name,
    /// The password.
    #[error(transparent)]
    Password(#[from] PasswordError),
}

macro_rules! database_errors {
    ($($error:ident)*) => { $(
        impl From<redb::$error> for UsersError {
            fn from(error: redb::$error) -> Self {
                Self::Database(error.into())
            }
        }
    )* };
}

database_errors! { DatabaseError TransactionError TableError StorageError CommitError }

/// A stored user.
pub(super) struct User {
    pub(super) hash: Arc<PasswordHash>,
    pub(super) superuser: bool,
    pub(super) scram: Option<Verifier>,
}

/// A user, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserRow {
    /// Name.
    pub name: String,
    /// Whether the rules do not count for it.
    pub superuser: bool,
    /// Whether it can log in with SCRAM-SHA-256.
    pub scram: bool,
}

/// How users are stored.
#[derive(Debug, Clone, Copy)]
pub(super) struct UsersOptions {
    pub(super) cost: Cost,
    /// Iterations of SCRAM; `None`: nothing is stored for it.
    pub(super) scram: Option<u32>,
}

/// The built-in user database.
pub(super) struct Users {
    database: Database,
    options: UsersOptions,
    strangers: Vec<u8>,
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Users")
    }
}

impl Users {
    /// Opens the database, or makes it.
    pub(super) fn open(path: &Path, options: UsersOptions) -> Result<Self, UsersError> {
        let database = Database::builder().set_cache_size(CACHE).create(path)?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let own = std::fs::Permissions::from_mode(0o600);
            std::fs::set_permissions(path, own).map_err(redb::StorageError::from)?;
        }
        let transaction = database.begin_write()?;
        let strangers = {
            transaction.open_table(USERS)?;
            let mut keys = transaction.open_table(KEYS)?;
            let known = keys.get(STRANGERS)?.map(|key| key.value().to_vec());
            if let Some(known) = known {
                known
            } else {
                let key: [u8; 32] = rand::random();
                keys.insert(STRANGERS, &key[..])?;
                key.to_vec()
            }
        };
        transaction.commit()?;
        Ok(Self { database, options, strangers })
    }

    /// Looks a user up.
    pub(super) fn get(&self, name: &str) -> Result<Option<User>, UsersError> {
        let table = self.database.begin_read()?.open_table(USERS)?;
        let Some(stored) = table.get(name)? else { return Ok(None) };
        decode(stored.value()).map(Some).ok_or_else(|| UsersError::Damaged(name.into()))
    }

    /// Verifier that SCRAM takes for a user who is not there.
    pub(super) fn stranger(&self, name: &str) -> Verifier {
        Verifier::of_nobody(name, &self.strangers, self.options.scram.unwrap_or(4096))
    }

    /// Whether SCRAM is on.
    pub(super) fn has_scram(&self) -> bool {
        self.options.scram.is_some()
    }

    /// Adds a user. Slow: the password is hashed.
    pub(super) fn add(&self, name: &str, password: &[u8], superuser: bool) -> Result<UserRow, UsersError> {
        if name.is_empty() || name.len() > LONGEST_NAME || name.chars().any(char::is_control) {
            return Err(UsersError::Name);
        }
        self.put(name, password, |known| match known {
            None => Ok(superuser),
            Some(_) => Err(UsersError::Exists(name.into())),
        })
    }

    /// Sets another password. Slow: it is hashed.
    pub(super) fn set_password(&self, name: &str, password: &[u8]) -> Result<UserRow, UsersError> {
        self.put(name, password, |known| match known {
            // Of a damaged entry nothing is known: the rules count.
            Some(stored) => Ok(decode(stored).is_some_and(|user| user.superuser)),
            None => Err(UsersError::Unknown(name.into())),
        })
    }

    fn put(
        &self,
        name: &str,
        password: &[u8],
        superuser: impl FnOnce(Option<&[u8]>) -> Result<bool, UsersError>,
    ) -> Result<UserRow, UsersError> {
        let hash = PasswordHash::new(password, self.options.cost)?;
        let scram = self.options.scram.map(|iterations| {
            let Verifier { salt, iterations, stored_key, server_key } =
                Verifier::derive(password, &rand::random::<[u8; 16]>(), iterations);
            let text = |bytes: &[u8]| BASE64_STANDARD.encode(bytes);
            v1::Scram {
                salt: text(&salt),
                iterations,
                stored_key: text(&stored_key),
                server_key: text(&server_key),
            }
        });
        let transaction = self.database.begin_write()?;
        let row = {
            let mut table = transaction.open_table(USERS)?;
            let superuser = superuser(table.get(name)?.as_ref().map(redb::AccessGuard::value))?;
            let row = UserRow { name: name.into(), superuser, scram: scram.is_some() };
            let user = v1::User { hash: hash.to_string(), superuser, scram };
            let json = serde_json::to_vec(&user).map_err(|_| UsersError::Damaged(name.into()))?;
            table.insert(name, &json[..])?;
            row
        };
        transaction.commit()?;
        Ok(row)
    }

    /// Removes a user.
    pub(super) fn delete(&self, name: &str) -> Result<(), UsersError> {
        let transaction = self.database.begin_write()?;
        let known = transaction.open_table(USERS)?.remove(name)?.is_some();
        if !known {
            return Err(UsersError::Unknown(name.into()));
        }
        transaction.commit()?;
        Ok(())
    }

    /// Up to `limit` users behind the name `after`, by name, and how many there are in all.
    pub(super) fn list(&self, after: Option<&str>, limit: usize) -> Result<(Vec<UserRow>, u64), UsersError> {
        use std::ops::Bound::{Excluded, Unbounded};
        let table = self.database.begin_read()?.open_table(USERS)?;
        let mut rows = Vec::new();
        for entry in table.range::<&str>((after.map_or(Unbounded, Excluded), Unbounded))?.take(limit) {
            let (name, stored) = entry?;
            let user = decode(stored.value());
            rows.push(UserRow {
                name: name.value().to_owned(),
                superuser: user.as_ref().is_some_and(|user| user.superuser),
                scram: user.is_some_and(|user| user.scram.is_some()),
            });
        }
        Ok((rows, table.len()?))
    }
}

fn decode(stored: &[u8]) -> Option<User> {
    let v1::User { hash, superuser, scram } = serde_json::from_slice(stored).ok()?;
    let bytes = |text: &str| BASE64_STANDARD.decode(text).ok();
    let scram = match scram {
        None => None,
        Some(v1::Scram { salt, iterations, stored_key, server_key }) => Some(Verifier {
            salt: bytes(&salt)?,
            iterations,
            stored_key: bytes(&stored_key)?.try_into().ok()?,
            server_key: bytes(&server_key)?.try_into().ok()?,
        }),
    };
    Some(User { hash: Arc::new(PasswordHash::read(&hash).ok()?), superuser, scram })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: UsersOptions = UsersOptions { cost: Cost::LEAST, scram: Some(4096) };

    #[test]
    fn users_are_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users.redb");
        {
            let users = Users::open(&path, OPTIONS).unwrap();
            users.add("ann", b"one", false).unwrap();
            users.add("root", b"two", true).unwrap();
        }
        let users = Users::open(&path, OPTIONS).unwrap();
        let ann = users.get("ann").unwrap().unwrap();
        assert!(ann.hash.verify(b"one").unwrap() && !ann.superuser);
        assert!(ann.scram.is_some_and(|scram| scram == Verifier::derive(b"one", &scram.salt, 4096)));
        assert!(users.get("root").unwrap().unwrap().superuser);
        assert!(users.get("eve").unwrap().is_none());
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600, "nobody else reads it");
    }

    #[test]
    fn users_are_changed_listed_and_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let users =
            Users::open(&folder.path().join("users.redb"), UsersOptions { scram: None, ..OPTIONS }).unwrap();
        for name in ["c", "a", "b"] {
            users.add(name, b"one", name == "b").unwrap();
        }
        assert!(matches!(users.add("a", b"x", false), Err(UsersError::Exists(_))));
        assert!(matches!(users.set_password("d", b"x"), Err(UsersError::Unknown(_))));
        assert!(matches!(users.delete("d"), Err(UsersError::Unknown(_))));
        assert!(matches!(users.add("", b"x", false), Err(UsersError::Name)));
        assert!(matches!(users.add("d", b"", false), Err(UsersError::Password(PasswordError::Empty))));
        users.set_password("b", b"two").unwrap();
        let b = users.get("b").unwrap().unwrap();
        assert!(b.hash.verify(b"two").unwrap() && b.superuser && b.scram.is_none());
        let names = |after, limit| -> (Vec<String>, u64) {
            let (rows, all) = users.list(after, limit).unwrap();
            (rows.into_iter().map(|row| row.name).collect(), all)
        };
        assert_eq!(names(None, 2), (vec!["a".into(), "b".into()], 3));
        assert_eq!(names(Some("b"), 2), (vec!["c".into()], 3));
        users.delete("a").unwrap();
        assert!(users.get("a").unwrap().is_none());
    }

    #[test]
    fn a_stranger_has_the_same_salt_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users.redb");
        let salt = || Users::open(&path, OPTIONS).unwrap().stranger("eve").salt;
        let first = salt();
        assert_eq!((first.len(), salt()), (16, first));
    }
}
