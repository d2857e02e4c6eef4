//! What a comparison asks of a broker beyond plain TCP: how it is reached, how it knows its clients, what it
//! keeps.
//!
//! [`Materials`] are made once a run, with the tools that users of these brokers have: `openssl`, `causeway
//! passwd` and `mosquitto_passwd`. The extra listener of a setup takes the broker's second port.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::json;
use tempfile::TempDir;

use crate::brokers::Kind;

/// Users in causeway's password file, called `user-0`, `user-1`, ..., all with [`PASSWORD`]: more than it can
/// check in a run.
const USERS: u32 = 5_000;

/// The same in mosquitto's, whose checks are cheap.
const MOSQUITTO_USERS: u32 = 100_000;

/// A user of the password files that a load may come back as.
pub const USER: &str = "user-0";

/// Password of all of them.
pub const PASSWORD: &str = "correct horse battery staple";

/// How clients reach a broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// Plain TCP.
    Tcp,
    /// TLS: version 1.3, a certificate on P-256.
    Tls,
    /// WebSocket.
    WebSocket,
    /// WebSocket over TLS.
    SecureWebSocket,
}

/// How a broker knows its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Login {
    /// It lets everybody in.
    Anonymous,
    /// By a password file.
    Password,
    /// By a JSON Web Token, HS256.
    TokenHmac,
    /// The same with RS256, 2048 bits.
    TokenRsa,
    /// The same with ES256.
    TokenEc,
}

/// What a broker is set up for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setup {
    /// How clients reach it.
    pub door: Door,
    /// How it knows them.
    pub login: Login,
    /// Whether sessions that outlive their connections are stored, with room for millions of messages.
    pub stored: bool,
    /// Whether clients may only do what rules allow them: their own topics, with the client id in them.
    pub rules: bool,
}

impl Setup {
    /// Plain TCP for everybody.
    pub const PLAIN: Self = Self { door: Door::Tcp, login: Login::Anonymous, stored: false, rules: false };
}

/// Files that setups need, in a directory that goes with this value.
pub struct Materials {
    directory: TempDir,
    mosquitto: bool,
}

impl Materials {
    /// Makes them; `causeway` is the program. Without `mosquitto_passwd` there is no password file for
    /// mosquitto.
    pub fn new(causeway: &Path) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
        let openssl = |arguments: &str, files: &[&str]| {
            let mut command = Command::new("openssl");
            command.args(arguments.split(' ')).args(
                files.iter().map(|file| if file.starts_with('-') { (*file).to_owned() } else { path(file) }),
            );
            run(&mut command, "")
        };
        openssl(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=localhost \
             -addext subjectAltName=DNS:localhost -addext basicConstraints=critical,CA:FALSE",
            &["-keyout", "key.pem", "-out", "cert.pem"],
        )?;
        openssl("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048", &["-out", "rsa.pem"])?;
        openssl("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256", &["-out", "ec.pem"])?;
        openssl("pkey -pubout", &["-in", "rsa.pem", "-out", "rsa.pub"])?;
        openssl("pkey -pubout", &["-in", "ec.pem", "-out", "ec.pub"])?;

        let line = run(Command::new(causeway).args(["passwd", USER]), PASSWORD)?;
        write_users(&directory.path().join("causeway.users"), &line, USERS)?;
        let made = directory.path().join("made");
        let mosquitto =
            run(Command::new("mosquitto_passwd").args(["-b", "-c"]).arg(&made).args([USER, PASSWORD]), "");
        if mosquitto.is_ok() {
            write_users(
                &directory.path().join("mosquitto.users"),
                &std::fs::read_to_string(made)?,
                MOSQUITTO_USERS,
            )?;
        }
        std::fs::write(
            directory.path().join("mosquitto.acl"),
            "pattern write up/%c/#\npattern read down/%c/#\n",
        )?;
        Ok(Self { directory, mosquitto: mosquitto.is_ok() })
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_string_lossy().into_owned()
    }

    /// Certificate that clients have to trust.
    pub fn ca(&self) -> PathBuf {
        self.directory.path().join("cert.pem")
    }

    /// A token that this setup lets in; `None` if it knows its clients otherwise.
    pub fn token(&self, login: Login) -> Result<Option<String>> {
        let read = |name: &str| std::fs::read(self.directory.path().join(name));
        let (algorithm, key) = match login {
            Login::Anonymous | Login::Password => return Ok(None),
            Login::TokenHmac => (Algorithm::HS256, EncodingKey::from_secret(PASSWORD.as_bytes())),
            Login::TokenRsa => (Algorithm::RS256, EncodingKey::from_rsa_pem(&read("rsa.pem")?)?),
            Login::TokenEc => (Algorithm::ES256, EncodingKey::from_ec_pem(&read("ec.pem")?)?),
        };
        let claims = json!({ "sub": USER, "exp": 4_000_000_000_u64 });
        Ok(Some(jsonwebtoken::encode(&Header::new(algorithm), &claims, &key)?))
    }

    /// What goes behind the broker's configuration. `None`: it cannot be set up so.
    pub fn configuration(&self, kind: Kind, setup: Setup) -> Option<String> {
        match kind {
            Kind::Causeway => Some(self.for_causeway(setup)),
            Kind::Mosquitto => self.for_mosquitto(setup),
            Kind::Rumqttd | Kind::Rmqttd => (setup == Setup::PLAIN).then(String::new),
        }
    }

    fn for_causeway(&self, setup: Setup) -> String {
        let mut text = String::new();
        let tls = format!(
            r#"ssl_options {{ certfile = "{}", keyfile = "{}" }}"#,
            self.path("cert.pem"),
            self.path("key.pem")
        );
        let (kind, options) = match setup.door {
            Door::Tcp => ("", ""),
            Door::Tls => ("ssl", tls.as_str()),
            Door::WebSocket => ("ws", ""),
            Door::SecureWebSocket => ("wss", tls.as_str()),
        };
        if !kind.is_empty() {
            let _ =
                writeln!(text, r#"listeners.{kind}.bench {{ bind = "0.0.0.0:{{second_port}}", {options} }}"#);
        }
        let backend = match setup.login {
            Login::Anonymous => String::new(),
            Login::Password => format!(r#"type = password_file, path = "{}""#, self.path("causeway.users")),
            Login::TokenHmac => format!(r#"type = jwt, secret = "{PASSWORD}""#),
            Login::TokenRsa => format!(r#"type = jwt, public_key = "{}""#, self.path("rsa.pub")),
            Login::TokenEc => format!(r#"type = jwt, public_key = "{}""#, self.path("ec.pub")),
        };
        if !backend.is_empty() {
            // Somebody has to be let in without: the one who looks whether the broker is there.
            let _ =
                writeln!(text, "authentication {{ allow_anonymous = true, backends = [ {{ {backend} }} ] }}");
        }
        if setup.stored {
            text += "mqtt { max_mqueue = 10000000, max_mqueue_bytes = 4GB }\n";
        }
        if setup.rules {
            text += "authorization { no_match = deny, rules = [\n\
                     { permission = allow, action = publish, topics = [\"up/${clientid}/#\"] }\n\
                     { permission = allow, action = subscribe, topics = [\"down/${clientid}/#\"] }\n] }\n";
        }
        text
    }

    fn for_mosquitto(&self, setup: Setup) -> Option<String> {
        // It would give up root, and could not read its files any more.
        let mut text = String::from("user root\n");
        let websocket = matches!(setup.door, Door::WebSocket | Door::SecureWebSocket);
        let tls = matches!(setup.door, Door::Tls | Door::SecureWebSocket);
        if setup.login == Login::Password {
            if !self.mosquitto {
                return None;
            }
            let _ = writeln!(text, "password_file {}", self.path("mosquitto.users"));
        } else if setup.login != Login::Anonymous {
            return None;
        }
        if setup.stored {
            text += "persistence_location {directory}/\n";
        }
        if setup.rules {
            let _ = writeln!(text, "acl_file {}", self.path("mosquitto.acl"));
        }
        if setup.door != Door::Tcp {
            text += "listener {second_port}\n";
        }
        if websocket {
            text += "protocol websockets\n";
        }
        if tls {
            let (certificate, key) = (self.path("cert.pem"), self.path("key.pem"));
            let _ = writeln!(text, "certfile {certificate}\nkeyfile {key}");
        }
        Some(text)
    }
}

/// The one line of a password file as many users: they have the same password, and so the same hash.
fn write_users(path: &Path, line: &str, users: u32) -> Result<()> {
    let Some((_, hash)) = line.trim().split_once(':') else {
        bail!("not a line of a password file: {line:?}")
    };
    let lines = (0..users).map(|user| format!("user-{user}:{hash}\n"));
    Ok(std::fs::write(path, lines.collect::<String>())?)
}

fn run(command: &mut Command, input: &str) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{program} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}
