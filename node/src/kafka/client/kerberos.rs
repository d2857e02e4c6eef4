//! SASL with Kerberos (GSSAPI, RFC 4752): tickets are got and renewed with a key table, and a broker is asked
//! for as `kafka/HOST`. No security layer is taken: that is what TLS is for, and Kafka's own clients do the
//! same.
//!
//! The Kerberos library is the system's (MIT krb5), with its configuration (`/etc/krb5.conf`, or
//! `KRB5_CONFIG`), and in builds with the feature `gssapi` only.

#[cfg(feature = "gssapi")]
mod conversation;
#[cfg(feature = "gssapi")]
mod messages;
#[cfg(feature = "gssapi")]
mod tickets;

#[cfg(feature = "gssapi")]
pub(super) use conversation::KerberosConversation;

/// Kafka's `sasl.kerberos.service.name`, as it usually is.
#[cfg(feature = "gssapi")]
const SERVICE: &str = "kafka";

/// Whether this build can log in with Kerberos.
pub const KERBEROS: bool = cfg!(feature = "gssapi");

/// Remedy for a configuration that wants Kerberos of a build that lacks it.
pub const NO_KERBEROS: &str = "this build lacks the feature gssapi; take the container image, or build with \
     --features gssapi (which needs libkrb5-dev and libclang-dev)";

/// A principal and where its keys are.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KerberosLogin {
    /// Principal, such as `causeway@EXAMPLE.ORG`; without a realm, the default realm's.
    pub principal: Box<str>,
    /// Path of the key table.
    pub keytab: Box<str>,
}
