//! Which receive got the message of which send, where the kernel side cannot tell: inferred from the order in which calls
//! began and ended. [`sequence`] takes the calls and puts the parts together: `records` knows which records are still to
//! come, `history` what happened on a queue and which pairing alone is possible, `table` keeps the queues within their
//! bounds, `held` the calls that wait. Pure code; the time is passed in.

mod held;
mod history;
mod records;
pub mod sequence;
mod table;
