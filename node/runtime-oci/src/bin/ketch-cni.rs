//! The CNI plugin as a program of its own; `ketch` is the same plugin when it is started under this name.

use std::process::ExitCode;

fn main() -> ExitCode {
    ketch_runtime_oci::cni::main()
}
