//! Kafka record batches, framing and partitioners.
