//! Operations on a running node: what an operator may ask of it, whichever way the question comes.
//!
//! [`NodeAdmin`] implements them over the node's parts. The admin link ([`crate::admin`]) is one way to reach
//! them.

mod bridges;
mod node;

pub use node::NodeAdmin;
