"""Scenarios of MQTT with paho-mqtt: paho_scenarios.py PORT VERSION (4 or 5). Prints `ok NAME` for each."""

import queue
import socket
import sys

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

PORT, VERSION = int(sys.argv[1]), int(sys.argv[2])
V5 = VERSION == 5
SOON = 20


class Device:
    """A client whose events can be waited for."""

    def __init__(self, name, clean=True, will=None):
        self.messages, self.connected, self.disconnected = queue.Queue(), queue.Queue(), queue.Queue()
        self.acked = queue.Queue()
        more = {} if V5 else {"clean_session": clean}
        self.client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2,
            client_id=f"paho{VERSION}-{name}",
            protocol=mqtt.MQTTv5 if V5 else mqtt.MQTTv311,
            **more,
        )
        self.aliases = {}
        self.client.on_message = lambda _c, _u, message: self.messages.put(self.named(message))
        self.client.on_connect = lambda _c, _u, flags, reason, props: self.connected.put((flags, reason, props))
        self.client.on_disconnect = lambda _c, _u, _f, reason, _p: self.disconnected.put(reason)
        self.client.on_subscribe = lambda _c, _u, _m, reasons, _p: self.acked.put(reasons)
        self.client.on_unsubscribe = lambda _c, _u, _m, reasons, _p: self.acked.put(reasons)
        if will:
            self.client.will_set(*will)
        properties = None
        if V5:
            properties = Properties(PacketTypes.CONNECT)
            if not clean:
                properties.SessionExpiryInterval = 300
            properties.TopicAliasMaximum = 5
        start = {"clean_start": clean, "properties": properties} if V5 else {}
        self.client.reconnect_delay_set(60, 60)
        self.client.connect("127.0.0.1", PORT, keepalive=30, **start)
        self.client.loop_start()
        self.flags, reason, self.properties = self.connected.get(timeout=SOON)
        assert reason == 0, reason

    def named(self, message):
        """paho leaves topic aliases to its user."""
        alias = getattr(message.properties, "TopicAlias", None) if V5 else None
        if alias and message.topic:
            self.aliases[alias] = message.topic
        elif alias:
            message.topic = self.aliases[alias].encode()
        return message

    def subscribe(self, *args, **more):
        result, _ = self.client.subscribe(*args, **more)
        assert result == 0
        reasons = self.acked.get(timeout=SOON)
        assert all(not reason.is_failure for reason in reasons), reasons
        return reasons

    def publish(self, *args, **more):
        self.client.publish(*args, **more).wait_for_publish(SOON)

    def next(self):
        return self.messages.get(timeout=SOON)

    def nothing(self, topic):
        """Nothing is on its way: a marker comes next."""
        self.publish(topic, b"marker", qos=1)
        message = self.next()
        assert message.payload == b"marker", (message.topic, message.payload[:50])

    def end(self):
        self.client.disconnect()
        self.client.loop_stop()

    def vanish(self):
        # Without DISCONNECT.
        self.client.loop_stop()
        self.client.socket().shutdown(socket.SHUT_RDWR)


def topic(name):
    return f"paho{VERSION}/{name}"


def qos_both_ways():
    sub, pub = Device("qos-sub"), Device("qos-pub")
    sub.subscribe(topic("qos"), 2)
    for qos in (0, 1, 2):
        for n in range(200):
            pub.client.publish(topic("qos"), f"{qos} {n}", qos=qos)
        for n in range(200):
            message = sub.next()
            assert (message.payload, message.qos) == (f"{qos} {n}".encode(), qos), (message.payload, message.qos)
    sub.nothing(topic("qos"))
    sub.end(), pub.end()


def retained():
    pub = Device("retained-pub")
    pub.publish(topic("retained"), b"kept", qos=1, retain=True)
    sub = Device("retained-sub")
    sub.subscribe(topic("retained"), 1)
    message = sub.next()
    assert message.retain and message.payload == b"kept"
    pub.publish(topic("retained"), b"", qos=1, retain=True)
    assert sub.next().payload == b""
    late = Device("retained-late")
    late.subscribe(topic("retained"), 1)
    late.nothing(topic("retained"))
    for device in (pub, sub, late):
        device.end()


def will():
    watcher = Device("will-watcher")
    watcher.subscribe(topic("will"), 1)
    Device("will-good", will=(topic("will"), b"good", 1)).end()
    Device("will-bad", will=(topic("will"), b"bad", 1)).vanish()
    assert watcher.next().payload == b"bad"
    watcher.nothing(topic("will"))
    watcher.end()


def session():
    device = Device("session", clean=False)
    assert not device.flags.session_present
    device.subscribe(topic("session"), 2)
    device.end()
    pub = Device("session-pub")
    for n in range(100):
        pub.publish(topic("session"), str(n), qos=1 + n % 2)
    again = Device("session", clean=False)
    assert again.flags.session_present
    # paho hands a QoS 2 message on when it is released: each QoS has its own order.
    got = {1: [], 2: []}
    for _ in range(100):
        message = again.next()
        assert not message.dup
        got[message.qos].append(int(message.payload))
    assert got == {1: list(range(0, 100, 2)), 2: list(range(1, 100, 2))}, got
    again.nothing(topic("session"))
    again.end()
    clean = Device("session")
    assert not clean.flags.session_present
    clean.end(), pub.end()


def takeover():
    first = Device("takeover")
    second = Device("takeover")
    reason = first.disconnected.get(timeout=SOON)
    assert not V5 or reason.value == 0x8E, reason
    second.subscribe(topic("takeover"), 1)
    second.nothing(topic("takeover"))
    first.client.loop_stop()
    second.end()


def large():
    sub, pub = Device("large-sub"), Device("large-pub")
    sub.subscribe(topic("large"), 2)
    for qos in (0, 1, 2):
        payload = bytes(range(256)) * 3600
        pub.publish(topic("large"), payload, qos=qos)
        assert sub.next().payload == payload
    sub.end(), pub.end()


def many_subscriptions():
    device, pub = Device("many"), Device("many-pub")
    for start in range(0, 2000, 500):
        device.subscribe([(topic(f"many/{n}"), 1) for n in range(start, start + 500)])
    for n in (0, 499, 500, 1999):
        pub.publish(topic(f"many/{n}"), str(n), qos=1)
        assert device.next().topic == topic(f"many/{n}")
    device.client.unsubscribe([topic(f"many/{n}") for n in range(1999)])
    device.acked.get(timeout=SOON)
    pub.publish(topic("many/0"), b"gone", qos=1)
    pub.publish(topic("many/1999"), b"left", qos=1)
    assert device.next().payload == b"left"
    device.end(), pub.end()


def properties():
    sub, pub = Device("properties-sub"), Device("properties-pub")
    assert sub.properties.ReceiveMaximum > 0 and sub.properties.TopicAliasMaximum > 0
    identifier = Properties(PacketTypes.SUBSCRIBE)
    identifier.SubscriptionIdentifier = 4711
    options = SubscribeOptions(qos=1, retainAsPublished=True)
    sub.subscribe(topic("properties/#"), options=options, properties=identifier)
    sent = Properties(PacketTypes.PUBLISH)
    sent.ContentType, sent.ResponseTopic, sent.CorrelationData = "text/plain", "answers", b"\x00\x01"
    sent.PayloadFormatIndicator, sent.MessageExpiryInterval = 1, 1000
    sent.UserProperty = [("b", "1"), ("a", "2"), ("b", "1")]
    pub.publish(topic("properties/x"), "text", qos=1, retain=True, properties=sent)
    got = sub.next()
    assert got.retain, "retain as published"
    props = got.properties
    assert (props.ContentType, props.ResponseTopic, props.CorrelationData) == ("text/plain", "answers", b"\x00\x01")
    assert props.PayloadFormatIndicator == 1 and 990 <= props.MessageExpiryInterval <= 1000
    assert props.UserProperty == [("b", "1"), ("a", "2"), ("b", "1")], props.UserProperty
    assert props.SubscriptionIdentifier == [4711], props.SubscriptionIdentifier
    alias = Properties(PacketTypes.PUBLISH)
    alias.TopicAlias = 1
    pub.publish(topic("properties/alias"), "set", qos=1, properties=alias)
    pub.publish("", "used", qos=1, properties=alias)
    for payload in (b"set", b"used"):
        message = sub.next()
        assert (message.topic, message.payload) == (topic("properties/alias"), payload)
    own = Device("properties-own")
    own.subscribe(topic("own"), options=SubscribeOptions(qos=1, noLocal=True))
    own.publish(topic("own"), "mine", qos=1)
    pub.publish(topic("own"), "theirs", qos=1)
    assert own.next().payload == b"theirs"
    pub.publish(topic("properties/x"), b"", qos=1, retain=True)
    for device in (sub, pub, own):
        device.end()


scenarios = [qos_both_ways, retained, will, session, takeover, large, many_subscriptions]
for scenario in scenarios + ([properties] if V5 else []):
    scenario()
    print("ok", scenario.__name__, flush=True)
print("all done", flush=True)
