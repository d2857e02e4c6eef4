// Scenarios of MQTT with mqtt.js: node mqttjs_scenarios.js MODULE PORT VERSION (4 or 5). Prints `ok NAME` for each.
const [, , module_, port, versionText] = process.argv
const mqtt = require(module_)
const version = Number(versionText)
const assert = require('node:assert')

const topic = (name) => `mqttjs${version}/${name}`
const devices = []

async function device (name, more = {}) {
  const client = mqtt.connect(`mqtt://127.0.0.1:${port}`, {
    protocolVersion: version, clientId: `mqttjs${version}-${name}`, reconnectPeriod: 0, ...more
  })
  devices.push(client)
  const queue = []
  let wake = () => {}
  client.on('message', (topic, payload, packet) => { queue.push({ topic, payload, packet }); wake() })
  // Listening first: what waited for the session comes right behind the CONNACK.
  await new Promise((resolve, reject) => { client.once('connect', resolve); client.once('error', reject) })
  client.next = async () => {
    const late = Date.now() + 20000
    while (queue.length === 0) {
      assert(Date.now() < late, `${name} got nothing`)
      await new Promise((resolve) => { wake = resolve; setTimeout(resolve, 500) })
    }
    return queue.shift()
  }
  return client
}

const scenarios = {
  async qosBothWays () {
    const [sub, pub] = [await device('sub'), await device('pub')]
    await sub.subscribeAsync(topic('qos'), { qos: 2 })
    for (const qos of [0, 1, 2]) {
      for (let n = 0; n < 100; n++) pub.publish(topic('qos'), `${qos} ${n}`, { qos })
      for (let n = 0; n < 100; n++) {
        const { payload, packet } = await sub.next()
        assert.deepStrictEqual([payload.toString(), packet.qos], [`${qos} ${n}`, qos])
      }
    }
  },
  async retained () {
    const pub = await device('retained-pub')
    await pub.publishAsync(topic('retained'), 'kept', { qos: 1, retain: true })
    const sub = await device('retained-sub')
    await sub.subscribeAsync(topic('retained'), { qos: 1 })
    const { payload, packet } = await sub.next()
    assert(packet.retain && payload.toString() === 'kept')
    await pub.publishAsync(topic('retained'), '', { qos: 1, retain: true })
  },
  async will () {
    const watcher = await device('watcher')
    await watcher.subscribeAsync(topic('will'), { qos: 1 })
    const dying = await device('dying', { will: { topic: topic('will'), payload: Buffer.from('gone'), qos: 1 } })
    dying.stream.destroy()
    assert.strictEqual((await watcher.next()).payload.toString(), 'gone')
  },
  async session () {
    const keep = { clean: false, properties: version === 5 ? { sessionExpiryInterval: 300 } : undefined }
    const first = await device('session', keep)
    await first.subscribeAsync(topic('session'), { qos: 1 })
    await first.endAsync()
    const pub = await device('session-pub')
    for (let n = 0; n < 20; n++) await pub.publishAsync(topic('session'), `${n}`, { qos: 1 })
    const again = await device('session', keep)
    for (let n = 0; n < 20; n++) assert.strictEqual((await again.next()).payload.toString(), `${n}`)
  },
  async takeover () {
    const first = await device('takeover')
    const closed = new Promise((resolve) => first.on('close', resolve))
    const reason = new Promise((resolve) => first.on('disconnect', (packet) => resolve(packet.reasonCode)))
    await device('takeover')
    await closed
    if (version === 5) assert.strictEqual(await reason, 0x8E)
  },
  async large () {
    const [sub, pub] = [await device('large-sub'), await device('large-pub')]
    await sub.subscribeAsync(topic('large'), { qos: 2 })
    const payload = Buffer.alloc(900000, 'abc')
    await pub.publishAsync(topic('large'), payload, { qos: 2 })
    assert(payload.equals((await sub.next()).payload))
  },
  async properties () {
    if (version !== 5) return
    const [sub, pub] = [await device('properties-sub'), await device('properties-pub')]
    await sub.subscribeAsync(topic('properties'), { qos: 1, properties: { subscriptionIdentifier: 42 } })
    const properties = {
      contentType: 'text/plain', responseTopic: 'answers', correlationData: Buffer.from([0, 1]),
      payloadFormatIndicator: true, messageExpiryInterval: 1000, userProperties: { a: ['1', '2'], b: '3' }
    }
    await pub.publishAsync(topic('properties'), 'x', { qos: 1, properties })
    const got = (await sub.next()).packet.properties
    assert.strictEqual(got.contentType, 'text/plain')
    assert.strictEqual(got.responseTopic, 'answers')
    assert(Buffer.from([0, 1]).equals(got.correlationData))
    assert.strictEqual(got.payloadFormatIndicator, true)
    assert(got.messageExpiryInterval > 990)
    assert.strictEqual(got.subscriptionIdentifier, 42)
    assert.deepStrictEqual({ ...got.userProperties }, { a: ['1', '2'], b: '3' })
  }
}

async function main () {
  for (const [name, scenario] of Object.entries(scenarios)) {
    await scenario()
    console.log('ok', name)
  }
  console.log('all done')
  for (const client of devices) client.end(true)
}

main().catch((error) => { console.error(error); process.exit(1) })
