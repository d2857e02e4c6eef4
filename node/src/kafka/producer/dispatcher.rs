//! Produce requests to one broker, made of the ready batches of all partitions that it leads.
//!
//! A [`Dispatcher`] owns nothing but a queue of parcels between the partition producers and one produce
//! connection of the broker. It has no task of its own: the task that brings a parcel or an answer fills the
//! line.
//!
//! How many requests are under way: Kafka works on one request of a connection at a time (it does not even
//! read the next one before the answer has left), so a second request on the wire is all it takes to keep the
//! broker busy without a pause; further ones only hide a long network, and would leave half empty. So
//! [`ALWAYS`] requests may be under way whatever they carry, and up to [`AT_MOST`] as long as each carries
//! [`WORTH_IT`] bytes. At low load that means no waiting at all; under load, batches gather behind the two
//! and leave together.
//!
//! Invariants:
//! * Parcels of one partition leave in the order they came, at most one in a request.
//! * Every parcel gets exactly one answer, through its [`ProduceItem`]'s drop guard at the latest.
//! * Nothing leaves on a new connection while answers on the old one are outstanding.
//! * A request carries at most [`REQUEST_BYTES`], unless one batch alone is larger.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use causeway_protocol::kafka::batch::BatchHeader;
use kafka_protocol::messages::produce_response::PartitionProduceResponse;
use kafka_protocol::messages::{MetadataRequest, ProduceRequest};
use parking_lot::Mutex;

use super::core::Answer;
use super::produce_request::{self, API_KEY, Portion, VERSIONS};
use crate::kafka::client::{BrokerConnection, Client, Completion, Error, Purpose, RawRequest, decode_answer};

/// Requests under way whatever they carry: one that the broker works on, one on the wire behind it.
const ALWAYS: usize = 2;
/// Requests under way where each is worth it.
const AT_MOST: usize = 5;
/// Bytes that make another request worth it: at 512 KiB its own cost is below a hundredth of that of its
/// records.
const WORTH_IT: usize = 512 * 1024;
/// Most bytes of batches in one request. Brokers take 100 MiB (`socket.request.max.bytes`) unless told
/// otherwise; smaller requests let other partitions' answers come sooner.
const REQUEST_BYTES: usize = 8 * 1024 * 1024;

/// Hears the answer to a parcel. Called from any thread; must not block.
pub trait AnswerSink: Send + Sync {
    /// The end of `attempt`; `reason` tells in words why no answer came, or what the broker says about a
    /// refusal.
    fn answered(&self, attempt: u64, answer: Answer, reason: Option<Arc<str>>);

    /// Without acks: the broker has handled this many records and did not close the connection over them.
    fn handled(&self, records: u32) {
        let _ = records;
    }

    /// Without acks: the connection was closed before the broker is known to have handled this many records.
    fn closed_over(&self, records: u32, reason: Arc<str>) {
        let _ = (records, reason);
    }
}

/// A batch on its way, with the duty to answer for it.
pub struct ProduceItem {
    portion: Portion,
    attempt: u64,
    sink: Option<Arc<dyn AnswerSink>>,
}

impl ProduceItem {
    /// A parcel for one attempt.
    pub fn new(
        topic: Arc<str>,
        partition: i32,
        batch: Bytes,
        attempt: u64,
        sink: Arc<dyn AnswerSink>,
    ) -> Self {
        Self { portion: Portion { topic, partition, batch }, attempt, sink: Some(sink) }
    }

    fn answer(mut self, answer: Answer, reason: Option<Arc<str>>) {
        if let Some(sink) = self.sink.take() {
            sink.answered(self.attempt, answer, reason);
        }
    }
}

impl Drop for ProduceItem {
    fn drop(&mut self) {
        if let Some(sink) = self.sink.take() {
            sink.answered(self.attempt, Answer::Lost, None);
        }
    }
}

/// Settings common to all requests of a dispatcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestOptions {
    /// -1, 1 or 0.
    pub acks: i16,
    /// How long the broker may wait for its replicas.
    pub ack_timeout: Duration,
    /// How long an answer may take before the connection counts as dead.
    pub request_timeout: Duration,
    /// By which of the connections to the broker they go.
    pub lane: u32,
}

/// A batch that was written without acks, and may be what its connection is closed over.
struct Unheard {
    connection: Arc<BrokerConnection>,
    sink: Arc<dyn AnswerSink>,
    records: u32,
}

impl Unheard {
    fn new(connection: &Arc<BrokerConnection>, parcel: &ProduceItem) -> Option<Self> {
        let header = BatchHeader::parse(&parcel.portion.batch).ok()?;
        let records = u32::try_from(header.records_count).unwrap_or(0);
        Some(Self { connection: connection.clone(), sink: parcel.sink.clone()?, records })
    }
}

#[derive(Default)]
struct State {
    ready: VecDeque<ProduceItem>,
    ready_bytes: usize,
    /// Requests whose answers are outstanding.
    in_flight: usize,
    connection: Option<(Arc<BrokerConnection>, i16)>,
    /// A task is busy with the line: connecting, or waiting for room in it.
    busy: bool,
    /// Written without acks, and not known to be handled.
    unheard: Vec<Unheard>,
    /// A task is finding out.
    listening: bool,
}

/// Queue of batches for one broker; the module documentation lists its invariants.
pub struct Dispatcher {
    client: Client,
    broker: i32,
    options: RequestOptions,
    runtime: tokio::runtime::Handle,
    state: Mutex<State>,
}

impl Dispatcher {
    /// A dispatcher of the broker; connects with the first parcel.
    pub fn new(
        client: Client,
        broker: i32,
        options: RequestOptions,
        runtime: tokio::runtime::Handle,
    ) -> Arc<Self> {
        Arc::new(Self { client, broker, options, runtime, state: Mutex::default() })
    }

    /// Sends it as soon as the line allows.
    pub fn send(self: &Arc<Self>, parcel: ProduceItem) {
        {
            let mut state = self.state.lock();
            state.ready_bytes += parcel.portion.batch.len();
            state.ready.push_back(parcel);
        }
        self.fill();
    }

    /// Fills the line with what is ready.
    fn fill(self: &Arc<Self>) {
        let mut state = self.state.lock();
        loop {
            if state.busy || state.ready.is_empty() {
                return;
            }
            let (connection, version) = match &state.connection {
                Some((connection, version)) if connection.is_usable() => (connection.clone(), *version),
                // Answers of the old connection first, so that nothing overtakes.
                _ if state.in_flight > 0 => return,
                _ => {
                    state.connection = None;
                    state.busy = true;
                    let connecting = Arc::clone(self).connect();
                    self.runtime.spawn(connecting);
                    return;
                }
            };
            let allowed = match self.options.acks {
                // Nothing tells when the broker has taken it, only when it is written: one after another.
                0 => state.in_flight == 0,
                _ => state.in_flight < ALWAYS || (state.in_flight < AT_MOST && state.ready_bytes >= WORTH_IT),
            };
            if !allowed {
                return;
            }
            let parcels = gather(&mut state);
            state.in_flight += 1;
            // Under the lock: the order in which requests are queued is the order of their batches.
            self.submit(&mut state, connection, version, parcels);
        }
    }

    fn submit(
        self: &Arc<Self>,
        state: &mut State,
        connection: Arc<BrokerConnection>,
        version: i16,
        parcels: Vec<ProduceItem>,
    ) {
        let timeout_ms = i32::try_from(self.options.ack_timeout.as_millis()).unwrap_or(i32::MAX);
        let portions = parcels.iter().map(|parcel| &parcel.portion);
        let request = RawRequest {
            api_key: API_KEY,
            version,
            body: produce_request::encode(version, self.options.acks, timeout_ms, portions),
            timeout: Some(self.options.request_timeout),
        };
        if self.options.acks == 0 {
            let dispatcher = Arc::clone(self);
            self.runtime.spawn(async move {
                let written = match connection.submit_unanswered(request).await {
                    Ok(written) => written.await,
                    Err(error) => Err(error),
                };
                if written.is_ok() {
                    let unheard = parcels.iter().filter_map(|parcel| Unheard::new(&connection, parcel));
                    dispatcher.listen(unheard.collect());
                }
                for parcel in parcels {
                    match &written {
                        Ok(()) => parcel.answer(Answer::Code(0), None),
                        Err(error) => parcel.answer(Answer::Lost, Some(error.to_string().into())),
                    }
                }
                dispatcher.finished(written.is_ok());
            });
            return;
        }
        let completion = self.completion(connection.clone(), version, parcels);
        match connection.try_submit_with(request, completion) {
            Ok(Ok(())) => {}
            Ok(Err((request, completion))) => {
                // Other users of the connection have filled it.
                state.busy = true;
                let dispatcher = Arc::clone(self);
                self.runtime.spawn(async move {
                    let submitted = connection.submit_with(request, completion).await;
                    let mut state = dispatcher.state.lock();
                    state.busy = false;
                    state.in_flight -= usize::from(submitted.is_err());
                    drop(state);
                    dispatcher.fill();
                });
            }
            // The parcels went with the completion, answered as lost by their drop guards.
            Err(_) => {
                state.in_flight -= 1;
                for parcel in take_ready(state) {
                    parcel.answer(Answer::NotSent, None);
                }
            }
        }
    }

    /// Finds out whether the broker closes the connection over what was written without acks.
    fn listen(self: &Arc<Self>, mut unheard: Vec<Unheard>) {
        let mut state = self.state.lock();
        state.unheard.append(&mut unheard);
        if !std::mem::replace(&mut state.listening, true) {
            self.runtime.spawn(Arc::clone(self).hear());
        }
    }

    /// A broker handles the requests of a connection one after the other, so the answer to one that has an
    /// answer tells that those before it were handled. One at a time, however many batches are written
    /// meanwhile.
    async fn hear(self: Arc<Self>) {
        loop {
            let (connection, batches) = {
                let mut state = self.state.lock();
                let Some(connection) = state.unheard.first().map(|first| first.connection.clone()) else {
                    state.listening = false;
                    return;
                };
                let batches = take_unheard(&mut state, &connection);
                (connection, batches)
            };
            let request = MetadataRequest::default().with_topics(Some(Vec::new()));
            match connection.call(&request).await {
                Ok(_) => batches.iter().for_each(|batch| batch.sink.handled(batch.records)),
                Err(error) => {
                    let reason: Arc<str> = error.to_string().into();
                    let later = take_unheard(&mut self.state.lock(), &connection);
                    for batch in batches.into_iter().chain(later) {
                        batch.sink.closed_over(batch.records, reason.clone());
                    }
                }
            }
        }
    }

    fn completion(
        self: &Arc<Self>,
        connection: Arc<BrokerConnection>,
        version: i16,
        parcels: Vec<ProduceItem>,
    ) -> Completion {
        let dispatcher = Arc::clone(self);
        // The connection must not keep itself alive through what waits in it.
        let address = connection.address().clone();
        drop(connection);
        Box::new(move |result: Result<Bytes, Error>| {
            let response = result.and_then(|body| decode_answer::<ProduceRequest>(&address, version, body));
            match &response {
                Ok(response) => {
                    let answers = produce_request::answers(response);
                    for parcel in parcels {
                        let key = (&*parcel.portion.topic, parcel.portion.partition);
                        let told = |answer: &&PartitionProduceResponse| {
                            (answer.error_code, produce_request::refusal(answer))
                        };
                        match answers.get(&key).map(told) {
                            Some((code, refusal)) => parcel.answer(Answer::Code(code), refusal),
                            None => parcel.answer(
                                Answer::Lost,
                                Some(
                                    format!(
                                        "{address}: the answer to Produce does not mention the partition"
                                    )
                                    .into(),
                                ),
                            ),
                        }
                    }
                }
                Err(error) => {
                    let reason: Arc<str> = error.to_string().into();
                    for parcel in parcels {
                        parcel.answer(Answer::Lost, Some(reason.clone()));
                    }
                }
            }
            dispatcher.finished(response.is_ok());
        })
    }

    /// A request is over.
    fn finished(self: &Arc<Self>, well: bool) {
        let mut state = self.state.lock();
        state.in_flight -= 1;
        let dead = state.connection.as_ref().is_some_and(|(connection, _)| !connection.is_alive());
        // Batches meant to follow the lost ones must not overtake their resend.
        let held_back = if dead && !well { take_ready(&mut state) } else { Vec::new() };
        drop(state);
        for parcel in held_back {
            parcel.answer(Answer::NotSent, None);
        }
        self.fill();
    }

    async fn connect(self: Arc<Self>) {
        let connected = match self.client.broker(self.broker, Purpose::Produce(self.options.lane)).await {
            Ok(connection) => connection.version_of(API_KEY, VERSIONS).map(|version| (connection, version)),
            Err(error) => Err(error),
        };
        let mut state = self.state.lock();
        state.busy = false;
        match connected {
            Ok(connected) => {
                state.connection = Some(connected);
                drop(state);
                self.fill();
            }
            Err(error) => {
                let refused = take_ready(&mut state);
                drop(state);
                let reason: Arc<str> = error.to_string().into();
                for parcel in refused {
                    parcel.answer(Answer::NotSent, Some(reason.clone()));
                }
            }
        }
    }
}

fn take_ready(state: &mut State) -> Vec<ProduceItem> {
    state.ready_bytes = 0;
    state.ready.drain(..).collect()
}

fn take_unheard(state: &mut State, connection: &Arc<BrokerConnection>) -> Vec<Unheard> {
    state.unheard.extract_if(.., |batch| Arc::ptr_eq(&batch.connection, connection)).collect()
}

/// The parcels of the next request.
fn gather(state: &mut State) -> Vec<ProduceItem> {
    let mut chosen = Vec::new();
    let mut seen: HashSet<(Arc<str>, i32)> = HashSet::new();
    let (mut bytes, mut left) = (0, VecDeque::new());
    while let Some(parcel) = state.ready.pop_front() {
        let size = parcel.portion.batch.len();
        if bytes > 0 && bytes + size > REQUEST_BYTES {
            left.push_back(parcel);
            break;
        }
        if !seen.insert((parcel.portion.topic.clone(), parcel.portion.partition)) {
            left.push_back(parcel);
            continue;
        }
        bytes += size;
        chosen.push(parcel);
    }
    left.append(&mut state.ready);
    state.ready = left;
    state.ready_bytes -= bytes;
    chosen
}

/// The dispatchers of one client: one a broker and set of options, as long as it is held. Topic
/// producers that share it share requests.
pub struct Dispatchers {
    client: Client,
    dispatchers: Mutex<HashMap<(i32, RequestOptions), Weak<Dispatcher>>>,
}

impl Dispatchers {
    /// For this client.
    pub fn new(client: Client) -> Arc<Self> {
        Arc::new(Self { client, dispatchers: Mutex::default() })
    }

    /// The client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The dispatcher to a broker. Must be called within a tokio runtime.
    pub fn get(&self, broker: i32, options: RequestOptions) -> Arc<Dispatcher> {
        let mut dispatchers = self.dispatchers.lock();
        if let Some(dispatcher) = dispatchers.get(&(broker, options)).and_then(Weak::upgrade) {
            return dispatcher;
        }
        dispatchers.retain(|_, dispatcher| dispatcher.strong_count() > 0);
        let runtime = tokio::runtime::Handle::current();
        let dispatcher = Dispatcher::new(self.client.clone(), broker, options, runtime);
        dispatchers.insert((broker, options), Arc::downgrade(&dispatcher));
        dispatcher
    }
}
