//! A UDP proxy that delays every datagram and loses some, for measuring what a lossy network does.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Result;
use tokio::net::UdpSocket;

/// Starts a proxy to `to`; it lives as long as the runtime.
pub(crate) async fn start(to: SocketAddr, delay: Duration, loss: f64) -> Result<SocketAddr> {
    let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await?);
    let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await?);
    let address = front.local_addr()?;
    tokio::spawn(async move {
        let (mut there, mut here) = (vec![0; 65_536], vec![0; 65_536]);
        let mut client = None;
        let mut seed = 1_u64;
        loop {
            tokio::select! {
                received = front.recv_from(&mut there) => {
                    let Ok((length, from)) = received else { continue };
                    client = Some(from);
                    pass(&there[..length], &back, to, delay, lost(&mut seed, loss));
                }
                received = back.recv_from(&mut here) => {
                    let (Ok((length, _)), Some(client)) = (received, client) else { continue };
                    pass(&here[..length], &front, client, delay, lost(&mut seed, loss));
                }
            }
        }
    });
    Ok(address)
}

/// SplitMix64.
fn lost(seed: &mut u64, loss: f64) -> bool {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *seed;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / ((1_u64 << 53) as f64) < loss
}

fn pass(datagram: &[u8], socket: &Arc<UdpSocket>, to: SocketAddr, delay: Duration, lost: bool) {
    if lost {
        return;
    }
    let (socket, datagram) = (socket.clone(), datagram.to_vec());
    tokio::spawn(async move {
        tokio::time::sleep(delay).await;
        let _ = socket.try_send_to(&datagram, to);
    });
}
