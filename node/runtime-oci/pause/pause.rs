//! The program that holds a pod's namespaces: it ends on SIGTERM and SIGINT and reaps what was left to it.
//!
//! Compiled by the build script with `core` alone, so that the image needs no registry and no libc.
#![no_std]
#![no_main]

use core::{arch::asm, panic::PanicInfo};

const SIGINT: usize = 2;
const SIGTERM: usize = 15;
const SIGCHLD: usize = 17;
const SIG_BLOCK: usize = 0;
const WNOHANG: usize = 1;
/// Bytes of a kernel signal set.
const SET: usize = 8;

#[cfg(target_arch = "x86_64")]
mod number {
    pub const RT_SIGPROCMASK: usize = 14;
    pub const WAIT4: usize = 61;
    pub const RT_SIGTIMEDWAIT: usize = 128;
    pub const EXIT_GROUP: usize = 231;
}

#[cfg(target_arch = "aarch64")]
mod number {
    pub const RT_SIGPROCMASK: usize = 135;
    pub const WAIT4: usize = 260;
    pub const RT_SIGTIMEDWAIT: usize = 137;
    pub const EXIT_GROUP: usize = 94;
}

#[cfg(target_arch = "x86_64")]
fn call(number: usize, [a, b, c, d]: [usize; 4]) -> isize {
    let result;
    // SAFETY: a system call; the pointers among the arguments live on the caller's stack.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b, in("rdx") c,
            in("r10") d, lateout("rcx") _, lateout("r11") _);
    }
    result
}

#[cfg(target_arch = "aarch64")]
fn call(number: usize, [a, b, c, d]: [usize; 4]) -> isize {
    let result;
    // SAFETY: as above.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a as isize => result, in("x1") b, in("x2") c,
            in("x3") d);
    }
    result
}

fn exit(code: usize) -> ! {
    loop {
        call(number::EXIT_GROUP, [code, 0, 0, 0]);
    }
}

#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    // Blocked signals are kept until they are waited for, even by process 1 of a namespace.
    let set: u64 = [SIGINT, SIGTERM, SIGCHLD].iter().fold(0, |set, signal| set | 1 << (signal - 1));
    let pointer = &raw const set as usize;
    call(number::RT_SIGPROCMASK, [SIG_BLOCK, pointer, 0, SET]);
    loop {
        match call(number::RT_SIGTIMEDWAIT, [pointer, 0, 0, SET]) as usize {
            SIGINT | SIGTERM => exit(0),
            _ => while call(number::WAIT4, [usize::MAX, 0, WNOHANG, 0]) > 0 {},
        }
    }
}

#[panic_handler]
fn panic(_: &PanicInfo) -> ! {
    exit(1)
}
