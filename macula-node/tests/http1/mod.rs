//! Requests over HTTP/1.1, written by hand.

#![allow(dead_code, reason = "each test file uses its part")]

use std::net::SocketAddr;

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};

/// An answer over HTTP/1.1.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

pub(crate) async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, head: &str, body: &str) -> Answer {
    let length = body.len();
    let host = if head.contains("\r\nHost: ") {
        ""
    } else {
        "\r\nHost: mesh"
    };
    let request = format!("{head}{host}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    // A TLS peer that closes without a word has said all the same.
    let _ = stream.read_to_end(&mut bytes).await;
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    Answer {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        head: head.to_lowercase(),
        body: body.to_owned(),
    }
}

pub(crate) async fn post(at: SocketAddr, path: &str, headers: &str, body: &str) -> Answer {
    let stream = TcpStream::connect(at).await.unwrap();
    exchange(stream, &format!("POST {path} HTTP/1.1{headers}"), body).await
}

pub(crate) async fn get(at: SocketAddr, path: &str) -> Answer {
    let stream = TcpStream::connect(at).await.unwrap();
    exchange(stream, &format!("GET {path} HTTP/1.1"), "").await
}
