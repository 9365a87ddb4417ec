//! A program that runs to its end: says what it was given, then exits.
//!
//! Arguments: `exit CODE`, `sleep MILLISECONDS` (0: for ever), `print TEXT`, `flood LINES` (of 100 bytes),
//! `cat FILE`, `write FILE TEXT`, `fill FILE MIB`, `remove FILE`, `await FILE TEXT` (waits until the text is in
//! the file), `env NAME`, `lookup NAME` (waits until the name has an address and prints it), `spin` (uses the processor for
//! ever), `grow` (uses memory without end), `panic`, in any number, one after the other. Without arguments the
//! exit code is `$EXIT_CODE`, or 0.

use std::{env, fs, io::Write, net::ToSocketAddrs, thread::sleep, time::Duration};

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
        "flood" => {
            let lines: u32 = next().parse().unwrap_or(0);
            (0..lines).for_each(|line| println!("{line:010} {}", "f".repeat(88)));
        }
        "cat" => {
            let file = next();
            print!("{}", fs::read_to_string(&file).unwrap_or_else(|error| fail(&file, &error)));
        }
        "write" => {
            let file = next();
            fs::write(&file, next()).unwrap_or_else(|error| fail(&file, &error));
        }
        "fill" => {
            let file = next();
            let mebibytes: u32 = next().parse().unwrap_or(0);
            let filled = fs::File::create(&file).and_then(|mut open| {
                (0..mebibytes).try_for_each(|_| open.write_all(&[b'f'; 1 << 20]))
            });
            filled.unwrap_or_else(|error| fail(&file, &error));
        }
        "remove" => {
            let file = next();
            fs::remove_file(&file).unwrap_or_else(|error| fail(&file, &error));
        }
        "await" => {
            let (file, text) = (next(), next());
            until(|| fs::read_to_string(&file).ok().filter(|found| found.contains(&text)));
        }
        "env" => println!("{}", env::var(next()).unwrap_or_default()),
        "lookup" => {
            let name = next();
            let address = until(|| (name.as_str(), 0).to_socket_addrs().ok()?.next());
            println!("{}", address.ip());
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

/// Looks again until there is something.
fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    loop {
        match look() {
            Some(found) => return found,
            None => sleep(Duration::from_millis(20)),
        }
    }
}

/// The standard library's exit knows only success and failure on WASI 0.2.
fn exit(code: u8) -> ! {
    // Nobody else does it then.
    _ = std::io::stdout().flush();
    exit_with_code(code);
    unreachable!("the host ended the program")
}

fn fail<T>(file: &str, error: &std::io::Error) -> T {
    eprintln!("{file}: {error}");
    exit(1)
}
