//! Calls for tests to start from.

use super::call::{Abi, Args, Call, Ids, ImageKey, Message, Passed, Queue, QueueKey, Turn};
use super::values::Op;

/// An mq_open of `/orders` that failed, for other modules' tests to start from.
pub(crate) fn example() -> Call {
    Call {
        op: Op::MqOpen,
        image: ImageKey { pid: 0, started_ns: 0, exec_id: 0 },
        tid: 0,
        vpid: 0,
        local_pid: 0,
        entered_ns: 0,
        left_ns: 0,
        ret: -2,
        uid: 0,
        ipc_ns: 0,
        abi: Abi::Native,
        ids: Ids { trace: [0; 16], span: [0; 8] },
        context: None,
        asked: Some(b"orders".to_vec().into()),
        args: Args::Open { name_ptr: 0, oflag: 0, mode: 0, attr: Passed { ptr: 0, value: None }, attr_changed: false },
        queue: None,
        comm: [0; 16],
        failure: None,
        filtered: false,
        measured: false,
    }
}

/// What a call that passes a message is given at least.
pub(crate) fn message() -> Message {
    Message {
        fd: 7,
        size: 64,
        priority: Some(5),
        timeout: Passed { ptr: 0, value: None },
        blocked: false,
        wait_ns: None,
        sent_by: None,
        tracked: false,
        turn: Turn::default(),
        limited: 0,
    }
}

/// A queue of that name with 3 messages of at most 10.
pub(crate) fn queue(name: &[u8]) -> Queue {
    let key = QueueKey { inode: 1, number: 2, namespace: 3 };
    Queue { key, name: name.into(), maxmsg: 10, msgsize: 64, curmsgs: Some(3), mode: 0o600 }
}
