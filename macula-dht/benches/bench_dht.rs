//! What a stored record weighs and costs, in an open and in a closed realm: resident memory before and after, on Linux, bytes on the wire,
//! checks, and what a store checks under a flood of forgeries.

#![expect(clippy::print_stdout, reason = "the report is this program's output")]

use std::{
    error::Error,
    fs,
    time::{Duration, Instant},
};

use bytes::Bytes;
use macula_dht::{
    Begun, Clock, Config, Contact, Dht, MAX_PUBLISH_RECORDS, Memory, Origin, Outcome, Peer, ProviderStore, Request,
    Response, Role, StoreLimits,
};
use macula_wire::{
    Advertisement, Grant, GrantRole, Issue, Member, NodeId, Patterns, Place, Realm, RealmKey, RealmName, SecretKey,
    ServiceKey, ServiceName, SignedProvider, Signer, VerifiedProvider,
};
use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};

type Failure = Box<dyn Error>;

const RECORDS: u32 = 1_000_000;
const PROVIDERS_PER_KEY: u32 = 16;
const PUBLISHERS: u32 = 10_000;
/// The wall clock, in seconds.
const NOW: u64 = 1_800_000_000;
const SERVICE: &str = "shop.cart";
/// Peers that publish forgeries, and their networks.
const FLOODERS: u32 = 200;
const NETWORKS: u32 = 4;
/// How long they do so, by the core's clock.
const SECONDS: u32 = 10;

/// A signer whose signatures are not checked.
struct Unchecked(NodeId);

impl Signer for Unchecked {
    fn node_id(&self) -> NodeId {
        self.0
    }

    fn sign(&self, _: &[u8]) -> [u8; 64] {
        [7; 64]
    }
}

fn id(n: u32) -> [u8; 32] {
    let mut noise = SplitMix64::seed_from_u64(u64::from(n) << 20);
    let mut id = [0; 32];
    for chunk in id.chunks_exact_mut(8) {
        chunk.copy_from_slice(&noise.next_u64().to_be_bytes());
    }
    id
}

/// Resident memory, in bytes.
fn resident() -> Result<u64, Failure> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .ok_or("no VmRSS in /proc/self/status")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024)
}

fn advertisement() -> Result<Advertisement, Failure> {
    Ok(Advertisement::new(["https://node1.example:4433".parse()?]))
}

/// An open realm, or a closed one whose members show two grants.
struct World {
    realm: Realm,
    issuer: Option<Member>,
}

impl World {
    fn new(closed: bool) -> Result<Self, Failure> {
        if !closed {
            return Ok(Self {
                realm: Realm::default(),
                issuer: None,
            });
        }
        let key = RealmKey::from_bytes(&[9; 32]);
        let realm = key.realm(RealmName::default());
        let issue = Issue::new(GrantRole::Node, Patterns::all(), Patterns::all());
        let grant = Grant::new(&realm, issuer().node_id(), NOW..=NOW + 90 * 86_400).with_issue(issue);
        let issuer = grant.sign(&key)?.verify(&realm, NOW)?;
        Ok(Self {
            realm,
            issuer: Some(issuer),
        })
    }

    fn name(&self) -> &'static str {
        match self.issuer {
            None => "open",
            Some(_) => "closed",
        }
    }

    /// A node that may provide `shop.*` and one other service.
    fn member(&self, node_id: NodeId) -> Result<Member, Failure> {
        let Some(by) = &self.issuer else {
            return Ok(Member::open(&self.realm, node_id).ok_or("the realm is closed")?);
        };
        let services = Patterns::from_iter(["shop.*".parse()?, "mail.in".parse()?]);
        let grant = Grant::new(&self.realm, node_id, NOW..=NOW + 86_400)
            .with_role(GrantRole::Node)
            .with_provide(services.clone())
            .with_call(services);
        Ok(grant.issue(by, &issuer())?.verify(&self.realm, NOW)?)
    }

    fn place(&self, service: &str, member: &Member) -> Result<Place, Failure> {
        Ok(Place::of(&self.realm, &service.parse()?, member)?)
    }

    fn record(&self, n: u32) -> Result<SignedProvider, Failure> {
        let secret = SecretKey::from_bytes(&id(n));
        let place = self.place(SERVICE, &self.member(secret.node_id())?)?;
        let record = VerifiedProvider::sign_at(&secret, &place, NOW * 1000, NOW * 1000, &advertisement()?)?;
        Ok(record.to_signed())
    }

    fn key(&self) -> Result<ServiceKey, Failure> {
        Ok(ServiceKey::new(&self.realm, &SERVICE.parse::<ServiceName>()?))
    }
}

fn issuer() -> SecretKey {
    SecretKey::from_bytes(&[8; 32])
}

/// Bytes a record in a million, resident and as charged. The store is handed back so that its memory is not used again.
fn weigh(world: &World) -> Result<(ProviderStore, [f64; 2]), Failure> {
    let now = Instant::now();
    let limits = StoreLimits {
        keys: 1 << 20,
        bytes: 1 << 30,
        ..StoreLimits::default()
    };
    let mut store = ProviderStore::new(Clock::new(now, NOW * 1000), limits, 1);
    let from = Contact::new(NodeId::from_bytes(id(u32::MAX)), ["10.0.0.1:4433".parse()?]);
    let advertisement = advertisement()?;
    let before = resident()?;
    let publishers = (0..PUBLISHERS).map(|n| world.member(NodeId::from_bytes(id(0x8000_0000 + n))));
    let publishers = publishers.collect::<Result<Vec<_>, _>>()?;
    for n in 0..RECORDS {
        let member = &publishers[(n % PUBLISHERS) as usize];
        let place = world.place(&format!("shop.s{}", n / PROVIDERS_PER_KEY), member)?;
        let signer = Unchecked(*member.node_id());
        let record = VerifiedProvider::sign_at(&signer, &place, NOW * 1000, NOW * 1000, &advertisement)?;
        store.insert(now, record, Origin::Remote(&from))?;
    }
    let measured = (resident()? - before) as f64 / f64::from(RECORDS);
    let charged = store.usage().bytes as f64 / f64::from(RECORDS);
    Ok((store, [measured, charged]))
}

/// Bytes that a record adds to a message.
fn on_the_wire(world: &World) -> Result<usize, Failure> {
    let key = world.key()?;
    let message = |records| Request::Publish { key, records }.encode().len();
    let record = world.record(1)?;
    Ok(message(vec![record.clone(), record.clone()]) - message(vec![record]))
}

/// Records checked in a second by one core: of a provider whose grant is known, and of one whose grant is new.
fn checking(world: &World) -> Result<[f64; 2], Failure> {
    const TIMES: u32 = 5_000;
    let (record, key) = (world.record(1)?, world.key()?);
    let member = world.member(SecretKey::from_bytes(&id(1)).node_id())?;
    let mut rates = [0.0; 2];
    for (rate, known) in rates.iter_mut().zip([Some(&member), None]) {
        let begin = Instant::now();
        for _ in 0..TIMES {
            record.verify_apart(&world.realm, &key, known, NOW)?;
        }
        *rate = f64::from(TIMES) / begin.elapsed().as_secs_f64();
    }
    Ok(rates)
}

fn peer(network: u32, n: u32) -> Result<Peer, Failure> {
    let address = format!("10.{network}.0.{}:4433", n % 250 + 1).parse()?;
    Ok(Peer {
        contact: Contact::new(NodeId::from_bytes(id(0x4000_0000 + n)), [address]),
        role: Role::Node,
    })
}

/// Forged records from [`FLOODERS`] peers as fast as they are answered, and beside them one honest peer of another network with a record
/// every tenth of a second: forgeries checked in a second, the share of one core that the checks and all the rest take, and the share of
/// the honest records that were stored.
fn flood(world: &World) -> Result<[f64; 4], Failure> {
    let (begin, key) = (Instant::now(), world.key()?);
    let own = SecretKey::from_bytes(&[6; 32]);
    let own_id = own.node_id();
    let mut dht = Dht::new(
        Config::default(),
        own,
        world.realm.clone(),
        Memory,
        begin,
        NOW * 1000,
        1,
    );
    if let Some(chain) = world.member(own_id)?.chain() {
        dht.set_grant(begin, chain)?;
    }
    let forged = |n: u32| -> Result<_, Failure> {
        Ok(SignedProvider {
            signature: Bytes::from_static(&[7; 64]),
            ..world.record(n)?
        })
    };
    let records = (0..MAX_PUBLISH_RECORDS as u32)
        .map(forged)
        .collect::<Result<Vec<_>, _>>()?;
    let honest = (0..10 * SECONDS)
        .map(|n| world.record(1_000 + n))
        .collect::<Result<Vec<_>, _>>()?;
    let flooders = (0..FLOODERS)
        .map(|n| peer(n % NETWORKS, n))
        .collect::<Result<Vec<_>, _>>()?;
    let friend = peer(NETWORKS, FLOODERS)?;
    let (mut checked, mut stored) = (0, 0);
    let (mut in_checks, work) = (Duration::ZERO, Instant::now());
    let mut ask = |dht: &mut Dht<SecretKey>, now, from: &Peer, records| match dht.begin_request(
        now,
        from,
        Ok(Request::Publish { key, records }),
    ) {
        Begun::Answered(response) => (response, 0),
        Begun::Checking(mut checks) => {
            let (left, start) = (checks.left(), Instant::now());
            while checks.step() {}
            in_checks += start.elapsed();
            (dht.finish_request(now, checks), left)
        }
    };
    for (tenth, record) in (0..).zip(honest) {
        for part in 0..10 {
            let now = begin + Duration::from_millis(tenth * 100 + part * 10);
            for flooder in &flooders {
                checked += ask(&mut dht, now, flooder, records.clone()).1;
            }
            dht.handle_timeout(now);
            while dht.poll_output().is_some() {}
        }
        let now = begin + Duration::from_millis(tenth * 100 + 95);
        if let (Response::Published { outcomes, .. }, _) = ask(&mut dht, now, &friend, vec![record]) {
            stored += outcomes.iter().filter(|it| **it == Outcome::Stored).count();
        }
    }
    let (all, seconds) = (work.elapsed().as_secs_f64(), f64::from(SECONDS));
    let share = |time: f64| 100.0 * time / seconds;
    Ok([
        checked as f64 / seconds,
        share(in_checks.as_secs_f64()),
        share(all - in_checks.as_secs_f64()),
        100.0 * stored as f64 / (10.0 * seconds),
    ])
}

fn rounded(value: f64) -> Value {
    json!((value * 10.0).round() / 10.0)
}

fn main() -> Result<(), Failure> {
    let (mut kept, mut weights, mut rates, mut floods) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for world in [World::new(false)?, World::new(true)?] {
        let name = world.name();
        let (store, [resident, charged]) = weigh(&world)?;
        kept.push(store);
        weights.push(json!([name, rounded(resident), rounded(charged), on_the_wire(&world)?]));
        let [known, new] = checking(&world)?;
        rates.push(json!([name, known.round(), new.round()]));
        let mut row = vec![json!(name)];
        row.extend(flood(&world)?.map(rounded));
        floods.push(Value::from(row));
    }
    let report = json!({
        "title": "macula-dht: the weight and the cost of a stored record",
        "seed": 0,
        "tables": [{
            "name": "a million records, 16 providers a key, 10 000 publishers: bytes a record",
            "columns": ["realm", "resident", "charged", "in a message"],
            "rows": weights,
        }, {
            "name": "records checked in a second by one core",
            "columns": ["realm", "grant known", "grant new"],
            "rows": rates,
        }, {
            "name": format!("forgeries of {FLOODERS} peers in {NETWORKS} networks for {SECONDS} s, and an honest peer"),
            "columns": ["realm", "checked a second", "of a core for checks, %", "for the rest, %", "honest records stored, %"],
            "rows": floods,
        }],
        "plots": [],
        "trace_hash": null,
        "notes": [
            "The signature and the signed body are kept as they came; the body here is about 90 bytes. The target is 400 bytes a record in an open realm.",
        ],
    });
    println!("{report:#}");
    Ok(())
}
