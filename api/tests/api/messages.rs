//! Messages that nobody would write, to every gRPC call: a refusal or an answer, never a fault of ours.

use std::collections::HashMap;
use std::time::Duration;

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};
use reqwest::{Method, StatusCode};
use serde_json::json;
use vdisk_api::proto;

use crate::server::Server;

/// Messages to each call: half of them of random bytes, half of random values in the fields there are.
const MESSAGES: u64 = 40;

/// Marsaglia's xorshift: the same messages each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end).unwrap()).unwrap()
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let length = self.below(most);
        (0..length).map(|_| u8::try_from(self.next() & 0xff).unwrap()).collect()
    }
}

/// Writes messages by their descriptors.
struct Writer {
    messages: HashMap<String, DescriptorProto>,
    /// Texts that mean something to the server, and such as mean nothing.
    texts: Vec<String>,
    random: Random,
}

impl Writer {
    fn new(descriptors: &FileDescriptorSet, texts: Vec<String>) -> Self {
        let mut messages = HashMap::new();
        for file in &descriptors.file {
            let mut pending: Vec<_> = file
                .message_type
                .iter()
                .map(|m| (format!(".{}", file.package()), m))
                .collect();
            while let Some((place, message)) = pending.pop() {
                let name = format!("{place}.{}", message.name());
                pending.extend(message.nested_type.iter().map(|nested| (name.clone(), nested)));
                messages.insert(name, message.clone());
            }
        }
        Self {
            messages,
            texts,
            random: Random(0x9e37_79b9_7f4a_7c15),
        }
    }

    fn message(&mut self, name: &str, depth: usize) -> Vec<u8> {
        let fields = self
            .messages
            .get(name)
            .map_or_else(Vec::new, |message| message.field.clone());
        let mut written = Vec::new();
        for field in fields {
            let repeated = field.label() == Label::Repeated;
            let times = if repeated {
                self.random.below(3)
            } else {
                self.random.below(4).min(1)
            };
            for _ in 0..times {
                self.field(&field, depth, &mut written);
            }
        }
        written
    }

    fn field(&mut self, field: &FieldDescriptorProto, depth: usize, out: &mut Vec<u8>) {
        let number = u64::try_from(field.number()).unwrap() << 3;
        match field.r#type() {
            Type::Message | Type::Group if depth > 4 => {}
            Type::Message | Type::Group => {
                let inner = self.message(field.type_name(), depth + 1);
                delimited(number, &inner, out);
            }
            Type::String => {
                let text = self.texts[self.random.below(self.texts.len())].clone();
                delimited(number, text.as_bytes(), out);
            }
            Type::Bytes => {
                let bytes = self.random.bytes(64);
                delimited(number, &bytes, out);
            }
            Type::Double | Type::Fixed64 | Type::Sfixed64 => {
                varint(number | 1, out);
                out.extend(self.random.next().to_le_bytes());
            }
            Type::Float | Type::Fixed32 | Type::Sfixed32 => {
                varint(number | 5, out);
                out.extend(&self.random.next().to_le_bytes()[..4]);
            }
            _ => {
                let values = [
                    0,
                    1,
                    2,
                    3,
                    99,
                    512,
                    1 << 20,
                    i64::MAX as u64,
                    u64::MAX,
                    self.random.next(),
                ];
                varint(number, out);
                varint(values[self.random.below(values.len())], out);
            }
        }
    }
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value > 0x7f {
        out.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).unwrap());
}

fn delimited(number: u64, bytes: &[u8], out: &mut Vec<u8>) {
    varint(number | 2, out);
    varint(u64::try_from(bytes.len()).unwrap(), out);
    out.extend_from_slice(bytes);
}

async fn assert_answered(server: &Server, call: &str, message: Vec<u8>) {
    let mut framed = vec![0];
    framed.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    framed.extend(&message);
    let request = server
        .request(Method::POST, &format!("/vdisk.v1.{call}"))
        .header("content-type", "application/grpc")
        .timeout(Duration::from_millis(1500))
        .body(framed);
    // Streams that watch go on: their head is all there is to see.
    let Ok(answer) = request.send().await else { return };
    let text = |name: &str| {
        answer
            .headers()
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
            .to_owned()
    };
    let (status, code) = (text("grpc-status"), text("vdisk-error-code"));
    // 13 is what tonic answers to bytes that are no message; our own faults carry the code 'internal'.
    assert!(
        code != "internal" && !["2", "15"].contains(&status.as_str()),
        "{call}: {status} {code} to {message:02x?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn random_messages_are_refused_or_understood() {
    let server = Server::start().await;
    let image = server.create("disk", json!({"virtual_size": 1_048_576})).await;
    let job = server.post(&format!("/v1/images/{image}/check"), json!({})).await;
    let job = server.ended(job).await["id"].as_str().unwrap().to_owned();
    let mut texts = vec![
        image,
        job,
        "01890a5d-ac96-774b-bcce-b302099a8057".to_owned(),
        "a".repeat(3000),
    ];
    let more = [
        "",
        "disk",
        "default",
        "qcow2",
        "raw",
        "luks",
        "size",
        "../../x",
        "\u{0}",
        "\u{202e}",
        "http://127.0.0.1:1/x",
    ];
    texts.extend(more.map(str::to_owned));
    let descriptors = FileDescriptorSet::decode(proto::DESCRIPTORS).unwrap();
    let mut writer = Writer::new(&descriptors, texts);
    let mut inputs = Vec::new();
    for service in descriptors.file.iter().flat_map(|file| &file.service) {
        let calls = service.method.iter();
        inputs.extend(calls.map(|call| {
            (
                format!("{}/{}", service.name(), call.name()),
                call.input_type().to_owned(),
            )
        }));
    }
    assert_eq!(inputs.len(), crate::access::calls().len());
    for (call, input) in inputs {
        // A wait is as long as it says.
        let waits = call.ends_with("/WaitJob");
        for number in 0..if waits { 4 } else { MESSAGES } {
            let message = if number % 2 == 0 {
                writer.random.bytes(64)
            } else {
                writer.message(&input, 0)
            };
            assert_answered(&server, &call, message).await;
        }
    }
    server.get("/readyz").await.expect(StatusCode::OK);
}
