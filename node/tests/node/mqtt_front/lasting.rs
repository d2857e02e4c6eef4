//! Brokers that find the sessions of the one before.

use causeway_protocol::mqtt::{QoS, ReasonCode, Version};
use tempfile::TempDir;

use super::{Broker, Client, PATIENCE, Seen, broker_with, persistent};

/// A folder that brokers keep their sessions in, one after the other.
pub struct Lasting {
    pub folder: TempDir,
}

impl Lasting {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub async fn start(&self) -> Broker {
        let path = self.folder.path().join("sessions.redb");
        broker_with(|options| options.session_store = Some(path)).await
    }

    pub async fn again(&self, broker: Broker) -> Broker {
        tokio::time::timeout(PATIENCE, broker.front.stop()).await.unwrap();
        self.start().await
    }

    /// What a crash at this moment would leave behind.
    pub fn copy(&self) -> Self {
        let copy = Self::new();
        std::fs::copy(self.folder.path().join("sessions.redb"), copy.folder.path().join("sessions.redb"))
            .unwrap();
        copy
    }
}

/// The client with the session that it has, or a new one that lasts; and which of the two.
pub async fn resume(broker: &Broker, version: Version, client_id: &str) -> (Client, bool) {
    let mut client = Client::open(broker.address, version).await;
    let (reason, present) = client.connect(&persistent(version, client_id)).await;
    assert_eq!(reason, ReasonCode::Success);
    (client, present)
}

/// Topic, payload, QoS, DUP and identifier of the next packet.
pub async fn delivery(client: &mut Client) -> (Vec<u8>, QoS, bool, u16) {
    match client.next().await {
        Seen::Publish { payload, qos, dup, identifier, .. } => (payload, qos, dup, identifier),
        other => panic!("no PUBLISH: {other:?}"),
    }
}
