//! Questions to a server's HTTP API.

use std::{
    io::{BufRead, BufReader, Read, Write},
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

/// The JSON that `server` answers to JSON; an answer other than 200 is an error.
pub fn post(server: &str, path: &str, value: &Value) -> Result<Value> {
    let (status, body) = request(server, "POST", path, &value.to_string())?;
    ensure!(status == 200, "{path}: {status}: {body}");
    serde_json::from_str(&body).with_context(|| format!("{path}: {body}"))
}

/// Deletes what `server` has at this path; an answer other than 200 is an error.
pub fn delete(server: &str, path: &str) -> Result<()> {
    let (status, body) = request(server, "DELETE", path, "")?;
    ensure!(status == 200, "{path}: {status}: {body}");
    Ok(())
}

/// The status and body of the answer to a GET.
pub fn ask(server: &str, path: &str) -> Result<(u16, String)> {
    request(server, "GET", path, "")
}

fn request(server: &str, method: &str, path: &str, sent: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    // Not by HTTP/1.0, which chromedriver refuses.
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\nContent-Length: {}", sent.len());
    write!(stream, "{head}\r\n\r\n{sent}")?;
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while stream.read_line(&mut head)? > 2 {}
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.with_context(|| format!("{path}: no status: {head}"))?;
    let head = head.to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    let mut body = String::new();
    match length {
        // Some leave the connection open whatever was asked for.
        Some(length) => _ = stream.take(length.trim().parse()?).read_to_string(&mut body)?,
        None => _ = stream.read_to_string(&mut body)?,
    }
    Ok((status, if head.contains("transfer-encoding: chunked") { joined(&body)? } else { body }))
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
