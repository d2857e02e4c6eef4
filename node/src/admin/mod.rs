//! The admin link: RPC server and client.
