//! MQTT alone, with clients that other people wrote: QoS, wills, retained messages, sessions, takeover, large
//! payloads, many subscriptions, and what MQTT 5 adds. The scenarios are in `tests/clients/`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use causeway_tests::clients::Client;
use causeway_tests::node::Node;
use causeway_tests::process::{self, Process};

const SOON: Duration = Duration::from_secs(30);

/// The longest that all scenarios of one client may take.
const ALL: Duration = Duration::from_mins(3);

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(name)
}

/// Runs the scenarios in both versions; `arguments` go between the script and the port.
fn scenarios(mut command: impl FnMut() -> Result<Option<Command>>) -> Result<()> {
    let node = Node::start("")?;
    for version in ["4", "5"] {
        let Some(mut command) = command()? else { return Ok(()) };
        command.args([node.mqtt_port(), version]);
        let finished = process::run(&mut command, b"", ALL)?.successful()?;
        ensure!(finished.stdout.contains("all done"), "version {version}: {}", finished.stdout);
    }
    let counters = node.mqtt_counters()?;
    ensure!(counters.get("connections_panicked") == Some(&0), "{counters:?}");
    ensure!(counters.get("protocol_errors") == Some(&0), "a legal packet was refused: {counters:?}");
    Ok(())
}

#[test]
fn paho_sees_every_promise_of_mqtt() -> Result<()> {
    scenarios(|| {
        let Some(mut command) = Client::Python.command()? else { return Ok(None) };
        command.arg(script("paho_scenarios.py"));
        Ok(Some(command))
    })
}

#[test]
fn aiomqtt_sees_every_promise_of_mqtt() -> Result<()> {
    scenarios(|| {
        let Some(mut command) = Client::Python.command()? else { return Ok(None) };
        command.arg(script("aiomqtt_scenarios.py"));
        Ok(Some(command))
    })
}

#[test]
fn mqtt_js_sees_every_promise_of_mqtt() -> Result<()> {
    scenarios(|| {
        let Some(command_line) = Client::MqttJs.command()? else { return Ok(None) };
        // node .../mqtt/build/bin/mqtt.js: the module is two folders up.
        let Some(tool) = command_line.get_args().next().map(PathBuf::from) else { return Ok(None) };
        let Some(module) = tool.ancestors().nth(3) else { return Ok(None) };
        let mut command = Command::new(command_line.get_program());
        command.arg(script("mqttjs_scenarios.js")).arg(module);
        Ok(Some(command))
    })
}

/// mosquitto's clients in all three versions: QoS 2, retained, wills, and a session that waits.
#[test]
fn mosquitto_clients_see_every_promise_of_mqtt() -> Result<()> {
    let node = Node::start("")?;
    let port = node.mqtt_port().to_owned();
    for version in ["mqttv31", "mqttv311", "mqttv5"] {
        let publish = |arguments: &[&str]| -> Result<bool> {
            let Some(mut command) = Client::MosquittoPub.command()? else { return Ok(false) };
            command.args(["-h", "127.0.0.1", "-p", &port, "-V", version]).args(arguments);
            process::run(&mut command, b"", SOON)?.successful()?;
            Ok(true)
        };
        let subscribe = |arguments: &[&str]| -> Result<Option<Process>> {
            let Some(mut command) = Client::MosquittoSub.command()? else { return Ok(None) };
            command.args(["-h", "127.0.0.1", "-p", &port, "-V", version, "-d", "-F", "got %t %q %r %p"]);
            let process = Process::spawn("mosquitto_sub", command.args(arguments))?;
            // Not "received SUBACK": a signal that comes while it logs that leaves it in a lock of its own.
            process.wait_for(SOON, |line| line.starts_with("Subscribed").then_some(()))?;
            Ok(Some(process))
        };
        let got = |process: &Process, line: &str| process.wait_for(SOON, |seen| (seen == line).then_some(()));
        let topic = |name: &str| format!("{version}/{name}");

        let Some(live) = subscribe(&["-t", &topic("#"), "-q", "2"])? else { return Ok(()) };
        for qos in ["0", "1", "2"] {
            if !publish(&["-t", &topic("live"), "-q", qos, "-m", &format!("live {qos}")])? {
                return Ok(());
            }
            got(&live, &format!("got {} {qos} 0 live {qos}", topic("live")))?;
        }
        publish(&["-t", &topic("kept"), "-q", "1", "-r", "-m", "kept"])?;
        let Some(late) = subscribe(&["-t", &topic("kept"), "-q", "1"])? else { return Ok(()) };
        got(&late, &format!("got {} 1 1 kept", topic("kept")))?;

        let will = ["--will-topic", &topic("will"), "--will-payload", "gone", "--will-qos", "1"];
        let id = format!("{version}-dying");
        let dying = subscribe(&[&["-i", &id, "-t", "none"][..], &will].concat())?;
        if let Some(dying) = dying {
            dying.kill();
        }
        got(&live, &format!("got {} 1 0 gone", topic("will")))?;

        // A session that waits: subscribed, gone, and back for what came meanwhile.
        let id = format!("{version}-session");
        let mut lasting = vec!["-i", &id, "-c", "-t", "SESSION", "-q", "2"];
        let session = topic("session");
        if let Some(filter) = lasting.iter_mut().find(|word| **word == "SESSION") {
            *filter = &session;
        }
        if version == "mqttv5" {
            lasting.extend(["-x", "300"]);
        }
        if let Some(first) = subscribe(&lasting)? {
            ensure!(first.terminate(SOON).is_ok(), "mosquitto_sub did not end");
        }
        publish(&["-t", &session, "-q", "2", "-m", "meanwhile"])?;
        if let Some(again) = subscribe(&lasting)? {
            got(&again, &format!("got {session} 2 0 meanwhile"))?;
        }
    }
    let counters = node.mqtt_counters()?;
    ensure!(counters.get("protocol_errors") == Some(&0), "a legal packet was refused: {counters:?}");
    Ok(())
}
