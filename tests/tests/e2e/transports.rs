//! TLS and WebSocket through the real binary, with clients that other people wrote.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use causeway_tests::certificates::Certificates;
use causeway_tests::clients::Client;
use causeway_tests::node::{Node, causeway};
use causeway_tests::process::{self, Process};
use rcgen::ExtendedKeyUsagePurpose;

const SOON: Duration = Duration::from_secs(30);

fn port(address: &str) -> &str {
    address.rsplit(':').next().unwrap_or_default()
}

/// A subscriber over plain TCP, subscribed; it prints topic and payload.
fn subscriber(node: &Node) -> Result<Option<Process>> {
    let Some(mut command) = Client::MosquittoSub.command()? else { return Ok(None) };
    command.args(["-t", "#", "-q", "1", "-d", "-F", "got %t %p", "-h", "127.0.0.1", "-p", node.mqtt_port()]);
    let process = Process::spawn("mosquitto_sub", &mut command)?;
    process.wait_for(SOON, |line| line.contains("SUBACK").then_some(()))?;
    Ok(Some(process))
}

fn got(subscriber: &Process, message: &str) -> Result<()> {
    let wanted = format!("got {message}");
    subscriber.wait_for(SOON, |line| (line == wanted).then_some(()))
}

#[test]
fn mosquitto_speaks_both_versions_of_tls_and_proves_who_it_is() -> Result<()> {
    let certificates = Certificates::new()?;
    certificates.issue("meter-17", ExtendedKeyUsagePurpose::ClientAuth)?;
    let strict = format!(
        "verify = verify_peer, fail_if_no_peer_cert = true, cacertfile = \"{}\"",
        certificates.text("ca.pem")
    );
    let listener = certificates.ssl_options(&strict);
    let node = Node::start(&format!(
        "listeners.ssl.strict {{ bind = \"127.0.0.1:0\", peer_cert_as_username = cn, {listener} }}"
    ))?;
    let address = node.listener("mqtts")?;
    let Some(subscriber) = subscriber(&node)? else { return Ok(()) };
    let publish = |message: &str, more: &[&str]| -> Result<Option<process::Finished>> {
        let Some(mut command) = Client::MosquittoPub.command()? else { return Ok(None) };
        command.args(["-h", "localhost", "-p", port(&address), "-t", "tls", "-q", "1", "-m", message]);
        command.arg("--cafile").arg(certificates.path("ca.pem")).args(more);
        Ok(Some(process::run(&mut command, b"", SOON)?))
    };
    let (certificate, key) = (certificates.text("meter-17.pem"), certificates.text("meter-17.key"));
    for version in ["tlsv1.2", "tlsv1.3"] {
        let own = ["--cert", &certificate, "--key", &key, "--tls-version", version];
        publish(version, &own)?.context("mosquitto_pub")?.successful()?;
        got(&subscriber, &format!("tls {version}"))?;
        let without = publish("never", &["--tls-version", version])?.context("mosquitto_pub")?;
        ensure!(without.successful().is_err(), "{version}: a client without a certificate came in");
    }
    ensure!(!subscriber.tail(100).contains("never"), "{}", subscriber.tail(100));
    Ok(())
}

/// Publishes with mqtt.js to the URL that its arguments name, and waits for an answer.
const MQTT_JS: &str = r"
const [module, url, ca, scheme] = process.argv.slice(1);
const mqtt = require(module);
const client = mqtt.connect(url, { ca: require('fs').readFileSync(ca), protocolVersion: 5, reconnectPeriod: 0 });
client.on('error', error => { console.error(error); process.exit(1); });
client.on('connect', () => client.subscribe('back', { qos: 1 }, () =>
  client.publish('web', scheme, { qos: 1 }, () => console.log('acknowledged'))));
client.on('message', (topic, payload) => {
  console.log(`${topic} ${payload}`);
  client.end(false, {}, () => process.exit(0));
});
";

#[test]
fn mqtt_js_speaks_over_websocket_with_and_without_tls() -> Result<()> {
    let certificates = Certificates::new()?;
    let secure = certificates.ssl_options("");
    let mut node = Node::start(&format!(
        "listeners.ws.web {{ bind = \"127.0.0.1:0\" }}\nlisteners.wss.web {{ bind = \"127.0.0.1:0\", {secure} }}"
    ))?;
    let Some(subscriber) = subscriber(&node)? else { return Ok(()) };
    for scheme in ["ws", "wss"] {
        let url = format!("{scheme}://localhost:{}/mqtt", port(&node.listener(scheme)?));
        let Some(tool) = Client::MqttJs.command()? else { return Ok(()) };
        // Its command line cannot be told a path; the package that it belongs to can.
        let tool = PathBuf::from(tool.get_args().next().context("the tool's script")?);
        let module = tool.ancestors().nth(3).context("the tool's package")?;
        let mut command = Command::new("node");
        command.arg("-e").arg(MQTT_JS).arg(module).arg(&url).arg(certificates.path("ca.pem")).arg(scheme);
        let client = Process::spawn("mqtt.js", &mut command)?;
        client.wait_for(SOON, |line| (line == "acknowledged").then_some(()))?;
        got(&subscriber, &format!("web {scheme}"))?;
        let Some(mut command) = Client::MosquittoPub.command()? else { return Ok(()) };
        command.args(["-h", "127.0.0.1", "-p", node.mqtt_port(), "-t", "back", "-m", "heard", "-q", "1"]);
        process::run(&mut command, b"", SOON)?.successful()?;
        client.wait_for(SOON, |line| (line == "back heard").then_some(()))?;
    }
    node.stop()
}

/// Publishes with paho over the transport that its arguments name, and reads it back.
const PAHO: &str = r#"
import ssl, sys, threading
import paho.mqtt.client as mqtt
transport, port, ca, path = sys.argv[1:5]
done = threading.Event()
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "paho", protocol=mqtt.MQTTv5, transport=transport)
if transport == "websockets":
    client.ws_set_options(path=path)
if ca:
    client.tls_set(ca_certs=ca)
payload = bytes(range(256)) * 1000
def on_connect(client, userdata, flags, reason, properties):
    client.subscribe("paho/echo", qos=2)
def on_subscribe(client, userdata, mid, reasons, properties):
    client.publish("paho/echo", payload, qos=2)
def on_message(client, userdata, message):
    if message.payload == payload:
        print("the same came back")
        done.set()
client.on_connect, client.on_subscribe, client.on_message = on_connect, on_subscribe, on_message
client.connect("localhost", int(port))
client.loop_start()
ok = done.wait(20)
client.disconnect()
client.loop_stop()
sys.exit(0 if ok else 1)
"#;

#[test]
fn paho_gets_back_what_it_sent_over_each_transport() -> Result<()> {
    let certificates = Certificates::new()?;
    let secure = certificates.ssl_options("");
    let node = Node::start(&format!(
        "listeners.ssl.a {{ bind = \"127.0.0.1:0\", {secure} }}\nlisteners.ws.a {{ bind = \"127.0.0.1:0\" }}\n\
         listeners.wss.a {{ bind = \"127.0.0.1:0\", {secure}, websocket.mqtt_path = \"/other\" }}"
    ))?;
    for (scheme, transport, path) in
        [("mqtts", "tcp", ""), ("ws", "websockets", "/mqtt"), ("wss", "websockets", "/other")]
    {
        let address = node.listener(scheme)?;
        let Some(mut command) = Client::Python.command()? else { return Ok(()) };
        let ca = if scheme == "ws" { String::new() } else { certificates.text("ca.pem") };
        command.args(["-c", PAHO, transport, port(&address), &ca, path]);
        let finished = process::run(&mut command, b"", SOON)?.successful().context(scheme)?;
        ensure!(finished.stdout.contains("the same came back"), "{scheme}: {}", finished.stdout);
    }
    Ok(())
}

/// What openssl sees of the certificate that is served.
fn served(address: &str) -> Result<String> {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", address, "-servername", "localhost"]);
    Ok(process::run(&mut command, b"", SOON)?.stdout)
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| Path::new(&folder).join(program).exists())
}

#[test]
fn new_certificates_are_served_after_a_hangup_and_wrong_ones_are_not() -> Result<()> {
    let certificates = Certificates::new()?;
    let secure = certificates.ssl_options("");
    let mut node = Node::start(&format!("listeners.ssl.a {{ bind = \"127.0.0.1:0\", {secure} }}"))?;
    let address = node.listener("mqtts")?;
    if !is_installed("openssl") {
        eprintln!("left out: openssl is not there");
        return Ok(());
    }
    ensure!(served(&address)?.contains("CN = server") || served(&address)?.contains("CN=server"));
    certificates.issue("renewed", ExtendedKeyUsagePurpose::ServerAuth)?;
    fs::copy(certificates.path("renewed.pem"), certificates.path("server.pem"))?;
    // The certificate without its key.
    node.hang_up()?;
    node.wait_for_line(SOON, "the old ones go on being served")?;
    ensure!(!served(&address)?.contains("renewed"));
    fs::copy(certificates.path("renewed.key"), certificates.path("server.key"))?;
    node.hang_up()?;
    node.wait_for_line(SOON, "certificates read again")?;
    ensure!(served(&address)?.contains("renewed"));
    node.stop()
}

#[test]
fn check_and_start_name_a_wrong_certificate_file() -> Result<()> {
    let certificates = Certificates::new()?;
    certificates.issue("other", ExtendedKeyUsagePurpose::ServerAuth)?;
    fs::copy(certificates.path("other.key"), certificates.path("server.key"))?;
    let file = certificates.path("causeway.conf");
    let text = format!(
        "node.data_dir = \"{}\"\nlisteners.tcp = {{}}\nadmin.enable = false\nlisteners.ssl.a {{ bind = \"127.0.0.1:0\", {} }}\n",
        certificates.text("data"),
        certificates.ssl_options("")
    );
    fs::write(&file, text)?;
    let file = file.display().to_string();
    let wanted = format!("{}: this key does not belong to", certificates.text("server.key"));
    for command in ["check", "start"] {
        let finished = causeway(&[command, "--config", &file])?;
        ensure!(finished.stderr.contains(&wanted), "{command}: {}", finished.stderr);
        ensure!(finished.successful().is_err(), "{command} took it");
    }
    Ok(())
}
