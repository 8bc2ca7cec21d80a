//! rust-libp2p's request-response over QUIC, with a codec that reads and writes bytes as they are.

use std::{collections::HashMap, io, time::Duration};

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use bytes::Bytes;
use futures::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, StreamExt as _,
    future::{BoxFuture, FutureExt as _},
};
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm, SwarmBuilder,
    request_response::{self, Event, Message, OutboundRequestId, ProtocolSupport},
    swarm::SwarmEvent,
};
use tokio::sync::{mpsc, oneshot};

use crate::stacks::{Echo, TIMEOUT, Worker, repeat};

const MAX_BYTES: u64 = 8 << 20;

#[derive(Debug, Clone, Default)]
struct Raw;

async fn read(io: &mut (impl AsyncRead + Unpin + Send)) -> io::Result<Bytes> {
    let mut bytes = Vec::new();
    io.take(MAX_BYTES).read_to_end(&mut bytes).await?;
    Ok(bytes.into())
}

async fn write(io: &mut (impl AsyncWrite + Unpin + Send), bytes: Bytes) -> io::Result<()> {
    io.write_all(&bytes).await?;
    io.close().await
}

#[async_trait]
impl request_response::Codec for Raw {
    type Protocol = StreamProtocol;
    type Request = Bytes;
    type Response = Bytes;

    async fn read_request<T: AsyncRead + Unpin + Send>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Bytes> {
        read(io).await
    }

    async fn read_response<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> io::Result<Bytes> {
        read(io).await
    }

    async fn write_request<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        body: Bytes,
    ) -> io::Result<()> {
        write(io, body).await
    }

    async fn write_response<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        body: Bytes,
    ) -> io::Result<()> {
        write(io, body).await
    }
}

type Behaviour = request_response::Behaviour<Raw>;

fn swarm() -> Result<Swarm<Behaviour>> {
    let config = request_response::Config::default()
        .with_request_timeout(TIMEOUT)
        .with_max_concurrent_streams(1024);
    let protocols = [(StreamProtocol::new("/bench/echo"), ProtocolSupport::Full)];
    Ok(SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_quic()
        .with_behaviour(|_| Behaviour::new(protocols, config))?
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(60)))
        .build())
}

pub(crate) async fn serve() -> Result<String> {
    let mut swarm = swarm()?;
    swarm.listen_on("/ip4/127.0.0.1/udp/0/quic-v1".parse()?)?;
    let address = loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            break address;
        }
    };
    let text = format!("{}@{address}", swarm.local_peer_id());
    tokio::spawn(async move {
        loop {
            let event = swarm.select_next_some().await;
            if let SwarmEvent::Behaviour(Event::Message {
                message: Message::Request { request, channel, .. },
                ..
            }) = event
            {
                let _ = swarm.behaviour_mut().send_response(channel, request);
            }
        }
    });
    Ok(text)
}

type Call = (Bytes, oneshot::Sender<Bytes>);

pub(crate) struct Client(mpsc::Sender<Call>);

impl Client {
    pub(crate) async fn connect(address: &str) -> Result<Self> {
        let (peer, address) = address.split_once('@').context("no peer id")?;
        let (peer, address): (PeerId, Multiaddr) = (peer.parse()?, address.parse()?);
        let mut swarm = swarm()?;

        swarm.dial(address)?;
        while !matches!(swarm.select_next_some().await, SwarmEvent::ConnectionEstablished { .. }) {}
        let (calls, queue) = mpsc::channel(1024);
        tokio::spawn(drive(swarm, peer, queue));
        Ok(Self(calls))
    }

    async fn call(&self, body: Bytes) -> Result<Bytes> {
        let (answer, reply) = oneshot::channel();
        self.0.send((body, answer)).await?;
        Ok(reply.await?)
    }
}

async fn drive(mut swarm: Swarm<Behaviour>, peer: PeerId, mut queue: mpsc::Receiver<Call>) {
    let mut waiting: HashMap<OutboundRequestId, oneshot::Sender<Bytes>> = HashMap::new();
    loop {
        tokio::select! {
            call = queue.recv() => {
                let Some((body, answer)) = call else { return };
                waiting.insert(swarm.behaviour_mut().send_request(&peer, body), answer);
            }
            event = swarm.select_next_some() => match event {
                SwarmEvent::Behaviour(Event::Message { message: Message::Response { request_id, response }, .. }) => {
                    waiting.remove(&request_id).map(|answer| answer.send(response));
                }
                SwarmEvent::Behaviour(Event::OutboundFailure { request_id, .. }) => drop(waiting.remove(&request_id)),
                _ => {}
            },
        }
    }
}

impl Echo for Client {
    fn run<'a>(&'a self, body: Bytes, worker: Worker) -> BoxFuture<'a, Result<Worker>> {
        repeat(worker, body, |body| self.call(body)).boxed()
    }
}
