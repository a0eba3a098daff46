//! The binary: everything an operator says to moim, and the cluster on one machine for trying it.
//! The node itself is in the library.

mod bench;
mod cli;
mod dev;
mod fetch;

/// See the reason in `Cargo.toml`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    cli::main()
}
