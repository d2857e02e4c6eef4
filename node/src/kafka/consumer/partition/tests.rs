//! A partition between its three parties, without a broker.

use bytes::Bytes;
use causeway_protocol::kafka::batch::{BatchBuilder, BatchStamp, Compression, Record, batches};

use super::*;

const LIMITS: Limits = Limits { bytes: 1000, records: 100, batch_bytes: 1 << 20 };

fn at(offset: i64) -> Arc<Partition> {
    let position = Position { start: Start::At(offset), topic_id: [1; 16] };
    Partition::new(TopicPartition::new("t", 0), position, LIMITS, 500)
}

/// Puts in what was fetched for the question that is due.
fn put(partition: &Partition, batches: Vec<Batch>, next: i64) {
    let want = partition.wants().expect("there is room and an offset");
    partition.put(&want, batches, vec![], next);
}

fn partition() -> Arc<Partition> {
    at(0)
}

/// A batch of `count` records of about 100 bytes from `base_offset` on.
fn batch(base_offset: i64, count: usize) -> Batch {
    let mut builder = BatchBuilder::new();
    for _ in 0..count {
        builder.append(&Record { timestamp: 1, key: None, value: Some(&[7; 90]), headers: &[] });
    }
    let mut bytes = builder.seal(Compression::None, BatchStamp::NONE).unwrap().bytes().to_vec();
    // The base offset is not covered by the CRC: the broker fills it in.
    bytes[..8].copy_from_slice(&base_offset.to_be_bytes());
    batches(Bytes::from(bytes)).next().unwrap().unwrap()
}

/// Takes everything, keeps the tickets.
#[derive(Clone, Default)]
struct Keep(Arc<Mutex<Vec<(i64, Ticket)>>>);

impl PartitionSink for Keep {
    fn offer(&mut self, record: &ConsumedRecord<'_>, ticket: &Ticket, _wakes: &mut WakeList) -> Offer {
        self.0.lock().push((record.offset, ticket.clone()));
        Offer::Taken
    }
}

impl Keep {
    fn offsets(&self) -> Vec<i64> {
        self.0.lock().iter().map(|(offset, _)| *offset).collect()
    }

    fn finish_all(&self) {
        for (_, ticket) in self.0.lock().drain(..) {
            let range = SequenceRange { first: ticket.sequence, count: 1 };
            ticket.sink.acknowledge(&[range], Outcome::Success);
        }
    }

    async fn wait_for(&self, count: usize) {
        while self.0.lock().len() < count {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn a_full_partition_is_not_fetched_until_records_are_finished() {
    let partition = partition();
    let keep = Keep::default();
    let delivery = tokio::spawn(deliver(partition.clone(), Box::new(keep.clone())));
    let fetcher = Arc::new(Notify::new());
    partition.place(fetcher.clone(), 3);
    assert_eq!(
        partition.wants(),
        Some(Want { offset: 0, max_bytes: 500, leader_epoch: 3, topic_id: [1; 16], era: 0 })
    );
    put(&partition, vec![batch(0, 12)], 12);
    keep.wait_for(12).await;
    assert_eq!(partition.wants(), None, "over the limit of bytes");
    keep.finish_all();
    fetcher.notified().await;
    assert_eq!(partition.wants().map(|want| want.offset), Some(12));
    assert_eq!(partition.position(), 12);
    delivery.abort();
}

#[tokio::test]
async fn a_fetch_that_begins_inside_a_batch_skips_what_was_read_before() {
    let partition = at(5);
    let keep = Keep::default();
    let delivery = tokio::spawn(deliver(partition.clone(), Box::new(keep.clone())));
    put(&partition, vec![batch(0, 8)], 8);
    keep.wait_for(3).await;
    assert_eq!(keep.offsets(), [5, 6, 7]);
    delivery.abort();
}

#[tokio::test]
async fn when_kafka_lost_the_end_of_a_partition_reading_goes_back_and_room_is_not_lost() {
    let partition = at(50);
    put(&partition, vec![batch(50, 5)], 55);
    let keep = Keep::default();
    let delivery = tokio::spawn(deliver(partition.clone(), Box::new(keep.clone())));
    keep.wait_for(5).await;
    put(&partition, vec![batch(55, 5)], 60);
    partition.begin_at(20);
    put(&partition, vec![batch(20, 2)], 22);
    keep.wait_for(7).await;
    assert_eq!(keep.offsets()[5..], [20, 21], "what was fetched before is void");
    assert_eq!(partition.position(), 20);
    keep.finish_all();
    assert_eq!(partition.position(), 22);
    while partition.state.lock().chunk_bytes > 0 {
        tokio::task::yield_now().await;
    }
    delivery.abort();
}

#[test]
fn a_batch_that_does_not_fit_grows_the_fetch_up_to_its_limit_and_back() {
    let partition = partition();
    assert!(partition.grow(700, 4000));
    assert_eq!(partition.wants().map(|want| want.max_bytes), Some(1000));
    assert!(partition.grow(3000, 4000));
    assert!(partition.grow(9000, 4000));
    assert!(!partition.grow(9000, 4000), "no further");
    put(&partition, vec![], 1);
    assert_eq!(partition.wants().map(|want| want.max_bytes), Some(500));
}

#[tokio::test]
async fn a_topic_that_was_made_again_voids_what_was_read_of_the_former_one() {
    let partition = at(500);
    let keep = Keep::default();
    let delivery = tokio::spawn(deliver(partition.clone(), Box::new(keep.clone())));
    put(&partition, vec![batch(500, 2)], 502);
    keep.wait_for(2).await;
    let late = partition.wants().unwrap();
    assert_eq!(partition.to_commit(false), None);
    assert!(!partition.belongs_to([1; 16]) && !partition.belongs_to([0; 16]), "the same, or none told");
    assert!(partition.belongs_to([2; 16]));
    assert_eq!((partition.needs_offset(), partition.to_commit(false)), (Some(Start::Beginning), None));
    // What was asked of the former topic is answered, and its records are handed over: neither counts.
    assert!(!partition.expects(&late));
    partition.put(&late, vec![batch(502, 2)], vec![], 504);
    keep.finish_all();
    partition.note_committed(502, [1; 16]);
    assert_eq!((partition.to_commit(false), partition.outstanding()), (None, 0));
    partition.begin_at(0);
    assert_eq!(partition.to_commit(false), Some((0, [2; 16])));
    put(&partition, vec![batch(0, 3)], 3);
    keep.wait_for(3).await;
    assert_eq!(keep.offsets(), [0, 1, 2]);
    keep.finish_all();
    assert_eq!(partition.to_commit(false), Some((3, [2; 16])));
    partition.note_committed(3, [2; 16]);
    assert_eq!((partition.to_commit(false), partition.to_commit(true)), (None, Some((3, [2; 16]))));
    // An answer to the same offset of the former topic would not count either.
    let now = partition.wants().unwrap();
    assert!(!partition.expects(&Want { era: late.era, ..now }));
    delivery.abort();
}
