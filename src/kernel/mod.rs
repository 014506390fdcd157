//! The kernel side as user space sees it, and the one user of libbpf: the facts about this host ([`facts`], [`types`],
//! [`hazards`], [`variant`]), the plan of hooks made from them ([`plan`], [`hooks`], [`selection`]) and what comes of trying it ([`trial`]),
//! the programs configured, loaded, attached and detached by it ([`configure`], [`programs`], [`probes`], `detach`), their
//! rings ([`ring`]) and records ([`decode`]), the maps of metrics ([`aggregates`], [`readings`]), the kernel's lists of who
//! waits and who holds ([`iterators`]), and what the kernel side is told of processes that publish their spans
//! ([`contexts`]).

pub mod aggregates;
pub mod configure;
mod containers;
pub mod contexts;
pub mod decode;
mod detach;
pub mod facts;
pub mod hazards;
pub mod hooks;
pub mod iterators;
mod obi;
mod own_call;
pub mod plan;
pub mod probes;
pub mod programs;
pub mod readings;
pub mod refusal;
pub mod ring;
pub mod selection;
pub mod trial;
pub mod types;
pub mod variant;
mod warnings;

#[allow(missing_docs, unused_qualifications, clippy::all, clippy::restriction)]
pub mod skel {
    //! Generated from bpf/mqspan.bpf.c by libbpf-cargo (build.rs).
    include!(concat!(env!("OUT_DIR"), "/mqspan.skel.rs"));
}

#[allow(missing_docs, unused_qualifications, clippy::all, clippy::restriction)]
mod live_skel {
    //! Generated from bpf/live.bpf.c by libbpf-cargo (build.rs).
    include!(concat!(env!("OUT_DIR"), "/live.skel.rs"));
}
