//! Meaning of the Kerberos library's errors here, with what to look at.

use libgssapi::error::Error;

use super::{KerberosLogin, SERVICE};

/// The library's words for an error of a login at the broker on `host`, and what to look at.
pub(super) fn explain(error: Error, login: &KerberosLogin, host: &str) -> String {
    let text = error.to_string();
    let hint = hint(&text, login, host);
    format!("{text}{}{hint}", if hint.is_empty() { "" } else { "; " })
}

fn hint(text: &str, KerberosLogin { principal, keytab }: &KerberosLogin, host: &str) -> String {
    let has = |part: &str| text.contains(part);
    if has("not found in Kerberos database") {
        format!("{principal} and {SERVICE}/{host} (the broker as it is advertised) must be known there")
    } else if has("Cannot find KDC") || has("Cannot contact any KDC") {
        "see [realms] in this node's krb5.conf, and whether the host named there answers".to_owned()
    } else if has("Clock skew") {
        "set the clocks of node, broker and key distribution centre; they differ by more than the 5 minutes allowed".to_owned()
    } else if has("Preauthentication failed") || has("no suitable keys") || has("No credentials cache found")
    {
        format!("{keytab} holds no current key of {principal}: see klist -k {keytab}")
    } else {
        String::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_mended_is_named() {
        let login = KerberosLogin { principal: "p@R".into(), keytab: "/k".into() };
        let hint = |text| hint(text, &login, "broker-1");
        assert_eq!(
            hint("(Server kafka/broker-1@R not found in Kerberos database)"),
            "p@R and kafka/broker-1 (the broker as it is advertised) must be known there"
        );
        assert!(hint("(Cannot contact any KDC for realm 'R')").contains("krb5.conf"));
        assert!(hint("(Clock skew too great)").contains("clocks"));
        assert!(hint("(Preauthentication failed)").contains("klist -k /k"));
        assert!(hint("(No credentials cache found)").contains("klist -k /k"));
        assert_eq!(hint("(what nobody has seen before)"), "");
    }
}
