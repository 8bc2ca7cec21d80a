//! Sybils that want a key for themselves, against a whole node.

#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

mod common;

use std::time::{Duration, Instant};

use common::{EPOCH_MS, advertisement, contact_of, key, secret};
use macula_dht::{Config, Dht, Memory, Outcome, Peer, Refusal, Request, Response, Role, StoreLimits};
use macula_wire::{Realm, SecretKey, VerifiedProvider};

/// Sybils of one subnet fill a key, renew without end, and come back under ever new ids. Honest providers of other subnets get
/// in all the same, stay, and keep renewing.
fn squat(sybils: usize) {
    const HONEST: usize = 5;
    let store = StoreLimits {
        providers_per_key: sybils,
        ..StoreLimits::default()
    };
    let config = Config {
        store,
        ..Config::default()
    };
    let mut now = Instant::now();
    let mut dht = Dht::new(config, secret(0), Realm::default(), Memory, now, EPOCH_MS, 7);
    let (squatted, realm) = (key("squatted"), Realm::default().hash());
    let from = |n: usize, ip: [u8; 4]| Peer {
        contact: contact_of(n).observed_at(ip.into()),
        role: Role::Node,
    };
    let publish = |dht: &mut Dht<SecretKey>, now, n: usize, ip: [u8; 4], seq: u64| {
        let signed = VerifiedProvider::sign(&secret(n), &realm, &squatted, seq, EPOCH_MS, &advertisement(n)).unwrap();
        let records = vec![signed.to_signed()];
        let request = Request::Publish { key: squatted, records };
        match dht.handle_request(now, &from(n, ip), Ok(request)) {
            Response::Published(outcomes) => outcomes[0],
            other => panic!("{other:?}"),
        }
    };
    let address = |n: usize| [198, 51, 100, n as u8];
    for n in 1..=sybils {
        assert_eq!(publish(&mut dht, now, n, address(n), 1), Outcome::Stored);
    }
    let honest = |n: usize| (1000 + n, [203, 0, n as u8, 1]);
    for (n, ip) in (0..HONEST).map(honest) {
        assert_eq!(
            publish(&mut dht, now, n, ip, 1),
            Outcome::Stored,
            "the key is full of Sybils, and lets {n} in"
        );
    }
    for round in 2..6 {
        now += Duration::from_secs(10);
        for n in 1..=sybils {
            // Those that were turned out want back in; the others renew; and each time a few come under new ids.
            publish(&mut dht, now, n, address(n), round);
        }
        for n in 0..sybils / 4 {
            let fresh = 2000 + 100 * round as usize + n;
            let refused = publish(&mut dht, now, fresh, address(n), 1);
            assert_eq!(refused, Outcome::Refused(Refusal::KeyFull));
        }
        for (n, ip) in (0..HONEST).map(honest) {
            assert_eq!(
                publish(&mut dht, now, n, ip, round),
                Outcome::Stored,
                "{n} renews in round {round}"
            );
        }
        let held: Vec<_> = dht.local_providers(now, &squatted).map(|r| *r.node_id()).collect();
        assert!(held.len() <= sybils);
        for (n, _) in (0..HONEST).map(honest) {
            assert!(
                held.contains(contact_of(n).node_id()),
                "{n} is still there in round {round}"
            );
        }
    }
}

#[test]
fn twenty_sybils_cannot_squat_a_key_by_renewing() {
    squat(20);
}

#[test]
fn a_hundred_sybils_cannot_squat_a_key_by_renewing() {
    squat(100);
}
