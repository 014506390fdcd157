//! The workload's own record of its calls (`workload open --print`), and how it is run.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;

use crate::{
    calls::{Limits, Open, Outcome, Readable},
    program::{finish, without_otel},
    strace,
};

/// Runs a program to its end, which must be a success; its stdout.
pub fn run(program: &Path, args: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    command.args(args);
    without_otel(&mut command);
    let output = finish(command)?;
    ensure!(output.status.success(), "{args:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// The command that runs a program under strace, which sees these calls and writes them to `log`.
pub fn under_strace(trace: &str, log: &Path, program: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("strace");
    command.args(strace::OPTIONS).arg(format!("-etrace={trace}")).arg("-o").arg(log).arg(program).args(args);
    without_otel(&mut command);
    command
}

/// Reads what `--print` wrote.
pub fn read(path: &Path) -> Result<Vec<Open>> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    text.lines().map(|line| open(line).with_context(|| line.to_owned())).collect()
}

fn open(line: &str) -> Result<Open> {
    let fields: Vec<_> = line.split('\t').collect();
    let [tid, name, oflag, mode, attr, result, limits, before, after, pid] = fields[..] else {
        anyhow::bail!("{} fields", fields.len());
    };
    let resident = !name.starts_with('~');
    let oflag = u32::from_str_radix(oflag.trim_start_matches("0x"), 16)?;
    let creates = oflag & libc::O_CREAT as u32 != 0;
    Ok(Open {
        tid: tid.parse()?,
        pid: Some(pid.parse()?),
        name: readable(name.trim_start_matches('~'), hex)?,
        resident,
        oflag,
        flags: None,
        mode: creates.then(|| octal(mode)).transpose()?.map(|mode| mode as u16),
        attr: creates.then(|| readable(attr, numbers)).transpose()?,
        outcome: outcome(result.parse()?),
        limits: match limits {
            "-" => None,
            limits => {
                let (numbers_part, mode) = limits.rsplit_once(',').context("no mode")?;
                let [maxmsg, msgsize, curmsgs] = numbers(numbers_part)?;
                Some(Limits { maxmsg, msgsize, curmsgs, mode: octal(mode)? })
            }
        },
        times: Some((before.parse()?, after.parse()?)),
    })
}

fn outcome(result: i64) -> Outcome {
    match i32::try_from(-result) {
        Ok(errno @ 1..) => Outcome::Failed { name: format!("{:?}", Errno::from_raw(errno)), text: None },
        _ => Outcome::Returned(result),
    }
}

fn readable<T>(text: &str, read: impl FnOnce(&str) -> Result<T>) -> Result<Readable<T>> {
    Ok(match text {
        "NULL" => Readable::No(Some(0)),
        "-" => Readable::No(None),
        text => Readable::Yes(read(text)?),
    })
}

fn hex(text: &str) -> Result<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    digits.map(|pair| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?)).collect()
}

fn octal(text: &str) -> Result<u32> {
    Ok(u32::from_str_radix(text.trim_start_matches("0o"), 8)?)
}

fn numbers<const N: usize>(text: &str) -> Result<[i64; N]> {
    let numbers = text.split(',').map(|number| Ok(number.parse()?)).collect::<Result<Vec<i64>>>()?;
    numbers.try_into().map_err(|_| anyhow::anyhow!("not {N} numbers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents the second oracle from reading its record wrongly: lines that the workload wrote.
    #[test]
    fn recorded_lines() -> Result<()> {
        let failed = open("17755\t-\t0x808c2\t0o22547326305\tNULL\t-14\t-\t1795\t1799\t17752")?;
        assert_eq!((failed.tid, failed.pid, failed.oflag), (17755, Some(17752), 0x808c2));
        assert_eq!((failed.name, failed.attr), (Readable::No(None), Some(Readable::No(Some(0)))));
        assert_eq!(failed.mode, Some(0o126305));
        assert_eq!(failed.outcome, Outcome::Failed { name: "EFAULT".into(), text: None });
        let opened = open("1\t6f72\t0x40\t0o650\t-1,7,182,0\t8\t7,182,0,0o7201\t1\t2\t3")?;
        assert_eq!((opened.name, opened.resident), (Readable::Yes(b"or".into()), true));
        let absent = open("1\t~6f72\t0x40\t0o650\t-\t-14\t-\t1\t2\t3")?;
        assert_eq!((absent.name, absent.resident), (Readable::Yes(b"or".into()), false));
        assert_eq!(opened.attr, Some(Readable::Yes([-1, 7, 182, 0])));
        assert_eq!(opened.limits, Some(Limits { maxmsg: 7, msgsize: 182, curmsgs: 0, mode: 0o7201 }));
        assert_eq!(opened.outcome, Outcome::Returned(8));
        assert_eq!(open("1\t\t0x0\t0o650\t-1,7,182,0\t-2\t-\t1\t2\t3")?.name, Readable::Yes(Vec::new()));
        assert!(open("1\t2").is_err());
        Ok(())
    }
}
