//! Whether mqspan is alive: the reader's pulse, told over HTTP to whoever asks (`/livez`, `/readyz`) and to systemd's
//! watchdog. A backend that is down does not make mqspan unhealthy: it would only be restarted and lose what it holds.

use std::convert::Infallible;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::time::{interval, sleep};

use crate::model::error::Error;

/// The reader beats at least once a second; after this long without it hangs.
const HANGS: Duration = Duration::from_secs(10);
/// A client has this long to ask.
const PATIENCE: Duration = Duration::from_secs(5);
/// Beats as a time that never comes.
const WAITING: u64 = u64::MAX;

/// Beats while the reader works.
#[derive(Clone, Debug)]
pub struct Pulse(Arc<State>);

#[derive(Debug)]
struct State {
    start: Instant,
    /// Milliseconds from `start`.
    beat: AtomicU64,
    ready: AtomicBool,
}

impl Default for Pulse {
    fn default() -> Self {
        Self(Arc::new(State { start: Instant::now(), beat: AtomicU64::new(0), ready: AtomicBool::new(false) }))
    }
}

impl Pulse {
    /// The reader is at work.
    pub fn beat(&self, now: Instant) {
        let since = now.saturating_duration_since(self.0.start).as_millis();
        self.0.beat.store(since.try_into().unwrap_or(WAITING), Relaxed);
    }

    /// The reader waits for room in an output's queue, which may take as long as the backend does.
    pub fn wait(&self) {
        self.0.beat.store(WAITING, Relaxed);
    }

    /// Everything is attached; or not any more.
    pub fn set_ready(&self, ready: bool) {
        self.0.ready.store(ready, Relaxed);
    }

    /// Whether the reader does not hang.
    pub fn is_alive(&self) -> bool {
        match self.0.beat.load(Relaxed) {
            WAITING => true,
            beat => self.0.start.elapsed().saturating_sub(Duration::from_millis(beat)) < HANGS,
        }
    }

    fn answer(&self, path: &str) -> (StatusCode, &'static str) {
        match (path, self.is_alive(), self.0.ready.load(Relaxed)) {
            ("/livez", true, _) | ("/readyz", true, true) => (StatusCode::OK, "ok\n"),
            ("/livez" | "/readyz", false, _) => (StatusCode::SERVICE_UNAVAILABLE, "the reader's thread hangs\n"),
            ("/readyz", true, false) => (StatusCode::SERVICE_UNAVAILABLE, "not attached\n"),
            _ => (StatusCode::NOT_FOUND, "/livez and /readyz are here\n"),
        }
    }
}

/// Serves `/livez` and `/readyz` at `address`, until the runtime ends.
pub fn serve(address: SocketAddr, pulse: Pulse, runtime: &Handle) -> Result<(), Error> {
    let listener = runtime.block_on(TcpListener::bind(address)).map_err(|error| unusable(address, &error))?;
    runtime.spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                // No descriptor is free: the next try comes when one may be.
                sleep(Duration::from_millis(100)).await;
                continue;
            };
            let pulse = pulse.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request: Request<Incoming>| {
                    let (status, text) = pulse.answer(request.uri().path());
                    async move { respond(status, text) }
                });
                // A client that breaks off is its own affair.
                let _ = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(PATIENCE)
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    Ok(())
}

/// Why it can't be served there, and where it may be.
fn unusable(address: SocketAddr, error: &io::Error) -> Error {
    let (why, other) = match error.kind() {
        ErrorKind::AddrInUse => {
            let port = address.port().checked_add(1).unwrap_or(8080);
            ("another program has it (ss -ltnp says which)", SocketAddr::new(address.ip(), port))
        }
        ErrorKind::AddrNotAvailable => ("this host has no such address", (Ipv4Addr::LOCALHOST, address.port()).into()),
        _ => ("not to be had", (Ipv4Addr::LOCALHOST, 8080).into()),
    };
    Error::cannot_run(
        format!("--health {address}: {error}"),
        format!("{why}; name one that is free: mqspan run --health {other}"),
    )
}

fn respond(status: StatusCode, text: &'static str) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain; charset=utf-8"));
    Ok(response)
}

/// Tells systemd's watchdog of the pulse, where the unit has one (sd_notify(3), WATCHDOG=1).
pub fn watch(pulse: Pulse, runtime: &Handle) {
    let Some(patience) = sd_notify::watchdog_enabled() else { return };
    runtime.spawn(async move {
        let mut ticks = interval(patience / 2);
        loop {
            ticks.tick().await;
            if pulse.is_alive() {
                let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents an address that can't be had from being told of without one that can.
    #[test]
    fn addresses() {
        for (address, kind, mend) in [
            ("127.0.0.1:8080", ErrorKind::AddrInUse, "--health 127.0.0.1:8081"),
            ("[::1]:65535", ErrorKind::AddrInUse, "--health [::1]:8080"),
            ("192.0.2.1:80", ErrorKind::AddrNotAvailable, "--health 127.0.0.1:80"),
            ("127.0.0.1:80", ErrorKind::PermissionDenied, "--health 127.0.0.1:8080"),
        ] {
            let Error { message, hint, .. } = unusable(address.parse().unwrap(), &kind.into());
            assert!(message.contains(address) && hint.as_ref().is_some_and(|hint| hint.ends_with(mend)), "{hint:?}");
        }
    }

    /// Prevents a hanging reader from passing as alive, and a backend that is down from getting mqspan restarted.
    #[test]
    fn answers() {
        let pulse = Pulse::default();
        assert_eq!(pulse.answer("/livez").0, StatusCode::OK);
        assert_eq!(pulse.answer("/readyz").0, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(pulse.answer("/").0, StatusCode::NOT_FOUND);
        pulse.set_ready(true);
        assert_eq!(pulse.answer("/readyz").0, StatusCode::OK);
        pulse.wait();
        assert_eq!(pulse.answer("/livez").0, StatusCode::OK);
        let started = Instant::now().checked_sub(2 * HANGS).unwrap();
        let hanging = State { start: started, beat: AtomicU64::new(1), ready: AtomicBool::new(true) };
        let hanging = Pulse(Arc::new(hanging));
        assert_eq!(hanging.answer("/livez").0, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(hanging.answer("/readyz").0, StatusCode::SERVICE_UNAVAILABLE);
        hanging.beat(Instant::now());
        assert_eq!(hanging.answer("/livez").0, StatusCode::OK);
    }
}
