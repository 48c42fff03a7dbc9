//! The vector tables, the properties and the fuzz corpora, each against the public codec.
//!
//! The modules say `cfg(test)`, which cargo implies, so that clippy lets their helpers unwrap too.

#[cfg(test)]
mod checks;
#[cfg(test)]
mod corpus;
#[cfg(test)]
mod parts;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod proxy;
#[cfg(test)]
mod table;
#[cfg(test)]
mod vectors;
