//! Which receive got the message of which send, where the kernel side cannot tell ([`sequence`]). Pure code.

pub mod sequence;
