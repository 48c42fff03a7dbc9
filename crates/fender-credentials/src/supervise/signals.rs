//! Every signal that can be passed on.

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use fender_runtime::sys::{self, Signal};
use tokio::signal::unix::SignalKind;

/// Not passed on: what cannot be caught, faults of our own, news of our own children and terminal.
const OURS: &[Signal] = &[
    Signal::KILL,
    Signal::STOP,
    Signal::ILL,
    Signal::TRAP,
    Signal::ABORT,
    Signal::BUS,
    Signal::FPE,
    Signal::SEGV,
    Signal::SYS,
    Signal::PIPE,
    Signal::CHILD,
    Signal::TTIN,
    Signal::TTOU,
];

/// Receives signals instead of dying of them. SIGHUP stays ignored where whoever started us has it ignored for good.
#[derive(Debug)]
pub struct Signals(Vec<(Signal, tokio::signal::unix::Signal)>);

impl Signals {
    pub(super) fn new(ignored: Option<Signal>) -> io::Result<Self> {
        let kind = |signal: Signal| SignalKind::from_raw(signal.as_raw());
        (1..=64)
            .filter_map(sys::signal_numbered)
            .filter(|signal| !OURS.contains(signal) && ignored != Some(*signal))
            .map(|signal| Ok((signal, tokio::signal::unix::signal(kind(signal))?)))
            .collect::<io::Result<_>>()
            .map(Self)
    }

    /// The next signal. Cancel safe.
    pub(super) async fn next(&mut self) -> Signal {
        poll_fn(|context| {
            let received = |stream: &mut tokio::signal::unix::Signal| {
                matches!(stream.poll_recv(context), Poll::Ready(Some(())))
            };
            let mut received = received;
            self.0
                .iter_mut()
                .find_map(|(signal, stream)| received(stream).then_some(*signal))
                .map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}
