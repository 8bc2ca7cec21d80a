//! The house: the packages from the bottom to the top, and the packages that each may use.

/// Each package, and those of ours that it may depend on.
pub(crate) const HOUSE: &[(&str, &[&str])] = &[
    ("macula-wire", &[]),
    ("macula-select", &[]),
    ("macula-dht", &["macula-wire"]),
    ("macula-transport", &["macula-wire"]),
    ("macula-rpc", &["macula-wire", "macula-select", "macula-transport"]),
    (
        "macula-node",
        &[
            "macula-wire",
            "macula-select",
            "macula-dht",
            "macula-transport",
            "macula-rpc",
        ],
    ),
    ("xtask", &[]),
];

/// Whether `package` is one of the crates that are published.
pub(crate) fn published(package: &str) -> bool {
    package != "xtask" && HOUSE.iter().any(|(name, _)| *name == package)
}
