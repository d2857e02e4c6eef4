//! Enhanced authentication (MQTT-5.0 4.12): a conversation in AUTH packets, before CONNACK or again later.

use super::{Admitted, Refusal};

/// Where a conversation stands after what the client said.
pub enum Step {
    /// It goes on: this is to be sent, and the client's answer goes to [`Exchange::answer`].
    Continue(Exchange, Vec<u8>),
    /// The client is who it says, and gets this as the last word.
    Done(Admitted, Vec<u8>),
}

type Next = Box<dyn FnOnce(Option<&[u8]>) -> Result<Step, Refusal> + Send>;

/// A conversation that waits for the client.
pub struct Exchange {
    next: Next,
}

impl Exchange {
    /// A conversation whose next word goes to `next`.
    pub fn new(next: impl FnOnce(Option<&[u8]>) -> Result<Step, Refusal> + Send + 'static) -> Self {
        Self { next: Box::new(next) }
    }

    /// The client's next word.
    pub fn answer(self, data: Option<&[u8]>) -> Result<Step, Refusal> {
        (self.next)(data)
    }
}
