//! BPF programs that do nothing, at the entry and exit of mq_open, mq_timedsend and mq_timedreceive. For benchmarks only.

use anyhow::Result;
use libbpf_rs::{Link, Object, ObjectBuilder};

const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/empty.bpf.o"));

/// The programs, attached until dropped.
pub struct Attached {
    _links: Vec<Link>,
    _object: Object,
}

/// Attaches the programs of one kind of hooks: `fsession`, `fentry`, `kprobe` or `tracepoint`.
pub fn attach(kind: &str) -> Result<Attached> {
    let is_of_kind = |name: &str| name.strip_prefix(kind).is_some_and(|rest| rest.starts_with('_'));
    let mut object = ObjectBuilder::default().open_memory(OBJECT)?;
    for mut program in object.progs_mut() {
        let wanted = program.name().to_str().is_some_and(is_of_kind);
        program.set_autoload(wanted);
    }
    let object = object.load()?;
    let programs = object.progs_mut().filter(|program| program.name().to_str().is_some_and(is_of_kind));
    let links = programs.map(|program| program.attach()).collect::<Result<_, _>>()?;
    Ok(Attached { _links: links, _object: object })
}
