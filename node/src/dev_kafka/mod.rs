//! A small in-memory Kafka for development and tests. Not for production.
