//! Questions to a backend's query API.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// The JSON that `server` (an address and port) has at this path; an answer other than 200 is an error.
pub fn get(server: &str, path: &str) -> Result<Value> {
    let (status, body) = ask(server, path)?;
    ensure!(status == 200, "{path}: {status}: {body}");
    serde_json::from_str(&body).with_context(|| format!("{path}: {body}"))
}

/// The status and body of the answer to a GET.
pub fn ask(server: &str, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    // By HTTP/1.0 the answer ends with the connection.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {server}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("{path}: not HTTP: {answer}"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.with_context(|| format!("{path}: no status: {head}"))?;
    // Some answer in chunks whatever was asked for.
    let in_chunks = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Ok((status, if in_chunks { joined(body)? } else { body.to_owned() }))
}

fn joined(mut chunks: &str) -> Result<String> {
    let mut body = String::new();
    loop {
        let (size, rest) = chunks.split_once("\r\n").context("no chunk")?;
        let size = usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16)?;
        if size == 0 {
            return Ok(body);
        }
        let (chunk, rest) = rest.split_at_checked(size).context("a chunk is cut short")?;
        body.push_str(chunk);
        chunks = rest.strip_prefix("\r\n").context("a chunk is longer than it says")?;
    }
}

/// A text as part of a path.
pub fn escaped(text: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents an answer in chunks, and a path with marks in it, from being put together wrongly.
    #[test]
    fn parts() -> Result<()> {
        assert_eq!(joined("4\r\n{\"a\"\r\n3;x=y\r\n:1}\r\n0\r\n\r\n")?, "{\"a\":1}");
        assert!(joined("4\r\nab").is_err() && joined("1\r\nab\r\n0\r\n\r\n").is_err() && joined("").is_err());
        assert_eq!(escaped("a_1{b=\"/c\"}"), "a_1%7Bb%3D%22%2Fc%22%7D");
        Ok(())
    }
}
