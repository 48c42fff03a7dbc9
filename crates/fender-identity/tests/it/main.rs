//! What this crate promises about foreign bytes: the checks of the fuzz target on the committed
//! corpus, and tokens that another implementation made.
//!
//! The modules say `cfg(test)`, which cargo implies, so that clippy lets their helpers unwrap too.

#[cfg(test)]
mod checks;
#[cfg(test)]
mod corpus;
#[cfg(test)]
mod pyjwt;
