//! A scripted broker on loopback shows how a connection behaves towards good and bad ones.

use std::sync::atomic::AtomicUsize;

use bytes::{BufMut, BytesMut};
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::{
    ApiKey, ApiVersionsResponse, HeartbeatRequest, HeartbeatResponse, ProduceRequest,
    SaslAuthenticateResponse, SaslHandshakeResponse,
};
use kafka_protocol::protocol::{Encodable, StrBytes};
use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

use super::super::{Authentication, Secret};
use super::*;

/// A request as the scripted broker sees it.
struct Seen {
    api: i16,
    version: i16,
    correlation_id: i32,
    frame: Bytes,
}

/// What the scripted broker does about it.
enum Act {
    Answer(Bytes),
    Bytes(Vec<u8>),
    Nothing,
    Close,
}

fn encode<T: Encodable>(answer: &T, version: i16) -> Bytes {
    let mut bytes = BytesMut::new();
    answer.encode(&mut bytes, version).unwrap();
    bytes.freeze()
}

fn versions(apis: &[(ApiKey, i16, i16)]) -> ApiVersionsResponse {
    let apis = apis.iter().map(|(key, min, max)| {
        ApiVersion::default().with_api_key(*key as i16).with_min_version(*min).with_max_version(*max)
    });
    ApiVersionsResponse::default().with_api_keys(apis.collect())
}

/// Answers ApiVersions well and leaves the rest to `then`.
fn greeted(mut then: impl FnMut(&Seen) -> Act + Send + 'static) -> impl FnMut(&Seen) -> Act + Send + 'static {
    move |seen| {
        if seen.api != ApiKey::ApiVersions as i16 {
            return then(seen);
        }
        let known = [
            (ApiKey::ApiVersions, 0, 4),
            (ApiKey::Heartbeat, 0, 3),
            (ApiKey::Produce, 3, 9),
            (ApiKey::SaslHandshake, 0, 1),
            (ApiKey::SaslAuthenticate, 0, 1),
        ];
        Act::Answer(encode(&versions(&known), seen.version))
    }
}

fn heartbeat_ok(seen: &Seen) -> Act {
    Act::Answer(encode(&HeartbeatResponse::default(), seen.version))
}

async fn converse(mut stream: TcpStream, act: &mut (impl FnMut(&Seen) -> Act + Send)) -> io::Result<()> {
    loop {
        let length = stream.read_u32().await? as usize;
        let mut frame = vec![0; length];
        stream.read_exact(&mut frame).await?;
        let frame = Bytes::from(frame);
        let mut header = frame.clone();
        let seen = Seen {
            api: header.get_i16(),
            version: header.get_i16(),
            correlation_id: header.get_i32(),
            frame,
        };
        match act(&seen) {
            Act::Answer(body) => {
                let key = ApiKey::try_from(seen.api).unwrap();
                let tagged = key.response_header_version(seen.version) >= 1;
                let mut out = BytesMut::new();
                out.put_u32((4 + usize::from(tagged) + body.len()) as u32);
                out.put_i32(seen.correlation_id);
                if tagged {
                    out.put_u8(0);
                }
                out.put_slice(&body);
                stream.write_all(&out).await?;
            }
            Act::Bytes(bytes) => stream.write_all(&bytes).await?,
            Act::Nothing => {}
            Act::Close => return Ok(()),
        }
    }
}

/// Starts a broker for any number of connections, one after another.
async fn broker(mut act: impl FnMut(&Seen) -> Act + Send + 'static) -> ClientOptions {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = converse(stream, &mut act).await;
        }
    });
    ClientOptions::new(vec![Address::new("127.0.0.1", port)])
}

async fn connect(options: &ClientOptions) -> Result<Arc<BrokerConnection>, Error> {
    BrokerConnection::connect(&options.bootstrap[0], options).await
}

fn heartbeat() -> RawRequest {
    let body = encode(&HeartbeatRequest::default(), 0);
    RawRequest { api_key: HeartbeatRequest::KEY, version: 0, body: vec![body], timeout: None }
}

#[tokio::test]
async fn an_old_broker_is_asked_for_its_versions_again_in_version_0() {
    let options = broker(|seen| match (seen.api, seen.version) {
        (18, 0) => Act::Answer(encode(&versions(&[(ApiKey::Heartbeat, 0, 2)]), 0)),
        (18, _) => {
            let refusal = versions(&[(ApiKey::ApiVersions, 0, 2)]).with_error_code(35);
            Act::Answer(encode(&refusal, 0))
        }
        _ => heartbeat_ok(seen),
    })
    .await;
    let connection = connect(&options).await.unwrap();
    assert_eq!(connection.version::<HeartbeatRequest>().unwrap(), 2);
    assert_eq!(connection.call(&HeartbeatRequest::default()).await.unwrap().error_code, 0);
    let missing = connection.version::<ProduceRequest>().unwrap_err().to_string();
    assert!(missing.contains("Produce") && missing.contains("none at all"), "{missing}");
}

#[tokio::test]
async fn many_requests_in_flight_each_get_their_own_answer() {
    let options = broker(greeted(|seen| {
        // The answer carries its request's correlation id as throttle time.
        let answer = HeartbeatResponse::default().with_throttle_time_ms(seen.correlation_id);
        Act::Answer(encode(&answer, seen.version))
    }))
    .await;
    let connection = connect(&options).await.unwrap();
    let mut answers = Vec::new();
    for _ in 0..500 {
        let raw =
            RawRequest { version: 3, body: vec![encode(&HeartbeatRequest::default(), 3)], ..heartbeat() };
        answers.push(connection.submit(raw).await.unwrap());
    }
    for (index, answer) in answers.into_iter().enumerate() {
        let answer =
            decode_answer::<HeartbeatRequest>(connection.address(), 3, answer.await.unwrap()).unwrap();
        // The greeting used correlation id 0.
        assert_eq!(answer.throttle_time_ms as usize, index + 1);
    }
    assert_eq!(connection.outstanding(), 0);
}

#[tokio::test]
async fn a_silent_broker_ends_the_connection_and_fails_all_that_is_outstanding() {
    let options = broker(greeted(|_| Act::Nothing)).await;
    let options = ClientOptions { request_timeout: Duration::from_millis(80), ..options };
    let connection = connect(&options).await.unwrap();
    let first = connection.submit(heartbeat()).await.unwrap();
    let patient = RawRequest { timeout: Some(Duration::from_hours(1)), ..heartbeat() };
    let second = connection.submit(patient).await.unwrap();
    for answer in [first, second] {
        let error = answer.await.unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
        assert!(error.to_string().contains("Heartbeat"), "{error}");
    }
    assert!(!connection.is_alive());
    assert!(matches!(connection.submit(heartbeat()).await, Err(Error::Timeout { .. })));
}

#[tokio::test]
async fn a_lost_connection_fails_all_that_is_outstanding() {
    let mut seen_so_far = 0;
    let options = broker(greeted(move |_| {
        seen_so_far += 1;
        if seen_so_far == 3 { Act::Close } else { Act::Nothing }
    }))
    .await;
    let connection = connect(&options).await.unwrap();
    let mut answers = Vec::new();
    for _ in 0..3 {
        answers.push(connection.submit(heartbeat()).await.unwrap());
    }
    for answer in answers {
        assert!(matches!(answer.await, Err(Error::Disconnected { .. })));
    }
}

#[tokio::test]
async fn an_answer_with_a_strange_correlation_id_ends_the_connection() {
    let options = broker(greeted(|_| Act::Bytes(vec![0, 0, 0, 6, 0, 0, 0, 99, 0, 0]))).await;
    let connection = connect(&options).await.unwrap();
    let error = connection.call(&HeartbeatRequest::default()).await.unwrap_err();
    assert!(matches!(&error, Error::MalformedAnswer { reason, .. } if reason.contains("99")), "{error}");
    assert!(!connection.is_alive());
}

#[tokio::test]
async fn an_answer_that_claims_to_be_huge_is_refused_before_it_is_read() {
    let options = broker(greeted(|_| Act::Bytes(vec![0x7f, 0xff, 0xff, 0xff, 0, 0]))).await;
    let connection = connect(&options).await.unwrap();
    let error = connection.call(&HeartbeatRequest::default()).await.unwrap_err();
    assert!(matches!(error, Error::AnswerTooLarge { size: 0x7fff_ffff, .. }), "{error}");
}

#[tokio::test]
async fn a_web_server_is_recognised_as_no_kafka() {
    let options = broker(|_| Act::Bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec())).await;
    let error = connect(&options).await.unwrap_err();
    assert!(error.to_string().contains("is this a Kafka port"), "{error}");
}

/// L2
#[tokio::test]
async fn a_refused_connection_and_an_unknown_host_name_the_host() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let options = ClientOptions::new(vec![Address::new("127.0.0.1", port)]);
    let error = connect(&options).await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    assert!(error.to_string().contains(&format!("127.0.0.1:{port}")), "{error}");

    let options = ClientOptions::new(vec![Address::new("no-such-host.invalid", 9092)]);
    let error = connect(&options).await.unwrap_err();
    assert!(error.to_string().contains("no-such-host.invalid"), "{error}");
}

#[tokio::test]
async fn an_unanswered_request_resolves_when_it_is_written() {
    let seen = Arc::new(AtomicUsize::new(0));
    let counter = seen.clone();
    let options = broker(greeted(move |seen| {
        if seen.api == ApiKey::Produce as i16 {
            counter.fetch_add(1, Ordering::SeqCst);
            assert!(seen.frame.ends_with(b"onetwo"));
            return Act::Nothing;
        }
        heartbeat_ok(seen)
    }))
    .await;
    let connection = connect(&options).await.unwrap();
    let request = RawRequest {
        api_key: ProduceRequest::KEY,
        version: 7,
        body: vec![Bytes::from_static(b"one"), Bytes::new(), Bytes::from_static(b"two")],
        timeout: None,
    };
    connection.submit_unanswered(request).await.unwrap().await.unwrap();
    // Order on one connection: when the heartbeat is answered the request before it has been read.
    connection.call(&HeartbeatRequest::default()).await.unwrap();
    assert_eq!(seen.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_request_waits_while_too_much_is_outstanding() {
    let options = broker(greeted(|_| Act::Nothing)).await;
    let options = ClientOptions { max_in_flight_bytes: 2 * LEAST_PERMITS * PERMIT_BYTES, ..options };
    let connection = connect(&options).await.unwrap();
    let _first = connection.submit(heartbeat()).await.unwrap();
    let _second = connection.submit(heartbeat()).await.unwrap();
    assert!(connection.try_submit_with(heartbeat(), Box::new(drop)).unwrap().is_err());
    let third = connection.clone();
    let third = tokio::spawn(async move { third.submit(heartbeat()).await.map(drop) });
    tokio::task::yield_now().await;
    connection.close();
    assert!(matches!(third.await.unwrap(), Err(Error::Closed)));
}

#[tokio::test]
async fn a_refused_login_carries_the_brokers_text_and_not_the_password() {
    let options = broker(greeted(|seen| {
        if seen.api == ApiKey::SaslHandshake as i16 {
            return Act::Answer(encode(&SaslHandshakeResponse::default(), seen.version));
        }
        let refusal = SaslAuthenticateResponse::default()
            .with_error_code(58)
            .with_error_message(Some(StrBytes::from_static_str("who are you?")));
        Act::Answer(encode(&refusal, seen.version))
    }))
    .await;
    let authentication =
        Authentication::Plain { username: "bridge".into(), password: Secret::new("hunter2") };
    let options = ClientOptions { authentication, ..options };
    let error = connect(&options).await.unwrap_err();
    assert!(matches!(error, Error::Authentication { mechanism: "PLAIN", .. }), "{error}");
    let text = format!("{error} {error:?}");
    assert!(text.contains("who are you?") && !text.contains("hunter2"), "{text}");
}

#[tokio::test]
async fn a_login_sends_user_and_password_and_goes_on() {
    let options = broker(greeted(|seen| match ApiKey::try_from(seen.api) {
        Ok(ApiKey::SaslHandshake) => Act::Answer(encode(&SaslHandshakeResponse::default(), seen.version)),
        Ok(ApiKey::SaslAuthenticate) if seen.frame.ends_with(b"\0bridge\0hunter2") => {
            Act::Answer(encode(&SaslAuthenticateResponse::default(), seen.version))
        }
        _ => heartbeat_ok(seen),
    }))
    .await;
    let authentication =
        Authentication::Plain { username: "bridge".into(), password: Secret::new("hunter2") };
    let options = ClientOptions { authentication, ..options };
    let connection = connect(&options).await.unwrap();
    connection.call(&HeartbeatRequest::default()).await.unwrap();
}

/// L18
#[tokio::test]
async fn a_broker_that_accepts_and_says_nothing_runs_into_the_connect_timeout() {
    let options = broker(|_| Act::Nothing).await;
    let options = ClientOptions { connect_timeout: Duration::from_millis(80), ..options };
    let error = connect(&options).await.unwrap_err();
    // Where the name has another address, that one is the next.
    let Address { host, port } = &options.bootstrap[0];
    assert_eq!(dial::failed_last(host, *port).unwrap().port(), *port);
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
}

#[tokio::test]
async fn dropping_the_last_handle_closes_the_socket() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        converse(stream, &mut greeted(heartbeat_ok)).await
    });
    let options = ClientOptions::new(vec![Address::new("127.0.0.1", port)]);
    let connection = connect(&options).await.unwrap();
    connection.call(&HeartbeatRequest::default()).await.unwrap();
    drop(connection);
    let end = tokio::time::timeout(Duration::from_secs(5), server).await.unwrap().unwrap();
    assert_eq!(end.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

/// Answers logins well, each good for `lifetime`; heartbeats only while nobody logs in.
fn logs_in(
    lifetime: Duration,
    seen: Arc<Mutex<Vec<ApiKey>>>,
    last_login: usize,
) -> impl FnMut(&Seen) -> Act + Send {
    let mut logins = 0;
    greeted(move |request| {
        let api = ApiKey::try_from(request.api).unwrap();
        seen.lock().push(api);
        match api {
            ApiKey::SaslHandshake => Act::Answer(encode(&SaslHandshakeResponse::default(), request.version)),
            ApiKey::SaslAuthenticate => {
                logins += 1;
                let answer =
                    SaslAuthenticateResponse::default().with_session_lifetime_ms(lifetime.as_millis() as i64);
                let answer = if logins > last_login {
                    answer
                        .with_error_code(58)
                        .with_error_message(Some(StrBytes::from_static_str("not any more")))
                } else {
                    answer
                };
                Act::Answer(encode(&answer, request.version))
            }
            _ => heartbeat_ok(request),
        }
    })
}

fn plain() -> Authentication {
    Authentication::Plain { username: "bridge".into(), password: Secret::new("hunter2") }
}

#[tokio::test]
async fn a_login_is_renewed_on_its_connection_and_nothing_comes_between() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let options = broker(logs_in(Duration::from_millis(1_300), seen.clone(), usize::MAX)).await;
    let connection = connect(&ClientOptions { authentication: plain(), ..options }).await.unwrap();
    let logins = || seen.lock().iter().filter(|api| **api == ApiKey::SaslAuthenticate).count();
    let mut asked = 0;
    while logins() < 3 {
        let calls = (0..20).map(|_| {
            let connection = connection.clone();
            tokio::spawn(async move { connection.call(&HeartbeatRequest::default()).await.map(drop) })
        });
        for call in calls.collect::<Vec<_>>() {
            call.await.unwrap().unwrap();
            asked += 1;
        }
        assert!(connection.is_usable());
    }
    let seen = seen.lock();
    assert_eq!(seen.iter().filter(|api| **api == ApiKey::Heartbeat).count(), asked);
    for pair in seen.windows(2) {
        if let [ApiKey::SaslHandshake, next] = pair {
            assert_eq!(*next, ApiKey::SaslAuthenticate);
        }
    }
}

#[tokio::test]
async fn a_renewal_that_is_refused_ends_the_connection_with_the_brokers_words() {
    let options = broker(logs_in(Duration::from_millis(1_300), Arc::default(), 1)).await;
    let connection = connect(&ClientOptions { authentication: plain(), ..options }).await.unwrap();
    let error = loop {
        if let Err(error) = connection.call(&HeartbeatRequest::default()).await {
            break error;
        }
        tokio::task::yield_now().await;
    };
    assert!(
        matches!(&error, Error::Authentication { reason, .. } if reason.contains("not any more")),
        "{error}"
    );
    assert!(!connection.is_alive());
}

#[tokio::test]
async fn a_login_that_lapses_too_soon_to_be_renewed_is_not_used_to_its_end() {
    let options = broker(logs_in(Duration::from_millis(200), Arc::default(), 1)).await;
    let connection = connect(&ClientOptions { authentication: plain(), ..options }).await.unwrap();
    assert!(connection.is_usable());
    tokio::time::sleep(Duration::from_millis(175)).await;
    assert!(connection.is_alive() && !connection.is_usable());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_outstanding_when_a_login_is_renewed_is_answered_first() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let inner = seen.clone();
    let mut login = logs_in(Duration::from_millis(1_300), seen.clone(), usize::MAX);
    // The first heartbeat is not answered before 1.5 s are over: longer than the login lasts.
    let mut slow = true;
    let options = broker(move |request| {
        if request.api == ApiKey::Heartbeat as i16 && std::mem::take(&mut slow) {
            std::thread::sleep(Duration::from_millis(1_500));
            assert!(!inner.lock()[2..].contains(&ApiKey::SaslHandshake));
        }
        login(request)
    })
    .await;
    let connection = connect(&ClientOptions { authentication: plain(), ..options }).await.unwrap();
    let answer = connection.submit(heartbeat()).await.unwrap();
    answer.await.unwrap();
    // Accepted while the login is renewed, or after it: answered in any case.
    connection.submit(heartbeat()).await.unwrap().await.unwrap();
    let order = seen.lock().clone();
    let login = [ApiKey::SaslHandshake, ApiKey::SaslAuthenticate];
    let expected = [&login[..], &[ApiKey::Heartbeat], &login, &[ApiKey::Heartbeat]].concat();
    assert_eq!(order, expected);
}
