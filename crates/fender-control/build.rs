//! Migrations are embedded by a macro that Cargo cannot see through: name the directory they come from.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
