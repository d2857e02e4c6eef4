//! Addresses: Kafka bootstrap hosts and what listeners bind.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The port of a Kafka broker where none is written.
pub const KAFKA_PORT: u16 = 9092;

/// A host (name, IPv4 or IPv6 address) and a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// Name or address; IPv6 without brackets.
    pub host: String,
    /// Port, never 0.
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Reads `host[:port]`; the error says what is wrong with it.
pub(super) fn read_host_port(text: &str, default_port: u16) -> Result<HostPort, String> {
    let text = text.trim();
    if text.contains("://") {
        return Err(format!("`{text}` looks like a URL; write host:port, without a scheme"));
    }
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (address, after) = rest
            .split_once(']')
            .ok_or_else(|| format!("`{text}` lacks the closing bracket of an IPv6 address"))?;
        address.parse::<Ipv6Addr>().map_err(|_| format!("`{address}` is not an IPv6 address"))?;
        match after.strip_prefix(':') {
            Some(port) => (address, Some(port)),
            None if after.is_empty() => (address, None),
            None => return Err(format!("`{text}` has something other than `:port` behind the bracket")),
        }
    } else if text.matches(':').count() > 1 {
        return Err(match text.parse::<Ipv6Addr>() {
            Ok(_) => format!("`{text}` is an IPv6 address; write it in brackets, as [{text}]:{default_port}"),
            Err(_) => format!("`{text}` has more than one colon; write host:port"),
        });
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if host.is_empty() {
        return Err(format!("`{text}` has no host name; write host:port"));
    }
    if !host.contains(':') && !host.chars().all(is_name) {
        return Err(format!("`{host}` is not a host name"));
    }
    if host.len() > 253 {
        return Err("a host name has at most 253 characters".into());
    }
    let port = port.map_or(Ok(default_port), read_port)?;
    Ok(HostPort { host: host.to_owned(), port })
}

/// Reads a comma-separated list of hosts; blanks around the commas are fine.
pub(super) fn read_bootstrap_hosts(text: &str) -> Result<Vec<HostPort>, String> {
    if text.trim().is_empty() {
        return Err("empty; write at least one host:port".into());
    }
    let mut hosts: Vec<HostPort> = Vec::new();
    for part in text.split(',') {
        if part.trim().is_empty() {
            return Err("has an empty entry between commas; write host:port,host:port".into());
        }
        let host = read_host_port(part, KAFKA_PORT)?;
        if !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    Ok(hosts)
}

/// Reads what a listener binds: `1883` and `:1883` (every address), `127.0.0.1:1883`, `[::1]:1883`,
/// `localhost:1883`.
pub(super) fn read_bind(text: &str) -> Result<SocketAddr, String> {
    let text = text.trim();
    if let Ok(address) = text.parse::<SocketAddr>() {
        // An IPv4 address in the form of IPv6 is an IPv4 address: IPv6 sockets take no IPv4 here.
        return Ok(match address.ip().to_canonical() {
            ip @ IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
            IpAddr::V6(_) => address,
        });
    }
    if text.bytes().all(|b| b.is_ascii_digit()) && !text.is_empty() {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), read_bind_port(text)?));
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err("not an address to listen on; write a port or address:port, such as 0.0.0.0:1883".into());
    };
    let address = match host {
        "" => Ipv4Addr::UNSPECIFIED,
        "localhost" => Ipv4Addr::LOCALHOST,
        _ => host.parse().map_err(|_| {
            format!("`{host}` is not an address to listen on; write an IP address (IPv6 in brackets), such as 0.0.0.0:1883")
        })?,
    };
    Ok(SocketAddr::new(IpAddr::V4(address), read_bind_port(port)?))
}

fn read_port(text: &str) -> Result<u16, String> {
    match text.trim().parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("`{text}` is not a port; a port is a number from 1 to 65535")),
    }
}

/// 0 lets the system choose a port.
fn read_bind_port(text: &str) -> Result<u16, String> {
    text.trim()
        .parse::<u16>()
        .map_err(|_| format!("`{text}` is not a port; a port is a number from 0 (any free one) to 65535"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_with_blanks_default_ports_and_ipv6() {
        let shown = |text| {
            read_bootstrap_hosts(text)
                .map(|hosts| hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(shown("kafka-1.emqx.net:9093"), Ok("kafka-1.emqx.net:9093".into()));
        assert_eq!(shown(" a , b:1,\n[::1]:5 ,[fe80::1]"), Ok("a:9092 b:1 [::1]:5 [fe80::1]:9092".into()));
        assert_eq!(shown("a,a:9092"), Ok("a:9092".into()));
    }

    #[test]
    fn a_wrong_host_is_named_with_what_would_be_right() {
        for (text, expected) in [
            ("", "empty"),
            ("a,,b", "empty entry"),
            ("a,", "empty entry"),
            ("a:b", "`b` is not a port"),
            ("a:0", "`0` is not a port"),
            ("a:65536", "`65536` is not a port"),
            ("a:", "`` is not a port"),
            (":9092", "no host name"),
            ("a b:9092", "`a b` is not a host name"),
            ("kafka://a:9092", "looks like a URL"),
            ("::1", "in brackets, as [::1]:9092"),
            ("a:1:2", "more than one colon"),
            ("[::1", "closing bracket"),
            ("[::1]9092", "behind the bracket"),
            ("[zz]:9092", "`zz` is not an IPv6 address"),
        ] {
            let error = read_bootstrap_hosts(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_listener_binds_a_port_or_an_address() {
        for (text, address) in [
            ("1883", "0.0.0.0:1883"),
            (":1883", "0.0.0.0:1883"),
            ("0.0.0.0:1883", "0.0.0.0:1883"),
            ("[::]:1883", "[::]:1883"),
            ("[::ffff:127.0.0.1]:1883", "127.0.0.1:1883"),
            ("localhost:0", "127.0.0.1:0"),
        ] {
            assert_eq!(read_bind(text).map(|a| a.to_string()), Ok(address.to_owned()), "{text}");
        }
        for text in ["", "x", "70000", "mqtt.example.org:1883", "1.2.3.4", "1.2.3.4:x", "::1:1883x"] {
            assert!(read_bind(text).is_err(), "{text}");
        }
    }
}
