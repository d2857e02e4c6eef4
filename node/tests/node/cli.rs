//! The command line: what is printed where, and the exit codes.
#![allow(clippy::unwrap_used, reason = "test helpers fail by panicking")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

fn causeway(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_causeway")).args(arguments).env_remove("RUST_LOG").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Writes a configuration and checks it; the folder is gone when the output is returned.
fn check(config: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("causeway.conf");
    std::fs::write(&file, config).unwrap();
    causeway(&["check", "--config", file.to_str().unwrap()])
}

#[test]
fn the_printed_example_passes_the_check_in_silence() {
    let example = causeway(&["config", "example"]);
    assert!(example.status.success());
    let output = check(&text(&example.stdout));
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let shown = text(&output.stdout);
    assert!(shown.starts_with("configuration is valid\nnode causeway-1, data in data\n"), "{shown}");
    assert!(shown.contains("producer bridge to_kafka: t/# -> testtopic-in\n"), "{shown}");
    assert!(shown.contains("consumer bridge from_kafka: testtopic-out -> from-kafka\n"), "{shown}");
    assert!(output.stderr.is_empty(), "{output:?}");
}

#[test]
fn a_wrong_file_fails_the_check_with_every_error_on_standard_error() {
    let output = check("log.level = loud\nmqtt.max_inflight = 0\n");
    assert_eq!(output.status.code(), Some(1));
    let shown = text(&output.stderr);
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines.len(), 3, "{shown}");
    assert!(lines[0].contains("causeway.conf:1: log.level = \"loud\": not known"), "{shown}");
    assert!(lines[1].contains("causeway.conf:2: mqtt.max_inflight = 0: out of range"), "{shown}");
    assert_eq!(lines[2], "2 errors: the configuration is not valid");
    assert!(output.stdout.is_empty());
}

#[test]
fn warnings_are_told_by_the_check() {
    let output = check(
        "bridges.kafka.b {\n bootstrap_hosts = k\n local_topic = t/#\n kafka { topic = t, buffer.mode = hybrid }\n}\n",
    );
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let shown = text(&output.stdout);
    assert!(shown.contains("causeway.conf:3: bridges.kafka.b.local_topic = \"t/\""), "{shown}");
    assert!(!shown.contains("buffer.mode"), "{shown}");
}

#[test]
fn a_loop_of_bridges_fails_the_check_and_the_start() {
    let bridges = |more: &str| {
        format!(
            "bridges.kafka.out {{ bootstrap_hosts = k, local_topic = \"t/#\", kafka.topic = x\n{more} }}\n\
             bridges.kafka_consumer.in {{ bootstrap_hosts = k, topic_mapping = [{{ kafka_topic = x, mqtt_topic = t/back }}] }}\n"
        )
    };
    let output = check(&bridges(""));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let shown = text(&output.stderr);
    let wanted =
        "causeway.conf:3: bridges.kafka_consumer.in.topic_mapping: messages go round in a loop for ever: ";
    assert!(
        shown.contains(wanted) && shown.contains("bridges.kafka.out") && shown.contains("allow_loop"),
        "{shown}"
    );
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("causeway.conf");
    std::fs::write(&file, bridges("")).unwrap();
    let output = causeway(&["start", "--config", file.to_str().unwrap()]);
    assert_eq!(
        (output.status.code(), text(&output.stderr).contains("in a loop")),
        (Some(1), true),
        "{output:?}"
    );
    let output = check(&bridges("allow_loop = true"));
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()), "{output:?}");
}

#[test]
fn a_missing_file_is_named_without_a_backtrace() {
    let output = causeway(&["check", "--config", "/nowhere/causeway.conf"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        text(&output.stderr),
        "/nowhere/causeway.conf: there is no such file\n1 error: the configuration is not valid\n"
    );
}

#[test]
fn a_node_that_does_not_answer_is_a_failure_in_plain_text() {
    // A port that was just free: nobody listens on it.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let output = causeway(&["ctl", "--admin", &format!("127.0.0.1:{port}"), "stats"]);
    assert_eq!(output.status.code(), Some(1));
    let shown = text(&output.stderr);
    assert!(shown.starts_with("causeway: no node answers at 127.0.0.1:"), "{shown}");
    assert!(!shown.contains("backtrace"), "{shown}");
}

#[test]
fn wrong_usage_has_an_exit_code_of_its_own() {
    for arguments in [&["chek"][..], &["check"], &["config", "examples"], &[]] {
        let output = causeway(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains("Usage:"), "{arguments:?}");
    }
}

#[test]
fn the_version_is_printed_either_way() {
    let expected = format!("causeway {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(text(&causeway(&["version"]).stdout), expected);
    assert_eq!(text(&causeway(&["--version"]).stdout), expected);
}

#[test]
fn a_file_of_the_operator_includes_files_and_repeats_itself() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("causeway.conf");
    std::fs::write(
        folder.path().join("bridges.conf"),
        "bridges.kafka.b { bootstrap_hosts = ${host}, kafka.topic = tt }",
    )
    .unwrap();
    std::fs::write(&file, "host = \"k:1\"\ninclude \"bridges.conf\"\nnode.name = ${HOME_OF_NOBODY}\n")
        .unwrap();
    let run = |file: &std::path::Path| causeway(&["check", "--config", file.to_str().unwrap()]);
    let unresolved = run(&file);
    assert!(
        text(&unresolved.stderr).contains("causeway.conf:3: syntax error: could not resolve"),
        "{unresolved:?}"
    );
    std::fs::write(&file, "host = \"k:1\"\ninclude \"bridges.conf\"\nlog.level = loud\n").unwrap();
    let errors = text(&run(&file).stderr);
    assert!(errors.contains("causeway.conf:1: host: unknown key"), "{errors}");
    std::fs::write(&file, "include \"bridges.conf\"\nhost = \"k:1\"\nhost = null\n").unwrap();
    let errors = text(&run(&file).stderr);
    assert!(errors.contains("bridges.conf:1: bridges.kafka.b.bootstrap_hosts"), "{errors}");
}

#[test]
fn files_of_an_enabled_bridge_that_cannot_be_used_fail_the_check() {
    let bridge = |enable: bool| {
        check(&format!(
            "bridges.kafka.b {{ enable = {enable}, bootstrap_hosts = k, kafka.topic = t\n\
             ssl {{ enable = true, cacertfile = \"/nowhere/ca.pem\" }} }}"
        ))
    };
    let output = bridge(true);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        text(&output.stderr).contains("bridges.kafka.b: cannot read cacertfile /nowhere/ca.pem: "),
        "{output:?}"
    );
    assert_eq!(bridge(false).status.code(), Some(0));
}

#[test]
fn a_buffer_is_listed_shown_and_verified_without_a_node() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("buffers/out");
    std::fs::create_dir_all(&path).unwrap();
    let file = path.join("00000000000000000001.buffer");
    std::fs::write(&file, include_bytes!("../buffer/v1.buffer")).unwrap();
    let dir = directory.path().to_str().unwrap();
    let listed = text(&causeway(&["buffer", "ls", dir]).stdout).clone();
    assert!(listed.contains("4 records wait"), "{listed}");
    assert!(listed.contains("topic t, partition 0: 3 records, 1 batches sealed"), "{listed}");
    let shown = causeway(&["buffer", "show", dir, "--json"]);
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown.as_array().unwrap().len(), 4);
    assert_eq!(shown[0]["number"], 1);
    assert_eq!(causeway(&["buffer", "verify", dir]).status.code(), Some(0));
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[60] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let verified = causeway(&["buffer", "verify", dir]);
    assert_eq!(verified.status.code(), Some(1));
    let said = text(&verified.stdout);
    assert!(said.contains("00000000000000000001.buffer: ") && said.contains("at offset 57"), "{said}");
    assert!(said.contains("Copy the directory away"), "{said}");
}

/// A node that runs until this is dropped.
struct Node {
    process: Child,
    output: BufReader<ChildStdout>,
    folder: tempfile::TempDir,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Node {
    /// Starts a node with a data folder of its own and its admin link on a free port.
    fn start(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("causeway.conf");
        let data = folder.path().join("data");
        let own = format!("node.data_dir = \"{}\"\nadmin.bind = \"127.0.0.1:0\"\n", data.display());
        std::fs::write(&file, format!("{own}{config}\n")).unwrap();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_causeway"))
            .arg("start")
            .arg("--config")
            .arg(&file)
            .env_remove("RUST_LOG")
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        Self { process, output, folder }
    }

    /// What it has open, as it says: the lines up to that of the admin link, which is the last; fewer if it
    /// ends.
    fn listening(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut line = String::new();
        while self.output.read_line(&mut line).unwrap() > 0 {
            lines.push(line.trim().trim_start_matches("listening ").to_owned());
            if line.starts_with("listening admin ") {
                break;
            }
            line.clear();
        }
        lines
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }
}

/// Connects an MQTT client; whether the node accepts it.
fn connects(address: &str) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    stream.write_all(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01c").unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).is_ok() && answer == [0x20, 2, 0, 0]
}

#[test]
fn a_node_that_names_only_a_tls_listener_opens_nothing_else_to_clients() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(path("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(path("key.pem"), made.signing_key.serialize_pem()).unwrap();
    let config = format!(
        "listeners.ssl.secure {{ bind = \"127.0.0.1:0\", ssl_options {{ certfile = {:?}, keyfile = {:?} }} }}\n",
        path("cert.pem"),
        path("key.pem")
    );
    let checked = check(&config);
    assert_eq!(checked.status.code(), Some(0), "{checked:?}");
    let shown = text(&checked.stdout);
    assert!(shown.contains("listener secure: MQTT over TLS") && !shown.contains("1883"), "{shown}");
    let mut node = Node::start(&config);
    let lines = node.listening();
    let kinds: Vec<&str> = lines.iter().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(kinds, ["mqtts", "admin"], "{}", node.log());
}

#[test]
fn listeners_of_both_families_share_a_port_and_each_takes_its_own() {
    // A port that is free in both families. Another process may take it before the node does: then another
    // one.
    let free = || TcpListener::bind("[::]:0").map(|listener| listener.local_addr().unwrap().port());
    if free().is_err() {
        eprintln!("skipped: this machine has no IPv6");
        return;
    }
    let six = |port: u16| format!("listeners.tcp.six {{ bind = \"[::]:{port}\" }}\n");
    let start = |config: &dyn Fn(u16) -> String, expected: usize| {
        let mut logs = String::new();
        for _ in 0..5 {
            let port = free().unwrap();
            let mut node = Node::start(&config(port));
            if node.listening().len() == expected {
                return (node, port);
            }
            logs.push_str(&node.log());
        }
        panic!("{logs}");
    };
    let (node, port) = start(&six, 2);
    assert!(connects(&format!("[::1]:{port}")));
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "an IPv6 listener takes IPv4");
    let warning =
        format!("anyone who reaches tcp:six ([::]:{port}), not encrypted, can connect without a password");
    assert!(node.log().contains(&warning) && node.log().contains("WARN"), "{}", node.log());
    drop(node);
    let both = |port: u16| format!("{}listeners.tcp.four {{ bind = \"0.0.0.0:{port}\" }}\n", six(port));
    let (_node, port) = start(&both, 3);
    assert!(connects(&format!("[::1]:{port}")) && connects(&format!("127.0.0.1:{port}")));
}

#[test]
fn a_stray_brace_in_a_file_of_bridges_is_refused_and_the_node_goes_on() {
    let bridge = |name: &str| {
        format!(
            "bridges.kafka.{name} {{\n  enable = false\n  bootstrap_hosts = \"k:9092\"\n  local_topic = \"t/#\"\n  kafka {{ topic = t }}\n}}\n"
        )
    };
    let listener = "listeners.tcp.default { bind = \"127.0.0.1:0\" }\n";
    let mut node = Node::start(&format!("{listener}{}", bridge("old")));
    let lines = node.listening();
    let address = |kind: &str| {
        let line =
            lines.iter().find_map(|line| line.strip_prefix(kind)).unwrap_or_else(|| panic!("{}", node.log()));
        line.split(' ').next().unwrap().to_owned()
    };
    let (mqtt, admin) = (address("mqtt "), address("admin "));
    let ctl = |arguments: &[&str]| causeway(&[&["ctl", "--admin", &admin, "bridges"], arguments].concat());
    let listed = || {
        let output = ctl(&["list"]);
        assert!(output.status.success(), "{output:?}");
        text(&output.stdout)
    };
    let before = listed();
    assert!(before.contains("kafka:old"), "{before}");
    let file = node.folder.path().join("new.conf").display().to_string();
    std::fs::write(&file, format!("{}}}\n{}", bridge("one"), bridge("two"))).unwrap();
    let refused = ctl(&["create", &file]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let shown = text(&refused.stderr);
    assert!(
        shown.contains(&format!("{file}:7: syntax error: this `}}` closes nothing; remove it")),
        "{shown}"
    );
    assert!(!shown.contains("backtrace"), "{shown}");
    // None of the two is there, the other one is as it was, and clients are served.
    assert_eq!(listed(), before);
    assert!(connects(&mqtt));
    // Without the brace both are created.
    std::fs::write(&file, format!("{}{}", bridge("one"), bridge("two"))).unwrap();
    let created = ctl(&["create", &file]);
    assert!(created.status.success(), "{created:?}");
    assert!(listed().contains("kafka:one") && listed().contains("kafka:two"));
}
