//! `causeway dev`: everything in one process, and the try-it clients.

pub mod clients;
