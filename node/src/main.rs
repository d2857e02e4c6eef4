//! The `causeway` command.

/// Many small pieces that one thread takes and another gives back: `docs/decisions/013-allocator.md`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    causeway::cli::run()
}
