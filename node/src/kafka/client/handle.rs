//! [`Client`]: the handle through which all of Causeway reaches one Kafka cluster.
//!
//! It keeps the picture of the cluster fresh (on demand, coalesced, not more often than
//! [`ClientOptions::min_metadata_refresh_interval`] a topic), hands out shared connections, and asks the
//! short questions that need no state of their own.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{
    FindCoordinatorRequest, InitProducerIdRequest, ListOffsetsRequest, MetadataRequest, TopicName,
};
use kafka_protocol::protocol::StrBytes;
use parking_lot::Mutex;
use rand::seq::SliceRandom;
use tokio::time::Instant;

use super::links::Links;
use super::metadata::MetadataCache;
use super::{
    Address, Broker, BrokerConnection, ClientOptions, Error, Purpose, ResponseError, TopicView, TopicWatch,
};

/// Views of unwatched topics are kept this long.
const FORGET_AFTER: Duration = Duration::from_mins(10);

/// An idempotent producer's identity (KIP-98).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProducerIdentity {
    /// Producer id.
    pub id: i64,
    /// Producer epoch.
    pub epoch: i16,
}

/// The broker that coordinates a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coordinator {
    /// Its broker id.
    pub id: i32,
    /// Where it is.
    pub address: Address,
}

/// Which offset is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffsetAt {
    /// The first one that Kafka still has.
    Earliest,
    /// The one that the next record will get (the last stable one where only committed records are read).
    Latest,
    /// That of the first record whose timestamp is at least this many milliseconds since the epoch.
    Timestamp(i64),
}

/// An answer to ListOffsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListedOffset {
    /// The offset; -1 where a time was asked for and no record is as young.
    pub offset: i64,
    /// Timestamp of that record; -1 where the question was not about time.
    pub timestamp: i64,
    /// Leader epoch of that record; -1 where the broker does not tell.
    pub leader_epoch: i32,
}

/// A handle to one Kafka cluster with one set of settings. Clones share everything. The connections are
/// closed when the last clone is dropped, or by [`Client::close`].
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    options: ClientOptions,
    cache: MetadataCache,
    links: Links,
    /// The connection for short questions, to whichever broker answers.
    any: tokio::sync::Mutex<Option<Arc<BrokerConnection>>>,
    /// Topics that are waited for; true where they may be created.
    wanted: Mutex<HashMap<Arc<str>, bool>>,
    refreshing: tokio::sync::Mutex<()>,
    lanes: AtomicU32,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.links.close();
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("bootstrap", &self.inner.options.bootstrap).finish_non_exhaustive()
    }
}

impl Client {
    /// A client of its own; [`ClientPool`] shares one among equal settings. Nothing is connected yet.
    pub fn new(options: ClientOptions) -> Self {
        Self {
            inner: Arc::new(Inner {
                options,
                cache: MetadataCache::default(),
                links: Links::default(),
                any: tokio::sync::Mutex::default(),
                wanted: Mutex::default(),
                refreshing: tokio::sync::Mutex::default(),
                lanes: AtomicU32::new(0),
            }),
        }
    }

    /// Its settings.
    pub fn options(&self) -> &ClientOptions {
        &self.inner.options
    }

    /// A number that is given out once, for [`Purpose::Fetch`] and [`Purpose::Coordinator`].
    pub fn next_lane(&self) -> u32 {
        self.inner.lanes.fetch_add(1, Ordering::Relaxed)
    }

    /// Lets go of the connections of a purpose that is over.
    pub fn release(&self, purpose: Purpose) {
        self.inner.links.release(purpose);
    }

    /// Closes all connections. Everything outstanding fails with [`Error::Closed`], and so does
    /// everything after it, for all clones.
    pub async fn close(&self) {
        self.inner.links.close();
        if let Some(connection) = self.inner.any.lock().await.take() {
            connection.close();
        }
    }

    /// The brokers of the last metadata answer.
    pub fn brokers(&self) -> Vec<Broker> {
        self.inner.cache.brokers()
    }

    /// The topic as last seen, without asking; `None` where it never was.
    pub fn cached(&self, topic: &str) -> Option<Arc<TopicView>> {
        self.inner.cache.view(topic)
    }

    /// Watches a topic: every refresh by anyone is seen. Does not ask by itself.
    pub fn watch(&self, topic: &str) -> TopicWatch {
        self.inner.cache.watch(topic)
    }

    /// A view of `topic` that is younger than this call, or as young as
    /// [`ClientOptions::min_metadata_refresh_interval`] lets it be: where the topic was asked for a moment
    /// ago this waits. Calls that wait at the same time share one request.
    ///
    /// A topic that Kafka does not know is no error here: see [`TopicView::error`].
    pub async fn refresh(&self, topic: &str, allow_auto_create: bool) -> Result<Arc<TopicView>, Error> {
        let asked_at = Instant::now();
        if let Some(view) = self.cached(topic) {
            tokio::time::sleep_until(view.as_of + self.inner.options.min_metadata_refresh_interval).await;
        }
        let fresh = || self.cached(topic).filter(|view| view.as_of > asked_at);
        *self.inner.wanted.lock().entry(Arc::from(topic)).or_default() |= allow_auto_create;
        let _turn = self.inner.refreshing.lock().await;
        if let Some(view) = fresh() {
            return Ok(view);
        }
        let mut wanted = std::mem::take(&mut *self.inner.wanted.lock());
        wanted.entry(Arc::from(topic)).or_insert(allow_auto_create);
        for may_create in [false, true] {
            let topics: Vec<&str> =
                wanted.iter().filter(|(_, create)| **create == may_create).map(|(name, _)| &**name).collect();
            if !topics.is_empty() {
                self.metadata(Some(&topics), may_create).await?;
            }
        }
        self.inner.cache.forget_unwatched(asked_at.checked_sub(FORGET_AFTER).unwrap_or(asked_at));
        fresh().ok_or_else(|| Error::MalformedAnswer {
            address: self.any_address(),
            what: "Metadata".into(),
            reason: format!("it does not mention topic {topic:?}").into(),
        })
    }

    fn any_address(&self) -> Address {
        self.inner.options.bootstrap.first().cloned().unwrap_or_else(|| Address::new("", 0))
    }

    /// Asks a broker for its picture of `topics` (all where `None`, none where empty), now. Hosts that cannot
    /// be reached within [`ClientOptions::connect_timeout`] are passed over; the answer of the one that can
    /// may take [`ClientOptions::metadata_request_timeout`].
    pub async fn metadata(
        &self,
        topics: Option<&[&str]>,
        allow_auto_create: bool,
    ) -> Result<Vec<Arc<TopicView>>, Error> {
        let names = topics.map(|topics| {
            let name = |topic: &&str| Some(TopicName(StrBytes::from_string((*topic).to_owned())));
            topics.iter().map(|topic| MetadataRequestTopic::default().with_name(name(topic))).collect()
        });
        let request =
            MetadataRequest::default().with_topics(names).with_allow_auto_topic_creation(allow_auto_create);
        let budget = self.inner.options.metadata_request_timeout;
        // As many as there are hosts may have gone stale since they were used last; one more is no accident.
        let mut stale = self.inner.options.bootstrap.len();
        loop {
            let connection = self.any_broker().await?;
            let deadline = Instant::now() + budget;
            let answer =
                within(deadline, budget, "Metadata", connection.address(), connection.call(&request)).await;
            let answer = match answer {
                Ok(answer) => answer,
                Err(error) => {
                    self.forget_any(&connection).await;
                    if matches!(error, Error::Disconnected { .. }) && stale > 0 {
                        stale -= 1;
                        continue;
                    }
                    return Err(error);
                }
            };
            if let Some(code) = ResponseError::try_from_code(answer.error_code) {
                let address = connection.address().clone();
                return Err(Error::Broker { address, what: "Metadata".into(), code });
            }
            return self.inner.cache.update(&answer, Instant::now()).map_err(|reason| {
                Error::MalformedAnswer {
                    address: connection.address().clone(),
                    what: "Metadata".into(),
                    reason: reason.into(),
                }
            });
        }
    }

    /// A connection to whichever broker can be reached: the configured hosts from a random one on, then
    /// the brokers known from before.
    pub async fn any_broker(&self) -> Result<Arc<BrokerConnection>, Error> {
        let mut any = self.inner.any.lock().await;
        if self.inner.links.is_closed() {
            return Err(Error::Closed);
        }
        if let Some(connection) = any.as_ref().filter(|connection| connection.is_usable()) {
            return Ok(connection.clone());
        }
        let mut known: Vec<Address> = self.brokers().into_iter().map(|broker| broker.address).collect();
        let mut hosts = self.inner.options.bootstrap.clone();
        {
            let mut random = rand::rng();
            hosts.shuffle(&mut random);
            known.shuffle(&mut random);
        }
        known.retain(|address| !hosts.contains(address));
        hosts.append(&mut known);
        let mut errors = Vec::new();
        for host in hosts {
            match BrokerConnection::connect(&host, &self.inner.options).await {
                Ok(connection) => {
                    *any = Some(connection.clone());
                    return Ok(connection);
                }
                Err(error) => errors.push(error),
            }
        }
        Err(match <[Error; 1]>::try_from(errors) {
            Ok([only]) => only,
            Err(errors) => Error::NoBroker(errors.into()),
        })
    }

    async fn forget_any(&self, dead: &Arc<BrokerConnection>) {
        let mut any = self.inner.any.lock().await;
        if any.as_ref().is_some_and(|connection| Arc::ptr_eq(connection, dead)) {
            *any = None;
        }
    }

    /// A live connection to a broker, shared by all who ask with the same purpose. Waits out the backoff
    /// after failures; an unknown id is looked up once.
    pub async fn broker(&self, id: i32, purpose: Purpose) -> Result<Arc<BrokerConnection>, Error> {
        let address = if let Some(address) = self.inner.cache.broker(id) {
            address
        } else {
            self.metadata(Some(&[]), false).await?;
            self.inner.cache.broker(id).ok_or(Error::UnknownBroker { id })?
        };
        self.inner.links.get(id, purpose, &address, &self.inner.options).await
    }

    /// A fresh producer id for an idempotent producer.
    pub async fn init_producer_id(&self) -> Result<ProducerIdentity, Error> {
        let connection = self.any_broker().await?;
        let request = InitProducerIdRequest::default()
            .with_transactional_id(None)
            .with_transaction_timeout_ms(i32::MAX)
            .with_producer_id((-1).into())
            .with_producer_epoch(-1);
        let answer = connection.call(&request).await?;
        match ResponseError::try_from_code(answer.error_code) {
            None => Ok(ProducerIdentity { id: answer.producer_id.0, epoch: answer.producer_epoch }),
            Some(code) => Err(Error::Broker {
                address: connection.address().clone(),
                what: "InitProducerId".into(),
                code,
            }),
        }
    }

    /// The broker that coordinates `group` now.
    pub async fn find_coordinator(&self, group: &str) -> Result<Coordinator, Error> {
        let connection = self.any_broker().await?;
        let request = FindCoordinatorRequest::default()
            .with_key(StrBytes::from_string(group.to_owned()))
            .with_key_type(0);
        let answer = connection.call(&request).await?;
        let what = || -> Box<str> { format!("the coordinator of group {group:?}").into() };
        if let Some(code) = ResponseError::try_from_code(answer.error_code) {
            return Err(Error::Broker { address: connection.address().clone(), what: what(), code });
        }
        let port = u16::try_from(answer.port).map_err(|_| Error::MalformedAnswer {
            address: connection.address().clone(),
            what: what(),
            reason: format!("port {} is out of range", answer.port).into(),
        })?;
        let coordinator = Coordinator { id: answer.node_id.0, address: Address::new(&*answer.host, port) };
        self.inner.cache.note_broker(coordinator.id, coordinator.address.clone());
        Ok(coordinator)
    }

    /// Asks the leader of one partition for an offset.
    pub async fn list_offset(
        &self,
        topic: &str,
        partition: i32,
        at: OffsetAt,
        read_committed: bool,
    ) -> Result<ListedOffset, Error> {
        let view = match self.cached(topic) {
            Some(view) if view.error.is_none() => view,
            _ => self.refresh(topic, false).await?,
        };
        let index = usize::try_from(partition).ok();
        let Some(known) =
            index.and_then(|index| view.partitions.get(index)).filter(|known| known.leader >= 0)
        else {
            let code = view.error.unwrap_or(ResponseError::LeaderNotAvailable);
            return Err(Error::Broker {
                address: self.any_address(),
                what: format!("the leader of {topic}-{partition}").into(),
                code,
            });
        };
        let connection = self.broker(known.leader, Purpose::Metadata).await?;
        let timestamp = match at {
            OffsetAt::Earliest => -2,
            OffsetAt::Latest => -1,
            OffsetAt::Timestamp(time) => time,
        };
        let request = ListOffsetsRequest::default()
            .with_replica_id((-1).into())
            .with_isolation_level(i8::from(read_committed))
            .with_topics(vec![
                ListOffsetsTopic::default()
                    .with_name(TopicName(StrBytes::from_string(topic.to_owned())))
                    .with_partitions(vec![
                        ListOffsetsPartition::default()
                            .with_partition_index(partition)
                            .with_current_leader_epoch(-1)
                            .with_timestamp(timestamp),
                    ]),
            ]);
        let answer = connection.call(&request).await?;
        let what = || -> Box<str> { format!("offsets of {topic}-{partition}").into() };
        let listed = answer.topics.first().and_then(|topic| topic.partitions.first());
        let Some(listed) = listed.filter(|listed| listed.partition_index == partition) else {
            return Err(Error::MalformedAnswer {
                address: connection.address().clone(),
                what: what(),
                reason: "it is about something else".into(),
            });
        };
        match ResponseError::try_from_code(listed.error_code) {
            None => Ok(ListedOffset {
                offset: listed.offset,
                timestamp: listed.timestamp,
                leader_epoch: listed.leader_epoch,
            }),
            Some(code) => Err(Error::Broker { address: connection.address().clone(), what: what(), code }),
        }
    }
}

async fn within<T>(
    deadline: Instant,
    budget: Duration,
    what: &str,
    address: &Address,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::time::timeout_at(deadline, work).await.unwrap_or_else(|_| {
        Err(Error::Timeout { address: address.clone(), what: what.into(), after: budget })
    })
}

/// Hands out one [`Client`] for equal settings, as long as it is held.
#[derive(Default)]
pub struct ClientPool {
    clients: Mutex<HashMap<ClientOptions, Weak<Inner>>>,
}

impl ClientPool {
    /// The client with these settings: a shared one where there is one.
    pub fn get(&self, options: &ClientOptions) -> Client {
        let mut clients = self.clients.lock();
        if let Some(inner) = clients.get(options).and_then(Weak::upgrade) {
            return Client { inner };
        }
        clients.retain(|_, inner| inner.strong_count() > 0);
        let client = Client::new(options.clone());
        clients.insert(options.clone(), Arc::downgrade(&client.inner));
        client
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn equal_settings_share_a_client_and_others_do_not() {
        let pool = ClientPool::default();
        let options = ClientOptions::new(vec![Address::new("localhost", 1)]);
        let first = pool.get(&options);
        let second = pool.get(&options);
        assert!(Arc::ptr_eq(&first.inner, &second.inner));
        let other = pool.get(&ClientOptions { client_id: "other".into(), ..options.clone() });
        assert!(!Arc::ptr_eq(&first.inner, &other.inner));
        drop((first, second));
        assert_eq!(Arc::strong_count(&pool.get(&options).inner), 1);
    }
}
