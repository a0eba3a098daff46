//! The binary: everything an operator says to moim, and the cluster on one machine for trying it.
//! The node itself is in the library.

mod bench;
mod cli;
mod dev;
mod fetch;

fn main() -> std::process::ExitCode {
    cli::main()
}
