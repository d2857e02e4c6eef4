//! Clients that bridges with equal connection settings share: connections to Kafka, and with them produce
//! requests.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::kafka::client::{Client, ClientOptions, ClientPool};
use crate::kafka::producer::Dispatchers;

/// Clients and dispatchers by settings; they live as long as a bridge holds them.
#[derive(Default)]
pub struct SharedClients {
    clients: ClientPool,
    dispatchers: Mutex<HashMap<ClientOptions, Weak<Dispatchers>>>,
}

impl SharedClients {
    /// The client with these settings.
    pub fn client(&self, options: &ClientOptions) -> Client {
        self.clients.get(options)
    }

    /// The dispatchers of produce requests with these settings.
    pub fn dispatchers(&self, options: &ClientOptions) -> Arc<Dispatchers> {
        let mut pool = self.dispatchers.lock();
        if let Some(shared) = pool.get(options).and_then(Weak::upgrade) {
            return shared;
        }
        pool.retain(|_, shared| shared.strong_count() > 0);
        let dispatchers = Dispatchers::new(self.clients.get(options));
        pool.insert(options.clone(), Arc::downgrade(&dispatchers));
        dispatchers
    }
}
