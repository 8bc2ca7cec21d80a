//! The weight of a million stored records: resident memory before and after, on Linux.

#![expect(clippy::print_stdout, reason = "the report is this program's output")]

use std::{error::Error, fs, time::Instant};

use macula_dht::{Clock, Contact, Origin, ProviderStore, StoreLimits};
use macula_wire::{Advertisement, NodeId, Realm, ServiceKey, Signer, VerifiedProvider};

const RECORDS: u32 = 1_000_000;
const PROVIDERS_PER_KEY: u32 = 16;

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
    let mut state = u64::from(n) << 20;
    let mut id = [0; 32];
    for chunk in id.chunks_exact_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        chunk.copy_from_slice(&(z ^ (z >> 31)).to_be_bytes());
    }
    id
}

/// Resident memory, in bytes.
fn resident() -> Result<u64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .ok_or("no VmRSS in /proc/self/status")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024)
}

fn main() -> Result<(), Box<dyn Error>> {
    let now = Instant::now();
    let limits = StoreLimits {
        keys: 1 << 20,
        bytes: 1 << 30,
        ..StoreLimits::default()
    };
    let mut store = ProviderStore::new(Clock::new(now, 0), limits, 1);
    let from = Contact::new(NodeId::from_bytes(id(u32::MAX)), ["10.0.0.1:4433".parse()?]);
    let advertisement = Advertisement::new(["https://node1.example:4433".parse()?]);
    let realm = Realm::default().hash();
    let before = resident()?;
    for n in 0..RECORDS {
        let key = ServiceKey::from_bytes(id(n / PROVIDERS_PER_KEY));
        let signer = Unchecked(NodeId::from_bytes(id(0x8000_0000 + n % 10_000)));
        let record = VerifiedProvider::sign(&signer, &realm, &key, 1_800_000_000_000, 0, &advertisement)?;
        store.insert(now, record, Origin::Remote(&from))?;
    }
    let measured = (resident()? - before) as f64 / f64::from(RECORDS);
    let charged = store.usage().bytes as f64 / f64::from(RECORDS);
    let report = serde_json::json!({
        "title": "macula-dht: the weight of a stored record",
        "seed": 0,
        "tables": [{
            "name": "a million records, 16 providers a key, 10 000 publishers",
            "columns": ["measure", "bytes a record", "target"],
            "rows": [
                ["resident memory", (measured * 10.0).round() / 10.0, 400],
                ["charged against the store's limit", (charged * 10.0).round() / 10.0, 400],
            ],
        }],
        "plots": [],
        "trace_hash": null,
        "notes": ["The signature and the signed body are kept as they came; the body here is about 90 bytes."],
    });
    println!("{report:#}");
    Ok(())
}
