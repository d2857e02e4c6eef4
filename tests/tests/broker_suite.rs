//! The broker suite on the development Kafka and on every release of Apache Kafka that is there: both have to
//! pass, which keeps the development Kafka honest.

use causeway_tests::broker_suite as suite;
use causeway_tests::on_every_kafka;

on_every_kafka! {
    fn an_unknown_version_of_api_versions_is_answered_in_version_0(target) {
        suite::an_unknown_version_of_api_versions_is_answered_in_version_0(&target.shared()?.bootstrap())
    }
    fn a_fetch_from_the_middle_of_a_batch_gets_it_whole(target) {
        suite::a_fetch_from_the_middle_of_a_batch_gets_it_whole(&target.shared()?.bootstrap())
    }
    fn a_long_poll_waits_and_an_append_wakes_it(target) {
        suite::a_long_poll_waits_and_an_append_wakes_it(&target.shared()?.bootstrap())
    }
    fn offsets_are_found_by_position_and_time(target) {
        suite::offsets_are_found_by_position_and_time(&target.shared()?.bootstrap())
    }
    fn log_append_time_is_the_brokers(target) {
        suite::log_append_time_is_the_brokers(&target.shared()?.bootstrap())
    }
    fn a_produce_without_acks_is_not_answered(target) {
        suite::a_produce_without_acks_is_not_answered(&target.shared()?.bootstrap())
    }
    fn a_bad_produce_is_refused_with_its_code(target) {
        suite::a_bad_produce_is_refused_with_its_code(&target.shared()?.bootstrap())
    }
    fn an_idempotent_producer_is_deduplicated_within_five_batches(target) {
        suite::an_idempotent_producer_is_deduplicated_within_five_batches(&target.shared()?.bootstrap())
    }
    fn a_group_rebalances_and_keeps_its_offsets(target) {
        suite::a_group_rebalances_and_keeps_its_offsets(&target.shared()?.bootstrap())
    }
    fn a_static_member_comes_back_without_a_rebalance(target) {
        suite::a_static_member_comes_back_without_a_rebalance(&target.shared()?.bootstrap())
    }
}
