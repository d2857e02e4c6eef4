//! `causeway dev`: a node with a development Kafka inside and two bridges, for a first look.
//!
//! The node is an ordinary one, started from configuration text like any other; what it prints at the start
//! is what somebody can try next.

pub mod clients;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::config;
use crate::dev_kafka::{self, DevKafka, TopicSpec};
use crate::mqtt::ListenerKind;
use crate::node::{self, Node};

/// One node with a development Kafka inside, on loopback.
#[derive(Debug, Clone, clap::Args)]
pub struct DevArgs {
    /// Port for MQTT clients.
    #[arg(long, default_value_t = 1883)]
    pub mqtt_port: u16,
    /// Port for MQTT clients over WebSocket, such as those in browsers.
    #[arg(long, default_value_t = 8083)]
    pub websocket_port: u16,
    /// Port of the development Kafka.
    #[arg(long, default_value_t = 9092)]
    pub kafka_port: u16,
    /// Port of the admin link that `causeway ctl` uses.
    #[arg(long, default_value_t = 8081)]
    pub admin_port: u16,
    /// Use this Kafka instead of the one inside; the topics testtopic-in and testtopic-out must exist there.
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "kafka_port")]
    pub kafka: Option<String>,
    /// Keep the data (records and offsets of the development Kafka, MQTT sessions) in this folder. Without it
    /// nothing outlives the process.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

/// Partitions of the two topics.
const PARTITIONS: i32 = 3;

/// Runs until ctrl-C.
pub async fn run(args: DevArgs) -> anyhow::Result<()> {
    // Removed with everything in it when this function ends.
    let temporary = tempfile::Builder::new().prefix("causeway-dev-").tempdir();
    let temporary = temporary.context("no folder for temporary files; name one with --data-dir DIR")?;
    let data_dir = args.data_dir.clone().unwrap_or_else(|| temporary.path().to_owned());
    let (kafka, bootstrap) = if let Some(address) = &args.kafka {
        (None, address.clone())
    } else {
        let kafka = start_kafka(&args, &data_dir).await?;
        let bootstrap = kafka.bootstrap();
        (Some(kafka), bootstrap)
    };
    // A nicety: without it everything else works.
    let websocket = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, args.websocket_port)).is_ok();
    let text = config_text(&args, &bootstrap, &data_dir, websocket);
    let loaded = config::load_text("dev", &text)?;
    let node = Node::start(loaded.value)
        .await
        .context("the node did not start; --mqtt-port, --admin-port and --data-dir choose other places")?;
    greet(&node, &bootstrap, kafka.is_some(), args.websocket_port);
    let end = node::until_end(&node).await?;
    let stopped = node::stop(node, end).await;
    if let Some(kafka) = kafka {
        kafka.stop().await;
    }
    stopped
}

async fn start_kafka(args: &DevArgs, data_dir: &Path) -> anyhow::Result<DevKafka> {
    let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), args.kafka_port);
    let options = dev_kafka::Options {
        bind: vec![address],
        data_dir: args.data_dir.is_some().then(|| data_dir.join("dev-kafka")),
        topics: ["testtopic-in", "testtopic-out"].map(|name| TopicSpec::new(name, PARTITIONS)).to_vec(),
        ..dev_kafka::Options::default()
    };
    DevKafka::start(options).await.with_context(|| {
        format!(
            "the development Kafka did not start on {address}; choose another port with --kafka-port PORT, or use a Kafka \
             that runs already with --kafka HOST:PORT"
        )
    })
}

fn config_text(args: &DevArgs, bootstrap: &str, data_dir: &Path, websocket: bool) -> String {
    let data_dir = serde_json::Value::from(data_dir.display().to_string());
    let websocket = if websocket {
        format!("listeners.ws.default {{ bind = \"127.0.0.1:{}\" }}", args.websocket_port)
    } else {
        String::new()
    };
    let session_store = if args.data_dir.is_some() { "disk" } else { "memory" };
    format!(
        r#"
{websocket}
node {{ name = "dev", data_dir = {data_dir} }}
listeners.tcp.default {{ bind = "127.0.0.1:{mqtt_port}" }}
admin {{ bind = "127.0.0.1:{admin_port}" }}
mqtt.session_store = {session_store}
bridges.kafka.to_kafka {{
  bootstrap_hosts = "{bootstrap}"
  local_topic = "t/#"
  kafka {{ topic = "testtopic-in", message {{ key = "${{.clientid}}", value = "${{.payload}}" }} }}
}}
bridges.kafka_consumer.from_kafka {{
  bootstrap_hosts = "{bootstrap}"
  topic_mapping = [
    {{ kafka_topic = "testtopic-out", mqtt_topic = "from-kafka", qos = 1, payload_template = "${{.value}}" }}
  ]
}}
"#,
        mqtt_port = args.mqtt_port,
        admin_port = args.admin_port,
    )
}

fn greet(node: &Node, bootstrap: &str, inside: bool, websocket_port: u16) {
    let mqtt = node.mqtt_addresses().first().map(|(_, address)| *address);
    let Some(mqtt) = mqtt else { return };
    let websocket = node.listeners().iter().find(|listener| listener.kind() == ListenerKind::WebSocket);
    let websocket = websocket.map_or_else(
        || format!("not opened, port {websocket_port} is taken; --websocket-port PORT takes another"),
        |listener| format!("ws://{}/mqtt", listener.address),
    );
    let program = std::env::args().next().unwrap_or_else(|| "causeway".into());
    let kafka_port = bootstrap.rsplit_once(':').map_or("9092", |(_, port)| port);
    let (mqtt_option, kafka_option) = (
        if mqtt.port() == 1883 { String::new() } else { format!(" --port {}", mqtt.port()) },
        if kafka_port == "9092" && inside { String::new() } else { format!(" --kafka {bootstrap}") },
    );
    let admin = node.admin_address().filter(|address| address.port() != 8081);
    let admin_option = admin.map_or(String::new(), |address| format!(" --admin {address}"));
    let kind = if inside { "development Kafka, in memory of this process" } else { "your Kafka" };
    println!(
        "\
causeway dev is running; ctrl-C ends it

  MQTT   {mqtt}
         over WebSocket, for browsers: {websocket}
  Kafka  {bootstrap}  ({kind})

  MQTT t/#                  ->  Kafka testtopic-in    key: client id, value: payload
  Kafka testtopic-out       ->  MQTT from-kafka       payload: value

Try it in a second terminal, MQTT to Kafka:

  {program} dev consume --from-beginning{kafka_option}
  {program} dev publish -t t/1 -m '{{ \"msg\": \"Hello Kafka\" }}'{mqtt_option}

and Kafka to MQTT:

  {program} dev subscribe{mqtt_option}
  {program} dev produce -m 'Hello devices'{kafka_option}

What was counted:

  {program} ctl stats{admin_option}

Any other client does as well:

  mosquitto_pub -h {host} -p {mqtt_port} -q 1 -t t/1 -m hello
  mosquitto_sub -h {host} -p {mqtt_port} -t from-kafka
  kcat -C -b {bootstrap} -t testtopic-in
  kafka-console-consumer.sh --bootstrap-server {bootstrap} --topic testtopic-in --from-beginning
",
        host = mqtt.ip(),
        mqtt_port = mqtt.port(),
    );
}
