//! A node that has no file descriptors left, with the real binary and a real limit of open files.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::TcpStream,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_causeway");

/// File descriptors that the node may have: those of a node without clients, and some tens for clients.
const LIMIT: usize = 64;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

struct Node {
    process: Child,
    mqtt: String,
    admin: String,
    _folder: TempDir,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Node {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("causeway.conf");
        let text = format!(
            "node.data_dir = \"{}\"\nlisteners.tcp.default.bind = \"127.0.0.1:0\"\nadmin.bind = \"127.0.0.1:0\"\n",
            folder.path().join("data").display()
        );
        std::fs::write(&config, text).unwrap();
        let mut process = Command::new("sh")
            .args(["-c", "ulimit -n \"$0\" && exec \"$@\"", &LIMIT.to_string(), BINARY, "start", "--config"])
            .arg(&config)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = process.stdout.take().unwrap();
        let mut node = Self { process, mqtt: String::new(), admin: String::new(), _folder: folder };
        let mut lines = BufReader::new(output).lines();
        while node.mqtt.is_empty() || node.admin.is_empty() {
            let line = lines.next().expect("the node has ended").unwrap();
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["listening", "mqtt", address, ..] => node.mqtt = address.to_owned(),
                ["listening", "admin", address, ..] => node.admin = address.to_owned(),
                _ => {}
            }
        }
        // Its output is read to the end, or it would have nowhere to write.
        std::thread::spawn(move || lines.for_each(drop));
        node
    }

    /// File descriptors that it has.
    fn open(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process.id())).unwrap().count()
    }

    fn ctl(&self) -> Output {
        let arguments = ["ctl", "stats", "--admin", &self.admin];
        Command::new(BINARY).args(arguments).env_remove("RUST_LOG").output().unwrap()
    }

    /// A connection on which CONNECT is sent.
    fn connect(&self, number: usize) -> TcpStream {
        let mut socket = TcpStream::connect(&self.mqtt).unwrap();
        let client_id = format!("c{number:03}");
        let connect = [b"\x10\x10\0\x04MQTT\x04\x02\0\0\0\x04", client_id.as_bytes()].concat();
        socket.write_all(&connect).unwrap();
        socket
    }
}

fn until(what: &str, mut met: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !met() {
        assert!(begun.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether CONNACK has come.
fn is_accepted(socket: &mut TcpStream) -> bool {
    socket.set_nonblocking(true).unwrap();
    let mut connack = [0; 4];
    match socket.read(&mut connack) {
        Ok(4) => connack == [0x20, 2, 0, 0],
        Err(error) if error.kind() == ErrorKind::WouldBlock => false,
        other => panic!("{other:?} {connack:?}"),
    }
}

#[test]
fn ctl_reaches_a_node_whose_file_descriptors_are_all_with_clients() {
    let node = Node::start();
    let before = node.open();
    assert!(before + 10 < LIMIT, "{before} without any client");
    let mut sockets: Vec<_> = (0..2 * LIMIT).map(|number| node.connect(number)).collect();
    until("it has no file descriptor left", || node.open() == LIMIT);
    let mut accepted = vec![false; sockets.len()];
    let mut look = |sockets: &mut [TcpStream]| {
        for (accepted, socket) in accepted.iter_mut().zip(sockets) {
            *accepted |= !*accepted && is_accepted(socket);
        }
        accepted.iter().filter(|accepted| **accepted).count()
    };
    until("the clients that found room are connected", || look(&mut sockets) == LIMIT - before);
    for attempt in 1..=5 {
        let answer = node.ctl();
        let (output, error) =
            (String::from_utf8_lossy(&answer.stdout), String::from_utf8_lossy(&answer.stderr));
        assert!(answer.status.success(), "attempt {attempt}: {output}{error}");
    }
    assert_eq!((look(&mut sockets), node.open()), (LIMIT - before, LIMIT), "the clients are still there");
    drop(sockets);
    until("what the clients had is free again", || node.open() < LIMIT / 2);
    let mut client = node.connect(999);
    until("a client gets in again", || is_accepted(&mut client));
    assert!(node.ctl().status.success());
}
