//! What is there on the host now, whoever made it and when: queues, threads that wait at them ([`calls`]), and which
//! container an ipc namespace belongs to ([`namespaces`]).

pub mod calls;
pub mod namespaces;
