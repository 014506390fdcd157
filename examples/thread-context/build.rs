//! Readers find the thread-local pointer by its name: the linker must keep it in the program's dynamic symbols.

fn main() {
    println!("cargo::rustc-link-arg-bins=-Wl,--export-dynamic-symbol=otel_thread_ctx_v1");
}
