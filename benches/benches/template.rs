//! Rendering the templates of a producer bridge, per message.
#![allow(missing_docs, reason = "criterion makes public functions")]

use std::hint::black_box;
use std::sync::Arc;

use causeway::flow::{Message, Origin};
use causeway::template::Template;
use causeway::template::publish::{PublishScope, PublishSlot};
use causeway_protocol::mqtt::{PublishProperties, QoS};
use criterion::{Criterion, criterion_group, criterion_main};

fn render(c: &mut Criterion) {
    let origin = Arc::new(Origin {
        client_id: "sensor-0001".into(),
        username: Some("plant".into()),
        peer: "192.0.2.7:51234".parse().ok(),
    });
    let mut payload = br#"{"temperature":21.5,"unit":"C","place":{"hall":3,"row":17}}"#.to_vec();
    payload.resize(100, b' ');
    let properties = PublishProperties::default();
    let message = Message {
        origin: &origin,
        topic: "t/hall-3/row-17/temperature",
        payload: &payload,
        qos: QoS::AtLeastOnce,
        retain: false,
        dup: false,
        properties: &properties,
        received_at: 1_679_665_968_238,
        hops: 0,
    };
    let mut group = c.benchmark_group("template");
    for text in ["${.payload}", "${.clientid}", "${.clientid}/${.topic}", "${.payload.place.row}", "${.}"] {
        let template: Template<PublishSlot> = Template::compile(text);
        let mut scratch = Vec::new();
        group.bench_function(text, |b| {
            b.iter(|| {
                let scope = PublishScope::new(black_box(&message), "node-1");
                black_box(template.render_or_borrow(&scope, &mut scratch));
            });
        });
    }
    group.finish();
}

criterion_group!(benches, render);
criterion_main!(benches);
