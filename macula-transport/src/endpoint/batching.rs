//! A runtime for quinn whose tasks, under load, let others go first.
//!
//! quinn wakes a connection's driver for every small write, and the driver sends a packet for each. When many calls are under way
//! it pays to let the tasks that are ready run first: then one packet carries the frames of all of them. So a driver that was woken
//! yields once before it runs. With few calls under way it runs at once, for yielding would only add to their latency.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime};

use crate::load::{Load, SMALL_LOAD};

/// Tokio, with yielding drivers.
#[derive(Debug)]
pub(crate) struct Batching {
    load: Arc<Load>,
}

impl Batching {
    pub(crate) fn new(load: Arc<Load>) -> Self {
        Self { load }
    }
}

impl Runtime for Batching {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, driver: Pin<Box<dyn Future<Output = ()> + Send>>) {
        tokio::spawn(Yielding {
            driver,
            yielded: false,
            load: self.load.clone(),
        });
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

/// A driver that, under load, yields once after each wake.
struct Yielding {
    driver: Pin<Box<dyn Future<Output = ()> + Send>>,
    yielded: bool,
    load: Arc<Load>,
}

impl fmt::Debug for Yielding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Yielding")
            .field("yielded", &self.yielded)
            .finish_non_exhaustive()
    }
}

impl Future for Yielding {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if !self.yielded && self.load.is_above(SMALL_LOAD) {
            self.yielded = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.yielded = false;
        self.driver.as_mut().poll(cx)
    }
}
