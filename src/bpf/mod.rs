//! The kernel side as user space sees it: the facts about this host, the plan of hooks made from them, and the thread
//! that owns the programs and takes their records.

#[allow(missing_docs, unused_qualifications, clippy::all, clippy::restriction)]
pub mod skel {
    //! Generated from bpf/mqspan.bpf.c by libbpf-cargo (build.rs).
    include!(concat!(env!("OUT_DIR"), "/mqspan.skel.rs"));
}
