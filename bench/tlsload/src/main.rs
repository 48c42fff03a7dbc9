//! tlsload: load generator and reference backend of the bench.
//!
//! Everything runs on one thread so that it can be pinned to one core while
//! the measured proxy has the other. Load modes print `BEGIN <ns>` when the
//! warm-up is over and `END <ns>` when the window closes (CLOCK_MONOTONIC), so
//! that the driver can sample the proxy's CPU time around exactly the counted
//! work; one JSON line with the results follows. With `--count` they do exactly
//! so many units instead, without a warm-up, for whoever counts instructions.

mod backend;
mod bare;
mod client;
mod limits;
mod net;
mod opts;
mod probe;
mod stats;

use opts::Opts;

const USAGE: &str = "\
usage: tlsload MODE [--key value]...

load modes (common: --addr HOST:PORT [--plain] [--cert F --key F] [--conns N]
            [--warmup S] [--duration S | --count N] [--kx x25519|p256|mlkem] [--sni NAME])
  h1         keep-alive HTTP/1.1  [--path P] [--header 'K: V']... [--rate R] [--upload BYTES]
  h2         HTTP/2               [--streams N] and as h1, without --rate
  hbone      HTTP/1.1 inside HTTP/2 CONNECT tunnels  --target HOST:PORT
  handshake  full TLS 1.3 handshakes  [--resume] [--request] [--alpn P|--no-alpn]
  stream     raw bytes through the proxy  --dir down|up
  idle       open --conns connections, print READY, hold until stdin closes
             [--request: one request on each first; --unanswered: that nobody answers]
  probe      retry until one handshake (and, with --request, one 200 or --expect STATUS
             [--contains TEXT]) succeeds

other
  limits     rustls in memory, no sockets  --pki DIR [--seconds S] [--kx ...]
  bare       a server of rustls and epoll  --tls A:P --mtls A:P --pki DIR
  backend    --http A:P  [--https A:P --cert F --key F --ca F]
";

fn main() {
    let mut args = std::env::args().skip(1);
    let mode = args.next().unwrap_or_default();
    let opts = match Opts::parse(args) {
        Ok(o) => o,
        Err(e) => fail(&e),
    };
    if mode == "probe" {
        return probe::run(&opts);
    }
    if mode == "limits" {
        return limits::run(&opts).unwrap_or_else(|e| fail(&e.to_string()));
    }
    if mode == "bare" {
        return bare::run(&opts).unwrap_or_else(|e| fail(&e.to_string()));
    }
    let rt = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .event_interval(61)
        .build()
        .expect("runtime");
    let local = tokio::task::LocalSet::new();
    let res = local.block_on(&rt, async {
        match mode.as_str() {
            "h1" | "h2" | "hbone" | "handshake" | "stream" => client::load(&mode, &opts).await,
            "idle" => client::idle(&opts).await,
            "backend" => backend::run(&opts).await,
            _ => Err(USAGE.into()),
        }
    });
    if let Err(e) = res {
        fail(&e.to_string());
    }
    // Leave at once: tearing 10,000 connections down politely is not the point.
    std::process::exit(0);
}

fn fail(msg: &str) -> ! {
    eprintln!("{msg}");
    std::process::exit(2);
}
