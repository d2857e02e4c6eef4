//! The login with Kerberos, step by step.

use libgssapi::context::{ClientCtx, CtxFlags, SecurityContext};
use libgssapi::name::Name;
use libgssapi::oid::{GSS_MECH_KRB5, GSS_NT_HOSTBASED_SERVICE};

use super::messages::explain;
use super::tickets::tickets;
use super::{KerberosLogin, SERVICE};
use crate::kafka::client::auth::Step;

/// The bit of "no security layer" in the broker's offer and in our choice (RFC 4752 section 3.3).
const NO_LAYER: u8 = 1;

/// Where a login stands.
pub(in crate::kafka::client) struct KerberosConversation {
    login: KerberosLogin,
    host: Box<str>,
    stage: Stage,
}

enum Stage {
    New,
    /// Both sides show who they are.
    Context(ClientCtx),
    /// They know each other; the broker is to say which security layers it offers.
    Layer(ClientCtx),
    /// All is said.
    Said,
}

impl KerberosConversation {
    /// A login at the broker on `host`, which must be the name in its principal.
    pub(in crate::kafka::client) fn new(login: &KerberosLogin, host: &str) -> Self {
        Self { login: login.clone(), host: host.into(), stage: Stage::New }
    }

    /// The next step after the broker's `challenge`. Asks the key distribution centre at the first one, so it
    /// may block for as long as that takes.
    pub(in crate::kafka::client) fn step(&mut self, challenge: &[u8]) -> Result<Step, String> {
        match std::mem::replace(&mut self.stage, Stage::Said) {
            Stage::New => {
                let context = self.context()?;
                self.exchange(context, None)
            }
            Stage::Context(context) => self.exchange(context, Some(challenge)),
            Stage::Layer(context) => choose_no_layer(context, challenge),
            Stage::Said if challenge.is_empty() => Ok(Step::Done),
            Stage::Said => Err(format!("unexpected challenge of {} bytes", challenge.len())),
        }
    }

    fn context(&self) -> Result<ClientCtx, String> {
        let tickets = tickets(&self.login, &self.host)?;
        let target = Name::new(format!("{SERVICE}@{}", self.host).as_bytes(), Some(GSS_NT_HOSTBASED_SERVICE))
            .map_err(|error| format!("{}: not a host that Kerberos takes: {error}", self.host))?;
        let flags = CtxFlags::GSS_C_MUTUAL_FLAG | CtxFlags::GSS_C_INTEG_FLAG;
        Ok(ClientCtx::new(Some(tickets), target, flags, Some(GSS_MECH_KRB5)))
    }

    fn exchange(&mut self, mut context: ClientCtx, challenge: Option<&[u8]>) -> Result<Step, String> {
        let token = context.step(challenge, None).map_err(|error| explain(error, &self.login, &self.host))?;
        self.stage = if context.is_complete() { Stage::Layer(context) } else { Stage::Context(context) };
        // Where nothing is left to say for us, the broker waits for an empty answer.
        Ok(Step::Send(token.map(|token| token.to_vec()).unwrap_or_default()))
    }
}

/// RFC 4752 section 3.1: the broker's offer is a byte of layers and three of sizes; the answer chooses.
fn choose_no_layer(mut context: ClientCtx, challenge: &[u8]) -> Result<Step, String> {
    let offer = context.unwrap(challenge).map_err(|error| format!("the broker's offer: {error}"))?;
    match *offer {
        [layers, _, _, _] if layers & NO_LAYER != 0 => {}
        [_, _, _, _] => {
            return Err(
                "the broker insists on a security layer of Kerberos; use TLS, and allow sasl.qop=auth there"
                    .to_owned(),
            );
        }
        ref other => return Err(format!("the broker's offer has {} bytes instead of 4", other.len())),
    }
    // No size, and no identity but the ticket's.
    let choice = context.wrap(false, &[NO_LAYER, 0, 0, 0]).map_err(|error| error.to_string())?;
    Ok(Step::Send(choice.to_vec()))
}
