//! Bytes in and out: resume, ranges, digests.

use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::server::{Answer, Server};

/// SHA-256 of `abc`, from FIPS 180-4's examples, in each spelling.
const ABC_HEX: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
const ABC_DIGEST: &str = "sha-256=:ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=:";
const ABC_RFC_3230: &str = "SHA-256=ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=";

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_goes_on_where_it_stopped() {
    let server = Server::start().await;
    let id = server.import("disk", "raw").await;
    let path = format!("/v1/images/{id}/file");
    let bytes = pattern(1 << 20);
    let (first, rest) = bytes.split_at(300_000);
    let image = server.get(&format!("/v1/images/{id}")).await.body;
    assert_eq!(
        (&image["state"], &image["upload_url"]),
        (&json!("uploading"), &json!(path))
    );

    let part = server
        .put(&path, &[("content-range", "bytes 0-299999/1048576")], first.to_vec())
        .await;
    let part = part.expect(StatusCode::PERMANENT_REDIRECT);
    assert_eq!(
        (part.header("range"), &part.body["received_bytes"]),
        ("bytes=0-299999", &json!(300_000))
    );
    let gap = server
        .put(
            &path,
            &[("content-range", "bytes 400000-1048575/1048576")],
            bytes[400_000..].to_vec(),
        )
        .await;
    gap.problem(409, "upload_offset_mismatch");
    assert_eq!(gap.body["range_total"], 300_000);
    let status = server.put(&path, &[("content-range", "bytes */1048576")], "").await;
    assert_eq!(
        status.expect(StatusCode::PERMANENT_REDIRECT).header("range"),
        "bytes=0-299999"
    );

    let done = server
        .put(
            &path,
            &[("content-range", "bytes 300000-1048575/1048576")],
            rest.to_vec(),
        )
        .await;
    assert_eq!(done.expect(StatusCode::OK).body["state"], "ready");
    assert_eq!(server.get(&path).await.bytes, bytes);
    server.put(&path, &[], "again").await.problem(409, "image_not_ready");
}

#[tokio::test(flavor = "multi_thread")]
async fn announced_digests_are_verified() {
    let server = Server::start().await;
    for (name, value, unreadable) in [
        ("X-Checksum-Sha256", ABC_HEX, "abc"),
        ("Repr-Digest", ABC_DIGEST, "sha-256=abc"),
        ("Content-Digest", ABC_DIGEST, "md5=:kAFQmDzST7DWlj99KOF/cg==:"),
        ("Digest", ABC_RFC_3230, "sha-256=abc"),
    ] {
        let id = server.import(&format!("right-{name}"), "raw").await;
        let path = format!("/v1/images/{id}/file");
        server.put(&path, &[(name, value)], "abc").await.expect(StatusCode::OK);

        let id = server.import(&format!("wrong-{name}"), "raw").await;
        let path = format!("/v1/images/{id}/file");
        let refused = server.put(&path, &[(name, unreadable)], "abc").await;
        refused.problem(422, "invalid_argument");
        assert_eq!(refused.body["field"], name);
        let refused = server.put(&path, &[(name, value)], "abd").await;
        refused.problem(422, "checksum_mismatch");
        assert_eq!(server.get(&format!("/v1/images/{id}")).await.body["state"], "uploading");
        let status = server.put(&path, &[("content-range", "bytes */3")], "").await;
        assert_eq!(status.expect(StatusCode::PERMANENT_REDIRECT).body["received_bytes"], 0);
        // The sentence says to upload it again.
        let image = server.put(&path, &[(name, value)], "abc").await.expect(StatusCode::OK);
        assert_eq!(image.body["state"], "ready");
        assert_eq!(server.get(&path).await.bytes[..3], *b"abc");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn digests_that_are_not_verified_are_refused() {
    let server = Server::start().await;
    let id = server.import("disk", "raw").await;
    let path = format!("/v1/images/{id}/file");
    let part = ("content-range", "bytes 0-2/6");
    for headers in [
        &[("content-md5", "kAFQmDzST7DWlj99KOF/cg==")][..],
        &[("x-checksum-sha1", "a9993e364706816aba3e25717850c26c9cd0d89d")],
        &[("content-digest", ABC_DIGEST), part],
        &[("content-digest", ABC_HEX), part],
    ] {
        let refused = server.put(&path, headers, "abc").await;
        refused.problem(422, "invalid_argument");
        let field = refused.body["field"].as_str().unwrap().to_lowercase();
        assert_eq!(field, headers[0].0);
    }
    let whole = [("content-digest", ABC_DIGEST), ("content-range", "bytes 0-2/3")];
    server.put(&path, &whole, "abc").await.expect(StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coded_body_is_not_taken_for_the_file() {
    let server = Server::start().await;
    let path = format!("/v1/images/{}/file", server.import("disk", "raw").await);
    let coded = server.put(&path, &[("content-encoding", "gzip")], "abc").await;
    coded.problem(415, "unsupported_media_type");
    let plain = server.put(&path, &[("content-encoding", "identity")], "abc").await;
    plain.expect(StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_are_served() {
    let server = Server::start().await;
    let bytes = pattern(4096);
    let id = server.upload("disk", "raw", bytes.clone()).await;
    for path in [format!("/v1/images/{id}/file"), format!("/v1/images/{id}/data")] {
        let ask = async |range: &str| {
            let request = server.request(Method::GET, &path).header("range", range);
            Answer::of(request.send().await.unwrap()).await
        };
        let whole = server.get(&path).await.expect(StatusCode::OK);
        assert_eq!(
            (whole.header("accept-ranges"), whole.bytes == bytes),
            ("bytes", true),
            "{path}"
        );
        let part = ask("bytes=100-199").await.expect(StatusCode::PARTIAL_CONTENT);
        assert_eq!(
            (part.header("content-range"), &part.bytes[..]),
            ("bytes 100-199/4096", &bytes[100..200])
        );
        let tail = ask("bytes=-96").await.expect(StatusCode::PARTIAL_CONTENT);
        assert_eq!(
            (tail.header("content-range"), &tail.bytes[..]),
            ("bytes 4000-4095/4096", &bytes[4000..])
        );
        let open = ask("bytes=4090-9999").await.expect(StatusCode::PARTIAL_CONTENT);
        assert_eq!(
            (open.header("content-range"), open.bytes.len()),
            ("bytes 4090-4095/4096", 6)
        );
        let outside = ask("bytes=4096-").await;
        outside.problem(416, "range_not_satisfiable");
        assert_eq!(
            (outside.header("content-range"), &outside.body["range_total"]),
            ("bytes */4096", &json!(4096))
        );
        let several = ask("bytes=0-1, 9999-, -2,100-102")
            .await
            .expect(StatusCode::PARTIAL_CONTENT);
        let kind = several.header("content-type");
        let boundary = kind.strip_prefix("multipart/byteranges; boundary=").unwrap();
        let mut expected = Vec::new();
        for (number, (first, last)) in [(0, 1), (4094, 4095), (100, 102)].into_iter().enumerate() {
            let line = if number == 0 { "" } else { "\r\n" };
            let head = format!(
                "{line}--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes \
                 {first}-{last}/4096\r\n\r\n"
            );
            expected.extend_from_slice(head.as_bytes());
            expected.extend_from_slice(&bytes[first..=last]);
        }
        expected.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
        assert_eq!(
            String::from_utf8_lossy(&several.bytes),
            String::from_utf8_lossy(&expected)
        );
        assert_eq!(several.header("content-length"), expected.len().to_string());
        assert_eq!(several.header("content-range"), "");
        let one_left = ask("bytes=9999-,5-5").await.expect(StatusCode::PARTIAL_CONTENT);
        assert_eq!(one_left.header("content-range"), "bytes 5-5/4096");
        for refused in [
            "bytes=0-9,5-14",
            "bytes=0-,0-",
            "bytes=9999-,-0",
            "bytes=0-0,1-1,2-2,3-3,4-4,5-5,6-6,7-7,8-8",
        ] {
            ask(refused).await.problem(416, "range_not_satisfiable");
        }
        let head = server.request(Method::HEAD, &path).header("range", "bytes=0-9");
        let head = head.send().await.unwrap();
        assert_eq!(
            (head.status(), head.headers()["content-length"].to_str().unwrap()),
            (StatusCode::OK, "4096")
        );
        ask("bytes=9-1").await.problem(400, "malformed_request");
        assert_eq!(ask("pages=1-2").await.expect(StatusCode::OK).bytes.len(), 4096);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_of_an_older_version_becomes_the_whole() {
    let server = Server::start().await;
    let id = server.upload("disk", "raw", pattern(4096)).await;
    let path = format!("/v1/images/{id}/data");
    let etag = server.get(&path).await.header("etag").to_owned();
    for (tag, status) in [
        (etag.as_str(), StatusCode::PARTIAL_CONTENT),
        ("\"older\"", StatusCode::OK),
        (&format!("W/{etag}"), StatusCode::OK),
        (etag.trim_matches('"'), StatusCode::OK),
        ("Sat, 28 Nov 2026 17:52:00 GMT", StatusCode::OK),
    ] {
        let ask = async |range: &str| {
            let request = server.request(Method::GET, &path).header("range", range);
            Answer::of(request.header("if-range", tag).send().await.unwrap()).await
        };
        ask("bytes=0-9").await.expect(status);
        // What lies outside of this version may lie inside of the older one.
        let outside = ask("bytes=4096-").await;
        let expected = if status == StatusCode::OK { 200 } else { 416 };
        assert_eq!(outside.status.as_u16(), expected, "{tag}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn maps_come_as_pages_and_as_lines() {
    let server = Server::start().await;
    let mut bytes = vec![0; 1 << 20];
    for at in (0..bytes.len()).step_by(1 << 18) {
        bytes[at..at + 65536].fill(7);
    }
    let id = server.upload("disk", "raw", bytes).await;
    let path = format!("/v1/images/{id}/map");
    let (mut paged, mut query) = (Vec::new(), "?limit=3".to_owned());
    loop {
        let page = server.get(&format!("{path}{query}")).await.expect(StatusCode::OK).body;
        paged.extend(page["extents"].as_array().unwrap().clone());
        let Some(cursor) = page["next_cursor"].as_str() else {
            break;
        };
        query = format!("?limit=3&cursor={cursor}");
    }
    let request = server
        .request(Method::GET, &path)
        .header("accept", "application/x-ndjson");
    let lines = Answer::of(request.send().await.unwrap()).await.expect(StatusCode::OK);
    assert_eq!(lines.header("content-type"), "application/x-ndjson");
    let text = String::from_utf8(lines.bytes).unwrap();
    let streamed: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(paged, streamed);
    let lengths: u64 = streamed.iter().map(|extent| extent["length"].as_u64().unwrap()).sum();
    assert_eq!(lengths, 1 << 20);
    let ask = server.request(Method::GET, &path);
    let rather_json = ask.header("accept", "application/json, application/x-ndjson;q=0.1");
    let page = Answer::of(rather_json.send().await.unwrap()).await;
    assert_eq!(page.header("content-type"), "application/json");
    server
        .get(&format!("{path}?start=1048577"))
        .await
        .problem(422, "invalid_argument");
    server
        .get(&format!("{path}?cursor=made-up"))
        .await
        .problem(422, "invalid_argument");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_is_not_resumed_in_a_file_that_has_changed() {
    let server = Server::start().await;
    let id = server.create("disk", json!({"virtual_size": 1 << 20})).await;
    let path = format!("/v1/images/{id}/file");
    let etag = server.get(&path).await.header("etag").to_owned();
    let resume = async || {
        let request = server.request(Method::GET, &path).header("range", "bytes=1000-");
        Answer::of(request.header("if-range", &etag).send().await.unwrap()).await
    };
    resume().await.expect(StatusCode::PARTIAL_CONTENT);
    let snapshots = format!("/v1/images/{id}/snapshots");
    for _ in 0..100 {
        let taken = server.post(&snapshots, json!({"name": "one"})).await;
        if taken.status != StatusCode::CONFLICT {
            taken.expect(StatusCode::CREATED);
            break;
        }
    }
    let whole = resume().await.expect(StatusCode::OK);
    assert_ne!(whole.header("etag"), etag);
}

#[tokio::test(flavor = "multi_thread")]
async fn downloads_keep_to_the_conditions_of_their_requests() {
    let server = Server::start().await;
    let id = server.upload("disk", "raw", pattern(4096)).await;
    for path in [format!("/v1/images/{id}/file"), format!("/v1/images/{id}/data")] {
        let etag = server.get(&path).await.header("etag").to_owned();
        let ask = async |method: Method, name: &str, value: &str| {
            let request = server.request(method, &path).header("range", "bytes=0-9");
            Answer::of(request.header(name, value).send().await.unwrap()).await
        };
        for other in ["\"bogus\"", &format!("W/{etag}"), "\"a\", \"b\""] {
            let refused = ask(Method::GET, "if-match", other).await;
            refused.problem(412, "precondition_failed");
        }
        for same in [&etag, "*", &format!("\"a,b\" , {etag}")] {
            ask(Method::GET, "if-match", same)
                .await
                .expect(StatusCode::PARTIAL_CONTENT);
        }
        for same in [&etag, "*", &format!("W/{etag}"), &format!("\"a\",{etag}")] {
            for method in [Method::GET, Method::HEAD] {
                let unchanged = ask(method, "if-none-match", same)
                    .await
                    .expect(StatusCode::NOT_MODIFIED);
                assert_eq!((unchanged.header("etag"), unchanged.bytes.len()), (&*etag, 0));
            }
        }
        ask(Method::GET, "if-none-match", "\"older\"")
            .await
            .expect(StatusCode::PARTIAL_CONTENT);
        for name in ["if-match", "if-none-match"] {
            for unreadable in ["bogus", "\"a\" \"b\"", "\"a", ""] {
                ask(Method::GET, name, unreadable)
                    .await
                    .problem(400, "malformed_request");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_not_made_under_a_condition_that_nothing_fulfils() {
    let server = Server::start().await;
    let id = server.create("disk", json!({"virtual_size": 1 << 20})).await;
    let path = format!("/v1/images/{id}");
    for (method, name, value) in [
        (Method::DELETE, "if-match", "\"bogus\""),
        (Method::PATCH, "if-match", "\"bogus\""),
        (Method::DELETE, "if-none-match", "*"),
        (Method::PUT, "if-match", "W/\"bogus\""),
    ] {
        let path = if method == Method::PUT {
            format!("{path}/file")
        } else {
            path.clone()
        };
        let request = server.request(method.clone(), &path).header(name, value);
        let refused = Answer::of(request.json(&json!({"name": "other"})).send().await.unwrap()).await;
        refused.problem(412, "precondition_failed");
    }
    let unknown = server
        .request(Method::PUT, &format!("{path}/data"))
        .header("if-match", "no tag");
    assert_eq!(unknown.send().await.unwrap().status(), StatusCode::METHOD_NOT_ALLOWED);
    // The route says that it is no call, whatever the content is said to be.
    let disguised = server
        .request(Method::DELETE, &path)
        .header("if-match", "\"bogus\"")
        .header("content-type", "application/grpc");
    let refused = Answer::of(disguised.send().await.unwrap()).await;
    refused.problem(412, "precondition_failed");
    let image = server.get(&path).await.expect(StatusCode::OK).body;
    assert_eq!(image["name"], "disk");
    let request = server.request(Method::DELETE, &path).header("if-match", "*");
    assert_eq!(request.send().await.unwrap().status(), StatusCode::NO_CONTENT);
}
