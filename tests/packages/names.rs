//! A name server that knows every name ending in `.test`, at a loopback address of its own.

use std::{
    net::{Ipv4Addr, UdpSocket},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::{Context, Result};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 83, 84, 1);

/// The server. It runs until the test's process ends.
pub struct Names {
    asked: Arc<Mutex<Vec<String>>>,
}

impl Names {
    /// Starts it at the port of DNS, since resolv.conf(5) can name no other.
    pub fn start() -> Result<Self> {
        let socket = UdpSocket::bind((ADDRESS, 53)).with_context(|| format!("{ADDRESS}:53"))?;
        let asked = Arc::new(Mutex::new(Vec::new()));
        let kept = asked.clone();
        thread::spawn(move || {
            let mut request = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut request) {
                if let Some((name, answer)) = answer(&request[..length]) {
                    kept.lock().unwrap_or_else(PoisonError::into_inner).push(name);
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Ok(Self { asked })
    }

    /// Where it is.
    pub fn address(&self) -> Ipv4Addr {
        ADDRESS
    }

    /// The names that it was asked for.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The name that a request asks for, and what is answered (RFC 1035): the loopback address where an IPv4 one is asked for, else
/// that there is none of that kind.
fn answer(request: &[u8]) -> Option<(String, Vec<u8>)> {
    const HEADER: usize = 12;
    let (mut at, mut labels) = (HEADER, Vec::new());
    while let length @ 1.. = usize::from(*request.get(at)?) {
        labels.push(String::from_utf8_lossy(request.get(at + 1..at + 1 + length)?).into_owned());
        at += 1 + length;
    }
    let kind = request.get(at + 1..at + 3)?;
    let name = labels.join(".");
    let found = kind == [0, 1] && name.ends_with(".test");
    // The request's id; an answer, recursion is available; one question, and as many answers.
    let mut answer = [request.get(..2)?, &[0x81, 0x80, 0, 1, 0, found.into(), 0, 0, 0, 0]].concat();
    answer.extend_from_slice(request.get(HEADER..at + 5)?);
    if found {
        // The name of the question, A, IN, for 60 s, four bytes.
        answer.extend_from_slice(&[0xc0, HEADER as u8, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
    }
    Some((name, answer))
}
