//! The kernel side as user space sees it: the facts about this host ([`facts`], [`btf`]), the plan of hooks made from
//! them ([`plan`], [`hooks`]), the programs loaded and attached by it ([`programs`], [`probes`]), and the thread that
//! takes their records ([`driver`]) and the series of metrics ([`aggregates`]); what they are told of processes
//! that publish their spans ([`contexts`]).

pub mod aggregates;
pub mod btf;
mod containers;
pub mod contexts;
pub mod decode;
mod detach;
pub mod facts;
pub mod hooks;
mod obi;
pub mod plan;
pub mod probes;
pub mod programs;
pub mod readings;
pub mod ring;
pub mod trial;

#[allow(missing_docs, unused_qualifications, clippy::all, clippy::restriction)]
pub mod skel {
    //! Generated from bpf/mqspan.bpf.c by libbpf-cargo (build.rs).
    include!(concat!(env!("OUT_DIR"), "/mqspan.skel.rs"));
}
