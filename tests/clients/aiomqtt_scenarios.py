"""Scenarios of MQTT with aiomqtt: aiomqtt_scenarios.py PORT VERSION (4 or 5). Prints `ok NAME` for each."""

import asyncio
import sys

import aiomqtt

PORT, VERSION = int(sys.argv[1]), int(sys.argv[2])
PROTOCOL = aiomqtt.ProtocolVersion.V5 if VERSION == 5 else aiomqtt.ProtocolVersion.V311


def topic(name):
    return f"aiomqtt{VERSION}/{name}"


def client(name, **more):
    return aiomqtt.Client("127.0.0.1", PORT, identifier=f"aiomqtt{VERSION}-{name}", protocol=PROTOCOL, **more)


async def messages(device, count):
    got = []
    async for message in device.messages:
        got.append(message)
        if len(got) == count:
            return got


async def qos_both_ways():
    async with client("sub") as sub, client("pub") as pub:
        await sub.subscribe(topic("qos"), qos=2)
        for qos in (0, 1, 2):
            await asyncio.gather(*(pub.publish(topic("qos"), f"{qos} {n}", qos=qos) for n in range(100)))
        got = await messages(sub, 300)
        for qos in (0, 1, 2):
            texts = [message.payload.decode() for message in got if message.qos == qos]
            assert texts == [f"{qos} {n}" for n in range(100)], texts[:5]


async def will():
    async with client("watcher") as watcher:
        await watcher.subscribe(topic("will"), qos=1)
        device = client("dying", will=aiomqtt.Will(topic("will"), b"gone", qos=1))
        await device.__aenter__()
        device._client._sock_close()
        [message] = await messages(watcher, 1)
        assert message.payload == b"gone"


async def many_at_once():
    async def one(number):
        async with client(f"many{number}") as device:
            await device.subscribe(topic(f"many/{number}"), qos=1)
            await device.publish(topic(f"many/{number}"), str(number), qos=1)
            [message] = await messages(device, 1)
            assert message.payload == str(number).encode()

    await asyncio.gather(*(one(number) for number in range(50)))


async def main():
    for scenario in (qos_both_ways, will, many_at_once):
        await asyncio.wait_for(scenario(), 30)
        print("ok", scenario.__name__, flush=True)
    print("all done", flush=True)


asyncio.run(main())
