//! What mqspan's tests share. The parsers are pure and tested by `cargo test --workspace`; everything that needs root is
//! used by the targets `host`, `collector` and `family` only.

pub mod ages;
pub mod backend;
pub mod browser;
pub mod calls;
pub mod causes;
pub mod certificates;
pub mod collector;
pub mod container;
pub mod expect;
pub mod family;
pub mod fed;
pub mod http;
pub mod orders;
pub mod otlp;
pub mod own;
pub mod paced;
pub mod picture;
pub mod program;
pub mod prometheus;
pub mod pty;
pub mod queues;
pub mod ready;
pub mod rotel;
pub mod server;
pub mod sessions;
pub mod stats;
pub mod strace;
pub mod text;
pub mod wait;
pub mod workload;
