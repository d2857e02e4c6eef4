//! Checks of all listeners together: addresses that exclude each other, and listeners that let anonymous
//! clients of other machines in.

use std::fmt::Display;
use std::net::SocketAddr;

use super::Config;
use super::access::check_access;
use super::tree::{Object, Walk};
use crate::mqtt::ClientCertificates;

/// Checks that concern several sections.
pub(super) fn check(config: &Config, object: &Object<'_>, walk: &mut Walk) {
    check_access(config, object, walk);
    check_addresses(config, object, walk);
    warn_of_anonymous_clients(config, object, walk);
}

/// Refuses two listeners, the admin link among them, that cannot both be opened.
fn check_addresses(config: &Config, object: &Object<'_>, walk: &mut Walk) {
    let mut taken: Vec<(SocketAddr, String)> = Vec::new();
    for listener in config.listeners.all().iter().filter(|listener| listener.common.enable) {
        let bind = listener.common.bind;
        if let Some(other) = first_at(&taken, bind) {
            let keys = ["listeners", listener.kind, listener.name, "bind"];
            walk.wrong_under(object, &keys, in_the_way(listener, bind, other));
        }
        taken.push((bind, listener.to_string()));
    }
    if config.admin.enable
        && let Some(other) = first_at(&taken, config.admin.bind)
    {
        let message = in_the_way(&"the admin link", config.admin.bind, other);
        walk.wrong_under(object, &["admin", "bind"], message);
    }
}

fn first_at(taken: &[(SocketAddr, String)], bind: SocketAddr) -> Option<&(SocketAddr, String)> {
    taken.iter().find(|(other, _)| overlap(*other, bind))
}

fn in_the_way(who: &dyn Display, bind: SocketAddr, (other, name): &(SocketAddr, String)) -> String {
    format!("{who} on {bind} and {name} on {other} exclude each other; give one of them another port")
}

/// Whether only one of two sockets can listen: the same port, and the same address or all addresses of its
/// family.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let all = |address: SocketAddr| address.ip().is_unspecified();
    one.port() != 0
        && one.port() == other.port()
        && one.is_ipv4() == other.is_ipv4()
        && (one.ip() == other.ip() || all(one) || all(other))
}

/// Warns of listeners that let clients of other machines in without a password or a certificate: once, with
/// the names of all of them.
fn warn_of_anonymous_clients(config: &Config, object: &Object<'_>, walk: &mut Walk) {
    if !config.authentication.anonymous_is_allowed() {
        return;
    }
    let options = config.listeners.options();
    let open = options.iter().filter(|listener| {
        let certificates = listener.tls.as_ref().map(|tls| &tls.clients);
        !listener.bind.ip().is_loopback() && !matches!(certificates, Some(ClientCertificates::Required(_)))
    });
    let (encrypted, plain): (Vec<_>, Vec<_>) = open.partition(|listener| listener.tls.is_some());
    let names = |listeners: &[&crate::mqtt::ListenerOptions]| {
        let names: Vec<String> =
            listeners.iter().map(|listener| format!("{} ({})", listener.id(), listener.bind)).collect();
        names.join(", ")
    };
    let doors = match (plain.as_slice(), encrypted.as_slice()) {
        ([], []) => return,
        ([], encrypted) => names(encrypted),
        (plain, []) => format!("{}, not encrypted,", names(plain)),
        (plain, encrypted) => format!("{}, not encrypted, and {}", names(plain), names(encrypted)),
    };
    let place = object.get("authentication").map_or(object.place, |node| node.place);
    walk.warn_at(
        "authentication",
        place,
        format!(
            "anyone who reaches {doors} can connect without a password; allow_anonymous = false and backends = [{{ type = \
             built_in_database }}] ask for one, bind = \"127.0.0.1:PORT\" keeps other machines out"
        ),
    );
}

#[cfg(test)]
mod tests {
    use super::super::load_text;

    const SSL: &str = "ssl_options { certfile = c, keyfile = k }";

    fn errors(text: &str) -> String {
        load_text("test", text).map_or_else(|errors| errors.to_string(), |_| String::new())
    }

    /// Warnings of anonymous clients.
    fn warnings(text: &str) -> Vec<String> {
        let loaded = load_text("test", text).unwrap();
        let warnings = loaded.warnings.iter().filter(|warning| warning.key == "authentication");
        warnings.map(|warning| warning.message.clone()).collect()
    }

    #[test]
    fn two_listeners_on_one_address_are_refused_with_both_names() {
        let cases = [
            (
                "listeners { tcp.a { bind = 1883 }, tcp.b { bind = 1883 } }",
                "tcp:b on 0.0.0.0:1883 and tcp:a on 0.0.0.0:1883",
            ),
            (
                "listeners { tcp.a { bind = 1883 }, ws.b { bind = \"127.0.0.1:1883\" } }",
                "ws:b on 127.0.0.1:1883 and tcp:a on",
            ),
            (
                "listeners { tcp.a { bind = \"[::1]:1\" }, ws.b { bind = \"[::]:1\" } }",
                "ws:b on [::]:1 and tcp:a on [::1]:1",
            ),
            (
                "listeners { tcp.a { bind = 1 }, ws.b { bind = \"[::ffff:1.2.3.4]:1\" } }",
                "ws:b on 1.2.3.4:1 and tcp:a",
            ),
            ("listeners.tcp.a { bind = 8081 }", "the admin link on 127.0.0.1:8081 and tcp:a on 0.0.0.0:8081"),
        ];
        for (text, expected) in cases {
            let errors = errors(text);
            assert!(errors.contains(expected) && errors.lines().count() == 1, "{text}: {errors}");
        }
    }

    #[test]
    fn listeners_that_do_not_meet_may_share_a_port() {
        for text in [
            "listeners { tcp.a { bind = \"0.0.0.0:1883\" }, tcp.b { bind = \"[::]:1883\" } }",
            "listeners { tcp.a { bind = \"127.0.0.1:1\" }, tcp.b { bind = \"127.0.0.2:1\" } }",
            "listeners { tcp.a { bind = 0 }, tcp.b { bind = 0 } }",
            "listeners { tcp.a { bind = 1 }, tcp.b { bind = 1, enable = false } }",
            "listeners.tcp.a { bind = 8081 }, admin.enable = false",
        ] {
            assert_eq!(errors(text), "", "{text}");
        }
    }

    #[test]
    fn listeners_that_let_anonymous_clients_in_from_elsewhere_are_named_once() {
        let plain = "listeners { tcp.a { bind = 1883 }, ws.b { bind = \"[::]:8083\" } }";
        let [warning] = &warnings(plain)[..] else { panic!("not one warning") };
        let expected = "anyone who reaches tcp:a (0.0.0.0:1883), ws:b ([::]:8083), not encrypted, can connect without a password; ";
        assert!(warning.starts_with(expected), "{warning}");
        let [warning] =
            &warnings(&format!("listeners {{ tcp.a {{ bind = 1 }}, ssl.s {{ bind = 2, {SSL} }} }}"))[..]
        else {
            panic!("not one warning")
        };
        let expected =
            "anyone who reaches tcp:a (0.0.0.0:1), not encrypted, and ssl:s (0.0.0.0:2) can connect";
        assert!(warning.starts_with(expected), "{warning}");
        assert_eq!(warnings("").len(), 1, "the default listener");
    }

    #[test]
    fn listeners_that_ask_who_a_client_is_are_not_warned_about() {
        let required = "ssl_options { certfile = c, keyfile = k, verify = verify_peer, fail_if_no_peer_cert = true, cacertfile = ca }";
        for text in [
            "listeners.tcp.a { bind = \"127.0.0.1:1883\" }",
            "listeners.tcp.a { bind = \"[::1]:1883\" }",
            "listeners.tcp.a { bind = 1883, enable = false }",
            "listeners.tcp.a { bind = 1883 }, authentication { allow_anonymous = false, backends = [{ type = built_in_database }] }",
            "listeners.tcp.a { bind = 1883 }, authentication = [{ mechanism = password_based, backend = built_in_database }]",
            &format!("listeners.ssl.s {{ bind = 1, {required} }}"),
        ] {
            assert_eq!(warnings(text), Vec::<String>::new(), "{text}");
        }
    }
}
