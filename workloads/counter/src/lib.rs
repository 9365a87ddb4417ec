//! Counts requests in a key-value store: state that outlives an instance.
//!
//! Each request adds one to the key named by its path and answers the sum. The bucket is `$bucket` of
//! `wasi:config`, or the default one.

use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};

wit_bindgen::generate!({ world: "counter", path: "wit", generate_all });

use wasi::{
    config,
    keyvalue::{atomics, store},
};

struct Counter;

wasip2::http::proxy::export!(Counter);

impl wasip2::exports::http::incoming_handler::Guest for Counter {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = request.path_with_query().unwrap_or_default();
        let key = target.split('?').next().unwrap_or_default().trim_start_matches('/');
        let key = if key.is_empty() { "requests" } else { key };
        match count(key) {
            Ok(sum) => respond(out, 200, &format!("{sum}\n")),
            Err(error) => respond(out, 500, &format!("{error:?}\n")),
        }
    }
}

fn count(key: &str) -> Result<i64, store::Error> {
    let name = config::store::get("bucket").ok().flatten().unwrap_or_default();
    let bucket = store::open(&name)?;
    atomics::increment(&bucket, key, 1)
}

fn respond(out: ResponseOutparam, status: u16, body: &str) {
    let response = OutgoingResponse::new(Fields::new());
    response.set_status_code(status).expect("a valid status");
    let outgoing = response.body().expect("the first body");
    ResponseOutparam::set(out, Ok(response));
    {
        let stream = outgoing.write().expect("the first stream");
        if stream.blocking_write_and_flush(body.as_bytes()).is_err() {
            return;
        }
    }
    OutgoingBody::finish(outgoing, None).expect("all was written");
}
