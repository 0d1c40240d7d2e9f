//! The command line `codec`.
fn main() {}
