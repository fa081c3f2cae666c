//! A TCP proxy in front of a server, to lose the network or make it slow without touching the host's.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::{Duration, Instant};

/// Forwards one port to another until told otherwise.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: u16,
    /// How long every byte is under way, in either direction.
    delay: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    cut: bool,
    closed: bool,
    links: Vec<Arc<Link>>,
    /// Bytes in a second that the server can send, on all connections together.
    limit: Option<u64>,
    /// Until when what it has sent so far keeps the line busy.
    busy: Option<Instant>,
}

/// One proxied connection.
struct Link {
    client: TcpStream,
    server: TcpStream,
    severed: AtomicBool,
    /// One of the two directions has ended.
    half_closed: AtomicBool,
}

impl Proxy {
    /// Starts to forward connections to `listener` on to 127.0.0.1:`upstream`.
    pub fn start(listener: TcpListener, upstream: u16) -> Proxy {
        Proxy::start_far(listener, upstream, Duration::ZERO)
    }

    /// The same, where every byte is under way for so long: half of a round trip.
    pub fn start_far(listener: TcpListener, upstream: u16, delay: Duration) -> Proxy {
        let port = listener.local_addr().expect("a bound listener").port();
        let shared = Arc::new(Shared {
            upstream,
            delay,
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
        });
        let accepting = shared.clone();
        std::thread::spawn(move || accepting.accept(&listener));
        Proxy { port, shared }
    }

    /// The port to connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A lost network: not a byte goes through any more, in either direction, and nobody is told. New
    /// connections get no answer.
    pub fn cut(&self) {
        self.shared.state.lock().unwrap().cut = true;
    }

    /// The network is back. What was in flight arrives now, as it would after TCP's retransmissions.
    pub fn uncut(&self) {
        self.shared.state.lock().unwrap().cut = false;
        self.shared.changed.notify_all();
    }

    /// A slow network: so many bytes in a second from the server, on all connections together.
    pub fn limit(&self, bytes_per_second: Option<u64>) {
        self.shared.state.lock().unwrap().limit = bytes_per_second;
        self.shared.changed.notify_all();
    }

    /// Resets every open connection. New ones are served.
    pub fn sever(&self) {
        let mut state = self.shared.state.lock().unwrap();
        for link in state.links.drain(..) {
            link.sever();
        }
        self.shared.changed.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.state.lock().unwrap().closed = true;
        self.sever();
        // Wakes the accepting thread, which then sees that it is over.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for client in listener.incoming() {
            let Ok(client) = client else { return };
            if !self.pass(None) {
                return;
            }
            // With the server down the client's connection just ends, which is all a proxy can say.
            let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.upstream)) else {
                continue;
            };
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let link = Arc::new(Link {
                client,
                server,
                severed: AtomicBool::new(false),
                half_closed: AtomicBool::new(false),
            });
            self.state.lock().unwrap().links.push(link.clone());
            for towards_server in [true, false] {
                let (shared, link) = (self.clone(), link.clone());
                std::thread::spawn(move || shared.pump(&link, towards_server));
            }
        }
    }

    /// Moves bytes one way until an end closes.
    fn pump(&self, link: &Arc<Link>, towards_server: bool) {
        let (mut from, to) = if towards_server {
            (&link.client, &link.server)
        } else {
            (&link.server, &link.client)
        };
        let mut buffer = [0; 16 * 1024];
        let under_way = (!self.delay.is_zero())
            .then(|| Wire::start(to, self.delay))
            .flatten();
        loop {
            let n = from.read(&mut buffer).unwrap_or(0);
            if !self.pass(Some(link)) || !towards_server && !self.take_time(link, n) {
                break;
            }
            let sent = match &under_way {
                Some(wire) => wire.send(&buffer[..n]),
                None if n == 0 => to.shutdown(Shutdown::Write),
                None => (&mut &*to).write_all(&buffer[..n]),
            };
            if n == 0 || sent.is_err() {
                let _ = under_way.is_none().then(|| to.shutdown(Shutdown::Write));
                break;
            }
        }
        if link.half_closed.swap(true, Ordering::SeqCst) {
            self.state
                .lock()
                .unwrap()
                .links
                .retain(|other| !Arc::ptr_eq(other, link));
        }
    }

    /// Waits until the line has carried so many bytes more. False as in [`Self::pass`].
    fn take_time(&self, link: &Link, bytes: usize) -> bool {
        let gone = |state: &State| state.closed || link.severed.load(Ordering::SeqCst);
        let mut state = self.state.lock().unwrap();
        let Some(limit) = state.limit else {
            return !gone(&state);
        };
        let now = Instant::now();
        let time = Duration::from_secs_f64(bytes as f64 / limit as f64);
        let until = state.busy.map_or(now, |busy| busy.max(now)) + time;
        state.busy = Some(until);
        while !gone(&state) && state.limit.is_some() && Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            state = self.changed.wait_timeout(state, left).unwrap().0;
        }
        !gone(&state)
    }

    /// Waits while the network is cut. False when the connection or the whole proxy is gone.
    fn pass(&self, link: Option<&Link>) -> bool {
        let gone =
            |state: &State| state.closed || link.is_some_and(|l| l.severed.load(Ordering::SeqCst));
        let state = self.state.lock().unwrap();
        let state = self
            .changed
            .wait_while(state, |s| s.cut && !gone(s))
            .unwrap();
        !gone(&state)
    }
}

/// Bytes that are under way. More of them can be at the same time.
struct Wire {
    sender: mpsc::Sender<(Instant, Vec<u8>)>,
    delay: Duration,
}

impl Wire {
    /// `None` where the connection is gone already.
    fn start(to: &TcpStream, delay: Duration) -> Option<Wire> {
        let mut to = to.try_clone().ok()?;
        let (sender, receiver) = mpsc::channel::<(Instant, Vec<u8>)>();
        std::thread::spawn(move || {
            for (due, bytes) in receiver {
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                if bytes.is_empty() || to.write_all(&bytes).is_err() {
                    break;
                }
            }
            // The other side has ended, and all that it sent has arrived.
            let _ = to.shutdown(Shutdown::Write);
        });
        Some(Wire { sender, delay })
    }

    /// No bytes are the end.
    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let message = (Instant::now() + self.delay, bytes.to_vec());
        self.sender
            .send(message)
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Link {
    /// Ends the connection with a reset instead of an orderly close: no lingering, and no FIN before it.
    fn sever(&self) {
        self.severed.store(true, Ordering::SeqCst);
        for stream in [&self.client, &self.server] {
            let _ = reset_on_close(stream);
            let _ = stream.shutdown(Shutdown::Read);
        }
    }
}

fn reset_on_close(stream: &TcpStream) -> io::Result<()> {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    // SAFETY: the descriptor is open and the option's value is a linger of the size given.
    let rc = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
