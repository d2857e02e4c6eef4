//! Shared subscriptions (MQTT-5.0 4.8.2) and the `$SYS` topics, as clients of three other hands see them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use causeway_tests::clients::Client;
use causeway_tests::node::{Node, causeway};
use causeway_tests::process::{self, Process};
use causeway_tests::{eventually, need};

const SOON: Duration = Duration::from_secs(30);

/// Subscribes to argv[2] with QoS 1, prints `subscribed` and then `got TOPIC PAYLOAD`. With argv[3] = hold it
/// never acknowledges.
const PAHO: &str = r#"
import sys
import paho.mqtt.client as mqtt
port, filter, hold = int(sys.argv[1]), sys.argv[2], sys.argv[3:] == ["hold"]
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "paho", protocol=mqtt.MQTTv5, manual_ack=hold)
client.on_connect = lambda c, u, f, reason, p: c.subscribe(filter, qos=1)
client.on_subscribe = lambda c, u, m, reasons, p: print("subscribed" if reasons[0] == 1 else reasons, flush=True)
client.on_message = lambda c, u, message: print("got", message.topic, message.payload.decode(), flush=True)
client.connect("127.0.0.1", port)
client.loop_forever()
"#;

/// The same with mqtt.js; the module comes first.
const MQTT_JS: &str = r"
const [module, port, filter] = process.argv.slice(1);
const client = require(module).connect(`mqtt://127.0.0.1:${port}`, { clientId: 'mqttjs', protocolVersion: 5, reconnectPeriod: 0 });
client.on('connect', () => client.subscribe(filter, { qos: 1 }, (error, granted) =>
  console.log(error || granted[0].qos !== 1 ? 'refused' : 'subscribed')));
client.on('message', (topic, payload) => console.log(`got ${topic} ${payload}`));
";

/// Waits until it has subscribed.
fn ready(process: Process) -> Result<Option<Process>> {
    process.wait_for(SOON, |line| (line == "subscribed" || line.contains("SUBACK")).then_some(()))?;
    Ok(Some(process))
}

fn mosquitto(node: &Node, filter: &str, more: &[&str]) -> Result<Option<Process>> {
    let Some(mut command) = Client::MosquittoSub.command()? else { return Ok(None) };
    command.args([
        "-h",
        "127.0.0.1",
        "-p",
        node.mqtt_port(),
        "-d",
        "-F",
        "got %t %p",
        "-q",
        "1",
        "-t",
        filter,
    ]);
    ready(Process::spawn("mosquitto_sub", command.args(more))?)
}

fn paho(node: &Node, filter: &str, more: &[&str]) -> Result<Option<Process>> {
    let Some(mut command) = Client::Python.command()? else { return Ok(None) };
    command.args(["-c", PAHO, node.mqtt_port(), filter]).args(more);
    ready(Process::spawn("paho", &mut command)?)
}

fn mqtt_js(node: &Node, filter: &str) -> Result<Option<Process>> {
    let Some(tool) = Client::MqttJs.command()? else { return Ok(None) };
    let tool = PathBuf::from(tool.get_args().next().context("the tool's script")?);
    let module = tool.ancestors().nth(3).context("the tool's package")?;
    let mut command = Command::new("node");
    command.arg("-e").arg(MQTT_JS).arg(module).args([node.mqtt_port(), filter]);
    ready(Process::spawn("mqtt.js", &mut command)?)
}

/// Publishes `first..first + count` as payloads, one after the other, with QoS 1.
fn publish(node: &Node, topic: &str, numbers: std::ops::Range<usize>) -> Result<()> {
    let Some(mut command) = Client::MosquittoPub.command()? else { return Ok(()) };
    command.args(["-h", "127.0.0.1", "-p", node.mqtt_port(), "-q", "1", "-t", topic, "-l"]);
    let lines: Vec<String> = numbers.map(|number| number.to_string()).collect();
    process::run(&mut command, lines.join("\n").as_bytes(), SOON)?.successful()?;
    Ok(())
}

/// What a subscriber has printed.
fn got(process: &Process) -> Vec<String> {
    process.lines_with("got ").into_iter().filter(|line| line.starts_with("got ")).collect()
}

#[test]
fn a_shared_group_of_three_kinds_of_clients_gets_each_message_once() -> Result<()> {
    const COUNT: usize = 300;
    let node = Node::start("")?;
    let filter = "$share/group/jobs/#";
    let (Some(one), Some(two), Some(three)) =
        (mosquitto(&node, filter, &["-V", "mqttv5"])?, paho(&node, filter, &[])?, mqtt_js(&node, filter)?)
    else {
        return Ok(());
    };
    // Who is not in the group gets everything; another group, too.
    let (Some(alone), Some(other)) =
        (mosquitto(&node, "jobs/#", &[])?, mosquitto(&node, "$share/other/jobs/+", &["-V", "mqttv311"])?)
    else {
        return Ok(());
    };
    publish(&node, "jobs/a", 0..COUNT)?;
    let wanted: Vec<String> = (0..COUNT).map(|number| format!("got jobs/a {number}")).collect();
    for whole in [&alone, &other] {
        eventually(SOON, || {
            let lines = got(whole);
            need(lines == wanted, || format!("{} of {COUNT} in order: {:?}", lines.len(), lines.last()))
        })?;
    }
    let members = [&one, &two, &three];
    let all = || members.map(got);
    eventually(SOON, || {
        let count: usize = all().iter().map(Vec::len).sum();
        need(count >= COUNT, || format!("{count} of {COUNT} arrived in the group"))
    })?;
    let mut times: BTreeMap<String, u32> = BTreeMap::new();
    for lines in all() {
        // Taken in turns: each has its third, in order.
        ensure!(lines.len() == COUNT / 3, "a member got {} of {COUNT}", lines.len());
        let numbers: Vec<usize> =
            lines.iter().filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
        ensure!(numbers.is_sorted(), "a member got them out of order: {numbers:?}");
        for line in lines {
            *times.entry(line).or_default() += 1;
        }
    }
    ensure!(wanted.iter().all(|line| times.get(line) == Some(&1)), "{times:?}");
    Ok(())
}

#[test]
fn what_a_killed_member_held_goes_to_the_others_once() -> Result<()> {
    const COUNT: usize = 60;
    let node = Node::start("")?;
    let filter = "$share/group/jobs/#";
    let (Some(dying), Some(one), Some(two)) = (
        paho(&node, filter, &["hold"])?,
        mosquitto(&node, filter, &["-V", "mqttv5"])?,
        mqtt_js(&node, filter)?,
    ) else {
        return Ok(());
    };
    publish(&node, "jobs/a", 0..COUNT)?;
    eventually(SOON, || {
        let count: usize = [&dying, &one, &two].into_iter().map(|member| got(member).len()).sum();
        need(count >= COUNT, || format!("{count} of {COUNT} arrived in the group"))
    })?;
    let held = got(&dying);
    ensure!(held.len() == COUNT / 3, "the member that does not acknowledge holds {}", held.len());
    let before: usize = got(&one).len() + got(&two).len();
    ensure!(before == COUNT - held.len(), "the others got {before}");
    dying.kill();
    let survivors = || [got(&one), got(&two)].concat();
    eventually(SOON, || {
        let count = survivors().len();
        need(count >= COUNT, || format!("{count} of {COUNT} after a member was killed"))
    })?;
    // What is published now is behind what came again: had anything come twice, it would be there.
    publish(&node, "jobs/a", COUNT..COUNT + 2)?;
    eventually(SOON, || need(survivors().len() >= COUNT + 2, || "the last ones".to_owned()))?;
    let mut lines = survivors();
    lines.sort_unstable();
    let mut wanted: Vec<String> = (0..COUNT + 2).map(|number| format!("got jobs/a {number}")).collect();
    wanted.sort_unstable();
    ensure!(lines == wanted, "each once: {lines:?}");
    ensure!(held.iter().all(|line| lines.contains(line)), "what was held is with the others");
    Ok(())
}

#[test]
fn sys_topics_tell_what_is_so_and_stay_out_of_wildcards() -> Result<()> {
    let node = Node::start("sys_topics.interval = 1s")?;
    let version = causeway(&["--version"])?.successful()?.stdout;
    let version = version.split_whitespace().last().context("a version")?.to_owned();
    let prefix = "got $SYS/brokers/node-1/";
    let (Some(watcher), Some(all), Some(plus), Some(js)) = (
        paho(&node, "$SYS/brokers/+/#", &[])?,
        mosquitto(&node, "#", &[])?,
        mosquitto(&node, "+/#", &["-V", "mqttv5"])?,
        mqtt_js(&node, "plain/+")?,
    ) else {
        return Ok(());
    };
    let value = |topic: &str| {
        let prefix = format!("{prefix}{topic} ");
        let last =
            got(&watcher).into_iter().rev().find_map(|line| line.strip_prefix(&prefix).map(str::to_owned));
        last.with_context(|| format!("nothing under {topic} yet"))
    };
    let becomes = |topic: &str, wanted: &str| {
        eventually(SOON, || {
            let value = value(topic)?;
            need(value == wanted, || format!("{topic} is {value}, not {wanted}"))
        })
        .with_context(|| node.log_tail())
    };
    becomes("version", &version)?;
    becomes("stats/connections/count", "4")?;
    becomes("stats/sessions/count", "4")?;
    becomes("stats/subscriptions/count", "4")?;
    let number = |topic: &str| Ok::<u64, anyhow::Error>(value(topic)?.parse()?);
    let (received, up) = (number("metrics/messages/qos1/received")?, number("uptime")?);
    publish(&node, "plain/a", 0..25)?;
    // Nobody but the node writes there.
    publish(&node, "$SYS/brokers/node-1/version", 0..1)?;
    publish(&node, "$SYS/mine", 0..1)?;
    becomes("metrics/messages/qos1/received", &(received + 27).to_string())?;
    eventually(SOON, || need(number("uptime")? > up, || "the uptime stands still".to_owned()))?;
    ensure!(value("version")? == version, "a client has written {}", value("version")?);
    for plain in [&all, &plus, &js] {
        eventually(SOON, || need(got(plain).len() >= 25, || format!("{} of 25", got(plain).len())))?;
    }
    js.kill();
    becomes("stats/connections/count", "3")?;
    for wildcard in [&all, &plus] {
        let lines = got(wildcard);
        let only: Vec<String> = (0..25).map(|number| format!("got plain/a {number}")).collect();
        ensure!(lines == only, "{lines:?}");
    }
    // It agrees with the other place where these figures are shown.
    let counters = node.mqtt_counters()?;
    ensure!(counters.get("received_qos1") == Some(&(received + 27)), "{counters:?}");
    // Whoever comes later has the last values at once, marked as retained.
    let Some(mut command) = Client::MosquittoSub.command()? else { return Ok(()) };
    command.args(["-h", "127.0.0.1", "-p", node.mqtt_port(), "-t", "$SYS/brokers/node-1/version"]);
    command.args(["-C", "1", "-W", "20", "-F", "%r %p"]);
    let line = process::run(&mut command, b"", SOON)?.successful()?.stdout;
    ensure!(line.trim_end() == format!("1 {version}"), "{line}");
    Ok(())
}
