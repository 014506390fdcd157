//! What everything speaks of: calls, images and queues, filters and their values, what is counted. Imports nothing of
//! mqspan's, no command line and no libbpf.

pub mod buckets;
pub mod call;
pub mod cause;
pub mod container;
pub mod counts;
pub mod error;
#[cfg(test)]
pub(crate) mod examples;
pub mod filter;
pub mod glob;
pub mod live;
pub mod reading;
pub mod resource;
pub mod slot;
pub mod stuck;
pub mod text;
pub mod values;
