//! What a message costs between actors: the batch mailbox, with tokio's channel beside it, and the route
//! lookup of a publisher.
#![allow(missing_docs, reason = "criterion makes public functions")]

use std::{
    collections::VecDeque,
    hint::black_box,
    sync::Arc,
    task::{Context, Waker},
};

use causeway::{
    flow::mailbox::{Capacity, Charge, Mailbox},
    flow::{Accepted, Message, MessageSink, Outcome, Ticket, WakeList},
    mqtt::{RetainedLimits, RouteCache, Router},
};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// As large as a delivery.
type Item = [u64; 5];

const ROOMY: Capacity = Capacity { bytes: usize::MAX, items: usize::MAX };

fn mailbox(c: &mut Criterion) {
    let mut group = c.benchmark_group("mailbox");
    for batch in [1u64, 10, 100, 1000] {
        group.throughput(Throughput::Elements(batch));
        group.bench_with_input(BenchmarkId::new("batches", batch), &batch, |bench, &batch| {
            let mailbox = Mailbox::<Item>::new(ROOMY);
            let mut received = VecDeque::new();
            let mut released = Charge::default();
            let mut cx = Context::from_waker(Waker::noop());
            bench.iter(|| {
                let mut sender = mailbox.lock();
                for number in 0..batch {
                    let pushed = sender.push([number; 5], 100);
                    assert!(pushed.is_ok());
                }
                if sender.finish() {
                    mailbox.wake();
                }
                let taken = mailbox.poll_take(&mut cx, &mut received, &mut released);
                assert!(taken.is_ready());
                for item in received.drain(..) {
                    black_box(item);
                    released.add(100);
                }
                // The look at an empty queue that sends a receiver to sleep.
                assert!(mailbox.poll_take(&mut cx, &mut received, &mut released).is_pending());
            });
        });
        group.bench_with_input(BenchmarkId::new("tokio_mpsc", batch), &batch, |bench, &batch| {
            let (sender, mut receiver) = tokio::sync::mpsc::channel::<Item>(2048);
            let mut cx = Context::from_waker(Waker::noop());
            let mut received = Vec::new();
            bench.iter(|| {
                for number in 0..batch {
                    assert!(sender.try_send([number; 5]).is_ok());
                }
                assert!(receiver.poll_recv_many(&mut cx, &mut received, 2048).is_ready());
                for item in received.drain(..) {
                    black_box(item);
                }
                assert!(receiver.poll_recv(&mut cx).is_pending());
            });
        });
    }
    group.finish();
}

struct Nobody;

impl MessageSink for Nobody {
    fn accept(&self, _: &Message<'_>, _: Option<&Ticket>, _: &mut WakeList) -> Accepted {
        Accepted::Done(Outcome::Success)
    }
}

fn routes(c: &mut Criterion) {
    let router = Router::new(RetainedLimits::default());
    for device in 0..100_000 {
        router.add_sink(&format!("devices/{device}/commands"), Arc::new(Nobody));
    }
    router.add_sink("devices/+/telemetry", Arc::new(Nobody));
    router.add_sink("#", Arc::new(Nobody));
    let topics: Vec<_> = (0..256).map(|device| format!("devices/{device}/telemetry")).collect();
    let mut group = c.benchmark_group("route");
    group.throughput(Throughput::Elements(1));
    group.bench_function("search_among_100k_filters", |bench| {
        let mut at = 0;
        bench.iter(|| {
            at = (at + 1) % topics.len();
            black_box(router.find_route(&topics[at]))
        });
    });
    group.bench_function("cached_same_topic", |bench| {
        let mut cache = RouteCache::default();
        bench.iter(|| black_box(cache.route(&router, &topics[0])));
    });
    group.bench_function("cached_256_topics", |bench| {
        let mut cache = RouteCache::default();
        let mut at = 0;
        bench.iter(|| {
            at = (at + 1) % topics.len();
            black_box(cache.route(&router, &topics[at]))
        });
    });
    group.finish();
}

criterion_group!(benches, mailbox, routes);
criterion_main!(benches);
