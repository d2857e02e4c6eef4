//! Sessions between connections: resumed, taken over, expired, each with its will.

use causeway_protocol::mqtt::{PublishProperties, QoS, SubscriptionOptions, Will as WillPacket};
use parking_lot::Mutex;

use super::*;
use crate::{
    flow::{Accepted, Message, MessageSink, Origin, Ticket},
    mqtt::{
        publication::{Delivery, tests::publication},
        retained::RetainedLimits,
        store::double::Disk,
    },
};

#[derive(Default)]
struct Wills(Mutex<Vec<String>>);

impl MessageSink for Wills {
    fn accept(&self, message: &Message<'_>, _: Option<&Ticket>, _: &mut WakeList) -> Accepted {
        self.0.lock().push(message.topic.to_owned());
        Accepted::Done(crate::flow::Outcome::Success)
    }
}

struct World {
    keeper: Arc<Keeper>,
    router: Arc<Router>,
    wills: Arc<Wills>,
}

fn world() -> World {
    let router = Router::new(RetainedLimits::default());
    let wills = Arc::new(Wills::default());
    router.add_sink("#", wills.clone());
    let keeper =
        Keeper::new(router.clone(), Capacity { bytes: 1 << 20, items: 100 }, QueueFull::DropNewest, 3);
    World { keeper, router, wills }
}

fn granted(claim: Claim) -> Granted {
    match claim {
        Claim::Granted(granted) => granted,
        Claim::Wait(_) | Claim::Refused | Claim::NotYours => panic!("the session is free"),
    }
}

fn will(topic: &str, delay_interval: u32) -> Will {
    let origin = Arc::new(Origin { client_id: "c".into(), username: None, peer: None });
    let packet = WillPacket {
        topic,
        payload: b"gone",
        qos: QoS::AtLeastOnce,
        retain: false,
        delay_interval,
        properties: PublishProperties::default(),
    };
    Will::new(&packet, &origin, crate::mqtt::memory::MemoryCounter::new(u64::MAX))
}

fn leave(mut lease: Lease, seconds: u64, will: Option<Will>) {
    let expiry = (seconds > 0).then(|| Duration::from_secs(seconds));
    *lease.ending() = Ending { expiry, will: will.map(Box::new) };
}

impl World {
    fn wills(&self) -> Vec<String> {
        std::mem::take(&mut *self.wills.0.lock())
    }

    fn claim(&self, client_id: &str, clean_start: bool) -> Claim {
        self.claim_as(None, client_id, clean_start)
    }

    fn claim_as(&self, username: Option<&str>, client_id: &str, clean_start: bool) -> Claim {
        self.keeper.claim(&Claimed { client_id, username, known: true, clean_start, lasts: true })
    }

    fn subscribe(&self, lease: &mut Lease) {
        let session = lease.session().unwrap();
        session.filters.insert("t".into());
        self.router.subscribe(&session.inbox, "t", SubscriptionOptions::default(), None);
    }
}

#[tokio::test]
async fn a_session_outlives_its_connection_until_it_expires() {
    let world = world();
    let mut first = granted(world.claim("c", false));
    assert!(!first.present);
    world.subscribe(&mut first.lease);
    leave(first.lease, 60, None);
    let second = granted(world.claim("c", false));
    assert!(second.present);
    leave(second.lease, 60, None);
    let now = Instant::now();
    world.keeper.expire(now + Duration::from_secs(50));
    assert_eq!(world.router.find_route("t").subscribers(), 1);
    world.keeper.expire(now + Duration::from_secs(61));
    assert_eq!(world.router.find_route("t").subscribers(), 0);
    let stats = world.router.stats().snapshot();
    assert_eq!((stats.sessions, stats.sessions_expired, stats.sessions_resumed), (0, 1, 1));
    assert!(!granted(world.claim("c", false)).present);
}

#[tokio::test]
async fn a_session_without_expiry_ends_with_its_connection() {
    let world = world();
    let mut first = granted(world.claim("c", true));
    world.subscribe(&mut first.lease);
    leave(first.lease, 0, Some(will("w", 10)));
    assert_eq!(world.wills(), ["w"], "the end of the session publishes a delayed will");
    assert_eq!(world.router.stats().snapshot().sessions, 0);
    assert_eq!(world.router.stats().snapshot().subscriptions, 0);
}

#[tokio::test]
async fn a_clean_start_ends_the_session_before_it() {
    let world = world();
    let mut first = granted(world.claim("c", false));
    world.subscribe(&mut first.lease);
    leave(first.lease, 60, Some(will("w", 10)));
    assert!(world.wills().is_empty());
    let second = granted(world.claim("c", true));
    assert!(!second.present);
    assert_eq!(world.wills(), ["w"]);
    assert_eq!(world.router.find_route("t").subscribers(), 0);
}

#[tokio::test]
async fn a_delayed_will_is_published_when_its_time_comes_and_not_when_the_client_is_back() {
    let world = world();
    let first = granted(world.claim("c", false));
    leave(first.lease, 60, Some(will("w", 10)));
    drop(granted(world.claim("c", false)));
    world.keeper.expire(Instant::now() + Duration::from_secs(11));
    assert!(world.wills().is_empty());
    leave(granted(world.claim("c", false)).lease, 60, Some(will("w", 10)));
    world.keeper.expire(Instant::now() + Duration::from_secs(9));
    assert!(world.wills().is_empty());
    world.keeper.expire(Instant::now() + Duration::from_secs(11));
    assert_eq!(world.wills(), ["w"]);
    world.keeper.expire(Instant::now() + Duration::from_secs(100));
    assert!(world.wills().is_empty());
}

#[tokio::test]
async fn the_end_of_a_session_publishes_its_will_before_the_delay_is_over() {
    let world = world();
    leave(granted(world.claim("c", false)).lease, 10, Some(will("w", 60)));
    world.keeper.expire(Instant::now() + Duration::from_secs(11));
    assert_eq!(world.wills(), ["w"]);
    assert!(world.keeper.state.lock().deadlines.is_empty());
}

#[tokio::test]
async fn one_who_takes_over_gets_the_session_when_the_other_lets_go() {
    let world = world();
    let mut first = granted(world.claim("c", false)).lease;
    let inbox = first.session().unwrap().inbox.clone();
    inbox.attach();
    let Claim::Wait(answer) = world.claim("c", false) else { panic!("the session is taken") };
    let mut told = inbox.take();
    assert!(matches!(
        told.make_contiguous(),
        [super::super::inbox::Mail::Close(ReasonCode::SessionTakenOver)]
    ));
    leave(first, 60, Some(will("w", 0)));
    let second = answer.await.expect("the session");
    assert!(second.present);
    assert_eq!(world.wills(), ["w"], "the network connection of the first was closed");
}

#[tokio::test]
async fn a_third_claim_beats_the_second() {
    let world = world();
    let first = granted(world.claim("c", false)).lease;
    let Claim::Wait(second) = world.claim("c", false) else { panic!("the session is taken") };
    let Claim::Wait(third) = world.claim("c", true) else { panic!("the session is taken") };
    leave(first, 60, None);
    assert!(second.await.is_err());
    assert!(!third.await.expect("a session").present, "it asked for a clean start");
    assert_eq!(world.router.stats().snapshot().sessions, 0, "and ended with its lease");
}

#[tokio::test]
async fn a_claimant_that_has_gone_loses_nothing() {
    let world = world();
    let first = granted(world.claim("c", false)).lease;
    let Claim::Wait(second) = world.claim("c", false) else { panic!("the session is taken") };
    drop(second);
    leave(first, 60, None);
    assert!(granted(world.claim("c", false)).present);
}

#[tokio::test]
async fn sessions_are_bounded() {
    let world = world();
    let leases: Vec<_> = ["a", "b", "c"].map(|id| granted(world.claim(id, true))).into_iter().collect();
    assert!(matches!(world.claim("d", true), Claim::Refused));
    assert!(matches!(world.claim("a", true), Claim::Wait(_)));
    drop(leases);
    drop(granted(world.claim("d", true)));
}

#[tokio::test]
async fn a_session_is_its_users_alone() {
    let world = world();
    // Nobody's at first: the first user that comes has it.
    leave(granted(world.claim("c", false)).lease, 60, None);
    let first = granted(world.claim_as(Some("ann"), "c", false));
    assert!(first.present);
    for clean_start in [false, true] {
        for other in [Some("eve"), None] {
            assert!(matches!(world.claim_as(other, "c", clean_start), Claim::NotYours), "{other:?}");
        }
    }
    leave(first.lease, 60, None);
    for clean_start in [false, true] {
        for other in [Some("eve"), None] {
            assert!(matches!(world.claim_as(other, "c", clean_start), Claim::NotYours), "{other:?}");
        }
    }
    // Where names are claims, everybody is taken at its word.
    let unknown =
        Claimed { client_id: "c", username: Some("eve"), known: false, clean_start: false, lasts: true };
    let resumed = granted(world.keeper.claim(&unknown));
    assert!(resumed.present);
    leave(resumed.lease, 0, None);
    assert!(!granted(world.claim_as(Some("eve"), "c", false)).present);
    assert_eq!(world.router.stats().snapshot().sessions_denied, 8);
}

#[tokio::test]
async fn who_takes_over_in_line_owns_what_it_gets() {
    let world = world();
    let first = granted(world.claim("c", false)).lease;
    let Claim::Wait(second) = world.claim_as(Some("ann"), "c", true) else { panic!("the session is taken") };
    leave(first, 60, None);
    let second = second.await.expect("a session");
    assert!(!second.present);
    assert!(matches!(world.claim_as(Some("eve"), "c", false), Claim::NotYours));
    drop(second);
}

/// A keeper with what is on `disk`.
fn stored(disk: &Disk) -> (Arc<Store>, World) {
    let world = world();
    let (store, loaded) = disk.open(world.router.memory(), world.router.stats().clone()).unwrap();
    world.router.use_store(&store, loaded.retained, clock::steady_now());
    world.keeper.restore(&store, loaded.sessions);
    (store, world)
}

/// Leaves a stored session behind whose queue holds a message.
fn leave_a_queue(disk: &Disk) {
    let (store, world) = stored(disk);
    let mut lease = granted(world.claim("c", false)).lease;
    let inbox = lease.session().unwrap().inbox.clone();
    inbox.record(Some(Duration::from_mins(1)), Presence::Connected, None);
    leave(lease, 60, None);
    inbox.offer(Delivery::new(Arc::new(publication("t", b"x", QoS::ExactlyOnce, false)), QoS::ExactlyOnce));
    store.close_and_wait();
}

/// Messages in the queue of the session that the client finds; none where it finds no session.
fn found(disk: &Disk) -> Option<usize> {
    let (store, world) = stored(disk);
    let mut granted = granted(world.claim("c", false));
    let queued = granted.lease.session().unwrap().inbox.filling().queued.items;
    store.close_and_wait();
    granted.present.then_some(queued)
}

fn until(what: &str, mut met: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !met() {
        assert!(begun.elapsed() < Duration::from_secs(30), "never: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_clean_start_is_granted_when_the_end_of_the_stored_session_is_on_the_disk() {
    for seed in 0..20 {
        let disk = Disk::default();
        leave_a_queue(&disk);
        assert_eq!(found(&disk), Some(1));
        // The writer cannot write: the client hears nothing, and a crash leaves the session as it was.
        let (store, world) = stored(&disk);
        disk.set_full(true);
        let Claim::Wait(mut answer) = world.claim("c", true) else {
            panic!("granted before the disk has it")
        };
        until("the writer has tried", || world.router.stats().snapshot().store_retries > 0);
        assert!(answer.try_recv().is_err(), "granted before the disk has it");
        disk.set_full(false);
        disk.die_in(0);
        drop(answer);
        until("the store has failed", || store.has_failed());
        store.close_and_wait();
        disk.restart(seed);
        assert_eq!(found(&disk), Some(1), "seed {seed}");

        // It can: once the client is told, no crash brings the session back.
        let (store, world) = stored(&disk);
        let Claim::Wait(answer) = world.claim("c", true) else { panic!("granted before the disk has it") };
        let granted = answer.blocking_recv().unwrap();
        assert!(!granted.present);
        disk.die_in(0);
        drop(granted);
        store.close_and_wait();
        disk.restart(seed);
        assert_eq!(found(&disk), None, "seed {seed}");
    }
}

#[test]
fn a_takeover_with_a_clean_start_waits_for_the_disk_as_well() {
    let disk = Disk::default();
    leave_a_queue(&disk);
    let (store, world) = stored(&disk);
    let first = granted(world.claim("c", false));
    assert!(first.present);
    let Claim::Wait(answer) = world.claim("c", true) else { panic!("the session is taken") };
    leave(first.lease, 60, None);
    assert!(!answer.blocking_recv().unwrap().present);
    disk.die_in(0);
    store.close_and_wait();
    disk.restart(1);
    assert_eq!(found(&disk), None);
}

#[test]
fn a_clean_start_is_granted_also_when_the_store_has_failed() {
    let disk = Disk::default();
    leave_a_queue(&disk);
    let (store, world) = stored(&disk);
    disk.fail_syncs();
    let Claim::Wait(answer) = world.claim("c", true) else { panic!("granted before the disk has it") };
    assert!(!answer.blocking_recv().unwrap().present);
    until("the store has failed", || store.has_failed());
    // What comes later need not wait for a disk that is not there.
    let claimed = Claimed { client_id: "d", username: None, known: true, clean_start: true, lasts: false };
    assert!(!granted(world.keeper.claim(&claimed)).present);
    store.close_and_wait();
}
