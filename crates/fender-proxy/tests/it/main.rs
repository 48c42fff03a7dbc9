//! The proxy between real TLS clients and real small apps, over loopback.

mod adapter;
mod ambassador;
mod attacks;
mod harness;
mod lifetime;
mod streams;
