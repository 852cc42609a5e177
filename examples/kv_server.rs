//! A key-value server over HTTP: seerdb behind axum on the multi-threaded tokio runtime.
//!
//! ```text
//! cargo run --release --example kv_server -- PATH [ADDRESS]   # default address 127.0.0.1:3000
//!
//! PUT    /kv/{key}   the body is the value; 204 when it is on the device
//! GET    /kv/{key}   200 and the value, or 404
//! DELETE /kv/{key}   204
//! GET    /kv?prefix=&start=&end=&limit=&reverse=true          rows in key order as NDJSON
//! ```
//!
//! Keys and values are bytes. In a URL every byte can be written as `%XX`; a `/` within a key must
//! be. A row is `{"key":"..","value":".."}`. A key or value that is not UTF-8 is instead given as
//! base64 in `"key_base64"` or `"value_base64"`: nothing is lost, and the name tells which it is.
//! `start` is inclusive, `end` exclusive; both are within `prefix` if it is given too.
//!
//! Rows are read as the client takes them: a scan of a huge range holds a few rows in memory. An
//! error after the first row cuts the body short without its final chunk.
//!
//! When the engine cannot take a write at once the server answers 503 with Retry-After rather than
//! let requests pile up. On SIGINT or SIGTERM it finishes the requests under way and closes the
//! database.

use std::error::Error;
use std::io::Write;
use std::ops::Bound;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, RawQuery, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::ListenerExt;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures::StreamExt;
use seerdb::{DB, ErrorKind};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: seerdb::Jemalloc = seerdb::Jemalloc;

const VALUE_BYTES_MAX: usize = 16 << 20;
/// Rows that are ready together are sent as one chunk, up to this many.
const CHUNK_ROWS: usize = 64;
/// How long requests under way may take after the signal: a client that reads slowly must not
/// keep the database open.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: kv_server PATH [ADDRESS]")?;
    let address = args.next().unwrap_or_else(|| "127.0.0.1:3000".into());
    let db = DB::open(&path).await?;
    let listener = TcpListener::bind(&address).await?;
    // With port 0 the kernel chooses the port; whoever started the server reads it here.
    writeln!(std::io::stdout(), "listening on {}", listener.local_addr()?)?;
    serve(listener, db.clone()).await?;
    db.close().await?;
    writeln!(std::io::stdout(), "closed")?;
    Ok(())
}

async fn serve(listener: TcpListener, db: DB) -> Result<(), Box<dyn Error>> {
    let app = Router::new()
        .route("/kv", get(scan))
        .route("/kv/{key}", get(read).put(write).delete(remove))
        .layer(DefaultBodyLimit::max(VALUE_BYTES_MAX))
        .with_state(db);
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let (stop, mut stopped) = watch::channel(false);
    let mut grace = stopped.clone();
    let wait_for_signal = async move {
        tokio::select! {
            _ = interrupt.recv() => (),
            _ = terminate.recv() => (),
        }
        stop.send_replace(true);
        // The sender lives on: to its receivers a dropped one looks like the signal.
        std::future::pending::<()>().await;
    };
    tokio::spawn(wait_for_signal);
    // An answer is one small packet: Nagle's algorithm would hold it back for the client's ack.
    let listener = listener.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            eprintln!("kv_server: cannot set TCP_NODELAY: {error}");
        }
    });
    let serving = axum::serve(listener, app).with_graceful_shutdown(async move {
        stopped.wait_for(|is_stopped| *is_stopped).await.ok();
    });
    let grace_is_over = async move {
        grace.wait_for(|is_stopped| *is_stopped).await.ok();
        tokio::time::sleep(SHUTDOWN_GRACE).await;
    };
    tokio::select! {
        result = serving => result?,
        () = grace_is_over => eprintln!("kv_server: dropped requests that took too long"),
    }
    Ok(())
}

async fn read(State(db): State<DB>, uri: Uri) -> Result<Response, Failure> {
    let Some(value) = db.get(key_of(&uri)?).await? else {
        return Ok(StatusCode::NOT_FOUND.into_response());
    };
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], value).into_response())
}

async fn write(State(db): State<DB>, uri: Uri, value: Bytes) -> Result<StatusCode, Failure> {
    db.try_put(key_of(&uri)?, value).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn remove(State(db): State<DB>, uri: Uri) -> Result<StatusCode, Failure> {
    db.delete(key_of(&uri)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn scan(State(db): State<DB>, RawQuery(query): RawQuery) -> Result<Response, Failure> {
    let query = ScanQuery::parse(query.as_deref().unwrap_or_default())?;
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson")];
    if query.is_empty() {
        return Ok((headers, Body::empty()).into_response());
    }
    let mut rows = db.range((query.start, query.end));
    if query.is_reverse {
        rows = rows.rev();
    }
    if let Some(limit) = query.limit {
        rows = rows.limit(limit);
    }
    let chunks = rows.ready_chunks(CHUNK_ROWS).map(|rows| {
        let mut chunk = Vec::new();
        for row in rows {
            let (key, value) = row?;
            write_row(&mut chunk, &key, &value);
        }
        Ok::<_, seerdb::Error>(chunk)
    });
    Ok((headers, Body::from_stream(chunks)).into_response())
}

fn write_row(chunk: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    chunk.push(b'{');
    write_field(chunk, "key", key);
    chunk.push(b',');
    write_field(chunk, "value", value);
    chunk.extend_from_slice(b"}\n");
}

fn write_field(chunk: &mut Vec<u8>, name: &str, bytes: &[u8]) {
    let field = match str::from_utf8(bytes) {
        Ok(text) => format!("\"{name}\":{}", serde_json::Value::from(text)),
        Err(_) => format!("\"{name}_base64\":\"{}\"", BASE64.encode(bytes)),
    };
    chunk.extend_from_slice(field.as_bytes());
}

struct ScanQuery {
    start: Bound<Vec<u8>>,
    end: Bound<Vec<u8>>,
    limit: Option<usize>,
    is_reverse: bool,
}

impl ScanQuery {
    fn parse(query: &str) -> Result<Self, Failure> {
        let (mut prefix, mut start, mut end) = (Vec::new(), Vec::new(), None);
        let (mut limit, mut is_reverse) = (None, false);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if value.is_empty() {
                continue;
            }
            match name {
                "prefix" => prefix = percent_decode(value)?,
                "start" => start = percent_decode(value)?,
                "end" => end = Some(percent_decode(value)?),
                "limit" => limit = Some(value.parse().map_err(|_| bad("limit is not a number"))?),
                "reverse" => {
                    is_reverse = value.parse().map_err(|_| bad("reverse: true or false"))?
                }
                _ => return Err(bad("unknown parameter")),
            }
        }
        let start = Bound::Included(start.max(prefix.clone()));
        // No end is the end of all keys; where both are given the smaller one counts.
        let end = [end, after_prefix(prefix)].into_iter().flatten().min();
        let end = end.map_or(Bound::Unbounded, Bound::Excluded);
        Ok(Self { start, end, limit, is_reverse })
    }

    fn is_empty(&self) -> bool {
        match (&self.start, &self.end) {
            (Bound::Included(start), Bound::Excluded(end)) => start >= end,
            _ => false,
        }
    }
}

/// The first key after all that begin with `prefix`; `None` if no key can follow them.
fn after_prefix(mut prefix: Vec<u8>) -> Option<Vec<u8>> {
    while let Some(last) = prefix.pop() {
        if let Some(next) = last.checked_add(1) {
            prefix.push(next);
            return Some(prefix);
        }
    }
    None
}

/// The key in the path, decoded here because axum's own extractor takes UTF-8 only.
fn key_of(uri: &Uri) -> Result<Vec<u8>, Failure> {
    percent_decode(uri.path().strip_prefix("/kv/").unwrap_or_default())
}

fn percent_decode(text: &str) -> Result<Vec<u8>, Failure> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let mut digit = || bytes.next().and_then(|digit| char::from(digit).to_digit(16));
                let (high, low) = (digit(), digit());
                let both = high.zip(low).and_then(|(h, l)| u8::try_from(h * 16 + l).ok());
                both.ok_or_else(|| bad("% without two hexadecimal digits"))?
            }
            _ => byte,
        });
    }
    Ok(decoded)
}

/// An answer that is not a success.
struct Failure {
    status: StatusCode,
    message: String,
    retry_after: Duration,
}

fn bad(message: &str) -> Failure {
    let (status, retry_after) = (StatusCode::BAD_REQUEST, Duration::ZERO);
    Failure { status, message: message.into(), retry_after }
}

impl From<seerdb::Error> for Failure {
    fn from(error: seerdb::Error) -> Self {
        let status = match error.kind() {
            ErrorKind::InvalidArgument => StatusCode::BAD_REQUEST,
            ErrorKind::WouldStall | ErrorKind::Closed => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            eprintln!("kv_server: {error}");
        }
        let retry_after = error.retry_after().unwrap_or_default();
        Self { status, message: error.to_string(), retry_after }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let Self { status, message, retry_after } = self;
        let body = message + "\n";
        if status == StatusCode::SERVICE_UNAVAILABLE {
            // Whole seconds, and never at once.
            let seconds = retry_after.as_secs() + 1;
            return (status, [(header::RETRY_AFTER, seconds.to_string())], body).into_response();
        }
        (status, body).into_response()
    }
}
