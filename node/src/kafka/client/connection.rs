//! One connection to one broker: requests out in order, answers matched to them.
//!
//! [`BrokerConnection`] owns the socket through two tasks. The writer takes everything that is queued and
//! writes it with one vectored call; it also watches the clock. The reader takes frames apart; Kafka
//! answers in the order of the requests, so an answer belongs to the oldest unanswered request or the
//! connection is broken.
//!
//! Invariants:
//! * Every request that was accepted gets exactly one completion: its answer, or the error that ended
//!   the connection.
//! * Requests leave in the order in which they were accepted.
//! * What is queued or unanswered is bounded in bytes ([`ClientOptions::max_in_flight_bytes`]); more
//!   waits in [`BrokerConnection::submit`].
//! * No lock is held while a completion runs.
//! * While a login is renewed (see [`renewal`]) nothing else goes out; what is accepted meanwhile follows in
//!   its order.
//!
//! A broker that closes a connection on which nothing is outstanding does what its
//! `connections.max.idle.ms` says: that is no error.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use kafka_protocol::protocol::{Request, VersionRange};
use parking_lot::Mutex;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

use super::greeting::Greeting;
use super::transport::{ReadHalf, Stage, WriteHalf, read_frame};
use super::wire::{
    api_name, common_version, decode_answer, encode_body, encode_header, strip_response_header,
};
use super::{Address, ClientOptions, Error, transport};
use crate::dial;

mod renewal;

/// Slices handed to one vectored write; the system's own limit is 1024.
const SLICES_PER_WRITE: usize = 64;

/// The unit in which queued bytes are counted, and the least that a request counts: with the default
/// limit of 64 MiB at most 4096 requests are outstanding.
const PERMIT_BYTES: usize = 1024;
const LEAST_PERMITS: usize = 16;

/// A request whose body is already in bytes: parts are sent as they are, without copying.
#[derive(Debug, Clone)]
pub struct RawRequest {
    /// Which API.
    pub api_key: i16,
    /// In which version; the header follows from it.
    pub version: i16,
    /// The body, in parts.
    pub body: Vec<Bytes>,
    /// How long the answer may take; `None` is [`ClientOptions::request_timeout`].
    pub timeout: Option<Duration>,
}

/// Called once with the body of the answer (response header taken off) or the reason why there is none.
/// Runs on the connection's tasks or the caller's: it must be quick and must not block.
pub type Completion = Box<dyn FnOnce(Result<Bytes, Error>) + Send>;

/// The answer to a submitted request. Dropping it does not take the request back.
#[derive(Debug)]
pub struct Answer(oneshot::Receiver<Result<Bytes, Error>>);

impl Future for Answer {
    type Output = Result<Bytes, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|result| result.unwrap_or(Err(Error::Closed)))
    }
}

/// Resolves when an unanswered request (`acks = 0`) has been handed to the operating system.
#[derive(Debug)]
pub struct Written(oneshot::Receiver<Result<(), Error>>);

impl Future for Written {
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|result| result.unwrap_or(Err(Error::Closed)))
    }
}

/// Someone to tell that everything before this point is written.
type WrittenSender = oneshot::Sender<Result<(), Error>>;

/// A part of the out-queue.
enum Outgoing {
    Bytes(Bytes),
    Written { sender: WrittenSender, _room: Option<OwnedSemaphorePermit> },
}

/// A request whose answer is outstanding.
struct Unanswered {
    correlation_id: i32,
    api_key: i16,
    version: i16,
    deadline: Instant,
    timeout: Duration,
    completion: Completion,
    /// None for what renews a login: it may not wait for those that wait for it.
    _room: Option<OwnedSemaphorePermit>,
}

#[derive(Default)]
struct State {
    queue: Vec<Outgoing>,
    unanswered: VecDeque<Unanswered>,
    next_correlation_id: i32,
    ended: Option<Error>,
    /// While a login is renewed: what follows it.
    held: Option<Held>,
}

/// Requests that were accepted while a login is renewed.
#[derive(Default)]
struct Held {
    queue: Vec<Outgoing>,
    unanswered: VecDeque<Unanswered>,
}

struct Shared {
    address: Address,
    client_id: Box<str>,
    request_timeout: Duration,
    state: Mutex<State>,
    ended: AtomicBool,
    wake_writer: Notify,
    room: Arc<Semaphore>,
    /// There was no login.
    anonymous: bool,
    started: Instant,
    /// Milliseconds after `started` from which on it should not be used any more: its login is about to
    /// lapse.
    retire_after: AtomicU64,
    /// Tells that everything is answered, to who waits for it before a login is renewed.
    drained: Notify,
}

/// [`Shared::retire_after`] of a login that does not lapse.
const NEVER: u64 = u64::MAX;

impl Shared {
    /// Ends the connection: the first cause stays, all that is outstanding fails with it.
    fn end(&self, cause: &Error) {
        let (queue, unanswered, held) = {
            let mut state = self.state.lock();
            if state.ended.is_some() {
                return;
            }
            state.ended = Some(cause.clone());
            let held = state.held.take().unwrap_or_default();
            (std::mem::take(&mut state.queue), std::mem::take(&mut state.unanswered), held)
        };
        self.ended.store(true, Ordering::Release);
        self.room.close();
        self.wake_writer.notify_one();
        self.drained.notify_one();
        for outgoing in queue.into_iter().chain(held.queue) {
            if let Outgoing::Written { sender, .. } = outgoing {
                let _ = sender.send(Err(cause.clone()));
            }
        }
        for request in unanswered.into_iter().chain(held.unanswered) {
            (request.completion)(Err(cause.clone()));
        }
    }

    /// Queues a request; `room` is `None` for one that renews the login, which goes before those that are
    /// held.
    fn enqueue(
        &self,
        request: &RawRequest,
        expect: Expect,
        room: Option<OwnedSemaphorePermit>,
    ) -> Result<(), Error> {
        let body_len = request.body.iter().map(Bytes::len).sum();
        let timeout = request.timeout.unwrap_or(self.request_timeout);
        {
            let mut state = self.state.lock();
            let state = &mut *state;
            if let Some(cause) = &state.ended {
                return Err(cause.clone());
            }
            let correlation_id = state.next_correlation_id;
            let header = encode_header(
                &self.address,
                request.api_key,
                request.version,
                correlation_id,
                &self.client_id,
                body_len,
            )?;
            state.next_correlation_id = correlation_id.wrapping_add(1);
            let (queue, unanswered) = match &mut state.held {
                Some(held) if room.is_some() => (&mut held.queue, &mut held.unanswered),
                _ => (&mut state.queue, &mut state.unanswered),
            };
            queue.push(Outgoing::Bytes(header));
            queue.extend(request.body.iter().filter(|part| !part.is_empty()).cloned().map(Outgoing::Bytes));
            match expect {
                Expect::Answer(completion) => unanswered.push_back(Unanswered {
                    correlation_id,
                    api_key: request.api_key,
                    version: request.version,
                    deadline: Instant::now() + timeout,
                    timeout,
                    completion,
                    _room: room,
                }),
                Expect::Nothing(sender) => queue.push(Outgoing::Written { sender, _room: room }),
            }
        }
        self.wake_writer.notify_one();
        Ok(())
    }

    fn disconnected(&self, reason: &str) -> Error {
        Error::Disconnected { address: self.address.clone(), reason: reason.into() }
    }

    fn cause(&self) -> Error {
        self.state.lock().ended.clone().unwrap_or(Error::Closed)
    }
}

/// A live (or ended) connection to one broker.
pub struct BrokerConnection {
    shared: Arc<Shared>,
    versions: Arc<HashMap<i16, VersionRange>>,
    max_permits: usize,
    reader: tokio::task::JoinHandle<()>,
    /// Renews the login, where it lapses.
    renewal: Option<tokio::task::JoinHandle<()>>,
}

impl std::fmt::Debug for BrokerConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BrokerConnection")
            .field("address", &self.shared.address)
            .field("ended", &!self.is_alive())
            .finish_non_exhaustive()
    }
}

impl BrokerConnection {
    /// Connects, agrees on versions and logs in, all within [`ClientOptions::connect_timeout`].
    pub async fn connect(address: &Address, options: &ClientOptions) -> Result<Arc<Self>, Error> {
        let stage = Stage::default();
        let attempt = Self::establish(address, options, &stage);
        let result = tokio::time::timeout(options.connect_timeout, attempt).await.unwrap_or_else(|_| {
            Err(Error::Timeout {
                address: address.clone(),
                what: stage.words().into(),
                after: options.connect_timeout,
            })
        });
        if let (Err(_), Some(peer)) = (&result, stage.peer()) {
            // That peer is no broker that lets us in: the next attempt begins with another address.
            dial::remember_failure(&address.host, address.port, peer);
        }
        result
    }

    async fn establish(
        address: &Address,
        options: &ClientOptions,
        stage: &Stage,
    ) -> Result<Arc<Self>, Error> {
        // A token is got before the connection is made: the broker need not wait for it.
        stage.enter(Stage::CREDENTIALS);
        let conversation =
            options.authentication.start(&address.host).await.map_err(|reason| Error::Authentication {
                address: address.clone(),
                mechanism: options.authentication.mechanism(),
                reason: reason.into(),
            })?;
        let anonymous = conversation.is_none();
        stage.enter(Stage::TCP);
        let (read, write) = transport::open(address, options, stage).await?;
        stage.enter(Stage::VERSIONS);
        let mut greeting = Greeting::new(address, options, read, write);
        let versions = Arc::new(greeting.negotiate().await?);
        stage.enter(Stage::LOGIN);
        let lifetime = greeting.authenticate(&versions, conversation).await?;
        let (read, write, correlation_id) = greeting.into_parts();

        let max_permits =
            (options.max_in_flight_bytes / PERMIT_BYTES).clamp(LEAST_PERMITS, u32::MAX as usize);
        let shared = Arc::new(Shared {
            address: address.clone(),
            client_id: options.client_id.clone(),
            request_timeout: options.request_timeout,
            state: Mutex::new(State { next_correlation_id: correlation_id, ..State::default() }),
            ended: AtomicBool::new(false),
            wake_writer: Notify::new(),
            room: Arc::new(Semaphore::new(max_permits)),
            anonymous,
            started: Instant::now(),
            retire_after: AtomicU64::new(NEVER),
            drained: Notify::new(),
        });
        let limit = options.max_response_bytes;
        tokio::spawn(write_queue(shared.clone(), write));
        let reader = tokio::spawn(read_answers(shared.clone(), read, limit));
        let renewal = lifetime.map(|lifetime| {
            tokio::spawn(renewal::keep_logged_in(
                shared.clone(),
                versions.clone(),
                options.authentication.clone(),
                options.connect_timeout,
                lifetime,
            ))
        });
        Ok(Arc::new(Self { shared, versions, max_permits, reader, renewal }))
    }

    /// Whom it leads to.
    pub fn address(&self) -> &Address {
        &self.shared.address
    }

    /// False once the connection has ended: ask the client for another.
    pub fn is_alive(&self) -> bool {
        !self.shared.ended.load(Ordering::Acquire)
    }

    /// Alive, and its login is not about to lapse.
    pub fn is_usable(&self) -> bool {
        let retire_after = self.shared.retire_after.load(Ordering::Relaxed);
        self.is_alive()
            && (retire_after == NEVER || self.shared.started.elapsed().as_millis() < u128::from(retire_after))
    }

    /// Why it ended; `None` while it is alive.
    pub fn ended_by(&self) -> Option<Error> {
        self.shared.state.lock().ended.clone()
    }

    /// Requests whose answers are outstanding.
    pub fn outstanding(&self) -> usize {
        let state = self.shared.state.lock();
        state.unanswered.len() + state.held.as_ref().map_or(0, |held| held.unanswered.len())
    }

    /// Closes it; what is outstanding fails with [`Error::Closed`].
    pub fn close(&self) {
        self.shared.end(&Error::Closed);
        self.reader.abort();
        if let Some(renewal) = &self.renewal {
            renewal.abort();
        }
    }

    /// The version in which an API is spoken here: the highest that both sides know.
    pub fn version<R: Request>(&self) -> Result<i16, Error> {
        self.version_of(R::KEY, R::VERSIONS)
    }

    /// As [`Self::version`], for a caller that encodes on its own and can speak `ours`.
    pub fn version_of(&self, api_key: i16, ours: VersionRange) -> Result<i16, Error> {
        common_version(&self.shared.address, &self.versions, api_key, ours)
    }

    /// Sends a request in the highest common version and waits for its answer.
    pub async fn call<R: Request>(&self, request: &R) -> Result<R::Response, Error> {
        self.call_within(request, None).await
    }

    /// As [`Self::call`], for requests that the broker may hold for `timeout`.
    pub async fn call_within<R: Request>(
        &self,
        request: &R,
        timeout: Option<Duration>,
    ) -> Result<R::Response, Error> {
        let version = self.version::<R>()?;
        self.call_in_version(request, version, timeout).await
    }

    /// As [`Self::call_within`], in a version that both sides know, for a request that not every version can
    /// carry.
    pub async fn call_in_version<R: Request>(
        &self,
        request: &R,
        version: i16,
        timeout: Option<Duration>,
    ) -> Result<R::Response, Error> {
        let body = encode_body(&self.shared.address, request, version)?;
        let raw = RawRequest { api_key: R::KEY, version, body: vec![body], timeout };
        let answer = self.submit(raw).await?.await?;
        decode_answer::<R>(&self.shared.address, version, answer)
    }

    /// Queues a request, waiting for room if need be, and returns the future of its answer.
    pub async fn submit(&self, request: RawRequest) -> Result<Answer, Error> {
        let (sender, receiver) = oneshot::channel();
        let completion = Box::new(move |result| {
            let _ = sender.send(result);
        });
        self.submit_with(request, completion).await?;
        Ok(Answer(receiver))
    }

    /// As [`Self::submit`], with a callback in place of a future. On an error here the callback is
    /// dropped uncalled.
    pub async fn submit_with(&self, request: RawRequest, completion: Completion) -> Result<(), Error> {
        let room = self.room_for(&request).await?;
        self.shared.enqueue(&request, Expect::Answer(completion), Some(room))
    }

    /// As [`Self::submit_with`] for callers that must not wait. Where there is no room now the request
    /// comes back, untouched.
    pub fn try_submit_with(
        &self,
        request: RawRequest,
        completion: Completion,
    ) -> Result<Result<(), (RawRequest, Completion)>, Error> {
        match self.shared.room.clone().try_acquire_many_owned(self.permits(&request)) {
            Ok(room) => self.shared.enqueue(&request, Expect::Answer(completion), Some(room)).map(Ok),
            Err(tokio::sync::TryAcquireError::NoPermits) => Ok(Err((request, completion))),
            Err(tokio::sync::TryAcquireError::Closed) => Err(self.shared.cause()),
        }
    }

    /// Queues a request that Kafka never answers (Produce with `acks = 0`).
    pub async fn submit_unanswered(&self, request: RawRequest) -> Result<Written, Error> {
        let room = self.room_for(&request).await?;
        let (sender, receiver) = oneshot::channel();
        self.shared.enqueue(&request, Expect::Nothing(sender), Some(room))?;
        Ok(Written(receiver))
    }

    fn permits(&self, request: &RawRequest) -> u32 {
        let bytes: usize = request.body.iter().map(Bytes::len).sum();
        bytes.div_ceil(PERMIT_BYTES).max(LEAST_PERMITS).min(self.max_permits) as u32
    }

    async fn room_for(&self, request: &RawRequest) -> Result<OwnedSemaphorePermit, Error> {
        let room = self.shared.room.clone().acquire_many_owned(self.permits(request)).await;
        room.map_err(|_| self.shared.cause())
    }
}

impl Drop for BrokerConnection {
    fn drop(&mut self) {
        self.close();
    }
}

enum Expect {
    Answer(Completion),
    Nothing(WrittenSender),
}

/// The writer: one vectored write for all that is queued, and the watch over the oldest deadline.
async fn write_queue(shared: Arc<Shared>, mut write: WriteHalf) {
    let mut batch: Vec<Outgoing> = Vec::new();
    let mut alarm: Option<Instant> = None;
    loop {
        let nothing_queued = {
            let mut state = shared.state.lock();
            if state.ended.is_some() {
                break;
            }
            std::mem::swap(&mut batch, &mut state.queue);
            // An alarm that is already set early enough stays: moving a timer for every request costs
            // more than one needless wake-up.
            let oldest = state.unanswered.front().map(|request| request.deadline);
            alarm = match (alarm, oldest) {
                (Some(set), Some(oldest)) => Some(set.min(oldest)),
                (_, oldest) => oldest,
            };
            batch.is_empty()
        };
        if !nothing_queued {
            match tokio::time::timeout(shared.request_timeout, write_batch(&mut write, &mut batch)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    shared.end(&shared.disconnected(&error.to_string()));
                }
                Err(_) => shared.end(&Error::Timeout {
                    address: shared.address.clone(),
                    what: "sending (the broker does not read)".into(),
                    after: shared.request_timeout,
                }),
            }
            let outcome = shared.state.lock().ended.clone().map_or(Ok(()), Err);
            for outgoing in batch.drain(..) {
                if let Outgoing::Written { sender, .. } = outgoing {
                    let _ = sender.send(outcome.clone());
                }
            }
            continue;
        }
        match alarm {
            None => shared.wake_writer.notified().await,
            Some(at) => {
                tokio::select! {
                    () = shared.wake_writer.notified() => {}
                    () = tokio::time::sleep_until(at) => {
                        alarm = None;
                        if let Some(cause) = overdue(&shared, Instant::now()) {
                            shared.end(&cause);
                        }
                    }
                }
            }
        }
    }
    let _ = tokio::time::timeout(Duration::from_secs(1), write.shutdown()).await;
}

/// The reason to give the connection up, where its oldest request has waited too long.
fn overdue(shared: &Shared, now: Instant) -> Option<Error> {
    let state = shared.state.lock();
    let oldest = state.unanswered.front().filter(|request| request.deadline <= now)?;
    Some(Error::Timeout {
        address: shared.address.clone(),
        what: api_name(oldest.api_key),
        after: oldest.timeout,
    })
}

/// Writes all byte parts of `batch`.
async fn write_batch(write: &mut WriteHalf, batch: &mut [Outgoing]) -> io::Result<()> {
    let mut next = 0;
    while next < batch.len() {
        let mut slices = [IoSlice::new(&[]); SLICES_PER_WRITE];
        let mut used = 0;
        for part in batch.get(next..).unwrap_or_default() {
            let Outgoing::Bytes(bytes) = part else { continue };
            let Some(slice) = slices.get_mut(used) else { break };
            *slice = IoSlice::new(bytes);
            used += 1;
        }
        if used == 0 {
            break;
        }
        let mut written = write.write_vectored(slices.get(..used).unwrap_or_default()).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        for part in batch.get_mut(next..).unwrap_or_default() {
            if let Outgoing::Bytes(bytes) = part {
                let taken = written.min(bytes.len());
                bytes.advance(taken);
                written -= taken;
                if bytes.has_remaining() {
                    break;
                }
            }
            next += 1;
        }
    }
    // TLS keeps what the socket did not take.
    write.flush().await
}

/// The reader: one frame after another until the connection ends.
async fn read_answers(shared: Arc<Shared>, mut read: BufReader<ReadHalf>, limit: usize) {
    let mut answered = false;
    loop {
        let frame = match read_frame(&mut read, &shared.address, limit).await {
            Ok(Some(frame)) => frame,
            Ok(None) => {
                let idle = shared.state.lock().unanswered.is_empty();
                if idle {
                    tracing::debug!(broker = %shared.address, "kafka closed an idle connection");
                }
                // A broker that wants a login answers ApiVersions and closes at whatever comes after it.
                let reason = if !idle && !answered && shared.anonymous {
                    "closed by the broker at the first request; does it want a login? If so, set authentication"
                } else {
                    "closed by the broker"
                };
                shared.end(&shared.disconnected(reason));
                return;
            }
            Err(error) => return shared.end(&error),
        };
        if let Err(error) = deliver(&shared, frame) {
            return shared.end(&error);
        }
        answered = true;
    }
}

/// Hands a frame to the oldest unanswered request.
fn deliver(shared: &Shared, mut frame: Bytes) -> Result<(), Error> {
    let malformed = |what: Box<str>, reason: String| Error::MalformedAnswer {
        address: shared.address.clone(),
        what,
        reason: reason.into(),
    };
    let Ok(correlation_id) = frame.try_get_i32() else {
        return Err(malformed("a request".into(), format!("a frame of {} bytes", frame.len())));
    };
    let request = {
        let mut state = shared.state.lock();
        match state.unanswered.front() {
            Some(oldest) if oldest.correlation_id == correlation_id => {
                let answered = state.unanswered.pop_front();
                if state.held.is_some() && state.unanswered.is_empty() {
                    shared.drained.notify_one();
                }
                answered
            }
            Some(oldest) => {
                let reason = format!("correlation id {correlation_id} in place of {}", oldest.correlation_id);
                return Err(malformed(api_name(oldest.api_key), reason));
            }
            None => None,
        }
    };
    let Some(request) = request else {
        return Err(malformed(
            "nothing".into(),
            format!("correlation id {correlation_id} was not asked for"),
        ));
    };
    match strip_response_header(request.api_key, request.version, &mut frame) {
        Ok(()) => {
            (request.completion)(Ok(frame));
            Ok(())
        }
        Err(reason) => {
            let error = malformed(api_name(request.api_key), reason.to_owned());
            (request.completion)(Err(error.clone()));
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests;
