//! strace's log (`-f -X verbose -xx`, version 6.1 and newer) as system calls. Pure code: any text is an error or calls.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};

/// The options that make strace write what this reads: names byte by byte, flags as number and by name.
pub const OPTIONS: [&str; 6] = ["-f", "-qq", "-xx", "-Xverbose", "-s5001", "-esignal=none"];

/// A system call that returned.
#[derive(Clone, Debug, PartialEq)]
pub struct Syscall {
    /// The thread.
    pub tid: u32,
    /// Its name.
    pub name: String,
    /// Its arguments, as far as strace shows them.
    pub args: Vec<Arg>,
    /// What it returned.
    pub returned: Returned,
}

/// An argument.
#[derive(Clone, Debug, PartialEq)]
pub enum Arg {
    /// `NULL`.
    Null,
    /// A number, in octal where strace writes it so, or a pointer to what strace could not read; with the words that
    /// strace has for it.
    Number(i128, Option<String>),
    /// The bytes of a string, and whether there were more.
    Text(Vec<u8>, bool),
    /// `{name=value, …}`.
    Struct(Vec<(String, Arg)>),
    /// `[…]`: what a pointer points to.
    List(Vec<Arg>),
}

/// What follows the `=`.
#[derive(Clone, Debug, PartialEq)]
pub enum Returned {
    /// A number that is no failure.
    Value(i64),
    /// A failure: the errno's name and its text.
    Error(String, String),
    /// `?`: what strace knows of a call that a signal ended, `ERESTARTSYS`, or nothing.
    Unknown(String),
}

impl Arg {
    /// The number.
    pub fn number(&self) -> Result<i128> {
        match self {
            Self::Number(number, _) => Ok(*number),
            Self::Null => Ok(0),
            other => bail!("{other:?} is not a number"),
        }
    }

    /// A field of a structure.
    pub fn field(&self, name: &str) -> Option<&Arg> {
        match self {
            Self::Struct(fields) => fields.iter().find(|(field, _)| field == name).map(|(_, value)| value),
            _ => None,
        }
    }
}

/// Reads a log. Each thread's calls come in the order of their exits.
pub fn parse(log: &str) -> Result<Vec<Syscall>> {
    let mut unfinished: HashMap<u32, String> = HashMap::new();
    let mut calls = Vec::new();
    for line in log.lines() {
        let (tid, rest) = line.split_once(' ').with_context(|| format!("no thread id: {line}"))?;
        let tid = tid.parse().with_context(|| line.to_owned())?;
        let rest = rest.trim_start();
        if rest.starts_with("+++") || rest.starts_with("---") {
            continue;
        }
        let whole = if let Some(resumed) = rest.strip_prefix("<... ") {
            let (_, tail) = resumed.split_once(" resumed>").with_context(|| line.to_owned())?;
            unfinished.remove(&tid).with_context(|| format!("resumed, never begun: {line}"))? + tail
        } else {
            rest.to_owned()
        };
        // A thread that is killed inside of the call never resumes: `mq_timedreceive(3,  <unfinished ...>) = ?`.
        match whole.strip_suffix(" <unfinished ...>") {
            Some(begun) => {
                unfinished.insert(tid, begun.to_owned());
            }
            None => {
                let whole = whole.replace(" <unfinished ...>)", ")");
                calls.push(call(tid, &whole).with_context(|| whole.clone())?);
            }
        }
    }
    ensure!(unfinished.is_empty(), "calls without an end: {unfinished:?}");
    Ok(calls)
}

fn call(tid: u32, text: &str) -> Result<Syscall> {
    let (name, rest) = text.split_once('(').context("no arguments")?;
    let mut parser = Parser { rest };
    let args = parser.list(')')?;
    let result = parser.rest.trim_start().strip_prefix("= ").context("no result")?;
    Ok(Syscall { tid, name: name.into(), args, returned: returned(result)? })
}

fn returned(text: &str) -> Result<Returned> {
    if let Some(rest) = text.strip_prefix('?') {
        return Ok(Returned::Unknown(rest.split_whitespace().next().unwrap_or_default().into()));
    }
    match text.split_once(' ') {
        Some(("-1", error)) => {
            let (name, text) = error.split_once(" (").context("no errno")?;
            Ok(Returned::Error(name.into(), text.trim_end_matches(')').into()))
        }
        Some((value, _)) => Ok(Returned::Value(value.parse()?)),
        None => Ok(Returned::Value(text.parse()?)),
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn take(&mut self, prefix: &str) -> bool {
        match self.rest.strip_prefix(prefix) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn until(&mut self, ends: &[char]) -> &'a str {
        let end = self.rest.find(ends).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }

    fn skip_blanks(&mut self) {
        self.rest = self.rest.trim_start();
    }

    /// Values up to `end`, which is taken too.
    fn list(&mut self, end: char) -> Result<Vec<Arg>> {
        let mut args = Vec::new();
        loop {
            self.skip_blanks();
            if self.rest.starts_with(end) {
                self.rest = &self.rest[end.len_utf8()..];
                return Ok(args);
            }
            args.push(self.arg()?);
            self.skip_blanks();
            ensure!(self.take(",") || self.rest.starts_with(end), "neither a comma nor {end}: {}", self.rest);
        }
    }

    fn arg(&mut self) -> Result<Arg> {
        if self.take("NULL") {
            return Ok(Arg::Null);
        }
        if self.take("{") {
            return self.fields();
        }
        if self.take("[") {
            return Ok(Arg::List(self.list(']')?));
        }
        if self.take("\"") {
            let text = self.until(&['"']);
            ensure!(self.take("\""), "a string without an end");
            return Ok(Arg::Text(bytes(text)?, self.take("...")));
        }
        let number = number(self.until(&[',', ')', '}', ']', ' ']))?;
        self.skip_blanks();
        let words = match self.take("/* ") {
            true => {
                let end = self.rest.find(" */").context("a comment without an end")?;
                let words = self.rest[..end].to_owned();
                self.rest = &self.rest[end + 3..];
                Some(words)
            }
            false => None,
        };
        Ok(Arg::Number(number, words))
    }

    fn fields(&mut self) -> Result<Arg> {
        let mut fields = Vec::new();
        while !self.take("}") {
            let name = self.until(&['=']);
            ensure!(self.take("="), "a field without a value");
            fields.push((name.trim().into(), self.arg()?));
            self.skip_blanks();
            self.take(", ");
        }
        Ok(Arg::Struct(fields))
    }
}

fn bytes(text: &str) -> Result<Vec<u8>> {
    let mut pairs = text.split("\\x");
    ensure!(pairs.next() == Some(""), "not in hex: {text}");
    pairs.map(|pair| u8::from_str_radix(pair, 16).with_context(|| text.to_owned())).collect()
}

fn number(text: &str) -> Result<i128> {
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |digits| (true, digits));
    let value = match digits.strip_prefix("0x") {
        Some(hex) => i128::from_str_radix(hex, 16),
        None if digits.len() > 1 && digits.starts_with('0') => i128::from_str_radix(digits, 8),
        None => digits.parse(),
    };
    let value = value.with_context(|| format!("{text:?} is not a number"))?;
    Ok(if negative { -value } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(line: &str) -> Syscall {
        let calls = parse(line).unwrap();
        assert_eq!(calls.len(), 1, "{line}");
        calls.into_iter().next().unwrap()
    }

    /// Prevents arguments from being read otherwise than strace 6.1 writes them: recorded lines.
    #[test]
    fn recorded_opens() {
        let call = one(
            r#"16776 mq_open("\x6b\x7a", 0xc2 /* O_RDWR|O_CREAT|O_EXCL */, 0125713, {mq_flags=0xffffffffffffffff /* O_NONBLOCK|0xfffffffffffff7ff */, mq_maxmsg=-3, mq_msgsize=65459, mq_curmsgs=9}) = -1 EINVAL (Invalid argument)"#,
        );
        assert_eq!((call.tid, &*call.name), (16776, "mq_open"));
        assert_eq!(call.args[0], Arg::Text(b"kz".into(), false));
        assert_eq!(call.args[1], Arg::Number(0xc2, Some("O_RDWR|O_CREAT|O_EXCL".into())));
        assert_eq!(call.args[2], Arg::Number(0o125713, None));
        assert_eq!(call.args[3].field("mq_flags").unwrap().number().unwrap(), u64::MAX.into());
        assert_eq!(call.args[3].field("mq_maxmsg").unwrap().number().unwrap(), -3);
        assert_eq!(call.returned, Returned::Error("EINVAL".into(), "Invalid argument".into()));

        let call = one(r#"7 mq_open("", 0 /* O_RDONLY */) = 12"#);
        assert_eq!(call.args, [Arg::Text(Vec::new(), false), Arg::Number(0, Some("O_RDONLY".into()))]);
        assert_eq!(call.returned, Returned::Value(12));
        assert_eq!(one("7 mq_open(NULL, 0 /* O_RDONLY */) = -1 EFAULT (Bad address)").args[0], Arg::Null);
        assert_eq!(one("7 mq_open(0x7f8b, 0 /* O_RDONLY */) = 3").args[0], Arg::Number(0x7f8b, None));
    }

    /// Prevents calls that other threads interrupt from being lost or put together wrongly.
    #[test]
    fn unfinished_and_resumed() {
        let log = "1 mq_open(\"\\x61\", 0 /* O_RDONLY */ <unfinished ...>\n\
                   2 mq_timedreceive(3,  <unfinished ...>\n\
                   1 <... mq_open resumed>) = -1 ENOENT (No such file or directory)\n\
                   2 --- SIGUSR1 {si_signo=10 /* SIGUSR1 */} ---\n\
                   2 <... mq_timedreceive resumed>\"\\x6f\\x72\", 64, [5], NULL) = 2\n\
                   3 mq_timedreceive(3,  <unfinished ...>) = ?\n\
                   3 +++ killed by SIGKILL +++\n\
                   4 mq_timedsend(3, \"\\x00\"..., 9, 0, {tv_sec=1, tv_nsec=2}) = ? ERESTARTSYS (To be restarted)\n";
        let calls = parse(log).unwrap();
        let shown: Vec<_> = calls.iter().map(|call| (call.tid, &*call.name, call.args.len())).collect();
        assert_eq!(
            shown,
            [(1, "mq_open", 2), (2, "mq_timedreceive", 5), (3, "mq_timedreceive", 1), (4, "mq_timedsend", 5)]
        );
        assert_eq!(calls[1].args[3], Arg::List(vec![Arg::Number(5, None)]));
        assert_eq!(calls[2].returned, Returned::Unknown(String::new()));
        assert_eq!(calls[3].returned, Returned::Unknown("ERESTARTSYS".into()));
        assert_eq!(calls[3].args[1], Arg::Text(vec![0], true));
    }

    /// Prevents a log that ends in the middle, or is none, from being taken for one with fewer calls.
    #[test]
    fn nothing_is_left_out_silently() {
        for log in ["1 mq_open(\"\\x61\", 0 <unfinished ...>", "1 mq_open(", "x y", "1 <... mq_open resumed>) = 0"] {
            assert!(parse(log).is_err(), "{log}");
        }
    }
}
