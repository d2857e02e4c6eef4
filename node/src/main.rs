//! The `causeway` command.
fn main() {
    println!("causeway {}", env!("CARGO_PKG_VERSION"));
}
