//! What could not be delivered yet, on disk until it is: the file ([`store`]).

pub mod store;
