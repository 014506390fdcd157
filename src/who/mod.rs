//! Who made a call: the Resource of each process image, fixed at its first call ([`registry`]), from what the kernel side
//! recorded then, what this host says ([`host`]), and what the process says of itself. What must be looked up in other
//! processes is the [`prober`]'s; the calls that it is asked for wait in the [`waiting`] room, for a moment. Asks nothing that
//! can wait for a network.

pub mod bounds;
pub mod cgroup;
pub mod elf;
pub mod environment;
pub mod host;
pub mod owner;
pub mod prober;
pub mod process_context;
pub mod registry;
pub mod resource;
pub mod store;
pub mod tls;
pub mod waiting;
