//! A load for `kv_server` that remembers what was acknowledged, and checks it afterwards.
//!
//! ```text
//! kv_load run    ADDRESS STATE [--connections N] [--seconds S] [--rate OPS] [--stall-ms MS]
//!                              [--expect-kill]
//! kv_load verify ADDRESS STATE
//! ```
//!
//! `run` reads STATE if it exists and continues from it. Every connection has its own keys and one
//! request under way at a time, so it knows what each get must answer: all are checked. Half of the
//! requests are gets, one in twenty is a delete, the others are puts of 1 KiB. When it ends, or
//! when the server is killed (`--expect-kill`), STATE holds for every key what was last
//! acknowledged and what was asked for but not answered. `verify` reads every key: it must be one
//! of the two.
//!
//! `--rate` spreads the requests evenly (0: as fast as answers come). A latency counts from when
//! the request was due, so that a stall shows in all that wait behind it. The tool watches its own
//! pulse too: a latency above the limit is the server's fault only while the tool itself ran.
//!
//! Exit status: 0 good, 1 the server failed, 2 the tool could not keep up and the run says nothing.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

const USAGE: &str = "usage: kv_load run|verify ADDRESS STATE [options]; see the top of the source";
const KEYS_PER_CONNECTION: u64 = 500;
const VALUE_BYTES: usize = 1024;
const RESPONSE_BYTES_MAX: usize = 1 << 20;
const PULSE: Duration = Duration::from_millis(5);
/// How late the pulse may be before the tool calls itself too slow to judge.
const PULSE_LATE_MAX: Duration = Duration::from_millis(50);

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Args::parse() {
        Ok(args) if args.is_run => run(args).await,
        Ok(args) => verify(&args).await,
        Err(error) => Err(error),
    };
    done.unwrap_or_else(|error| {
        eprintln!("kv_load: {error}");
        ExitCode::FAILURE
    })
}

struct Args {
    is_run: bool,
    address: String,
    state: String,
    connections: u64,
    time: Duration,
    rate: u32,
    stall_max: Duration,
    is_kill_expected: bool,
}

impl Args {
    fn parse() -> Result<Self> {
        let mut args = std::env::args().skip(1);
        let is_run = match args.next().as_deref() {
            Some("run") => true,
            Some("verify") => false,
            _ => return Err(USAGE.into()),
        };
        let mut parsed = Self {
            is_run,
            address: args.next().ok_or(USAGE)?,
            state: args.next().ok_or(USAGE)?,
            connections: 64,
            time: Duration::from_secs(30),
            rate: 4_000,
            stall_max: Duration::from_millis(100),
            is_kill_expected: false,
        };
        while let Some(option) = args.next() {
            if option == "--expect-kill" {
                parsed.is_kill_expected = true;
                continue;
            }
            let value = args.next().ok_or(USAGE)?;
            match option.as_str() {
                "--connections" => parsed.connections = value.parse()?,
                "--seconds" => parsed.time = Duration::from_secs_f64(value.parse()?),
                "--rate" => parsed.rate = value.parse()?,
                "--stall-ms" => parsed.stall_max = Duration::from_millis(value.parse()?),
                _ => return Err(USAGE.into()),
            }
        }
        Ok(parsed)
    }
}

/// What a key holds: the version of its value, or none.
type Content = Option<u64>;

#[derive(Clone, Copy, Default)]
struct KeyState {
    acknowledged: Content,
    /// What an unanswered request may have made of it.
    in_doubt: Option<Content>,
}

type States = BTreeMap<String, KeyState>;

impl fmt::Display for KeyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |content: Content| content.map_or("none".into(), |version| version.to_string());
        write!(f, "{}\t{}", text(self.acknowledged), self.in_doubt.map_or("-".into(), text))
    }
}

impl KeyState {
    fn parse(line: &str) -> Option<(String, Self)> {
        let content = |text: &str| match text {
            "none" => Some(None),
            _ => text.parse().ok().map(Some),
        };
        let mut fields = line.split('\t');
        let key = fields.next()?.to_owned();
        let acknowledged = content(fields.next()?)?;
        let in_doubt = match fields.next()? {
            "-" => None,
            text => Some(content(text)?),
        };
        Some((key, Self { acknowledged, in_doubt }))
    }
}

async fn load_states(path: &str) -> Result<States> {
    let Ok(text) = tokio::fs::read_to_string(path).await else {
        return Ok(States::new());
    };
    let parse = |line| KeyState::parse(line).ok_or_else(|| format!("{path}: bad line {line:?}"));
    Ok(text.lines().map(parse).collect::<std::result::Result<_, _>>()?)
}

async fn save_states(path: &str, states: &States) -> Result<()> {
    let lines = states.iter().map(|(key, state)| format!("{key}\t{state}\n"));
    Ok(tokio::fs::write(path, lines.collect::<String>()).await?)
}

fn value_of(key: &str, version: u64) -> Vec<u8> {
    let mut value = format!("{key} {version} ").into_bytes();
    let mut rng = Rng(version);
    while value.len() < VALUE_BYTES {
        value.extend_from_slice(&rng.next().to_le_bytes());
    }
    value.truncate(VALUE_BYTES);
    value
}

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// One keep-alive connection, one request at a time.
struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

struct Response {
    status: u16,
    body: Vec<u8>,
}

impl Client {
    async fn connect(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::new() })
    }

    async fn call(&mut self, method: &str, key: &str, body: &[u8]) -> std::io::Result<Response> {
        let length = body.len();
        let mut request =
            format!("{method} /kv/{key} HTTP/1.1\r\nhost: kv\r\ncontent-length: {length}\r\n\r\n")
                .into_bytes();
        request.extend_from_slice(body);
        self.stream.write_all(&request).await?;
        self.buffer.clear();
        loop {
            if let Some(response) = parse_response(&self.buffer)? {
                return Ok(response);
            }
            if self.buffer.len() > RESPONSE_BYTES_MAX {
                return Err(invalid("the response is too long"));
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

fn invalid(message: &'static str) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, message)
}

/// The response in `buffer`, or `None` if more is to come.
fn parse_response(buffer: &[u8]) -> std::io::Result<Option<Response>> {
    const END_OF_HEAD: &[u8] = b"\r\n\r\n";
    let end = buffer.windows(END_OF_HEAD.len()).position(|window| window == END_OF_HEAD);
    let Some((head, rest)) = end.and_then(|end| buffer.split_at_checked(end)) else {
        return Ok(None);
    };
    let rest = rest.strip_prefix(END_OF_HEAD).unwrap_or_default();
    let head = str::from_utf8(head).map_err(|_| invalid("the head is not UTF-8"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| invalid("no status"))?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    // 204 has no body and no length; no other answer to these requests is without one.
    let length: usize = match (length, status) {
        (Some(length), _) => length,
        (None, 204) => 0,
        (None, _) => return Err(invalid("no content-length")),
    };
    Ok(rest.get(..length).map(|body| Response { status, body: body.into() }))
}

/// What one connection has seen.
#[derive(Default)]
struct Seen {
    states: States,
    gets: u64,
    writes: u64,
    shed: u64,
    latencies_us: Vec<u64>,
    failure: Option<String>,
    is_cut_off: bool,
}

async fn run(args: Args) -> Result<ExitCode> {
    let mut states = load_states(&args.state).await?;
    let pulse_late_us = Arc::new(AtomicU64::new(0));
    let watch = tokio::spawn(watch_pulse(Arc::clone(&pulse_late_us)));
    let args = Arc::new(args);
    let start = Instant::now();
    let mut connections = Vec::new();
    for connection in 0..args.connections {
        let prefix = format!("c{connection:03}-");
        let own = states.iter().filter(|(key, _)| key.starts_with(&prefix));
        let own = own.map(|(key, state)| (key.clone(), *state)).collect();
        connections.push(tokio::spawn(drive(Arc::clone(&args), connection, own, start)));
    }
    let mut all = Seen::default();
    for connection in connections {
        let seen = connection.await??;
        states.extend(seen.states);
        all.gets += seen.gets;
        all.writes += seen.writes;
        all.shed += seen.shed;
        all.latencies_us.extend(seen.latencies_us);
        all.failure = all.failure.or(seen.failure);
        all.is_cut_off |= seen.is_cut_off;
    }
    watch.abort();
    save_states(&args.state, &states).await?;
    let pulse_late = Duration::from_micros(pulse_late_us.load(Ordering::Relaxed));
    report(&args, all, start.elapsed(), pulse_late)
}

/// Sleeps briefly over and over and keeps the longest delay: how late anything here may have been.
async fn watch_pulse(late_us: Arc<AtomicU64>) {
    loop {
        let due = Instant::now() + PULSE;
        tokio::time::sleep_until(due).await;
        let late = u64::try_from(due.elapsed().as_micros()).unwrap_or(u64::MAX);
        late_us.fetch_max(late, Ordering::Relaxed);
    }
}

async fn drive(args: Arc<Args>, connection: u64, states: States, start: Instant) -> Result<Seen> {
    let mut client = Client::connect(&args.address).await?;
    let mut seen = Seen { states, ..Seen::default() };
    let mut rng = Rng(connection);
    let mut version = seen.states.values().flat_map(|s| [s.acknowledged, s.in_doubt.flatten()]);
    let mut version = version.by_ref().flatten().max().unwrap_or(0);
    let interval = match args.rate {
        0 => Duration::ZERO,
        rate => Duration::from_secs(args.connections) / rate,
    };
    // The connections take turns, so that the requests are spread within the interval too.
    let turn = u32::try_from(connection)?;
    let mut due = start + interval * turn / u32::try_from(args.connections)?;
    while start.elapsed() < args.time && seen.failure.is_none() {
        if args.rate == 0 {
            due = Instant::now();
        } else {
            tokio::time::sleep_until(due).await;
        }
        let key = format!("c{connection:03}-{:06}", rng.next() % KEYS_PER_CONNECTION);
        let draw = rng.next() % 20;
        let done = if draw < 10 {
            get(&mut client, &mut seen, &key).await
        } else {
            version += 1;
            write(&mut client, &mut seen, &key, (draw > 10).then_some(version)).await
        };
        if let Err(error) = done {
            seen.is_cut_off = true;
            if !args.is_kill_expected {
                seen.failure = Some(format!("connection {connection}: {error}"));
            }
            break;
        }
        let late = due.elapsed();
        seen.latencies_us.push(u64::try_from(late.as_micros())?);
        due += interval;
    }
    Ok(seen)
}

async fn get(client: &mut Client, seen: &mut Seen, key: &str) -> std::io::Result<()> {
    let response = client.call("GET", key, b"").await?;
    seen.gets += 1;
    let state = seen.states.get(key).copied().unwrap_or_default();
    seen.failure = check(key, state, &response);
    Ok(())
}

/// Puts version `content` of the value, or deletes the key.
async fn write(
    client: &mut Client,
    seen: &mut Seen,
    key: &str,
    content: Content,
) -> std::io::Result<()> {
    let state = seen.states.entry(key.to_owned()).or_default();
    let settled = KeyState { acknowledged: content, in_doubt: None };
    // An older doubt stays until a write of this key is acknowledged; only a restart leaves one,
    // and `verify` settles it.
    let before = *state;
    state.in_doubt = Some(content);
    let response = match content {
        Some(version) => client.call("PUT", key, &value_of(key, version)).await?,
        None => client.call("DELETE", key, b"").await?,
    };
    match response.status {
        204 => {
            *state = settled;
            seen.writes += 1;
        }
        503 => {
            *state = before;
            seen.shed += 1;
        }
        status => seen.failure = Some(format!("{key}: status {status} for a write")),
    }
    Ok(())
}

/// What is wrong with an answer to a get, if anything.
fn check(key: &str, state: KeyState, response: &Response) -> Option<String> {
    let is_content = |content: Content| match content {
        Some(version) => response.status == 200 && response.body == value_of(key, version),
        None => response.status == 404,
    };
    if is_content(state.acknowledged) || state.in_doubt.is_some_and(is_content) {
        return None;
    }
    let start = response.body.get(..32).unwrap_or(&response.body).escape_ascii();
    Some(format!("{key}: expected {state}, got status {} \"{start}\"", response.status))
}

fn report(args: &Args, mut all: Seen, elapsed: Duration, pulse_late: Duration) -> Result<ExitCode> {
    all.latencies_us.sort_unstable();
    let count = all.latencies_us.len();
    let latency = |per_mille: usize| {
        let rank = (count * per_mille / 1_000).min(count.saturating_sub(1));
        all.latencies_us.get(rank).copied().map_or(Duration::ZERO, Duration::from_micros)
    };
    let rate = count as f64 / elapsed.as_secs_f64();
    let longest = latency(1_000);
    writeln!(
        std::io::stdout(),
        "{} gets, {} acknowledged writes, {} shed, {rate:.0}/s; p50 {:?}, p99 {:?}, p99.9 {:?}, \
         longest {longest:?}; own pulse at most {pulse_late:?} late",
        all.gets,
        all.writes,
        all.shed,
        latency(500),
        latency(990),
        latency(999),
    )?;
    if let Some(failure) = all.failure {
        return Err(failure.into());
    }
    if args.is_kill_expected && !all.is_cut_off {
        return Err("the server was not killed while the load ran".into());
    }
    if longest <= args.stall_max {
        return Ok(ExitCode::SUCCESS);
    }
    if pulse_late > PULSE_LATE_MAX {
        eprintln!("kv_load: latencies above {:?}, but the tool stalled too", args.stall_max);
        return Ok(ExitCode::from(2));
    }
    Err(format!("a request took {longest:?}, longer than {:?}", args.stall_max).into())
}

async fn verify(args: &Args) -> Result<ExitCode> {
    let mut states = load_states(&args.state).await?;
    let mut client = Client::connect(&args.address).await?;
    let (mut failures, mut applied, mut in_doubt) = (0, 0, 0);
    for (key, state) in &mut states {
        let response = client.call("GET", key, b"").await?;
        if let Some(failure) = check(key, *state, &response) {
            eprintln!("kv_load: {failure}");
            failures += 1;
            continue;
        }
        if let Some(doubt) = state.in_doubt.take() {
            in_doubt += 1;
            let acknowledged = KeyState { acknowledged: state.acknowledged, in_doubt: None };
            if check(key, acknowledged, &response).is_some() {
                state.acknowledged = doubt;
                applied += 1;
            }
        }
    }
    let keys = states.len();
    writeln!(
        std::io::stdout(),
        "verified {keys} keys: {failures} wrong; {in_doubt} in doubt, {applied} of them applied",
    )?;
    if keys == 0 || failures > 0 {
        return Ok(ExitCode::FAILURE);
    }
    // From here on nothing is in doubt: what was read is what must stay.
    save_states(&args.state, &states).await?;
    Ok(ExitCode::SUCCESS)
}
