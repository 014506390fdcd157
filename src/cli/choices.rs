//! Option values that are names from a fixed list: how each is written, on the command line, in the environment and in
//! the file, and what the help says of it. Pure code.

use clap::ValueEnum;
use clap::builder::PossibleValue;

use crate::model::values::{
    Color, Compression, Format, HistogramAggregation, HookKind, Op, Protocol, Receive, Signal, SortKey, Temporality,
};

/// A type's values: each with its name, other names that are taken for it, and its line in the help.
macro_rules! choices {
    ($type:ident { $($value:ident = $name:literal, [$($alias:literal),*], $help:literal;)* }) => {
        impl ValueEnum for $type {
            fn value_variants<'a>() -> &'a [Self] {
                &[$(Self::$value),*]
            }

            fn to_possible_value(&self) -> Option<PossibleValue> {
                Some(match self {
                    $(Self::$value => PossibleValue::new($name).aliases([$($alias),*] as [&str; _]).help($help),)*
                })
            }
        }
    };
}

choices! {
    Op {
        MqOpen = "mq_open", [], "mq_open(3)";
        MqUnlink = "mq_unlink", [], "mq_unlink(3)";
        MqTimedsend = "mq_timedsend", ["mq_send"], "mq_timedsend(3), mq_send(3)";
        MqTimedreceive = "mq_timedreceive", ["mq_receive"], "mq_timedreceive(3), mq_receive(3)";
        MqNotify = "mq_notify", [], "mq_notify(3)";
        MqGetsetattr = "mq_getsetattr", ["mq_getattr", "mq_setattr"], "mq_getattr(3), mq_setattr(3)";
    }
}

choices! {
    Signal {
        Traces = "traces", [], "A span for each call";
        Logs = "logs", [], "A log record for each call";
        Metrics = "metrics", [], "Counts, durations and the state of queues";
    }
}

choices! {
    Protocol {
        Grpc = "grpc", [], "OTLP/gRPC";
        HttpProtobuf = "http/protobuf", [], "OTLP/HTTP, binary";
        HttpJson = "http/json", [], "OTLP/HTTP, JSON";
    }
}

choices! {
    Compression {
        None = "none", [], "Not at all";
        Gzip = "gzip", [], "As the specification has it";
        Zstd = "zstd", [], "Beyond the specification; the Collector takes it";
    }
}

choices! {
    Temporality {
        Cumulative = "cumulative", [], "All from the start";
        Delta = "delta", [], "Counters and histograms from one export to the next";
        LowMemory = "lowmemory", [],
            "Delta for counters and histograms that are counted up, cumulative for those that are observed";
    }
}

choices! {
    HistogramAggregation {
        Exponential = "base2_exponential_bucket_histogram", [], "Buckets that grow by 2^(1/4)";
        Explicit = "explicit_bucket_histogram", [], "Bounds at powers of two";
    }
}

choices! {
    HookKind {
        Auto = "auto", [], "The best that the host offers";
        Fsession = "fsession", [], "Entry and exit in one program, Linux 7.0 and newer";
        Fentry = "fentry", [], "fentry and fexit trampolines";
        Kprobe = "kprobe", [], "kprobes with a return side";
        Tracepoint = "tracepoint", [], "The tracepoints of the system calls";
    }
}

choices! {
    Receive {
        Link = "link", [], "It links to the sending span";
        Child = "child", [], "It is the sending span's child";
    }
}

choices! {
    Color {
        Auto = "auto", [], "Where it goes to a terminal";
        Always = "always", [], "Also into files and pipes";
        Never = "never", [], "Not at all";
    }
}

choices! {
    SortKey {
        Name = "name", [], "The queue's name";
        Namespace = "namespace", [], "Its ipc namespace or container";
        Depth = "depth", [], "How full it is";
        In = "in", [], "Messages a second that come";
        Out = "out", [], "Messages a second that are taken";
        Oldest = "oldest", [], "The age of its oldest message";
        Wait50 = "wait50", [], "The median wait of its messages";
        Wait99 = "wait99", [], "What one message of a hundred exceeds";
        Failures = "failures", [], "Failures a second";
        Open = "open", [], "Descriptors that can receive and send";
        Blocked = "blocked", [], "Threads that wait at it";
    }
}

choices! {
    Format {
        Text = "text", [], "For people";
        Json = "json", [], "For programs, one object";
    }
}

/// A name from a fixed list, in either case, as the OpenTelemetry specification reads it.
pub fn choice<T: ValueEnum>(text: &str) -> Result<T, String> {
    T::from_str(text, true).map_err(|_| {
        let names: Vec<String> = T::value_variants()
            .iter()
            .filter_map(ValueEnum::to_possible_value)
            .map(|value| value.get_name().to_owned())
            .collect();
        format!("none of {}", names.join(", "))
    })
}

/// How a value is written, and its line in the help.
pub fn described<T: ValueEnum>(value: &T) -> (String, String) {
    let value = value.to_possible_value();
    let help = value.as_ref().and_then(PossibleValue::get_help).map(ToString::to_string);
    (value.map(|value| value.get_name().to_owned()).unwrap_or_default(), help.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents glibc's names from being unknown, and the system calls' own from changing.
    #[test]
    fn call_names() {
        for (text, expected) in [
            ("mq_open", Op::MqOpen),
            ("mq_unlink", Op::MqUnlink),
            ("mq_timedsend", Op::MqTimedsend),
            ("mq_send", Op::MqTimedsend),
            ("mq_timedreceive", Op::MqTimedreceive),
            ("mq_receive", Op::MqTimedreceive),
            ("mq_notify", Op::MqNotify),
            ("mq_getsetattr", Op::MqGetsetattr),
            ("mq_getattr", Op::MqGetsetattr),
            ("mq_setattr", Op::MqGetsetattr),
        ] {
            assert_eq!(choice(text), Ok(expected));
        }
        assert_eq!(choice::<Protocol>("http").unwrap_err(), "none of grpc, http/protobuf, http/json");
    }
}
