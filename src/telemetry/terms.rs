//! The words for a call and for what came of it, the same in spans, log records, lines and metrics. Pure code.

use std::borrow::Cow;

use nix::errno::Errno;

use crate::model::values::Op;

/// The kernel's ERESTARTSYS (include/linux/errno.h): a signal ended the call; programs never see it.
pub const ERESTARTSYS: i32 = 512;

/// The system call's name, `mq_open`.
pub fn operation(op: Op) -> &'static str {
    match op {
        Op::MqOpen => "mq_open",
        Op::MqUnlink => "mq_unlink",
        Op::MqTimedsend => "mq_timedsend",
        Op::MqTimedreceive => "mq_timedreceive",
        Op::MqNotify => "mq_notify",
        Op::MqGetsetattr => "mq_getsetattr",
    }
}

/// `messaging.operation.type`, of calls that pass messages.
pub fn operation_type(op: Op) -> Option<&'static str> {
    match op {
        Op::MqTimedsend => Some("send"),
        Op::MqTimedreceive => Some("receive"),
        _ => None,
    }
}

/// The name of a positive errno.
pub fn errno_name(errno: i32) -> Cow<'static, str> {
    match (errno, Errno::from_raw(errno)) {
        (ERESTARTSYS, _) => "ERESTARTSYS".into(),
        (errno, Errno::UnknownErrno) => format!("errno {errno}").into(),
        (_, known) => format!("{known:?}").into(),
    }
}

/// Whether a failure by this errno is an error: polling and being interrupted are not.
pub fn is_error(errno: i32) -> bool {
    ![libc::EAGAIN, libc::ETIMEDOUT, libc::EINTR, ERESTARTSYS].contains(&errno)
}
