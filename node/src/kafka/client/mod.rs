//! Connections to brokers, version negotiation, metadata.
