//! Version 1 of the admin messages about users and bans. As in [`super::v1`], nothing changes but by adding a
//! variant at an end.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Users in one answer, at most.
pub const USERS_PAGE: u32 = 1000;

/// A request about users and bans.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AccessRequest {
    /// A [`UsersPage`].
    Users {
        /// Only users whose name is greater.
        after: Option<String>,
        /// How many at most; more than [`USERS_PAGE`] counts as that.
        limit: u32,
    },
    /// Add a user.
    UserAdd {
        /// Its name.
        name: String,
        /// Its password.
        password: Password,
        /// Whether the rules do not count for it.
        superuser: bool,
    },
    /// Give a user another password.
    UserPassword {
        /// Its name.
        name: String,
        /// The new password.
        password: Password,
    },
    /// Remove a user.
    UserDelete {
        /// Its name.
        name: String,
    },
    /// All [`BanInfo`]s.
    Bans,
    /// End bans.
    BansClear {
        /// Of one address; `None`: of all.
        address: Option<String>,
    },
}

/// An answer about users and bans.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AccessAnswer {
    /// To [`AccessRequest::Users`].
    Users(UsersPage),
    /// To [`AccessRequest::UserAdd`] and [`AccessRequest::UserPassword`]: the user as it is now.
    User(UserInfo),
    /// To [`AccessRequest::UserDelete`].
    Deleted,
    /// To [`AccessRequest::Bans`].
    Bans(Vec<BanInfo>),
    /// To [`AccessRequest::BansClear`]: how many ended.
    Cleared(u64),
}

/// A password on its way; never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Password(pub Vec<u8>);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("******")
    }
}

/// Some of the users.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsersPage {
    /// By name.
    pub users: Vec<UserInfo>,
    /// How many there are in all.
    pub total: u64,
}

/// A user of the built-in database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserInfo {
    /// Name.
    pub name: String,
    /// Whether the rules do not count for it.
    pub superuser: bool,
    /// Whether it can log in with SCRAM-SHA-256.
    pub scram: bool,
}

/// A banned address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BanInfo {
    /// Address, or network of IPv6.
    pub address: String,
    /// Seconds until it ends.
    pub remaining_s: u64,
    /// Failed logins that led to it.
    pub failures: u32,
}
