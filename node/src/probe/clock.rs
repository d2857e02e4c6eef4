//! This node's clock against Kafka's: a topic refuses timestamps that are too far from the time of its
//! broker.
//!
//! The Kafka protocol has no request for the time. What comes closest without writing anything is
//! DescribeQuorum (KIP-836): the leader of the controllers names the time at which it answers as its own last
//! fetch. It is asked for from Kafka 3.3 on, without ZooKeeper, and needs Describe on the cluster. Brokers
//! whose clock differs from their controller's are not found like this.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_quorum_request::{PartitionData, TopicData};
use kafka_protocol::messages::{DescribeQuorumRequest, DescribeQuorumResponse, TopicName};
use kafka_protocol::protocol::StrBytes;

use super::Notes;
use crate::kafka::client::BrokerConnection;

const STEP: &str = "clock";
/// A shorter difference is worth no word.
const SMALL: i64 = 60_000;
/// Milliseconds in the future that a topic takes by default since Kafka 4.
const REFUSED: i64 = 3_600_000;
/// An answer that takes longer tells too little.
const PATIENCE: Duration = Duration::from_secs(5);

fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

/// Compares the clocks, where Kafka tells its own.
pub(super) async fn compare(name: &str, broker: &BrokerConnection, notes: &Notes) {
    let partition = PartitionData::default().with_partition_index(0);
    let topic = TopicData::default()
        .with_topic_name(TopicName(StrBytes::from_static_str("__cluster_metadata")))
        .with_partitions(vec![partition]);
    let request = DescribeQuorumRequest::default().with_topics(vec![topic]);
    let before = now_ms();
    let answer = tokio::time::timeout(PATIENCE, broker.call(&request)).await;
    let after = now_ms();
    let told = match answer {
        Ok(Ok(answer)) => time(&answer),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {PATIENCE:?}")),
    };
    match told {
        Ok(theirs) => judge(name, difference(before, after, theirs), notes),
        Err(why) => notes.ok(STEP, name, format!("not compared, Kafka does not tell its time: {why}")),
    }
}

/// The time at which the leader of the controllers answered.
fn time(answer: &DescribeQuorumResponse) -> Result<i64, String> {
    let partition = answer.topics.first().and_then(|topic| topic.partitions.first());
    let code = partition.map_or(answer.error_code, |partition| answer.error_code.max(partition.error_code));
    match ResponseError::try_from_code(code) {
        Some(ResponseError::ClusterAuthorizationFailed) => {
            return Err("our user may not ask (Describe on the cluster)".to_owned());
        }
        Some(code) => return Err(format!("Kafka answered {code}")),
        None => {}
    }
    let leader = partition.and_then(|partition| {
        partition.current_voters.iter().find(|voter| voter.replica_id == partition.leader_id)
    });
    let time = leader.map(|leader| leader.last_fetch_timestamp).filter(|time| *time > 0);
    time.ok_or_else(|| "it needs Kafka 3.3 or newer, without ZooKeeper".to_owned())
}

/// By how many milliseconds this node is ahead at least: theirs was read between `before` and `after`.
fn difference(before: i64, after: i64, theirs: i64) -> i64 {
    theirs.clamp(before, after).saturating_sub(theirs)
}

fn judge(name: &str, ahead: i64, notes: &Notes) {
    let seconds = ahead.unsigned_abs().div_ceil(1000);
    let side = if ahead > 0 { "ahead of" } else { "behind" };
    let found = format!("the clock of this machine is {seconds} s {side} that of Kafka's controller");
    let fix = "set the clocks right (NTP, chrony) on this machine and on the brokers";
    if ahead > REFUSED {
        let found = format!("{found}: Kafka 4 refuses records with the time of arrival as timestamp");
        notes.fail(STEP, name, found, fix);
    } else if ahead.abs() > SMALL {
        notes.warn(STEP, name, found, fix);
    } else {
        notes.ok(STEP, name, "it agrees with that of Kafka's controller within a minute");
    }
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::describe_quorum_response::{PartitionData, ReplicaState, TopicData};

    use super::super::Verdict;
    use super::*;

    fn answer(code: i16, time: i64) -> DescribeQuorumResponse {
        let voter = |id: i32, time| {
            ReplicaState::default().with_replica_id(id.into()).with_last_fetch_timestamp(time)
        };
        let partition = PartitionData::default()
            .with_error_code(code)
            .with_leader_id(2.into())
            .with_current_voters(vec![voter(1, 5), voter(2, time)]);
        let topic = TopicData::default().with_partitions(vec![partition]);
        DescribeQuorumResponse::default().with_topics(vec![topic])
    }

    #[test]
    fn the_time_is_that_of_the_leading_controller_where_it_tells_it() {
        assert_eq!(time(&answer(0, 77)), Ok(77));
        assert!(time(&answer(0, -1)).unwrap_err().contains("3.3"));
        assert!(time(&answer(31, 77)).unwrap_err().contains("may not ask"));
        assert!(time(&DescribeQuorumResponse::default()).is_err());
    }

    #[test]
    fn the_time_of_the_journey_is_no_difference() {
        assert_eq!(difference(1000, 1500, 1200), 0);
        assert_eq!(difference(1000, 1500, 900), 100);
        assert_eq!(difference(1000, 1500, 1700), -200);
    }

    #[test]
    fn a_clock_that_kafka_4_would_refuse_fails() {
        for (ahead, verdict, words) in [
            (900, Verdict::Ok, "agrees"),
            (-120_000, Verdict::Warn, "120 s behind"),
            (120_000, Verdict::Warn, "120 s ahead"),
            (2 * REFUSED, Verdict::Fail, "7200 s ahead"),
            (-2 * REFUSED, Verdict::Warn, "7200 s behind"),
        ] {
            let notes = Notes::default();
            judge("out", ahead, &notes);
            let step = notes.0.lock().pop().unwrap();
            assert_eq!(step.verdict, verdict, "{ahead}");
            assert!(step.found.contains(words), "{}", step.found);
        }
    }
}
