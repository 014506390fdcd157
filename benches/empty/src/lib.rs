//! BPF programs that do nothing, on the tracepoints of mq_open, mq_timedsend and mq_timedreceive. For benchmarks only.

use anyhow::Result;
use libbpf_rs::{Link, Object, ObjectBuilder};

const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/empty.bpf.o"));

/// The programs, attached until dropped.
pub struct Attached {
    _links: Vec<Link>,
    _object: Object,
}

/// Attaches the programs.
pub fn attach() -> Result<Attached> {
    let object = ObjectBuilder::default().open_memory(OBJECT)?.load()?;
    let links = object.progs_mut().map(|program| program.attach()).collect::<Result<_, _>>()?;
    Ok(Attached { _links: links, _object: object })
}
