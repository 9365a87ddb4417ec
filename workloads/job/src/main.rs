//! A program that runs to its end: says what it was given, then exits.
//!
//! Arguments: `exit CODE`, `sleep MILLISECONDS` (0: for ever), `print TEXT`, `cat FILE`, `write FILE TEXT`,
//! `spin` (uses the processor for ever), `grow` (uses memory without end), `panic`, in any number, one
//! after the other. Without arguments the exit code is `$EXIT_CODE`, or 0.

use std::{env, fs, thread::sleep, time::Duration};

use wasip2::cli::exit::exit_with_code;

fn main() {
    let mut arguments = env::args();
    let name = arguments.next().unwrap_or_default();
    println!("{name} starts");
    while let Some(action) = arguments.next() {
        let mut next = || arguments.next().unwrap_or_default();
        run(&action, &mut next);
    }
    exit(env::var("EXIT_CODE").ok().and_then(|code| code.parse().ok()).unwrap_or(0));
}

fn run(action: &str, next: &mut dyn FnMut() -> String) {
    match action {
        "exit" => exit(next().parse().unwrap_or(2)),
        "sleep" => match next().parse().unwrap_or(0) {
            0 => loop {
                sleep(Duration::from_secs(3600));
            },
            milliseconds => sleep(Duration::from_millis(milliseconds)),
        },
        "print" => println!("{}", next()),
        "cat" => {
            let file = next();
            print!("{}", fs::read_to_string(&file).unwrap_or_else(|error| fail(&file, &error)));
        }
        "write" => {
            let file = next();
            fs::write(&file, next()).unwrap_or_else(|error| fail(&file, &error));
        }
        "spin" => loop {
            std::hint::black_box(0);
        },
        "grow" => {
            let mut held = Vec::new();
            loop {
                held.push(std::hint::black_box(vec![1_u8; 1 << 20]));
            }
        }
        "panic" => panic!("asked to"),
        other => {
            eprintln!("unknown action {other:?}");
            exit(2);
        }
    }
}

/// The standard library's exit knows only success and failure on WASI 0.2.
fn exit(code: u8) -> ! {
    exit_with_code(code);
    unreachable!("the host ended the program")
}

fn fail<T>(file: &str, error: &std::io::Error) -> T {
    eprintln!("{file}: {error}");
    exit(1)
}
